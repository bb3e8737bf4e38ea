package app_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// diary is a log that can be looked through while it is written.
type diary struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

// While the token server is in trouble, and quotes the secret, nothing is sent and nothing
// given up; once it is repaired and somebody says so, all events arrive. The secret
// and the tokens are in no log, answer, metric or record.
func TestTokenServerAway(t *testing.T) {
	const secret, token = "canary-secret-0123456789", "canary-token-0123456789"
	var repaired atomic.Bool
	var asked atomic.Int32
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		_, sent, _ := r.BasicAuth()
		if sent != secret || !repaired.Load() {
			w.WriteHeader(http.StatusInternalServerError) // asked again within seconds
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":"not %s"}`, sent)
			return
		}
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token)
	}))
	defer tokens.Close()
	in := newInbox(t)
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "you sent "+r.Header.Get("Authorization"), http.StatusUnauthorized)
			return
		}
		in.ServeHTTP(w, r)
	}))
	defer guarded.Close()

	log := &diary{}
	g := &gridfan{t: t, dir: t.TempDir(), log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	t.Cleanup(g.stop)
	g.run(sources)
	d := definition("wms", guarded.URL)
	d.Deliver.Webhook.Auth = &credentials.Auth{OAuth2: &credentials.OAuth2{TokenURL: tokens.URL + "/token", ClientID: "gridfan", ClientSecret: secret}}
	if _, err := g.admin.Subscribe(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	ids := names("E", 30)
	g.accept(ids...)
	var seen *admin.Subscriber
	waitFor(t, "the breaker opens", func() bool {
		var err error
		seen, err = g.admin.Subscriber(t.Context(), "wms")
		return err == nil && seen.Breaker != nil && seen.Breaker.State == deliver.BreakerOpen
	})
	if want := "HTTP 500: invalid_client: not <redacted>"; !strings.HasPrefix(seen.Breaker.LastError, credentials.NoToken) || !strings.HasSuffix(seen.Breaker.LastError, want) {
		t.Errorf("last error %q", seen.Breaker.LastError)
	}
	if got := seen.Definition.Deliver.Webhook.Auth.OAuth2; got.ClientSecret != "<redacted>" || got.ClientID != "gridfan" {
		t.Errorf("shown %+v", got)
	}
	if seen.Backlog.DeadLetters != 0 {
		t.Errorf("%d dead letters", seen.Backlog.DeadLetters)
	}
	if n := asked.Load(); n > 5 {
		t.Errorf("%d token requests", n)
	}

	// What was read can be sent back, and still has its secret.
	read, tag, err := g.admin.Read(t.Context(), "wms")
	if err != nil {
		t.Fatal(err)
	}
	read.Definition.Limits.Concurrency = 4
	if _, _, err := g.admin.Replace(t.Context(), read.Definition, tag); err != nil {
		t.Fatal(err)
	}
	// But not to another place.
	elsewhere := read.Definition
	hook := *elsewhere.Deliver.Webhook
	hook.Auth = hook.Auth.Clone()
	hook.Auth.OAuth2.TokenURL = "https://example.com/token"
	elsewhere.Deliver.Webhook = &hook
	if _, _, err := g.admin.Replace(t.Context(), elsewhere, "*"); err == nil || !strings.Contains(err.Error(), "auth.oauth2.clientSecret: it is hidden") {
		t.Errorf("the secret goes elsewhere: %v", err)
	}

	waitFor(t, "the breaker opens again", func() bool {
		s, err := g.admin.Subscriber(t.Context(), "wms")
		return err == nil && s.Breaker != nil && s.Breaker.State == deliver.BreakerOpen && s.Definition.Limits.Concurrency == 4
	})
	repaired.Store(true)
	if _, err := g.admin.Probe(t.Context(), "wms"); err != nil {
		t.Fatal(err)
	}
	g.drained()
	in.wantAll(t, "wms", ids)

	var show strings.Builder
	show.WriteString(log.String())
	for _, path := range []string{"/metrics", "/api/v1/subscribers", "/api/v1/subscribers/wms", "/api/v1/status", "/api/v1/config"} {
		resp, err := http.Get("http://" + g.app.AdminAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(b) == 0 {
			t.Errorf("%s: %v", path, err)
		}
		show.WriteString(path + "\n" + string(b))
	}
	for _, m := range g.stored("ATTEMPTS") {
		show.WriteString(string(m.Data))
	}
	if i := strings.Index(show.String(), "canary"); i >= 0 {
		t.Errorf("a secret shows: …%s…", show.String()[max(0, i-200):min(len(show.String()), i+50)])
	}
}
