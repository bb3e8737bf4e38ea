package app_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// What the admin API asks for and answers is what its description says.
func TestAdminAPIIsAsDescribed(t *testing.T) {
	in := newInbox(t)
	g := start(t, sources, "subscribers:\n", subscriber("all", in.url+"/all", "start: now"))
	g.accept("A-1", "A-2")
	g.post("fo", nil, []byte(`{"no":"event"}`))
	g.drained()

	load := func() *openapi3.T {
		t.Helper()
		resp, err := http.Get(g.admin.URL + "/api/v1/openapi.json")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := openapi3.NewLoader().LoadFromData(b)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	doc := load()
	for _, tt := range []struct {
		name, method, route string
		params              map[string]string
		query, body         string
		status              int
	}{
		{name: "status", route: "status"},
		{name: "subscribers", route: "subscribers"},
		{name: "subscriber", route: "subscribers/{name}", params: map[string]string{"name": "all"}},
		{name: "add a subscriber", method: "PUT", route: "subscribers/{name}", params: map[string]string{"name": "b"},
			body: `{"subjects":["events.>"],"deliver":{"webhook":{"url":"http://127.0.0.1:1/x"}},"limits":{"timeout":"3s","batch":{"events":5}},"retry":{"schedule":["1s"]}}`},
		{name: "pause", method: "POST", route: "subscribers/{name}/pause", params: map[string]string{"name": "b"}},
		{name: "shed", route: "subscribers/{name}/shed", params: map[string]string{"name": "all"}},
		{name: "add an endpoint", method: "PUT", route: "endpoints/{name}", params: map[string]string{"name": "e"}, body: `{"url":"http://127.0.0.1:1/y"}`},
		{name: "endpoints", route: "endpoints"},
		{name: "quarantine", route: "quarantine", query: "limit=5"},
		{name: "quarantine, tried", method: "POST", route: "quarantine/redrive", body: `{"source":"fo","dryRun":true}`},
		{name: "dead letters", route: "deadletters"},
		{name: "dead letters of one", route: "subscribers/{name}/deadletters", params: map[string]string{"name": "all"}},
		{name: "replay, tried", method: "POST", route: "subscribers/{name}/replay", params: map[string]string{"name": "all"}, body: `{"from":"1","dryRun":true}`},
		{name: "replay", method: "POST", route: "subscribers/{name}/replay", params: map[string]string{"name": "all"}, body: `{"from":"1","rate":"100/s"}`},
		{name: "jobs", route: "jobs"},
		{name: "books", route: "books"},
		{name: "why", route: "why", query: "id=A-1"},
		{name: "stored event", route: "listen/{sequence}", params: map[string]string{"sequence": "1"}},
		{name: "test", method: "POST", route: "test", body: `{"filter":"true","transform":".","last":10}`},
		{name: "no such subscriber", route: "subscribers/{name}", params: map[string]string{"name": "nobody"}, status: 404},
		{name: "subscriber exists", method: "PUT", route: "subscribers/{name}", params: map[string]string{"name": "b"},
			body: `{"subjects":["events.>"],"deliver":{"webhook":{"url":"http://127.0.0.1:1/z"}}}`, status: 409},
		{name: "bad definition", method: "PUT", route: "subscribers/{name}", params: map[string]string{"name": "c"},
			body: `{"subjects":["x"],"deliver":{}}`, status: 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = http.MethodGet
			}
			if tt.status == 0 {
				tt.status = http.StatusOK
			}
			template := "/api/v1/" + tt.route
			path := template
			for k, v := range tt.params {
				path = strings.ReplaceAll(path, "{"+k+"}", v)
			}
			item := doc.Paths.Value(template)
			if item == nil || item.GetOperation(tt.method) == nil {
				t.Fatalf("%s %s is not described", tt.method, template)
			}
			request := func() *http.Request {
				req, err := http.NewRequestWithContext(t.Context(), tt.method, g.admin.URL+path+"?"+tt.query, strings.NewReader(tt.body))
				if err != nil {
					t.Fatal(err)
				}
				if tt.body != "" {
					req.Header.Set("Content-Type", "application/json")
				}
				return req
			}
			input := &openapi3filter.RequestValidationInput{
				Request: request(), PathParams: tt.params,
				Route:   &routers.Route{Spec: doc, Path: template, PathItem: item, Method: tt.method, Operation: item.GetOperation(tt.method)},
				Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true, MultiError: true},
			}
			if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
				t.Errorf("the request: %v", err)
			}
			resp, err := http.DefaultClient.Do(request())
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status {
				t.Fatalf("HTTP %d %s", resp.StatusCode, body)
			}
			answer := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: resp.StatusCode, Header: resp.Header, Options: input.Options}
			if err := openapi3filter.ValidateResponse(t.Context(), answer.SetBodyBytes(body)); err != nil {
				t.Errorf("the answer: %v\n%s", err, body)
			}
		})
	}
}
