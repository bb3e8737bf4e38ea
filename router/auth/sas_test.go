package auth_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/messaging"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azeventgrid"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
)

// topicKey is what a topic's key looks like: base64 of 32 bytes.
var topicKey = base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))

// sign makes a token of parts that are escaped already, with the signature
// escaped by the given function.
func sign(key, resource, expiry string, escape func(string) string) string {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		panic(err)
	}
	signed := "r=" + resource + "&e=" + expiry
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte(signed))
	return signed + "&s=" + escape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// encodeURIComponent is JavaScript's.
func encodeURIComponent(s string) string {
	return strings.NewReplacer("+", "%20", "%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*").Replace(url.QueryEscape(s))
}

// urlEncode is .NET's HttpUtility.UrlEncode: lower-case escapes, + for space.
func urlEncode(s string) string {
	var b strings.Builder
	e := url.QueryEscape(s)
	for i := 0; i < len(e); i++ {
		if e[i] == '%' {
			b.WriteString(strings.ToLower(e[i : i+3]))
			i += 2
			continue
		}
		b.WriteByte(e[i])
	}
	return b.String()
}

// quote is Python's urllib.parse.quote with safe="".
func quote(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

const endpoint = "https://gridfan.example/ingress/a"

func TestSAS(t *testing.T) {
	other := base64.StdEncoding.EncodeToString([]byte("fedcba9876543210fedcba9876543210"))
	c := newClock() // 20 November 2026, 12:00
	a := must(t, auth.Config{AnyOf: []auth.Method{{SAS: &auth.SAS{Keys: secrets(other, topicKey)}}}}, auth.Deps{Now: c.now})
	jsToken := func(resource, expiry string) string {
		return sign(topicKey, encodeURIComponent(resource), encodeURIComponent(expiry), encodeURIComponent)
	}
	good := jsToken(endpoint+"?apiVersion=2018-01-01", "1/2/2031 3:04:05 PM")
	const malformed = "SAS token: not r=…&e=…&s=…"
	for _, tc := range []struct{ name, token, want string }{
		{"JavaScript", good, ""},
		{".NET", sign(topicKey, urlEncode(endpoint+"?api-version=2018-01-01"), urlEncode("1/2/2031 3:04:05 PM +00:00"), urlEncode), ""},
		{".NET with ICU 72", sign(topicKey, urlEncode(endpoint+"?api-version=2018-01-01"), urlEncode("1/2/2031 3:04:05\u202fPM +00:00"), urlEncode), ""},
		{"Python, naive", sign(topicKey, quote(endpoint+"/api/events?apiVersion=2018-01-01"), quote("2031-01-02 15:04:05"), quote), ""},
		{"Python, aware", sign(topicKey, quote(endpoint+"/api/events?apiVersion=2018-01-01"), quote("2031-01-02 15:04:05.123456+00:00"), quote), ""},
		{"Python, fraction", sign(topicKey, quote(endpoint+"/api/events?apiVersion=2018-01-01"), quote("2031-01-02 15:04:05.123456"), quote), ""},
		{"Go", sign(topicKey, url.QueryEscape(endpoint), url.QueryEscape("2031-01-02T15:04:05Z"), url.QueryEscape), ""},
		{"Go, zone", sign(topicKey, url.QueryEscape(endpoint), url.QueryEscape("2031-01-02T15:04:05+02:00"), url.QueryEscape), ""},
		{"a slash at the end", jsToken(endpoint+"/", "1/2/2031 3:04:05 PM"), ""},
		{"another key of the source", sign(other, quote(endpoint), quote("2031-01-02 15:04:05"), quote), ""},
		{"just expired, within the skew", jsToken(endpoint, "11/20/2026 11:58:01 AM"), ""},

		{"expired", jsToken(endpoint, "11/20/2026 11:58:00 AM"), "SAS token: expired at 2026-11-20T11:58:00Z"},
		{"expired long ago, .NET", sign(topicKey, urlEncode(endpoint), urlEncode("1/2/2020 3:04:05 PM +00:00"), urlEncode), "SAS token: expired at 2020-01-02T15:04:05Z"},
		{"expired in its own zone", sign(topicKey, quote(endpoint), quote("2026-11-20T13:00:00+02:00"), quote), "SAS token: expired at 2026-11-20T11:00:00Z"},
		{"another source", jsToken("https://gridfan.example/ingress/b", "1/2/2031 3:04:05 PM"), `SAS token: made for path "/ingress/b", not "/ingress/a"`},
		{"a prefix", jsToken("https://gridfan.example/ingress", "1/2/2031 3:04:05 PM"), `SAS token: made for path "/ingress", not "/ingress/a"`},
		{"a longer name", jsToken(endpoint+"b", "1/2/2031 3:04:05 PM"), `SAS token: made for path "/ingress/ab", not "/ingress/a"`},
		{"dots in the path", jsToken("https://gridfan.example/ingress/b/../a", "1/2/2031 3:04:05 PM"), `SAS token: made for path "/ingress/b/../a", not "/ingress/a"`},
		{"no URL", jsToken("/ingress/a", "1/2/2031 3:04:05 PM"), "SAS token: the resource is no URL"},
		{"strange expiry", jsToken(endpoint, "tomorrow"), "SAS token: the expiry is in no known form"},
		{"a key that is not the source's", sign(base64.StdEncoding.EncodeToString([]byte("nobody knows me!")), quote(endpoint), quote("2031-01-02 15:04:05"), quote), "SAS token: signed with none of the source's keys, or changed on its way"},
		{"the key's text instead of its bytes", sign(base64.StdEncoding.EncodeToString([]byte(topicKey)), quote(endpoint), quote("2031-01-02 15:04:05"), quote), "SAS token: signed with none of the source's keys, or changed on its way"},
		{"a later expiry", strings.Replace(good, "2031", "2032", 1), "SAS token: signed with none of the source's keys, or changed on its way"},
		{"no signature", good[:strings.Index(good, "&s=")], malformed},
		{"empty signature", good[:strings.Index(good, "&s=")+3], "SAS token: signed with none of the source's keys, or changed on its way"},
		{"signature no base64", good[:strings.Index(good, "&s=")+3] + "!", "SAS token: the signature is not base64"},
		{"two expiries", sign(topicKey, quote(endpoint), quote("2020-01-02 15:04:05")+"&e="+quote("2031-01-02 15:04:05"), quote), malformed},
		{"other order", "e=1&r=2&s=3", malformed},
		{"bad escapes", "r=%zz&e=1&s=3", "SAS token: not URL-encoded"},
		{"garbage", "garbage", malformed},
		{"huge", strings.Repeat("r", 9<<10), "SAS token: longer than 8192 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, r := range []*http.Request{
				post(endpoint, "aeg-sas-token", tc.token),
				post("http://10.0.0.1/ingress/a?api-version=2018-01-01", "Authorization", "SharedAccessSignature "+tc.token),
			} {
				if got := reason(t, a.Check(r, home, nil)); got != tc.want {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			}
		})
	}
	if got := reason(t, a.Check(post(endpoint, "aeg-sas-key", topicKey), home, nil)); got != "no SAS token" {
		t.Errorf("a bare key: got %q", got)
	}
}

