package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
)

// Requests are signed as Standard Webhooks 1.0.0 says
// (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md;
// 2026-11): over "id.timestamp.body", with each valid key, HMAC-SHA256 (v1) or
// ed25519 (v1a) as the key is.

// signer signs requests. It is safe for concurrent use.
type signer struct {
	keys []Key
	pool sync.Pool // of *signing
}

// signing is what one signature needs: hashes that have digested their keys
// already, and room for text.
type signing struct {
	macs []hash.Hash // nil for a key that is no secret of both sides
	text []byte
}

func newSigner(keys []Key) (*signer, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	var errs []error
	for _, key := range keys {
		errs = append(errs, key.check())
	}
	s := &signer{keys: keys}
	s.pool.New = func() any {
		g := &signing{}
		for _, key := range s.keys {
			if key.private == nil {
				g.macs = append(g.macs, hmac.New(sha256.New, key.shared))
			} else {
				g.macs = append(g.macs, nil)
			}
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
	var whole []byte // what is signed, for those who want it in one piece
	for i, mac := range g.macs {
		if i > 0 {
			t = append(t, ' ')
		}
		if mac == nil {
			if whole == nil {
				whole = append(append(make([]byte, 0, signed+len(body)), t[:signed]...), body...)
			}
			t = base64.StdEncoding.AppendEncode(append(t, "v1a,"...), ed25519.Sign(s.keys[i].private, whole))
			continue
		}
		mac.Reset()
		mac.Write(t[:signed])
		mac.Write(body)
		var sum [sha256.Size]byte
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

const hexDigits = "0123456789ABCDEF"

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
