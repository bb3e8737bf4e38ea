package request_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/request"
)

const canary = "canary-secret-0123456789"

func client(t *testing.T, target request.Target) *request.Client {
	t.Helper()
	if err := target.Validate("p"); err != nil {
		t.Fatal(err)
	}
	c, err := request.New(target, request.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

// Credentials go to the source's own origin and nowhere else, neither by a link nor
// by a redirect.
func TestOwnOrigin(t *testing.T) {
	var strays atomic.Int32
	other := serve(t, func(http.ResponseWriter, *http.Request) { strays.Add(1) })
	own := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+canary {
			t.Errorf("got %v", r.Header)
		}
		http.Redirect(w, r, other+"/?t="+canary, http.StatusTemporaryRedirect)
	})
	c := client(t, request.Target{URL: own + "/api", Auth: &credentials.Auth{Bearer: &credentials.Bearer{Token: canary}}})
	a, err := c.Do(t.Context(), "GET", own+"/api", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Judge(); err == nil || !strings.Contains(err.Error(), "redirects are not followed") || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
	for _, link := range []string{other, strings.Replace(own, "http:", "https:", 1), "http://127.0.0.1:1/", "file:///etc/passwd", "://", ""} {
		if _, err := c.Do(t.Context(), "GET", link, nil, nil); err == nil {
			t.Errorf("%q was asked", link)
		}
	}
	if strays.Load() != 0 {
		t.Error("another origin was asked")
	}
}

func TestFollow(t *testing.T) {
	c := client(t, request.Target{URL: "https://Own.example/api", Auth: &credentials.Auth{APIKey: &credentials.APIKey{Query: "code", Value: canary}}})
	const from = "https://own.example/api/rows?page=1"
	for _, tt := range []struct{ link, want string }{ // empty: refused
		{"https://own.example/api/rows?$skiptoken=%3Ccookie%20a=%22%252c%22/%3E", "https://own.example/api/rows?$skiptoken=%3Ccookie%20a=%22%252c%22/%3E"},
		{"https://OWN.example:443/x?a=1&code=k&b=%20", "https://OWN.example:443/x?a=1&b=%20"},
		{"?page=2", "https://own.example/api/rows?page=2"},
		{"Rows?$skiptoken=1000", "https://own.example/api/Rows?$skiptoken=1000"},
		{"/other?x=a b\u00e9", "https://own.example/other?x=a%20b%C3%A9"},
		{"//own.example/x", "https://own.example/x"},
		{"", ""},
		{"http://own.example/x", ""},
		{"https://own.example:444/x", ""},
		{"https://own.example.evil.example/x", ""},
		{"https://own.example@evil.example/x", ""},
		{"https://u@own.example/x", ""},
		{"//evil.example/x", ""},
		{"https:own.example/x", ""},
		{"javascript:alert(1)", ""},
		{"/x\r\nHost: evil", ""},
		{"https://[::1/x", ""},
	} {
		got, err := c.Follow(from, tt.link, "next")
		if tt.want == "" {
			if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Answer {
				t.Errorf("%q: got %q, %v", tt.link, got, err)
			}
		} else if got != tt.want || err != nil {
			t.Errorf("%q: got %q, %v", tt.link, got, err)
		}
	}
}

// A token that is revoked is renewed within one Do; one that is never taken is a
// fault, and is not asked for again and again.
func TestToken(t *testing.T) {
	var issued, asked atomic.Int32
	tokens := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"access_token":"%s%d","token_type":"bearer","expires_in":3600}`, canary, issued.Add(1))
	})
	var good atomic.Value
	good.Store(canary + "1")
	own := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer "+good.Load().(string) {
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"error":{"code":"x","message":"%s is not good"}}`, r.Header.Get("Authorization"))
		}
	})
	c := client(t, request.Target{URL: own, Auth: &credentials.Auth{OAuth2: &credentials.OAuth2{TokenURL: tokens, ClientID: "c", ClientSecret: canary}}})
	for _, token := range []string{"1", "2"} {
		good.Store(canary + token)
		if a, err := c.Do(t.Context(), "GET", own, nil, nil); err != nil || a.Status != 200 {
			t.Fatalf("got %+v, %v", a, err)
		}
	}
	if issued.Load() != 2 || asked.Load() != 3 {
		t.Errorf("%d tokens, %d requests", issued.Load(), asked.Load())
	}
	good.Store("none")
	for range 3 {
		a, err := c.Do(t.Context(), "GET", own, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		fault, ok := errors.AsType[*poll.Fault](a.Judge())
		if !ok || fault.Kind != poll.Credentials || strings.Contains(fault.Reason, "canary") || !strings.Contains(fault.Reason, "is not good") {
			t.Errorf("got %v", fault)
		}
	}
	if issued.Load() > 3 {
		t.Errorf("%d tokens", issued.Load())
	}

	broken := client(t, request.Target{URL: own, Auth: &credentials.Auth{OAuth2: &credentials.OAuth2{TokenURL: own, ClientID: "c", ClientSecret: canary}}})
	_, err := broken.Do(t.Context(), "GET", own, nil, nil)
	if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Credentials || strings.Contains(fault.Reason, "canary") {
		t.Errorf("got %v", err)
	}
}

