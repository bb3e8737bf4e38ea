package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Signing says whether requests are signed, and with what.
type Signing struct {
	On bool
	// Algorithm is that of the keys that gridfan makes. Default HMAC. Keys have
	// theirs in their prefix.
	Algorithm Algorithm
	// Keys are written as Key.Reveal does, the newest first; each signs. None
	// means that gridfan makes them and keeps them itself.
	Keys []string
	// Overlap is how long a key of gridfan's own still signs beside the one that
	// takes its place. Default 24h.
	Overlap deliver.Duration
}

// defaultOverlap gives people a working day to exchange a key.
const defaultOverlap = 24 * time.Hour

// maxKeys bounds the signatures in a header.
const maxKeys = 5

// IsZero says whether requests are not signed.
func (s Signing) IsZero() bool { return !s.On }

// signingForm is the JSON form of what has more to say than true.
type signingForm struct {
	Algorithm Algorithm        `json:"algorithm,omitempty"`
	Keys      []string         `json:"keys,omitempty"`
	Overlap   deliver.Duration `json:"overlap,omitempty"`
}

// MarshalJSON writes true, false, an algorithm, or what there is to say.
func (s Signing) MarshalJSON() ([]byte, error) {
	switch {
	case !s.On || len(s.Keys) == 0 && s.Overlap == 0 && s.Algorithm == "":
		return json.Marshal(s.On)
	case len(s.Keys) == 0 && s.Overlap == 0:
		return json.Marshal(s.Algorithm)
	}
	return json.Marshal(signingForm{s.Algorithm, s.Keys, s.Overlap})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Signing) UnmarshalJSON(b []byte) error {
	*s = Signing{}
	if json.Unmarshal(b, &s.On) == nil {
		return nil
	}
	if json.Unmarshal(b, &s.Algorithm) == nil && s.Algorithm != "" {
		s.On = true
		if s.Algorithm.known() {
			return nil
		}
		*s = Signing{}
		return errSign // it may be a key: it is not repeated
	}
	var more signingForm
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&more); err != nil {
		return errSign
	}
	s.On, s.Algorithm, s.Keys, s.Overlap = true, more.Algorithm, more.Keys, more.Overlap
	return nil
}

var errSign = errors.New(`sign: want true, "ed25519", or { "keys": [ … ] }, or { "algorithm": "ed25519", "overlap": "24h" }`)

func (a Algorithm) known() bool { return a == "" || a == HMAC || a == Ed25519 }

func (s *Signing) validate(path string) error {
	if !s.On {
		return nil
	}
	var errs []error
	if n := len(s.Keys); n > maxKeys {
		errs = append(errs, fmt.Errorf("%s.keys: want at most %d, got %d", path, maxKeys, n))
	}
	switch {
	case !s.Algorithm.known():
		errs = append(errs, fmt.Errorf("%s.algorithm: want %s or %s", path, HMAC, Ed25519))
	case s.Algorithm != "" && len(s.Keys) > 0:
		errs = append(errs, fmt.Errorf("%s.algorithm: only for keys that gridfan makes; %s and %s say what these are", path, sharedPrefix, privatePrefix))
	}
	for i, key := range s.Keys {
		if _, err := ParseKey(key); err != nil {
			errs = append(errs, fmt.Errorf("%s.keys[%d]: %w", path, i, err))
		}
	}
	switch d := s.Overlap.Std(); {
	case len(s.Keys) > 0 && d != 0:
		errs = append(errs, fmt.Errorf("%s.overlap: only for keys that gridfan makes; of these, each signs as long as it is here", path))
	case len(s.Keys) == 0 && d == 0:
		s.Overlap = deliver.Duration(defaultOverlap)
	case d < 0 || d > 30*24*time.Hour:
		errs = append(errs, fmt.Errorf("%s.overlap: want up to 30d, got %s", path, s.Overlap))
	}
	return errors.Join(errs...)
}

// Parse gives the keys as Options wants them.
func (s Signing) Parse() ([]Key, error) {
	if !s.On {
		return nil, nil
	}
	var keys []Key
	for _, text := range s.Keys {
		key, err := ParseKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("no signing key, although requests are to be signed")
	}
	return keys, nil
}

// PublicKeys gives the public keys of those Keys that are pairs, in their order.
func (s Signing) PublicKeys() []string {
	var all []string
	for _, text := range s.Keys {
		if key, err := ParseKey(text); err == nil && key.Public() != "" {
			all = append(all, key.Public())
		}
	}
	return all
}

func (s Signing) redacted() Signing {
	s.Keys = slices.Clone(s.Keys)
	for i, key := range s.Keys {
		s.Keys[i] = secret.New(key).String()
	}
	return s
}
