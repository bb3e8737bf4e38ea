// Package secret holds values that must not be seen: keys, tokens, and URLs
// with a key in their query.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/url"
)

// String is a secret text. It prints, logs and marshals as "<redacted>";
// Reveal gives the text itself. The zero value means no secret.
type String struct{ text string }

// New makes a secret of text.
func New(text string) String { return String{text} }

const redacted = "<redacted>"

// Reveal returns the text. Call it only where the secret is used.
func (s String) Reveal() string { return s.text }

// IsZero says whether there is no secret.
func (s String) IsZero() bool { return s.text == "" }

// Equal compares in constant time with a text that a stranger sent. An empty
// secret equals nothing.
func (s String) Equal(sent string) bool {
	a, b := sha256.Sum256([]byte(s.text)), sha256.Sum256([]byte(sent))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && s.text != ""
}

func (s String) String() string {
	if s.text == "" {
		return ""
	}
	return redacted
}

// Format makes every verb of package fmt print String.
func (s String) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText writes the redacted form, for JSON and slog alike.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// URL returns raw with every secret-bearing part hidden: the password, and the
// values of the query. A text that is no URL is hidden whole.
func URL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return redacted
	}
	s := u.Scheme + "://"
	if u.User != nil {
		s += redacted + "@"
	}
	s += u.Host + u.EscapedPath()
	if u.RawQuery != "" {
		s += "?" + redacted
	}
	return s
}
