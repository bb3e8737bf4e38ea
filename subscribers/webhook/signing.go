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
	// Keys are written as FormatKey does, the newest first; each signs. None
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
	Keys    []string         `json:"keys,omitempty"`
	Overlap deliver.Duration `json:"overlap,omitempty"`
}

// MarshalJSON writes true, false, or what there is to say.
func (s Signing) MarshalJSON() ([]byte, error) {
	if !s.On || len(s.Keys) == 0 && s.Overlap == 0 {
		return json.Marshal(s.On)
	}
	return json.Marshal(signingForm{s.Keys, s.Overlap})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Signing) UnmarshalJSON(b []byte) error {
	*s = Signing{}
	if json.Unmarshal(b, &s.On) == nil {
		return nil
	}
	var more signingForm
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&more); err != nil {
		return errors.New(`sign: want true, or { "keys": [ … ], "overlap": "24h" }`)
	}
	s.On, s.Keys, s.Overlap = true, more.Keys, more.Overlap
	return nil
}

func (s *Signing) validate(path string) error {
	if !s.On {
		return nil
	}
	var errs []error
	if n := len(s.Keys); n > maxKeys {
		errs = append(errs, fmt.Errorf("%s.keys: want at most %d, got %d", path, maxKeys, n))
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
func (s Signing) Parse() ([][]byte, error) {
	if !s.On {
		return nil, nil
	}
	var keys [][]byte
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

func (s Signing) redacted() Signing {
	s.Keys = slices.Clone(s.Keys)
	for i, key := range s.Keys {
		s.Keys[i] = secret.New(key).String()
	}
	return s
}