// What has no answer is told in words, and a caller who has given up is not a fault
// of the source's.
func TestNoAnswer(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	release := make(chan struct{})
	half := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, `{"value":[`)
		w.(http.Flusher).Flush()
		if r.URL.Path == "/held" {
			<-release
		}
		panic(http.ErrAbortHandler)
	})
	t.Cleanup(func() { close(release) })
	for _, tt := range []struct{ url, want string }{
		{gone.URL, "connection refused"},
		{half, "connection closed without a whole answer"},
		{half + "/held", "no whole answer within"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := client(t, request.Target{URL: tt.url}).Do(ctx, "GET", tt.url, nil, nil)
		cancel()
		if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Unavailable || !strings.Contains(fault.Reason, tt.want) || errors.Is(err, request.ErrSilent) {
			t.Errorf("%s: got %v", tt.want, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := client(t, request.Target{URL: half}).Do(ctx, "GET", half, nil, nil)
	if _, ok := errors.AsType[*poll.Fault](err); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("given up: got %v", err)
	}
}

// The operator's own URLs are not judged; where they are, the rules hold.
func TestEgress(t *testing.T) {
	own := serve(t, func(http.ResponseWriter, *http.Request) {})
	rules, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, judged := range []bool{false, true} {
		c, err := request.New(request.Target{URL: own, MaxPage: 1 << 20}, request.Options{Egress: rules.Way(judged)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Do(t.Context(), "GET", own, nil, nil)
		if fault, ok := errors.AsType[*poll.Fault](err); judged != (ok && fault.Kind == poll.Configuration && strings.Contains(fault.Reason, "egress.allow")) {
			t.Errorf("judged %v: got %v", judged, err)
		}
		c.Close()
	}
}

// Both forms of Retry-After are read, the date by the source's own clock.
func TestRetryAfter(t *testing.T) {
	date := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		header string
		want   time.Duration
	}{
		{"0", 0}, {"30", 30 * time.Second}, {"-1", 0}, {"soon", 0}, {"", 0},
		{date.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second}, {date.Add(-time.Hour).Format(http.TimeFormat), 0},
	} {
		own := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", date.Format(http.TimeFormat))
			w.Header().Set("Retry-After", tt.header)
			w.WriteHeader(429)
		})
		a, err := client(t, request.Target{URL: own}).Do(t.Context(), "GET", own, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if throttled, ok := errors.AsType[*poll.Throttled](a.Judge()); !ok || throttled.After != tt.want || throttled.Reason == "" {
			t.Errorf("%q: got %v", tt.header, a.Judge())
		}
	}
}

// Whom a source sees asking is told apart by origin and name, and says no secret.
func TestIdentity(t *testing.T) {
	basic := func(url, user, password string) string {
		target := request.Target{URL: url, Auth: &credentials.Auth{Basic: &credentials.Basic{Username: user, Password: credentials.Secret(password)}}}
		return target.Identity()
	}
	a := basic("https://h/api", "u", canary)
	if a != basic("https://H/other", "u", "renewed") {
		t.Error("a renewed password is another identity")
	}
	for _, other := range []string{basic("https://h/api", "v", canary), basic("https://i/api", "u", canary), (&request.Target{URL: "https://h"}).Identity()} {
		if a == other {
			t.Errorf("got %s twice", a)
		}
	}
	if strings.Contains(a, "canary") {
		t.Error(a)
	}
}
