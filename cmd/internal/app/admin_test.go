package app_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/secret"
)

// TestAdminGuard lets nobody order things who should not.
func TestAdminGuard(t *testing.T) {
	const token = "canary-admin-token-0123456789"
	open := start(t, sources)
	closed := &gridfan{t: t, dir: t.TempDir(), log: open.log}
	t.Cleanup(closed.stop)
	cfg := parse(t, closed.dir, sources)
	cfg.Listen.AdminToken = secret.New(token)
	closed.runWith(cfg)

	for _, tt := range []struct {
		name   string
		g      *gridfan
		method string
		path   string
		header map[string]string
		host   string
		body   string
		status int
		code   string
	}{
		{name: "no token", g: closed, status: 401, code: "unauthorized"},
		{name: "wrong token", g: closed, header: map[string]string{"Authorization": "Bearer nonsense"}, status: 401, code: "unauthorized"},
		{name: "token as another scheme", g: closed, header: map[string]string{"Authorization": "Basic " + token}, status: 401, code: "unauthorized"},
		{name: "token", g: closed, header: map[string]string{"Authorization": "Bearer " + token}, status: 200},
		{name: "metrics need it too", g: closed, path: "/metrics", status: 401, code: "unauthorized"},
		{name: "probes do not", g: closed, path: "/healthz", status: 200},
		{name: "without a token, by address", g: open, status: 200},
		{name: "without a token, by another name", g: open, host: "evil.example", status: 403, code: "wrong-host"},
		{name: "from a page elsewhere", g: open, method: "POST", path: "/api/v1/subscribers/a/pause", header: map[string]string{"Sec-Fetch-Site": "cross-site"}, status: 403},
		{name: "no such subscriber", g: open, path: "/api/v1/subscribers/a", status: 404, code: "no-such-subscriber"},
		{name: "no such path", g: open, path: "/api/v2", status: 404, code: "not-found"},
		{name: "no JSON", g: open, method: "PUT", path: "/api/v1/subscribers/a", body: "{", status: 400, code: "bad-definition"},
		{name: "unknown member", g: open, method: "PUT", path: "/api/v1/subscribers/a", body: `{"filtre":"x"}`, status: 400, code: "bad-definition"},
		{name: "everything wrong", g: open, method: "PUT", path: "/api/v1/subscribers/a", body: `{"subjects":["x"],"limits":{"timeout":"1y"}}`, status: 400, code: "bad-definition"},
		{name: "another name inside", g: open, method: "PUT", path: "/api/v1/subscribers/a", body: `{"name":"b"}`, status: 400, code: "bad-definition"},
		{name: "bad flag", g: open, method: "DELETE", path: "/api/v1/subscribers/a?discard=perhaps", status: 400, code: "bad-parameter"},
		{name: "redrive of nothing", g: open, method: "POST", path: "/api/v1/quarantine/redrive", body: "{}", status: 400, code: "bad-selection"},
		{name: "no such entry", g: open, path: "/api/v1/quarantine/7", status: 404, code: "no-such-entry"},
		{name: "schemas", g: open, path: "/schemas/", status: 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = http.MethodGet
			}
			if tt.path == "" {
				tt.path = "/api/v1/status"
			}
			req, err := http.NewRequest(tt.method, tt.g.admin.URL+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = tt.host
			for k, v := range tt.header {
				req.Header.Set(k, v)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			var p admin.Problem
			if tt.code != "" {
				if err := json.Unmarshal(body, &p); err != nil {
					t.Fatalf("%s: %v", body, err)
				}
			}
			if resp.StatusCode != tt.status || p.Code != tt.code {
				t.Errorf("HTTP %d %s", resp.StatusCode, body)
			}
			if strings.Contains(string(body), token) {
				t.Errorf("the answer shows the token: %s", body)
			}
		})
	}
}

// TestAdminSaysAllThatIsWrong reports every mistake of a definition at once.
func TestAdminSaysAllThatIsWrong(t *testing.T) {
	g := start(t, sources)
	req, err := http.NewRequest(http.MethodPut, g.admin.URL+"/api/v1/subscribers/a",
		strings.NewReader(`{"subjects":["orders.>"],"start":"tomorrow","limits":{"concurrency":-1},"deliver":{"webhook":{"url":"ftp://h/?key=hunter2"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var p admin.Problem
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(p.Errors, "\n")
	for _, want := range []string{"subjects[0]", "start", "limits.concurrency", "deliver.webhook.url"} {
		if !strings.Contains(all, "subscribers.a."+want+": ") {
			t.Errorf("nothing is said of %s in\n%s", want, all)
		}
	}
	if strings.Contains(all, "hunter2") {
		t.Errorf("the key shows in\n%s", all)
	}
}
