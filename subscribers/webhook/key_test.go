package webhook

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// The vector of Svix, from whose server the specification was made and has its
// example of a v1a signature: svix/svix-webhooks, server/svix-server/src/worker.rs,
// test_asymmetric_key_signing (read 2026-11). The libraries of Standard Webhooks
// have none for v1a, and the one for Go does not verify it (v0.0.1).
const (
	svixPrivate   = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	svixSeed      = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc="
	svixPublic    = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
	svixID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	svixBody      = `{"test": 2432232314}`
	svixSignature = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)

var svixTime = time.Unix(1614265330, 0)

func mustKey(t *testing.T, text string) Key {
	t.Helper()
	key, err := ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestPublishedVector(t *testing.T) {
	for _, text := range []string{svixPrivate, svixSeed} {
		key := mustKey(t, text)
		if key.Public() != svixPublic || key.Reveal() != svixPrivate || key.Algorithm() != Ed25519 {
			t.Errorf("public key %s, algorithm %s", key.Public(), key.Algorithm())
		}
		s, err := newSigner([]Key{key})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // what is used again changes nothing
			h := http.Header{}
			s.sign(h, svixID, []byte(svixBody), svixTime)
			if got := h.Get("Webhook-Signature"); got != svixSignature {
				t.Errorf("got  %s\nwant %s", got, svixSignature)
			}
		}
	}
}

// verifyPublic is a receiver that has only a public key.
func verifyPublic(public string, h http.Header, body []byte) bool {
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(public, publicPrefix))
	signed := append([]byte(h.Get("Webhook-Id")+"."+h.Get("Webhook-Timestamp")+"."), body...)
	for s := range strings.FieldsSeq(h.Get("Webhook-Signature")) {
		text, ok := strings.CutPrefix(s, "v1a,")
		sig, err := base64.StdEncoding.DecodeString(text)
		if ok && err == nil && ed25519.Verify(key, signed, sig) {
			return true
		}
	}
	return false
}

