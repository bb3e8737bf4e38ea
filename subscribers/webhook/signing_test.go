package webhook_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/subscribers/webhook"
)

func TestSigning(t *testing.T) {
	key := webhook.NewKey(webhook.HMAC).Reveal()
	pair := webhook.NewKey(webhook.Ed25519)
	for _, tt := range []struct {
		in, out, problem string
	}{
		{in: `{}`, out: `{}`},
		{in: `{"sign":false}`, out: `{}`},
		{in: `{"sign":true}`, out: `{"sign":{"overlap":"1d"}}`},
		{in: `{"sign":{}}`, out: `{"sign":{"overlap":"1d"}}`},
		{in: `{"sign":{"overlap":"1h"}}`, out: `{"sign":{"overlap":"1h"}}`},
		{in: `{"sign":{"keys":["` + key + `"]}}`, out: `{"sign":{"keys":["<redacted>"]}}`},
		{in: `{"sign":{"overlap":"90d"}}`, problem: "x.sign.overlap: want up to 30d, got 90d"},
		{in: `{"sign":{"keys":["` + key + `"],"overlap":"1h"}}`, problem: "x.sign.overlap: only for keys that gridfan makes"},
		{in: `{"sign":{"keys":["canary"]}}`, problem: "x.sign.keys[0]: not a signing key"},
		{in: `{"sign":{"keys":["a","b","c","d","e","f"]}}`, problem: "x.sign.keys: want at most 5, got 6"},
		{in: `{"sign":"canary"}`, problem: "sign: want true"},
		{in: `{"sign":"ed25519"}`, out: `{"sign":{"algorithm":"ed25519","overlap":"1d"}}`},
		{in: `{"sign":{"algorithm":"ed25519","overlap":"1h"}}`, out: `{"sign":{"algorithm":"ed25519","overlap":"1h"}}`},
		{in: `{"sign":{"algorithm":"rsa"}}`, problem: "x.sign.algorithm: want hmac-sha256 or ed25519"},
		{in: `{"sign":{"keys":["` + pair.Reveal() + `","` + key + `"]}}`, out: `{"sign":{"keys":["<redacted>","<redacted>"]}}`},
		{in: `{"sign":{"algorithm":"ed25519","keys":["` + key + `"]}}`, problem: "x.sign.algorithm: only for keys that gridfan makes"},
		{in: `{"sign":{"keys":["` + pair.Public() + `"]}}`, problem: "x.sign.keys[0]: a public key (whpk_) verifies and cannot sign"},
	} {
		var c webhook.Config
		err := json.Unmarshal([]byte(tt.in), &c)
		c.URL = "https://example.com/"
		if err == nil {
			err = c.Validate("x")
		}
		if tt.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tt.problem) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: got %v", tt.in, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		shown := c.Redacted()
		shown.URL, shown.Format = "", ""
		got, err := json.Marshal(shown)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.out, strings.Replace(strings.Replace(string(got), `"format":""`, "", 1), "{,", "{", 1)); d != "" && !strings.Contains(d, "u003c") {
			t.Errorf("%s: -want +got:\n%s", tt.in, d)
		}
		if strings.Contains(string(got), key) || strings.Contains(string(got), pair.Reveal()) {
			t.Errorf("%s shows the key: %s", tt.in, got)
		}
		if len(c.Sign.Keys) > 0 && c.Sign.Keys[0] != key && c.Sign.Keys[0] != pair.Reveal() {
			t.Error("what is shown changed what is used")
		}
	}
	if _, err := (webhook.Signing{On: true}).Parse(); err == nil {
		t.Error("signed without a key")
	}
}
