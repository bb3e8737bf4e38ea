package auth_test

import (
	"bytes"
	"errors"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
)

var home = netip.MustParseAddr("192.0.2.7")

// clock is a clock that stands still until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock {
	return &clock{t: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// buffer is a log that many goroutines write to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// std is for what wants a log.Logger.
func (b *buffer) std() *log.Logger { return log.New(b, "", 0) }

func must(t testing.TB, cfg auth.Config, deps auth.Deps) *auth.Authenticator {
	t.Helper()
	a, err := auth.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func post(target string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// reason returns why a request was denied; "" when it was allowed, and what
// Unavailable says after "503 ".
func reason(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	if d, ok := errors.AsType[*auth.Denied](err); ok {
		if d.Reason == "" || !strings.Contains(d.Error(), d.Reason) {
			t.Errorf("error %q, reason %q", d.Error(), d.Reason)
		}
		return d.Reason
	}
	u, ok := errors.AsType[*auth.Unavailable](err)
	if !ok {
		t.Fatalf("got %T, want *Denied or *Unavailable", err)
	}
	if u.RetryAfter < time.Second || u.RetryAfter > 30*time.Second {
		t.Errorf("retry after %s, want 1 to 30 s", u.RetryAfter)
	}
	return "503 " + u.Reason
}

const (
	oldKey = "old-key-0123456789"
	newKey = "new-key-0123456789"
)

func keys() auth.Config {
	return auth.Config{AnyOf: []auth.Method{{Key: secret.New(oldKey)}, {Key: secret.New(newKey)}}}
}

func TestKey(t *testing.T) {
	a := must(t, keys(), auth.Deps{})
	const wrong = "key: not one of the source's"
	for _, c := range []struct {
		name string
		r    *http.Request
		want string
	}{
		{"aeg-sas-key", post("/ingress/a", "aeg-sas-key", oldKey), ""},
		{"the other key", post("/ingress/a", "aeg-sas-key", newKey), ""},
		{"own header", post("/ingress/a", "X-Gridfan-Key", oldKey), ""},
		{"Authorization", post("/ingress/a", "Authorization", "SharedAccessKey "+oldKey), ""},
		{"scheme in another case", post("/ingress/a", "Authorization", "sharedaccesskey  "+oldKey), ""},
		{"query code", post("/ingress/a?code=" + newKey), ""},
		{"query key", post("/ingress/a?key=" + newKey), ""},
		{"a right one beside a wrong one", post("/ingress/a?key="+newKey, "aeg-sas-key", "x"), ""},
		{"a right one beside two Authorizations", post("/ingress/a?key="+newKey, "Authorization", "a", "Authorization", "b"), ""},
		{"none", post("/ingress/a"), "no key"},
		{"empty", post("/ingress/a?code=", "aeg-sas-key", ""), "no key"},
		{"wrong", post("/ingress/a", "aeg-sas-key", oldKey+"x"), wrong},
		{"beginning of one", post("/ingress/a", "aeg-sas-key", oldKey[:16]), wrong},
		{"other scheme", post("/ingress/a", "Authorization", "Bearer "+oldKey), "no key"},
		{"other parameter", post("/ingress/a?access_token=" + oldKey), "no key"},
		{"two Authorization headers", post("/ingress/a", "Authorization", "SharedAccessKey "+oldKey, "Authorization", "SharedAccessKey "+oldKey), "more than one Authorization header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := reason(t, a.Check(c.r, home, nil)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestAllow(t *testing.T) {
	cfg := keys()
	cfg.Allow = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}
	keyed := must(t, cfg, auth.Deps{})
	open := must(t, auth.Config{None: true, Allow: cfg.Allow}, auth.Deps{})
	for _, c := range []struct {
		addr string
		ok   bool
	}{
		{"10.20.255.1", true},
		{"::ffff:10.20.255.1", true},
		{"2001:db8::1", true},
		{"2001:db8::1%eth0", true},
		{"10.21.0.1", false},
		{"2001:db9::1", false},
		{"", false},
	} {
		addr, _ := netip.ParseAddr(c.addr)
		r := post("/ingress/a", "aeg-sas-key", oldKey)
		for name, a := range map[string]*auth.Authenticator{"keyed": keyed, "open": open} {
			err := a.Check(r, addr, nil)
			if (err == nil) != c.ok {
				t.Errorf("%s from %q: got %v, want ok %v", name, c.addr, err, c.ok)
			}
			if err != nil && !strings.HasSuffix(reason(t, err), "is not in allow") {
				t.Errorf("%s from %q: got %v", name, c.addr, err)
			}
		}
	}
	if got := reason(t, keyed.Check(post("/ingress/a"), netip.MustParseAddr("10.20.0.1"), nil)); got != "no key" {
		t.Errorf("an allowed address without a key: got %q", got)
	}
	if err := must(t, auth.Config{None: true}, auth.Deps{}).Check(post("/ingress/a"), netip.Addr{}, nil); err != nil {
		t.Errorf("none: got %v", err)
	}
}

// every returns a configuration with all methods, the costly ones first.
func every(authority string) auth.Config {
	return auth.Config{AnyOf: []auth.Method{
		{Entra: &auth.Entra{Tenant: tenant, Audiences: []string{audience}, Authority: authority}},
		{HMAC: &auth.HMAC{Preset: auth.PresetGitHub, Secrets: []secret.String{secret.New("It's a Secret to Everybody")}}},
		{SAS: &auth.SAS{Keys: []secret.String{secret.New(topicKey)}}},
		{MTLS: &auth.MTLS{CN: []string{"sender"}}},
		{Key: secret.New(oldKey)},
		{Key: secret.New(newKey)},
	}}
}

func TestReasonsAreOrdered(t *testing.T) {
	a := must(t, every("https://127.0.0.1:1"), auth.Deps{})
	for _, c := range []struct {
		name string
		r    *http.Request
		want string
	}{
		{"nothing sent", post("/ingress/a"), "no client certificate; no key; no SAS token; no header X-Hub-Signature-256; no bearer token"},
		{
			"a failed token beats a missing key", post("/ingress/a", "Authorization", "Bearer x"),
			"bearer token: not a signed JWT; no client certificate; no key; no SAS token; no header X-Hub-Signature-256",
		},
		{
			"one reason for three methods", post("/ingress/a", "Authorization", "Bearer x", "Authorization", "Bearer y"),
			"more than one Authorization header; no client certificate; no header X-Hub-Signature-256",
		},
	} {
		if got := reason(t, a.Check(c.r, home, nil)); got != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestBodyIsWanted(t *testing.T) {
	cfg := every("https://127.0.0.1:1")
	cfg.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	a := must(t, cfg, auth.Deps{})
	signed := post("/ingress/a", "X-Hub-Signature-256", "sha256=00")
	if !a.WantsBody(signed, home) {
		t.Error("a signed request wants its body read")
	}
	if a.WantsBody(post("/ingress/a"), home) || a.WantsBody(signed, netip.MustParseAddr("198.51.100.1")) ||
		must(t, keys(), auth.Deps{}).WantsBody(signed, home) {
		t.Error("an unsigned request, one from elsewhere, or one to a source without HMAC wants its body read")
	}
}

func TestChallenges(t *testing.T) {
	want := []string{`SharedAccessKey realm="gridfan"`, `SharedAccessSignature realm="gridfan"`, `Bearer realm="gridfan"`}
	if diff := cmp.Diff(want, must(t, every(""), auth.Deps{}).Challenges()); diff != "" {
		t.Error(diff)
	}
	if got := must(t, auth.Config{None: true}, auth.Deps{}).Challenges(); got != nil {
		t.Errorf("none: got %q", got)
	}
}
