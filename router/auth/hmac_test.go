package auth_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gridfan/gridfan/router/auth"
)

func at(unix int64) func() time.Time { return func() time.Time { return time.Unix(unix, 0) } }

// TestHMAC checks fixed vectors: GitHub's is the one of its documentation
// (docs.github.com, validating-webhook-deliveries, read 2026-11), the others
// were computed with Python's hmac module as the vendors describe it.
func TestHMAC(t *testing.T) {
	const (
		githubSig  = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
		stripeSig  = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd"
		shopifySig = "VkyImW7KCU6GlivIw8oo9oaLGfFkbFQtKbUTK4T5PcM="
		sha512Sig  = "5pBU8gLGAXEdDowxcW9zQ/gSSPcx8Q4MUlblSvwXEzmMYdTAkoJU4k+u7ngyoQaItCCbdo8PvSOsO8BjpLazQg=="
		stripeAt   = 1_700_000_000
	)
	github := &auth.HMAC{Preset: auth.PresetGitHub, Secrets: secrets("another secret here", "It's a Secret to Everybody")}
	stripe := &auth.HMAC{Preset: auth.PresetStripe, Secrets: secrets("whsec_test_other_secret", "whsec_test_secret")}
	shopify := &auth.HMAC{Header: "X-Shopify-Hmac-Sha256", Encoding: "base64", Secrets: secrets("0123456789abcdef")}
	long := &auth.HMAC{Header: "X-Sig", Algorithm: "sha512", Encoding: "base64", Prefix: "v=", Secrets: secrets("0123456789abcdef")}
	zeros := strings.Repeat("0", 64)
	const stripeBody = `{"id":"evt_1","object":"event"}`
	for _, c := range []struct {
		name   string
		method *auth.HMAC
		now    int64
		header string
		body   string
		want   string
	}{
		{"github", github, 0, "sha256=" + githubSig, "Hello, World!", ""},
		{"github, upper case", github, 0, "sha256=" + strings.ToUpper(githubSig), "Hello, World!", ""},
		{"github, body changed", github, 0, "sha256=" + githubSig, "Hello, World?", "X-Hub-Signature-256: not signed with one of the source's secrets, or changed on its way"},
		{"github, no body", github, 0, "sha256=" + githubSig, "", "X-Hub-Signature-256: not signed with one of the source's secrets, or changed on its way"},
		{"github, bare", github, 0, githubSig, "Hello, World!", "X-Hub-Signature-256: does not begin with sha256="},
		{"github, SHA-1", github, 0, "sha1=" + githubSig[:40], "Hello, World!", "X-Hub-Signature-256: does not begin with sha256="},
		{"github, cut short", github, 0, "sha256=" + githubSig[:32], "Hello, World!", "X-Hub-Signature-256: not signed with one of the source's secrets, or changed on its way"},
		{"github, empty", github, 0, "sha256=", "Hello, World!", "X-Hub-Signature-256: not signed with one of the source's secrets, or changed on its way"},
		{"github, huge", github, 0, strings.Repeat("0", 5000), "", "X-Hub-Signature-256: longer than 4096 bytes"},
		{"github, unsigned", github, 0, "", "Hello, World!", "no header X-Hub-Signature-256"},

		{"stripe", stripe, stripeAt, "t=1700000000,v1=" + stripeSig + ",v0=ffff", stripeBody, ""},
		{"stripe, several signatures", stripe, stripeAt, "t=1700000000,v1=" + zeros + ",v1=" + stripeSig, stripeBody, ""},
		{"stripe, almost too old", stripe, stripeAt + 300, "t=1700000000,v1=" + stripeSig, stripeBody, ""},
		{"stripe, too old", stripe, stripeAt + 301, "t=1700000000,v1=" + stripeSig, stripeBody, "Stripe-Signature: the timestamp is 5m1s from now, more than 5m0s"},
		{"stripe, too new", stripe, stripeAt - 301, "t=1700000000,v1=" + stripeSig, stripeBody, "Stripe-Signature: the timestamp is -5m1s from now, more than 5m0s"},
		{"stripe, time changed", stripe, stripeAt, "t=1700000001,v1=" + stripeSig, stripeBody, "Stripe-Signature: not signed with one of the source's secrets, or changed on its way"},
		{"stripe, two times", stripe, stripeAt, "t=1700000000,t=1700000001,v1=" + stripeSig, stripeBody, "Stripe-Signature: two timestamps"},
		{"stripe, scheme v0 only", stripe, stripeAt, "t=1700000000,v0=" + stripeSig, stripeBody, "Stripe-Signature: not t=…,v1=…"},
		{"stripe, no time", stripe, stripeAt, "v1=" + stripeSig, stripeBody, "Stripe-Signature: not t=…,v1=…"},
		{"stripe, time no number", stripe, stripeAt, "t=now,v1=" + stripeSig, stripeBody, "Stripe-Signature: the timestamp is no number of seconds"},
		{"stripe, huge time", stripe, stripeAt, "t=9223372036854775807,v1=" + stripeSig, stripeBody, "Stripe-Signature: the timestamp is no number of seconds"},
		{"stripe, garbage", stripe, stripeAt, ",,,==", stripeBody, "Stripe-Signature: not t=…,v1=…"},

		{"shopify", shopify, 0, shopifySig, `{"id":1}`, ""},
		{"shopify in hex", shopify, 0, githubSig, `{"id":1}`, "X-Shopify-Hmac-Sha256: not signed with one of the source's secrets, or changed on its way"},
		{"SHA-512", long, 0, "v=" + sha512Sig, `{"id":1}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := must(t, auth.Config{AnyOf: []auth.Method{{HMAC: c.method}}}, auth.Deps{Now: at(c.now)})
			name := map[string]string{auth.PresetGitHub: "X-Hub-Signature-256", auth.PresetStripe: "Stripe-Signature"}[c.method.Preset] + c.method.Header
			r := post("/ingress/a", name, c.header)
			if got := reason(t, a.Check(r, home, []byte(c.body))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestStandardWebhooks compares with the official library, both on what it
// signs and on what it refuses.
func TestStandardWebhooks(t *testing.T) {
	const (
		key  = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // the library's own test key
		id   = "msg_p5jXN8AQM9LWM0D4loKWxJek"
		body = `{"test": 2432232314}`
	)
	theirs, err := standardwebhooks.NewWebhook("whsec_" + key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ours := must(t, auth.Config{AnyOf: []auth.Method{{HMAC: &auth.HMAC{
		Preset:  auth.PresetStandardWebhooks,
		Secrets: secrets("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", key),
	}}}}, auth.Deps{})
	request := func(id string, at time.Time, signature string) *http.Request {
		return post("/ingress/a", "webhook-id", id, "webhook-timestamp", strconv.FormatInt(at.Unix(), 10), "webhook-signature", signature)
	}
	signed := func(at time.Time) string {
		s, err := theirs.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := signed(now)
	const mismatch = "Webhook-Signature: not signed with one of the source's secrets, or changed on its way"
	for _, c := range []struct {
		name string
		r    *http.Request
		body string
		want string // a part
	}{
		{"signed", request(id, now, good), body, ""},
		{"several signatures", request(id, now, "v1,AAAA v1a,BBBB  "+good), body, ""},
		{"four minutes old", request(id, now.Add(-4*time.Minute), signed(now.Add(-4*time.Minute))), body, ""},
		{"four minutes ahead", request(id, now.Add(4*time.Minute), signed(now.Add(4*time.Minute))), body, ""},
		{"six minutes old", request(id, now.Add(-6*time.Minute), signed(now.Add(-6*time.Minute))), body, "from now, more than 5m0s"},
		{"six minutes ahead", request(id, now.Add(6*time.Minute), signed(now.Add(6*time.Minute))), body, "from now, more than 5m0s"},
		{"another id", request("msg_x", now, good), body, mismatch},
		{"another time", request(id, now.Add(time.Second), good), body, mismatch},
		{"another body", request(id, now, good), body + " ", mismatch},
		{"another version", request(id, now, "v1a"+good[2:]), body, "Webhook-Signature: no signature of version v1"},
		{"no version", request(id, now, good[3:]), body, "Webhook-Signature: no signature of version v1"},
		{"empty signature", request(id, now, "v1,"), body, mismatch},
		{"no id", request("", now, good), body, "Webhook-Signature: comes without webhook-id or webhook-timestamp"},
		{"no signature", request(id, now, ""), body, "no header Webhook-Signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := reason(t, ours.Check(c.r, home, []byte(c.body)))
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if err := theirs.Verify([]byte(c.body), c.r.Header); (err == nil) != (got == "") {
				t.Errorf("the library says %v, we say %q", err, got)
			}
		})
	}

	// The vector of the library's own test.
	fixed := must(t, auth.Config{AnyOf: []auth.Method{{HMAC: &auth.HMAC{Preset: auth.PresetStandardWebhooks, Secrets: secrets(key)}}}}, auth.Deps{Now: at(1614265330)})
	r := request(id, time.Unix(1614265330, 0), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
	if err := fixed.Check(r, home, []byte(body)); err != nil {
		t.Error(err)
	}
	// Where the library is laxer: "a.b" and "c" sign the same as "a" and "b.c".
	dotted, err := theirs.Sign("msg.1", now, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if got := reason(t, ours.Check(request("msg.1", now, dotted), home, []byte(body))); got != "Webhook-Signature: webhook-id contains a dot" {
		t.Errorf("got %q", got)
	}
}
