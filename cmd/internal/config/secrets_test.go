package config

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/keyvault"
	"github.com/gridfan/gridfan/subscribers/registry"
)

const stores = `
shutdown: { grace: 55s }
broker: { embedded: { dir: /data, ephemeral: true } }
secrets:
  keyvault:
    suffix: https://contoso.vault.azure.cn/
    refresh: 30s
    auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: contoso.example.com } }
sources: { prod: { kind: fno, push: { auth: none } } }
`

// stores2 has what excludes it.
const stores2 = `
secrets: { keyvault: { auth: { default: true, managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } }
`

func TestSecretStores(t *testing.T) {
	c, err := Parse("f", []byte(stores), fake)
	if err != nil {
		t.Fatal(err)
	}
	want := Secrets{
		KeyVault: keyvault.Config{Suffix: "vault.azure.cn", Auth: credentials.AzureAuth{
			WorkloadIdentity: &credentials.WorkloadIdentity{ClientID: "11111111-2222-3333-4444-555555555555", Tenant: "contoso.example.com"},
		}},
		Refresh: 30 * time.Second,
	}
	if d := cmp.Diff(want, c.Secrets); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if c.Shutdown.Grace.Std() != 55*time.Second || !c.Broker.Ephemeral {
		t.Errorf("got %v, %v", c.Shutdown, c.Broker.Ephemeral)
	}
	c, err = Parse("f", []byte("sources: { prod: { kind: fno, push: { auth: none } } }"), fake)
	if err != nil || c.Shutdown.Grace.Std() != defaultGrace || c.Secrets.Refresh != defaultRefresh {
		t.Errorf("got %+v, %v", c, err)
	}
}

const fromVault = `
listen: { admin: { token: "${keyvault:contoso/token}" } }
sources: { prod: { kind: fno, push: { auth: { anyOf: [ { key: "${keyvault:contoso/fo-key}" }, { sas: { keys: "${keyvault:nowhere/sas}" } } ] } } } }
subscribers: { s: { subjects: [ events.> ], deliver: { webhook: { url: "${keyvault:contoso/url}" } }, limits: { timeout: nonsense } } }
`

// Offline nobody is asked, what is not known is not judged, and the rest is.
func TestOffline(t *testing.T) {
	lookup := fake
	lookup.Offline = true
	lookup.Vaults = keyvault.NewStore(keyvault.Options{}) // it would be reached over the network
	_, err := Parse("f", []byte(fromVault), lookup)
	problems, _ := errors.AsType[Errors](err)
	if len(problems) != 1 || problems[0].Path != "subscribers.s.limits.timeout" {
		t.Errorf("got %v", err)
	}
	c, err := Parse("f", []byte(strings.ReplaceAll(fromVault, "nonsense", "5s")), lookup)
	if err != nil || c.Unread != 4 || len(c.References) > 0 {
		t.Fatalf("got %+v, %v", c, err)
	}
}

