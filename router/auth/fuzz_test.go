package auth_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/router/auth"
)

// FuzzCheck: whatever strangers send, they are refused for a reason, without a
// panic, and nobody asks a network for it.
func FuzzCheck(f *testing.F) {
	is := newIssuer(f)
	c := newClock()
	good := token(plain, is.v2(c), rsaKeys()[0])
	f.Add("Bearer "+good[:len(good)-6]+"AAAAAA", "", "", "", []byte("{}"))
	f.Add("Bearer a.b.c", "r=a&e=1/2/2031 3:04:05 PM&s=AAAA", "sha256=00", "t=1,v1=00", []byte(nil))
	f.Add("SharedAccessSignature r=%2f&e=2031-01-02&s=%2b", "", "v1,AAAA v1,", "t=,v1=", []byte("x"))
	f.Add("SharedAccessKey x", "&s=&s=", "", ",", []byte("x"))
	cfg := every(is.srv.URL)
	cfg.AnyOf = append(cfg.AnyOf,
		auth.Method{HMAC: &auth.HMAC{Preset: auth.PresetStripe, Secrets: secrets(oldKey)}},
		auth.Method{HMAC: &auth.HMAC{Preset: auth.PresetStandardWebhooks, Secrets: secrets("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")}},
	)
	a := must(f, cfg, auth.Deps{HTTP: is.srv.Client(), Now: c.now})
	f.Fuzz(func(t *testing.T, authorization, sas, signature, stripe string, body []byte) {
		r := post("/ingress/a")
		r.Header = http.Header{
			"Authorization": {authorization}, "Aeg-Sas-Token": {sas}, "X-Hub-Signature-256": {signature},
			"Stripe-Signature": {stripe}, "Webhook-Signature": {signature}, "Webhook-Id": {"a"}, "Webhook-Timestamp": {stripe},
		}
		if strings.Contains(authorization, good) {
			return // a genuine token
		}
		if reason(t, a.Check(r, home, body)) == "" {
			t.Error("it is allowed")
		}
	})
}
