package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strconv"
	"strings"
	"time"
)

// maxSignature is room for the signatures of dozens of keys; nobody rotates
// more at once, and each is compared with each of ours.
const maxSignature = 4 << 10

// hmacMethod checks a signature over the body.
type hmacMethod struct {
	header    string // canonical
	keys      [][]byte
	hash      func() hash.Hash
	decode    func(string) ([]byte, error)
	tolerance time.Duration
	// split takes a header apart. before is what is signed in front of the
	// body; stamp is its time, empty where the scheme has none.
	split func(r *request, header string) (before, stamp string, signatures []string, problem string)
}

func newHMAC(c *HMAC) *hmacMethod {
	m := &hmacMethod{hash: sha256.New, decode: hex.DecodeString, tolerance: c.Tolerance}
	key := func(s string) []byte { return []byte(s) }
	switch c.Preset {
	case PresetGitHub:
		m.header, m.split = "X-Hub-Signature-256", splitPrefix("sha256=")
	case PresetStripe:
		m.header, m.split = "Stripe-Signature", splitStripe
	case PresetStandardWebhooks:
		m.header, m.split, m.decode = "Webhook-Signature", splitStandard, base64.StdEncoding.DecodeString
		key = func(s string) []byte { k, _ := standardKey(s); return k }
	default:
		m.header, m.split = c.Header, splitPrefix(c.Prefix)
		if c.Algorithm == "sha512" {
			m.hash = sha512.New
		}
		if c.Encoding == "base64" {
			m.decode = base64.StdEncoding.DecodeString
		}
	}
	for _, s := range c.Secrets {
		m.keys = append(m.keys, key(s.Reveal()))
	}
	return m
}

func (*hmacMethod) rank() int { return 2 }

func (m *hmacMethod) check(r *request) verdict {
	header := r.Header.Get(m.header)
	if header == "" {
		return verdict{outcome: absent, reason: "no header " + m.header}
	}
	if len(header) > maxSignature {
		return refusedf("%s: longer than %d bytes", m.header, maxSignature)
	}
	before, stamp, signatures, problem := m.split(r, header)
	if problem != "" {
		return refusedf("%s: %s", m.header, problem)
	}
	// A wrong time is cheaper to see than a wrong signature of megabytes.
	if m.tolerance > 0 {
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return refusedf("%s: the timestamp is no number of seconds", m.header)
		}
		if off := r.now.Sub(time.Unix(seconds, 0)); off.Abs() > m.tolerance {
			return refusedf("%s: the timestamp is %s from now, more than %s", m.header, off.Round(time.Second), m.tolerance)
		}
	}
	var sent [][]byte
	for _, s := range signatures {
		if b, err := m.decode(s); err == nil {
			sent = append(sent, b)
		}
	}
	valid := false
	for _, key := range m.keys {
		mac := hmac.New(m.hash, key)
		mac.Write([]byte(before))
		mac.Write(r.body)
		sum := mac.Sum(nil)
		for _, s := range sent {
			if hmac.Equal(sum, s) {
				valid = true
			}
		}
	}
	if !valid {
		return refusedf("%s: not signed with one of the source's secrets, or changed on its way", m.header)
	}
	return verdict{outcome: accepted}
}

// splitPrefix is for a header that holds a prefix and one signature of the
// bare body, as GitHub's (docs.github.com, validating-webhook-deliveries; read
// 2026-11).
func splitPrefix(prefix string) func(*request, string) (before, stamp string, signatures []string, problem string) {
	return func(_ *request, header string) (before, stamp string, signatures []string, problem string) {
		s, ok := strings.CutPrefix(header, prefix)
		if !ok {
			return "", "", nil, "does not begin with " + prefix
		}
		return "", "", []string{s}, ""
	}
}

// splitStripe takes t=…,v1=…,v1=… apart: one v1 for each active secret, other
// schemes are ignored. Signed is "t.body" (docs.stripe.com, webhooks/signature;
// read 2026-11).
func splitStripe(_ *request, header string) (before, stamp string, signatures []string, problem string) {
	for part := range strings.SplitSeq(header, ",") {
		switch key, value, _ := strings.Cut(strings.TrimSpace(part), "="); {
		case key == "t" && stamp != "":
			return "", "", nil, "two timestamps"
		case key == "t":
			stamp = value
		case key == "v1":
			signatures = append(signatures, value)
		}
	}
	if stamp == "" || len(signatures) == 0 {
		return "", "", nil, "not t=…,v1=…"
	}
	return stamp + ".", stamp, signatures, ""
}

// splitStandard takes "v1,… v1,…" apart; other versions are ignored, v1a among
// them, which is no HMAC. Signed is "id.timestamp.body" (Standard Webhooks,
// spec/standard-webhooks.md; read 2026-11).
func splitStandard(r *request, header string) (before, stamp string, signatures []string, problem string) {
	id, stamp := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
	switch {
	case id == "" || stamp == "":
		return "", "", nil, "comes without webhook-id or webhook-timestamp"
	case strings.Contains(id, "."):
		// The specification asks senders for none: who can choose what comes
		// after a dot could otherwise shift id, timestamp and body.
		return "", "", nil, "webhook-id contains a dot"
	}
	for part := range strings.FieldsSeq(header) {
		if s, ok := strings.CutPrefix(part, "v1,"); ok {
			signatures = append(signatures, s)
		}
	}
	if len(signatures) == 0 {
		return "", "", nil, "no signature of version v1"
	}
	return id + "." + stamp + ".", stamp, signatures, ""
}

// standardKey is the key in a Standard Webhooks secret.
func standardKey(s string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "whsec_"))
}
