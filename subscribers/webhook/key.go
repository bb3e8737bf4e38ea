package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
)

// Algorithm is how requests are signed.
type Algorithm string

// The algorithms of Standard Webhooks 1.0.0.
const (
	HMAC    Algorithm = "hmac-sha256" // both sides have the one key
	Ed25519 Algorithm = "ed25519"     // the receiver has a public key, with which nobody can sign
)

// How keys begin, so that people and programs tell them apart.
const (
	sharedPrefix  = "whsec_"
	privatePrefix = "whsk_"
	publicPrefix  = "whpk_"
)

// How many bytes a shared key has, by the specification, and how many ours have:
// as many as the hash, since more add nothing.
const (
	minKey = 24
	maxKey = 64
	newKey = 32
)

// Key is what requests are signed with: a secret that the receiver has too, or the
// private one of a pair. It prints without its secret.
type Key struct {
	shared  []byte // nil for a pair
	private ed25519.PrivateKey
}

// NewKey makes a random key.
func NewKey(a Algorithm) Key {
	b := make([]byte, newKey)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	if a == Ed25519 {
		return Key{private: ed25519.NewKeyFromSeed(b)}
	}
	return Key{shared: b}
}

// ParseKey reads what Reveal writes, with or without blanks around it. Its error
// does not show the key.
//
// After whsk_ come seed and public key, 64 bytes, as Svix writes them, whose
// server the specification was made from (svix/svix-webhooks,
// server/svix-server/README.md; 2026-11). The seed alone will do, too: RFC 8032
// calls just that the private key.
func ParseKey(s string) (Key, error) {
	s = strings.TrimSpace(s)
	decode := func(prefix string) ([]byte, error) {
		b, err := base64.StdEncoding.DecodeString(s[len(prefix):])
		if err != nil {
			return nil, fmt.Errorf("not a signing key: what follows %s is not base64", prefix)
		}
		return b, nil
	}
	switch {
	case strings.HasPrefix(s, sharedPrefix):
		b, err := decode(sharedPrefix)
		if err != nil {
			return Key{}, err
		}
		k := Key{shared: b}
		return k, k.check()
	case strings.HasPrefix(s, privatePrefix):
		b, err := decode(privatePrefix)
		switch {
		case err != nil:
			return Key{}, err
		case len(b) != ed25519.SeedSize && len(b) != ed25519.PrivateKeySize:
			return Key{}, fmt.Errorf("a private key has %d bytes before base64, or %d without its public key, got %d", ed25519.PrivateKeySize, ed25519.SeedSize, len(b))
		}
		k := Key{private: ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])}
		if len(b) == ed25519.PrivateKeySize && !bytes.Equal(b, k.private) {
			return Key{}, fmt.Errorf("not a signing key: the public key in it is not that of the private one")
		}
		return k, nil
	case strings.HasPrefix(s, publicPrefix):
		return Key{}, fmt.Errorf("a public key (%s) verifies and cannot sign; want the private one, %s", publicPrefix, privatePrefix)
	}
	return Key{}, fmt.Errorf("not a signing key: it begins neither with %s nor with %s", sharedPrefix, privatePrefix)
}

func (k Key) check() error {
	if n := len(k.shared); k.private == nil && (n < minKey || n > maxKey) {
		return fmt.Errorf("a signing key has %d to %d bytes before base64, got %d", minKey, maxKey, n)
	}
	return nil
}

// Reveal writes the key with its secret: its prefix and base64.
func (k Key) Reveal() string {
	if k.private != nil {
		return privatePrefix + base64.StdEncoding.EncodeToString(k.private)
	}
	return sharedPrefix + base64.StdEncoding.EncodeToString(k.shared)
}

// Public gives the public key of a pair as receivers want it, and nothing for a
// shared key.
func (k Key) Public() string {
	if k.private == nil {
		return ""
	}
	return publicPrefix + base64.StdEncoding.EncodeToString(k.public())
}

func (k Key) public() ed25519.PublicKey { return ed25519.PublicKey(k.private[ed25519.SeedSize:]) }

// Algorithm says what the key signs with.
func (k Key) Algorithm() Algorithm {
	if k.private != nil {
		return Ed25519
	}
	return HMAC
}

// ID begins the SHA-256 of what the receiver has of the key, so that both sides can
// say which they mean.
func (k Key) ID() string {
	b := k.shared
	if k.private != nil {
		b = k.public()
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:4])
}

// Format makes every verb of package fmt, and with it logs, hide the secret.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.ID()+" "+secret.New("x").String()) }

// secrets are the forms in which the key could be quoted.
func (k Key) secrets() []string {
	var all []string
	for _, b := range [][]byte{k.shared, k.private} {
		if b == nil {
			continue
		}
		if k.private != nil {
			b = b[:ed25519.SeedSize]
			all = append(all, base64.StdEncoding.EncodeToString(k.private), hex.EncodeToString(k.private))
		}
		all = append(all, base64.StdEncoding.EncodeToString(b), hex.EncodeToString(b), string(b))
	}
	return slices.Clip(all)
}