// While keys change, also from one kind to the other, every receiver verifies with
// the one it has: those with a shared key by the official library, which must not
// stumble over a signature of the other kind.
func TestBothKinds(t *testing.T) {
	pair, older := NewKey(Ed25519), NewKey(Ed25519)
	s, got := capture(t, Structured, pair, newerKey, older)
	for name, send := range map[string]func() deliver.Attempt{
		"single": func() deliver.Attempt { return s.Send(t.Context(), signedEvent("4711")) },
		"batch": func() deliver.Attempt {
			return s.SendBatch(t.Context(), []*event.Event{signedEvent("1"), signedEvent("2")})
		},
	} {
		if a := send(); a.Outcome != deliver.Delivered {
			t.Fatalf("got %+v", a)
		}
		hook, err := standardwebhooks.NewWebhook(newerKey.Reveal())
		if err == nil {
			err = hook.Verify(got.body, got.header)
		}
		if err != nil {
			t.Errorf("%s: the official library: %v", name, err)
		}
		for _, key := range []Key{pair, older} {
			if !verifyPublic(key.Public(), got.header, got.body) {
				t.Errorf("%s: does not verify with its public key", name)
			}
			if verifyPublic(key.Public(), got.header, append(bytes.Clone(got.body), ' ')) {
				t.Errorf("%s: a changed body verifies", name)
			}
			h := got.header.Clone()
			at, _ := strconv.Atoi(h.Get("Webhook-Timestamp"))
			h.Set("Webhook-Timestamp", strconv.Itoa(at+1))
			if verifyPublic(key.Public(), h, got.body) {
				t.Errorf("%s: a changed time verifies", name)
			}
		}
		if verifyPublic(NewKey(Ed25519).Public(), got.header, got.body) {
			t.Errorf("%s: another key verifies", name)
		}
		kinds := strings.Fields(got.header.Get("Webhook-Signature"))
		if len(kinds) != 3 || !strings.HasPrefix(kinds[0], "v1a,") || !strings.HasPrefix(kinds[1], "v1,") || !strings.HasPrefix(kinds[2], "v1a,") {
			t.Errorf("%s: signatures %s, want one for each key in their order", name, kinds)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, algorithm := range []Algorithm{HMAC, Ed25519} {
		key, other := NewKey(algorithm), NewKey(algorithm)
		if key.Algorithm() != algorithm || key.Reveal() == other.Reveal() || key.ID() == other.ID() || len(key.ID()) != 8 {
			t.Errorf("%s: two keys: %s and %s", algorithm, key, other)
		}
		for _, text := range []string{key.Reveal(), " " + key.Reveal() + "\n"} {
			if got, err := ParseKey(text); err != nil || got.Reveal() != key.Reveal() {
				t.Errorf("%v: what Reveal wrote is read differently", err)
			}
		}
		for _, shown := range []string{fmt.Sprint(key), fmt.Sprintf("%v %+v %#v %s %x", key, key, []Key{key}, &key, key)} {
			for _, secret := range append(key.secrets(), key.Reveal()) {
				if strings.Contains(shown, secret) {
					t.Errorf("%s: the secret shows in %s", algorithm, shown)
				}
			}
		}
	}
	of := func(n int) string {
		return sharedPrefix + base64.StdEncoding.EncodeToString([]byte(canaryKey + strings.Repeat("k", n))[:n])
	}
	private := func(b []byte) string { return privatePrefix + base64.StdEncoding.EncodeToString(b) }
	torn := bytes.Clone(mustKey(t, svixPrivate).private)
	torn[40]++
	for name, tt := range map[string]struct {
		text string
		want string // empty: no error
	}{
		"shortest":       {of(24), ""},
		"longest":        {of(64), ""},
		"too short":      {of(23), "a signing key has 24 to 64 bytes before base64, got 23"},
		"too long":       {of(65), "a signing key has 24 to 64 bytes before base64, got 65"},
		"empty":          {"", "not a signing key: it begins neither with whsec_ nor with whsk_"},
		"no prefix":      {of(32)[len(sharedPrefix):], "not a signing key: it begins neither with whsec_ nor with whsk_"},
		"not base64":     {of(32) + "!", "not a signing key: what follows whsec_ is not base64"},
		"private":        {svixPrivate, ""},
		"private, torn":  {private(torn), "not a signing key: the public key in it is not that of the private one"},
		"private, short": {private(torn[:48]), "a private key has 64 bytes before base64, or 32 without its public key, got 48"},
		"private, no base64": {svixPrivate + "!",
			"not a signing key: what follows whsk_ is not base64"},
		"public": {svixPublic, "a public key (whpk_) verifies and cannot sign; want the private one, whsk_"},
	} {
		got, err := ParseKey(tt.text)
		if (err == nil) != (tt.want == "") || err != nil && err.Error() != tt.want {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
		if err == nil && got.Reveal() != tt.text {
			t.Errorf("%s: read differently", name)
		}
	}
	if s, err := New(Config{URL: "https://h"}, Options{Keys: []Key{NewKey(HMAC), {shared: []byte("canary")}}}); err == nil {
		s.Close()
		t.Error("a key of 6 bytes was taken")
	} else if strings.Contains(err.Error(), "canary") {
		t.Errorf("the error shows the key: %v", err)
	}
}

// A receiver that quotes a private key, which it cannot have but by accident, is
// not repeated.
func TestPrivateKeyIsHidden(t *testing.T) {
	pair := NewKey(Ed25519)
	r := hide(&url.URL{}, []Key{pair}, nil)
	for _, form := range append(pair.secrets(), pair.Reveal()) {
		if got := r.Printable("x "+form+" y", 1000); strings.Contains(got, form) || !strings.Contains(got, "<redacted>") {
			t.Errorf("got %q", got)
		}
	}
	if got := r.Printable(pair.Public(), 1000); got != pair.Public() {
		t.Errorf("the public key is hidden: %s", got)
	}
}

func BenchmarkSignEd25519(b *testing.B) {
	s, err := newSigner([]Key{NewKey(Ed25519)})
	if err != nil {
		b.Fatal(err)
	}
	body, h, now := make([]byte, 1024), http.Header{}, time.Now()
	b.ReportAllocs()
	for b.Loop() {
		s.sign(h, "0F8FAD5B-D9CB-469F-A165-70867728950E", body, now)
	}
}
