package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"time"
)

// maxSAS is several times the longest resource URL, so that nobody makes us
// hash a megabyte of header.
const maxSAS = 8 << 10

// sasMethod checks Event Grid's tokens, r=<resource>&e=<expiry>&s=<signature>.
// Their parts are as escaped as the sender's language does it, so what was
// signed is the text as it came (Event Grid docs, authenticate-with-access-
// keys-shared-access-signatures, and the SDKs' generators; read 2026-11).
type sasMethod struct {
	keys     [][]byte
	resource *url.URL // nil: the path of the request
}

func newSAS(c *SAS) *sasMethod {
	m := &sasMethod{}
	for _, k := range c.Keys {
		// Validate has decoded both before.
		key, _ := base64.StdEncoding.DecodeString(k.Reveal())
		m.keys = append(m.keys, key)
	}
	if c.Resource != "" {
		m.resource, _ = url.Parse(c.Resource)
	}
	return m
}

func (*sasMethod) rank() int { return 1 }

func (m *sasMethod) check(r *request) verdict {
	if token := r.Header.Get("Aeg-Sas-Token"); token != "" {
		return m.token(r, token)
	}
	if token, ok := r.authorization("SharedAccessSignature"); ok {
		return m.token(r, token)
	}
	return r.unused("no SAS token")
}

func (m *sasMethod) token(r *request, token string) verdict {
	if len(token) > maxSAS {
		return refusedf("SAS token: longer than %d bytes", maxSAS)
	}
	signed, sent, ok := cutLast(token, "&s=")
	parts := strings.Split(signed, "&")
	if !ok || len(parts) != 2 {
		return refusedf("SAS token: not r=…&e=…&s=…")
	}
	resource, okR := strings.CutPrefix(parts[0], "r=")
	expiry, okE := strings.CutPrefix(parts[1], "e=")
	if !okR || !okE {
		return refusedf("SAS token: not r=…&e=…&s=…")
	}
	for _, part := range []*string{&resource, &expiry, &sent} {
		var err error
		if *part, err = url.QueryUnescape(*part); err != nil {
			return refusedf("SAS token: not URL-encoded")
		}
	}
	// The signature comes first: what is said below of a token was then
	// written by somebody who has a key.
	signature, err := base64.StdEncoding.DecodeString(sent)
	if err != nil {
		return refusedf("SAS token: the signature is not base64")
	}
	valid := false
	for _, key := range m.keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(signed))
		if hmac.Equal(mac.Sum(nil), signature) {
			valid = true
		}
	}
	if !valid {
		return refusedf("SAS token: signed with none of the source's keys, or changed on its way")
	}
	end, ok := parseExpiry(expiry)
	if !ok {
		return refusedf("SAS token: the expiry is in no known form")
	}
	if !r.now.Before(end.Add(Skew)) {
		return refusedf("SAS token: expired at %s", end.UTC().Format(time.RFC3339))
	}
	u, err := url.Parse(resource)
	if err != nil || u.Host == "" {
		return refusedf("SAS token: the resource is no URL")
	}
	want := r.URL.Path
	if m.resource != nil {
		want = m.resource.Path
		if !strings.EqualFold(hostPort(u), hostPort(m.resource)) {
			return refusedf("SAS token: made for host %.100q, not %q", u.Host, m.resource.Host)
		}
	}
	if !samePath(u.Path, want) {
		return refusedf("SAS token: made for path %.200q, not %.200q", u.Path, want)
	}
	return verdict{outcome: accepted}
}

// cutLast is strings.Cut around the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// samePath compares whole paths: a token for /ingress/a is none for
// /ingress/ab. Python's generator appends /api/events, the path of every Event
// Grid topic, to an endpoint that does not end so (azure-eventgrid,
// _helpers.py, read 2026-11).
func samePath(token, want string) bool {
	token, want = strings.TrimSuffix(token, "/"), strings.TrimSuffix(want, "/")
	return token == want || token == want+"/api/events"
}

// hostPort is the host with the port that the scheme implies.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[strings.ToLower(u.Scheme)]
	}
	return u.Hostname() + ":" + port
}

// expiries are the forms in which SDKs write a time; without a zone it is UTC
// (their generators; read 2026-11). A fraction may follow the seconds.
var expiries = []string{
	"1/2/2006 3:04:05 PM",        // JavaScript
	"1/2/2006 3:04:05 PM -07:00", // .NET
	"2006-01-02 15:04:05",        // Python, naive
	"2006-01-02 15:04:05-07:00",  // Python, aware
	time.RFC3339,                 // Go
}

// noBreak are the spaces that .NET puts before AM and PM with ICU 72 and later
// (github.com/dotnet/runtime/issues/102220; read 2026-11).
var noBreak = strings.NewReplacer("\u202f", " ", "\u00a0", " ")

func parseExpiry(s string) (time.Time, bool) {
	s = noBreak.Replace(s)
	for _, layout := range expiries {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
