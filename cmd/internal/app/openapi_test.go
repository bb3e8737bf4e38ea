package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/blobtest"
	"github.com/gridfan/gridfan/router/poll"
)

// described talks to the admin API and holds every request and answer against its
// own description.
type described struct {
	t      *testing.T
	url    string
	doc    *openapi3.T
	router routers.Router
	done   map[string]bool // operations that have answered 200
}

func newDescribed(t *testing.T, url string) *described {
	t.Helper()
	resp, err := http.Get(url + "/api/v1/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = openapi3.Servers{{URL: url}}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &described{t, url, doc, router, map[string]bool{}}
}

// call makes a request, which is asked to be as described, and wants a status and
// a code of a problem, if there is one. header is name, value.
func (d *described) call(method, path, body string, status int, code string, header ...string) (http.Header, map[string]any) {
	d.t.Helper()
	ctx := d.t.Context()
	req, err := http.NewRequestWithContext(ctx, method, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	route, params, err := d.router.FindRoute(req)
	if err != nil {
		d.t.Errorf("%s %s: %v", method, path, err)
		return nil, nil
	}
	input := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}
	// What is wrong on purpose need not be as described.
	if err := openapi3filter.ValidateRequest(ctx, input); err != nil && status != http.StatusBadRequest {
		d.t.Errorf("%s %s: the request is not as described: %v", method, path, err)
	}
	req.Body = io.NopCloser(strings.NewReader(body))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	answer := map[string]any{}
	kind := resp.Header.Get("Content-Type")
	isJSON := strings.Contains(kind, "json")
	if isJSON {
		if err := json.Unmarshal(text, &answer); err != nil {
			d.t.Errorf("%s %s: %v", method, path, err)
		}
	}
	if got, _ := answer["code"].(string); resp.StatusCode != status || got != code {
		d.t.Errorf("%s %s: got %d %s, want %d %s: %s", method, path, resp.StatusCode, got, status, code, text)
	}
	options := *input.Options
	options.ExcludeResponseBody = !isJSON
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(text)), Options: &options,
	}
	if err := openapi3filter.ValidateResponse(ctx, out); err != nil {
		d.t.Errorf("%s %s: the answer is not as described: %v\n%s", method, path, err, text)
	}
	if content := route.Operation.Responses.Status(resp.StatusCode); content != nil && !isJSON {
		kind, _, _ := strings.Cut(kind, ";")
		if content.Value.Content.Get(kind) == nil {
			d.t.Errorf("%s %s: answers %s, which is not described", method, path, kind)
		}
	}
	if resp.StatusCode == http.StatusOK {
		d.done[route.Method+" "+route.Path] = true
	}
	return resp.Header, answer
}

