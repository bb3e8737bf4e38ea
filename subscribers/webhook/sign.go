package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
)

// Requests are signed as Standard Webhooks 1.0.0 says
// (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md;
// 2026-11): HMAC-SHA256 over "id.timestamp.body", under each valid key.

const keyPrefix = "whsec_"

// How many bytes a key has, by the specification, and how many ours have: as
// many as the hash, since more add nothing.
const (
	minKey = 24
	maxKey = 64
	newKey = 32
)

// NewKey makes a random key.
func NewKey() []byte {
	key := make([]byte, newKey)
	_, _ = rand.Read(key) // never fails (Go 1.24)
	return key
}

// FormatKey writes a key as people exchange it: "whsec_" and base64.
func FormatKey(key []byte) string { return keyPrefix + base64.StdEncoding.EncodeToString(key) }

// ParseKey reads what FormatKey writes, with or without blanks around it. Its
// error does not show the key.
func ParseKey(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), keyPrefix)
	if !ok {
		return nil, fmt.Errorf("not a signing key: it does not begin with %s", keyPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("not a signing key: what follows %s is not base64", keyPrefix)
	}
	return key, checkKey(key)
}

func checkKey(key []byte) error {
	if n := len(key); n < minKey || n > maxKey {
		return fmt.Errorf("a signing key has %d to %d bytes before base64, got %d", minKey, maxKey, n)
	}
	return nil
}

// signer signs requests. It is safe for concurrent use.
type signer struct {
	keys [][]byte
	pool sync.Pool // of *signing
}

// signing is what one signature needs: hashes that have digested their keys
// already, and room for text.
type signing struct {
	macs []hash.Hash
	text []byte
}

func newSigner(keys [][]byte) (*signer, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	var errs []error
	for _, key := range keys {
		errs = append(errs, checkKey(key))
	}
	s := &signer{keys: keys}
	s.pool.New = func() any {
		g := &signing{}
		for _, key := range s.keys {
			g.macs = append(g.macs, hmac.New(sha256.New, key))
		}
		return g
	}
	return s, errors.Join(errs...)
}

// sign adds the headers to h.
func (s *signer) sign(h http.Header, id string, body []byte, now time.Time) {
	g := s.pool.Get().(*signing)
	t := append(append(g.text[:0], id...), '.')
	stamp := len(t)
	t = strconv.AppendInt(t, now.Unix(), 10)
	values := []string{id, string(t[stamp:]), ""}
	t = append(t, '.')
	signed := len(t)
	for i, mac := range g.macs {
		mac.Reset()
		mac.Write(t[:signed])
		mac.Write(body)
		var sum [sha256.Size]byte
		if i > 0 {
			t = append(t, ' ')
		}
		t = base64.StdEncoding.AppendEncode(append(t, "v1,"...), mac.Sum(sum[:0]))
	}
	values[2] = string(t[signed:])
	g.text = t
	s.pool.Put(g)
	h["Webhook-Id"] = values[0:1:1]
	h["Webhook-Timestamp"] = values[1:2:2]
	h["Webhook-Signature"] = values[2:3:3]
}

// maxID is how long an id goes into a header. Servers refuse a request for too
// long ones, and a refusal would cost the event.
const maxID = 256

// webhookID is an event's id as a header can carry it: percent-encoded as in
// ce-id, and with it the full stop, which would make "id.timestamp.body"
// ambiguous to whoever may choose ids. A long one gives way to its digest.
func webhookID(id string) string {
	n := 0
	for i := range len(id) {
		if encoded(id[i]) {
			n += 2
		}
	}
	switch {
	case len(id)+n > maxID:
		sum := sha256.Sum256([]byte(id))
		return "sha256-" + base64.RawURLEncoding.EncodeToString(sum[:])
	case n == 0:
		return id
	}
	const hexDigits = "0123456789ABCDEF"
	b := make([]byte, 0, len(id)+n)
	for i := range len(id) {
		if c := id[i]; encoded(c) {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

func encoded(c byte) bool { return c <= ' ' || c >= 0x7f || c == '"' || c == '%' || c == '.' }

// batchID is the same for the same events in the same order, and for no others.
func batchID(events []*event.Event) string {
	h := sha256.New()
	var b []byte
	for _, e := range events {
		b = b[:0]
		for _, s := range []string{e.Source, e.ID} {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
		h.Write(b)
	}
	return "batch-" + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}