func TestSASResource(t *testing.T) {
	a := must(t, auth.Config{AnyOf: []auth.Method{{SAS: &auth.SAS{Keys: secrets(topicKey), Resource: "https://Hooks.example/d365/a"}}}}, auth.Deps{})
	for resource, want := range map[string]string{
		"https://hooks.example/d365/a":           "",
		"https://hooks.example:443/d365/a?x=1":   "",
		"https://hooks.example/d365/a/":          "",
		"https://hooks.example:444/d365/a":       `SAS token: made for host "hooks.example:444", not "Hooks.example"`,
		"https://hooks.example.evil/d365/a":      `SAS token: made for host "hooks.example.evil", not "Hooks.example"`,
		"https://hooks.example/ingress/a":        `SAS token: made for path "/ingress/a", not "/d365/a"`,
		"https://hooks.example/d365/a/api/event": `SAS token: made for path "/d365/a/api/event", not "/d365/a"`,
	} {
		token := sign(topicKey, quote(resource), quote("2131-01-02 15:04:05"), quote)
		if got := reason(t, a.Check(post("http://10.0.0.1/ingress/a", "aeg-sas-token", token), home, nil)); got != want {
			t.Errorf("%s: got %q, want %q", resource, got, want)
		}
	}
}

// TestSASFromAzureSDK lets the stock Go client carry a token, which it leaves
// to its caller to make.
func TestSASFromAzureSDK(t *testing.T) {
	var a *auth.Authenticator
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := a.Check(r, netip.MustParseAddrPort(r.RemoteAddr).Addr(), nil); err != nil {
			t.Log(err)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	a = must(t, auth.Config{AnyOf: []auth.Method{{SAS: &auth.SAS{Keys: secrets(topicKey), Resource: srv.URL + "/ingress/a"}}, {Key: secret.New(oldKey)}}}, auth.Deps{})

	ce, err := messaging.NewCloudEvent("source", "type", map[string]string{"a": "b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for key, ok := range map[string]bool{topicKey: true, base64.StdEncoding.EncodeToString([]byte("nobody knows me!")): false} {
		token := sign(key, url.QueryEscape(srv.URL+"/ingress/a"), url.QueryEscape(time.Now().Add(time.Hour).UTC().Format(time.RFC3339)), url.QueryEscape)
		opts := &azeventgrid.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: srv.Client(), Retry: policy.RetryOptions{MaxRetries: -1}}}
		client, err := azeventgrid.NewClientWithSAS(srv.URL+"/ingress/a", azcore.NewSASCredential(token), opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.PublishCloudEvents(context.Background(), []messaging.CloudEvent{ce}, nil); (err == nil) != ok {
			t.Errorf("got %v, want ok %v", err, ok)
		}
	}
}