// A value that has changed is known by its place; nothing of it can be read off what is
// kept for that.
func TestReferences(t *testing.T) {
	secrets := map[string]string{"/secrets/token/": "token-token-token", "/secrets/fo-key/": "key-one-key-one-key", "/secrets/url/": "https://a.example.com/"}
	lookup := fake
	lookup.Vaults = vaults(secrets)
	text := []byte(strings.NewReplacer(", { sas: { keys: \"${keyvault:nowhere/sas}\" } }", "", "nonsense", "5s").Replace(fromVault))
	parse := func() *Config {
		t.Helper()
		c, err := Parse("f", text, lookup)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one := parse()
	if len(one.References) != 3 {
		t.Fatalf("got %+v", one.References)
	}
	if got := changed(one.References, parse().References); len(got) > 0 {
		t.Errorf("nothing has changed: %+v", got)
	}
	secrets["/secrets/url/"] = "https://b.example.com/"
	got := changed(one.References, parse().References)
	if len(got) != 1 || got[0].Path != "subscribers.s.deliver.webhook.url" || got[0].Text != "${keyvault:contoso/url}" || got[0].section() != "subscribers" {
		t.Errorf("got %+v", got)
	}
}

// A secret that is rotated in its vault is taken over without a restart where it is a
// subscriber's, and told of where it is not; while the vault is away, all is as before.
func TestRotation(t *testing.T) {
	var mu sync.Mutex // guards all below
	secrets := map[string]string{"/secrets/token/": "token-token-token", "/secrets/url/": "https://a.example.com/one"}
	away := false
	asked := 0
	store := keyvault.NewStore(keyvault.Options{Credential: anybody{}, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		if away {
			return nil, &net.DNSError{Err: "no such host", Name: r.URL.Host, IsNotFound: true}
		}
		return contoso(secrets)(r)
	})})
	file := filepath.Join(t.TempDir(), "gridfan.yaml")
	text := `
listen: { admin: { token: "${keyvault:contoso/token}" } }
sources: { prod: { kind: fno, push: { auth: none } } }
subscribers: { s: { subjects: [ events.> ], deliver: { webhook: { url: "${keyvault:contoso/url}" } } } }
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	lookup := System()
	lookup.Vaults = store
	read := func() (*Config, error) {
		c, err := load(file, lookup)
		if c != nil {
			c.Secrets.Refresh = 20 * time.Millisecond // a file's is longer
		}
		return c, err
	}
	c, err := read()
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(t.Context(), brokertest.New(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(t.Context(), c.Endpoints, c.Subscribers); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer // guarded by mu
	reports := map[string]int{}
	live := NewLive(Following{
		File: file, Load: read, Started: c, Sections: c.Sections(), Registry: r, Declares: true,
		Log:    slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return log.Write(b) }), nil)),
		Report: func(what, _ string, _ map[string]any) { mu.Lock(); defer mu.Unlock(); reports[what]++ },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); live.Run(ctx, nil) }()
	defer func() { cancel(); <-ended }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) { // sleep: polling with a deadline
			if time.Now().After(deadline) {
				t.Fatalf("not in time: %s", what)
			}
		}
	}
	set := func(do func()) { mu.Lock(); defer mu.Unlock(); do() }
	postedTo := func(want string) {
		t.Helper()
		until("events are posted to "+want, func() bool {
			e, err := r.Get(t.Context(), "s")
			return err == nil && e.Definition.Deliver.Webhook.URL == want
		})
	}
	rounds := func(n int) {
		t.Helper()
		begin := 0
		set(func() { begin = asked })
		until("the vault is asked again", func() bool { mu.Lock(); defer mu.Unlock(); return asked >= begin+2*n })
	}

	rounds(3)
	set(func() {
		if reports["config.loaded"] > 0 {
			t.Error("nothing has changed, and it says that it has loaded something")
		}
		secrets["/secrets/url/"] = "https://a.example.com/two"
	})
	postedTo("https://a.example.com/two")
	if n := live.State().NeedsRestart; len(n) > 0 {
		t.Errorf("needs a restart: %v", n)
	}

	set(func() { secrets["/secrets/token/"] = "another-token-canary" })
	until("a section needs a restart", func() bool { return slices.Equal(live.State().NeedsRestart, []string{"listen"}) })
	set(func() { secrets["/secrets/token/"] = "token-token-token" })
	until("it does not any more", func() bool { return len(live.State().NeedsRestart) == 0 })

	set(func() { away = true })
	until("that it is away is told", func() bool { return len(live.State().Kept) == 2 })
	rounds(1)
	postedTo("https://a.example.com/two")
	if p := live.State().Problems; len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
	set(func() { away = false; secrets["/secrets/url/"] = "https://a.example.com/three" })
	postedTo("https://a.example.com/three")
	until("all is well", func() bool { return len(live.State().Kept) == 0 })

	// One that is gone is a mistake like any other: nothing is taken over.
	set(func() { delete(secrets, "/secrets/url/") })
	until("a problem is told", func() bool { return len(live.State().Problems) == 1 })
	postedTo("https://a.example.com/three")
	cancel()
	<-ended
	set(func() {
		for _, want := range []string{`"a secret has changed" reference=${keyvault:contoso/url} at=subscribers.s.deliver.webhook.url takes_effect=now`, "takes_effect=\"at the next start\"", "the old value is kept", "all secrets are read again"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %s:\n%s", want, log.String())
			}
		}
		if strings.Contains(log.String(), "canary") || strings.Contains(log.String(), "token-token") {
			t.Errorf("the log has a secret:\n%s", log.String())
		}
		if reports["config.secrets-away"] != 1 {
			t.Errorf("reports: %v", reports)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