// TestAdminAPIIsAsDescribed makes every request there is, and wants that requests
// and answers are as the API describes itself.
func TestAdminAPIIsAsDescribed(t *testing.T) {
	in := newInbox(t)
	in.handle = func(w http.ResponseWriter, r *http.Request, _ received) bool {
		if strings.HasPrefix(r.URL.Path, "/refuses") {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		return false
	}
	e := newEstate(t)
	bus := amqptest.Start(t, amqptest.Options{})
	given := bus.Queue("orders", amqptest.QueueOptions{}).DeadLetters
	given.Put(&amqp.Message{Data: [][]byte{[]byte(`{"specversion":"1.0","id":"LATE","source":"/s","type":"t"}`)}})
	received := fmt.Sprintf("  bus: { kind: cloudevents, receive: { serviceBus: { queue: orders, auth: { connectionString: \"Endpoint=sb://%s;SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true\" } } } }\n", bus.Addr)
	hub := bus.Hub("events", amqptest.HubOptions{Partitions: 2})
	received += fmt.Sprintf("  hub: { kind: cloudevents, receive: { eventHub: { hub: events, auth: { connectionString: \"Endpoint=sb://%s;SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true\" } } } }\n", bus.Addr)
	dead := blobtest.Start(t, "dead")
	dead.Put("T/S/2026/1/1/1/x.json", `[{"id":"DEAD","eventType":"Made","subject":"s","eventTime":"2026-11-01T00:00:00Z","dataVersion":"1","data":{},"deadLetterReason":"MaxDeliveryAttemptsExceeded"}]`)
	received += fmt.Sprintf("  files: { kind: eventgrid, push: { auth: none }, deadLetters: { blob: { container: dead, every: none, auth: { connectionString: %q } } } }\n", dead.ConnectionString())
	received += "  cut: { kind: dataverse, push: { auth: none }, complete: { url: \"http://127.0.0.1:1\", within: 1h } }\n"
	g := start(t, sources+e.source("crm", "")+received+"subscribers:\n"+subscriber("file", in.url+"/file", ""))
	d := newDescribed(t, "http://"+g.app.AdminAddr())
	get := func(path string) map[string]any { t.Helper(); _, a := d.call("GET", path, "", 200, ""); return a }
	post := func(path, body string) map[string]any {
		t.Helper()
		_, a := d.call("POST", path, body, 200, "")
		return a
	}
	sub := func(name string) string { return "/api/v1/subscribers/" + name }

	// Subscribers.
	definition := func(path, more string) string {
		return fmt.Sprintf(`{"subjects":["events.>"],"deliver":{"webhook":{"url":%q}}%s}`, in.url+path, more)
	}
	header, _ := d.call("PUT", sub("full"), `{"name":"full","subjects":["events.fno.>"],"filter":"event.type != \"x\"","transform":".",
		"deliver":{"webhook":{"url":"`+in.url+`/full?code=1","format":"cloudevents","sign":true}},"start":"beginning","ordering":"key",
		"limits":{"concurrency":2,"timeout":"10s","rate":"100/s","batch":{"events":2,"bytes":"1MiB","linger":"10ms"},"backlog":{"age":"7d","bytes":"1GiB"}},
		"retry":{"schedule":["1s"],"maxAge":"1d","maxRetryAfter":"1h","faults":{"tls":{"giveUp":true},"server":{"schedule":["1s"]}}},
		"breaker":{"failures":5,"ratio":0.5,"window":"30s","openFor":"10s","maxOpenFor":"5m","probes":1,"rampUp":"none"}}`, 200, "")
	tag := header.Get("ETag")
	d.call("PUT", sub("refuses"), definition("/refuses", `,"start":1`), 200, "")
	d.call("PUT", sub("refuses"), definition("/another", ""), 409, "subscriber-exists")
	d.call("PUT", sub("file"), definition("/another", ""), 409, "file-declared")
	d.call("PUT", sub("bad"), `{"subjects":["x"],"deliver":{}}`, 400, "bad-definition")
	for _, way := range []string{
		`{"eventGrid":{"endpoint":"https://127.0.0.1:1/","schema":"eventgrid","auth":{"key":"canary-key"}}}`,
		`{"eventGridNamespace":{"endpoint":"https://127.0.0.1:1/","topic":"orders","auth":{"key":"canary-key"}}}`,
		`{"eventGridNamespace":{"endpoint":"https://127.0.0.1:1/","topic":"orders","auth":{"workloadIdentity":{"clientID":"11111111-2222-3333-4444-555555555555","tenant":"example.com"}}}}`,
		`{"serviceBus":{"queue":"orders","session":"partitionkey","auth":{"connectionString":"Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=n;SharedAccessKey=canary"}}}`,
		`{"serviceBus":{"namespace":"127.0.0.1:1","topic":"orders","auth":{"managedIdentity":{}}}}`,
	} {
		header, made := d.call("PUT", sub("azure"), `{"subjects":["events.none.>"],"deliver":`+way+`}`, 200, "")
		shown, err := json.Marshal(made["definition"])
		if err != nil || strings.Contains(string(shown), "canary") {
			t.Errorf("shows %s, %v", shown, err)
		}
		if back, _ := d.call("PUT", sub("azure"), string(shown), 200, "", "If-Match", header.Get("ETag")); back.Get("ETag") != header.Get("ETag") {
			t.Errorf("the same changed it: %s", shown)
		}
		d.call("DELETE", sub("azure"), "", 200, "")
	}
	header, full := d.call("GET", sub("full"), "", 200, "")
	if header.Get("ETag") != tag {
		t.Errorf("ETag %s, then %s", tag, header.Get("ETag"))
	}
	// What was read can be sent back.
	again, err := json.Marshal(full["definition"])
	if err != nil {
		t.Fatal(err)
	}
	header, _ = d.call("PUT", sub("full"), string(again), 200, "", "If-Match", tag)
	if header.Get("ETag") != tag {
		t.Errorf("the same changed it: %s, then %s", tag, header.Get("ETag"))
	}
	d.call("PUT", sub("full"), strings.Replace(string(again), `"concurrency":2`, `"concurrency":3`, 1), 200, "", "If-Match", tag)
	d.call("PUT", sub("full"), string(again), 412, "stale", "If-Match", tag)
	d.call("PUT", sub("full"), string(again), 400, "bad-parameter", "If-Match", "17")
	d.call("PUT", sub("nobody"), string(again), 400, "bad-definition", "If-Match", tag)
	d.call("PUT", sub("nobody"), definition("/", ""), 412, "stale", "If-Match", tag)
	d.call("GET", sub("nobody"), "", 404, "no-such-subscriber")
	post(sub("full")+"/pause", "")
	post(sub("full")+"/drain", "")
	post(sub("full")+"/resume", "")
	post(sub("full")+"/rotate-key", `{"overlap":"1h"}`)
	post(sub("full")+"/rotate-key", "")
	d.call("POST", sub("full")+"/rotate-key", `{"overlap":"90d"}`, 400, "bad-parameter")
	d.call("POST", sub("refuses")+"/rotate-key", "", 409, "not-signed")
	waitFor(t, "it has a worker", func() bool {
		resp, err := http.Post(d.url+sub("full")+"/probe", "", nil)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	post(sub("full")+"/probe", "")

	// Events, some of them refused, and one that is not understood.
	g.accept("A", "B")
	if a := g.post("eg", nil, []byte(`{"no":"event"}`)); a.status != http.StatusOK {
		t.Fatalf("HTTP %d %s", a.status, a.body)
	}
	waitFor(t, "dead letters", func() bool {
		b, err := g.admin.Subscriber(t.Context(), "refuses")
		return err == nil && b.Backlog.DeadLetters == 2
	})
	get("/api/v1/status")

	// Sources.
	g.state("crm", poll.Polling)
	get("/api/v1/sources")
	get("/api/v1/sources/fo")
	get("/api/v1/sources/crm")
	post("/api/v1/sources/crm/poll-now", "")
	post("/api/v1/sources/crm/rewind", `{"to":"beginning"}`)
	post("/api/v1/sources/crm/baseline", `{"mode":"compare"}`)
	get("/api/v1/sources/bus")
	if r := post("/api/v1/sources/bus/recover?dryRun=true", ""); r["messages"] != 1.0 || r["published"] != 1.0 || given.Len() != 1 {
		t.Errorf("a dry run: %v, and %d dead letters are left there", r, given.Len())
	}
	if r := post("/api/v1/sources/bus/recover", ""); r["messages"] != 1.0 || r["published"] != 1.0 || given.Len() != 0 {
		t.Errorf("recovered: %v, and %d dead letters are left there", r, given.Len())
	}
	in.wantOnce(t, "file", []string{"LATE"})
	if r := post("/api/v1/sources/files/recover", ""); r["messages"] != 1.0 || r["blobs"] != 1.0 || r["published"] != 1.0 {
		t.Errorf("recovered: %v", r)
	}
	get("/api/v1/sources/files")
	const row = "33333333-0000-4000-8000-000000000001"
	g.post("cut", tooLarge, cutShort("Update", row, 1, time.Now()))
	waitFor(t, "its row cannot be read", func() bool {
		s, err := g.admin.Source(t.Context(), "cut")
		return err == nil && s.Complete != nil && s.Complete.Kind != "" && s.Complete.Held == 1
	})
	get("/api/v1/sources/cut")
	if a := get("/api/v1/why?id=" + row + "&since=1h"); len(a["held"].([]any)) != 1 {
		t.Errorf("why: %v", a)
	}
	d.call("POST", "/api/v1/sources/bus/recover?dryRun=perhaps", "", 400, "bad-selection")
	d.call("POST", "/api/v1/sources/fo/recover", "", 404, "no-such-source")
	hub.Put(1, &amqp.Message{Data: [][]byte{[]byte(`{"specversion":"1.0","id":"HUB","source":"/s","type":"t"}`)}})
	in.wantOnce(t, "file", []string{"HUB"})
	waitFor(t, "it is known how far the hub is", func() bool {
		s, err := g.admin.Source(t.Context(), "hub")
		return err == nil && s.Receive != nil && len(s.Receive.Partitions) == 2 && s.Receive.Partitions[1].Sequence != nil && s.Receive.Lag != nil
	})
	get("/api/v1/sources/hub")
	post("/api/v1/sources/hub/rewind", `{"to":"beginning"}`)
	post("/api/v1/sources/hub/rewind", `{"partition":"1","sequence":0}`)
	waitFor(t, "it is read again", func() bool {
		s, err := g.admin.Source(t.Context(), "hub")
		return err == nil && s.Receive.Duplicate > 0
	})
	d.call("POST", "/api/v1/sources/hub/rewind", `{"sequence":0}`, 400, "bad-parameter")
	d.call("POST", "/api/v1/sources/hub/rewind", `{"to":"beginning","partition":"0","sequence":0}`, 400, "bad-parameter")
	d.call("POST", "/api/v1/sources/hub/rewind", `{"to":"beginning","partition":"7"}`, 409, "no-such-partition")
	d.call("POST", "/api/v1/sources/bus/rewind", `{"to":"beginning"}`, 409, "cannot-rewind")
	d.call("POST", "/api/v1/sources/fo/rewind", `{"to":"beginning"}`, 409, "not-polled")
	d.call("POST", "/api/v1/sources/nobody/rewind", `{"to":"beginning"}`, 404, "no-such-source")
	d.call("GET", "/api/v1/sources/nobody", "", 404, "no-such-source")
	d.call("POST", "/api/v1/sources/nobody/poll-now", "", 404, "no-such-source")
	d.call("POST", "/api/v1/sources/fo/poll-now", "", 409, "not-polled")
	post("/api/v1/sources/crm/rewind", `{"to":"2026-11-01T10:00:00Z"}`)
	d.call("POST", "/api/v1/sources/crm/rewind", `{"to":"2999-11-01T10:00:00Z"}`, 400, "bad-parameter")
	d.call("POST", "/api/v1/sources/crm/rewind", `{"to":"yesterday"}`, 400, "bad-parameter")
	d.call("POST", "/api/v1/sources/crm/rewind", `{"from":"beginning"}`, 400, "bad-selection")
	d.call("POST", "/api/v1/sources/crm/baseline", `{"mode":"loud"}`, 400, "bad-parameter")
	d.call("POST", "/api/v1/sources/crm/baseline", `{"mode":"silent","confirm":true}`, 400, "bad-parameter")
	get("/api/v1/subscribers")
	get(sub("full") + "/asyncapi?last=10")
	d.call("GET", sub("full")+"/asyncapi?last=0", "", 400, "bad-parameter")
	get(sub("full") + "/shed?limit=10")
	d.call("GET", sub("full")+"/shed?limit=0", "", 400, "bad-parameter")
	get("/api/v1/deadletters?subscriber=refuses")
	page := get(sub("refuses") + "/deadletters?limit=1&cause=rejected&since=2001-02-03T04:05:06Z")
	letters := page["deadLetters"].([]any)
	first := letters[0].(map[string]any)["sequence"]
	second := get(fmt.Sprint(sub("refuses"), "/deadletters?limit=1&after=", page["next"]))["deadLetters"].([]any)
	if len(letters) != 1 || len(second) != 1 || second[0].(map[string]any)["sequence"] == first {
		t.Errorf("two pages of one each: %v, %v", letters, second)
	}
	for _, list := range []string{sub("refuses") + "/deadletters", "/api/v1/quarantine"} {
		for _, bad := range []string{"after=-1", "after=x", "limit=0", "limit=1001", "limit=x"} {
			d.call("GET", list+"?"+bad, "", 400, "bad-parameter")
		}
	}
	get(fmt.Sprint(sub("refuses"), "/deadletters/", first))
	d.call("GET", sub("refuses")+"/deadletters/9999", "", 404, "no-such-dead-letter")
	post(sub("refuses")+"/deadletters/redrive", `{"all":true,"dryRun":true}`)
	post(sub("refuses")+"/deadletters/drop", `{"all":true,"dryRun":true}`)
	d.call("POST", sub("refuses")+"/deadletters/redrive", `{}`, 400, "bad-selection")
	post(sub("full")+"/replay", `{"from":"1","dryRun":true}`)
	job := post(sub("full")+"/replay", `{"from":"1","to":"2","rate":"1/m"}`)["job"].(map[string]any)["id"].(string)
	get("/api/v1/jobs")
	get("/api/v1/jobs/" + job)
	post("/api/v1/jobs/"+job+"/stop", "")
	waitFor(t, "the job has stopped", func() bool {
		j, err := g.admin.Job(t.Context(), job)
		return err == nil && j.State == "stopped"
	})
	post("/api/v1/jobs/"+job+"/resume", "")
	d.call("GET", "/api/v1/jobs/none", "", 404, "no-such-job")
	post("/api/v1/test", `{"subscriber":"full","filter":"event.subject == \"x\"","last":10}`)
	d.call("POST", "/api/v1/test", `{"filter":"("}`, 400, "bad-definition")

	// Endpoints.
	header, _ = d.call("PUT", "/api/v1/endpoints/wms", fmt.Sprintf(`{"url":%q}`, in.url+"/wms?code=1"), 200, "")
	tag = header.Get("ETag")
	d.call("PUT", "/api/v1/endpoints/wms", fmt.Sprintf(`{"url":%q}`, in.url), 409, "endpoint-exists")
	d.call("PUT", "/api/v1/endpoints/wms", fmt.Sprintf(`{"name":"wms","url":%q}`, in.url), 200, "", "If-Match", tag)
	d.call("PUT", "/api/v1/endpoints/wms", fmt.Sprintf(`{"url":%q}`, in.url), 412, "stale", "If-Match", tag)
	d.call("PUT", "/api/v1/endpoints/bad", `{"url":"ftp://x"}`, 400, "bad-definition")
	d.call("PUT", "/api/v1/endpoints/bad", `{"url":"http://169.254.169.254/"}`, 422, "forbidden-address")
	d.call("PUT", sub("at"), `{"subjects":["events.>"],"deliver":{"webhook":{"endpoint":"wms","path":"/x"}}}`, 200, "")
	d.call("PUT", sub("lost"), `{"subjects":["events.>"],"deliver":{"webhook":{"endpoint":"none"}}}`, 400, "bad-definition")
	get("/api/v1/endpoints")
	get("/api/v1/endpoints/wms")
	d.call("GET", "/api/v1/endpoints/none", "", 404, "no-such-endpoint")
	d.call("DELETE", "/api/v1/endpoints/wms", "", 409, "endpoint-in-use")
	d.call("DELETE", sub("at"), "", 412, "stale", "If-Match", `"1"`)
	d.call("DELETE", sub("at")+"?discard=true", "", 200, "")
	d.call("DELETE", "/api/v1/endpoints/wms", "", 200, "")
	d.call("DELETE", sub("refuses"), "", 409, "backlog")

	// The configuration.
	get("/api/v1/config")
	d.call("POST", "/api/v1/config/apply", "", 409, "no-file")
	declared := `"declared":{"endpoints":[{"name":"crm","url":"https://example.com/"}],"subscribers":[{"name":"other","subjects":["events.>"],"deliver":{"webhook":{"endpoint":"crm"}}}]}`
	post("/api/v1/config/apply", "{"+declared+`,"dryRun":true}`)
	post("/api/v1/config/apply", "{"+declared+`,"prune":true}`)
	d.call("POST", "/api/v1/config/apply", strings.Replace("{"+declared+"}", "https", "ftp", 1), 400, "bad-definition")

	// Books, the way of an event, and reading along.
	get("/api/v1/books")
	d.call("POST", "/api/v1/books/none/accept", "", 404, "no-such-book")
	waitFor(t, "the books stand still", func() bool {
		resp, err := http.Post(d.url+"/api/v1/books/full/accept", "", nil)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	post("/api/v1/books/full/accept", "")
	get("/api/v1/why?id=A&since=1h")
	d.call("GET", "/api/v1/why?id=A&since=soon", "", 400, "bad-parameter")
	get("/api/v1/listen/1")
	d.call("GET", "/api/v1/listen/9999", "", 404, "no-such-event")
	d.call("GET", "/api/v1/listen?filter=(", "", 400, "bad-parameter")
	d.listen("/api/v1/listen?subject=events.fno.%3E&from=beginning")

	// The quarantine.
	entries := get("/api/v1/quarantine?source=eg&limit=10")["entries"].([]any)
	entry := entries[0].(map[string]any)["sequence"]
	get(fmt.Sprint("/api/v1/quarantine/", entry))
	d.call("GET", "/api/v1/quarantine/9999", "", 404, "no-such-entry")
	post("/api/v1/quarantine/redrive", fmt.Sprintf(`{"sequences":[%v],"dryRun":true}`, entry))
	post("/api/v1/quarantine/drop", `{"source":"eg"}`)
	d.call("POST", "/api/v1/quarantine/drop", `{}`, 400, "bad-selection")

	for _, path := range []string{"/schemas/", "/schemas/event.v1.json", "/schemas/dataverse-change.v1.json", "/schemas/row.v1.json", "/schemas/fno-business-event.v1.json", "/metrics", "/livez", "/readyz", "/healthz", "/api/v1/openapi.yaml", "/api/v1/openapi.json"} {
		get(path)
	}
	post(sub("refuses")+"/deadletters/redrive", `{"all":true,"rate":"100/s"}`)
	post(sub("refuses")+"/deadletters/drop", `{"all":true}`)

	var missing []string
	for path, item := range d.doc.Paths.Map() {
		for method := range item.Operations() {
			if op := method + " " + path; !d.done[op] {
				missing = append(missing, op)
			}
		}
	}
	if len(missing) > 0 {
		t.Errorf("never answered 200: %v (did: %v)", slices.Sorted(slices.Values(missing)), slices.Sorted(maps.Keys(d.done)))
	}
}

// listen reads the first lines of an answer that goes on.
func (d *described) listen(path string) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", d.url+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	schema := d.doc.Components.Schemas["Heard"].Value
	lines := bufio.NewScanner(resp.Body)
	for range 2 {
		if !lines.Scan() {
			d.t.Fatalf("%s ended: %v", path, lines.Err())
		}
		var line any
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			d.t.Fatal(err)
		}
		if err := schema.VisitJSON(line, openapi3.EnableJSONSchema2020()); err != nil {
			d.t.Errorf("%s: %v\n%s", path, err, lines.Bytes())
		}
	}
	if resp.StatusCode == http.StatusOK {
		d.done["GET /api/v1/listen"] = true
	}
}
