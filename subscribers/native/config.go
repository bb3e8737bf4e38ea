package native

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Config is how the server hands events to a subscriber's client. The zero value
// of a field means its default; Validate fills them in.
type Config struct {
	// Keys are public nkeys of users, with which the client signs in. None means
	// that gridfan makes one and shows its seed once.
	Keys []string `json:"keys,omitempty"`
	// Overlap is how long a key of gridfan's opens beside the one that takes its
	// place. Default 24h.
	Overlap deliver.Duration `json:"overlap,omitempty"`
	// AckWait is how long the client may take over an event before it is handed
	// out again. Default 30s.
	AckWait deliver.Duration `json:"ackWait"`
	// MaxDeliver is how often an event is handed out; what is not acknowledged
	// then becomes a dead letter. Default 10.
	MaxDeliver int `json:"maxDeliver"`
	// MaxAckPending is how many events may be in the client's hands. Default 1000.
	MaxAckPending int `json:"maxAckPending"`
}

const (
	defaultAckWait       = deliver.Duration(30 * time.Second)
	defaultMaxDeliver    = 10
	defaultMaxAckPending = 1000 // the server's own
	defaultOverlap       = deliver.Duration(24 * time.Hour)

	minAckWait    = deliver.Duration(time.Second)
	maxAckWait    = deliver.Duration(12 * time.Hour)
	mostDeliver   = 1000
	mostPending   = 10_000 // what a page of records and the memory of this process carry well
	mostOverlap   = deliver.Duration(30 * 24 * time.Hour)
	mostKeys      = 5
	maxRequestFor = time.Minute // see consumerConfig
)

// Validate sets defaults and reports every problem, each beginning with path.
func (c *Config) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if len(c.Keys) > mostKeys {
		bad("keys", "want at most %d, got %d", mostKeys, len(c.Keys))
	}
	for i, k := range c.Keys {
		switch {
		case len(k) > 1 && k[:2] == "SU":
			// Not repeated: it is the secret.
			errs = append(errs, fmt.Errorf("%s.keys[%d]: this is a seed, which only the client may have; want the public key, which begins with U (nk -inkey FILE -pubout)", path, i))
		case !broker.ValidClientKey(k):
			errs = append(errs, fmt.Errorf("%s.keys[%d]: want the public nkey of a user, which begins with U (nk -gen user makes one)", path, i))
		case slices.Index(c.Keys, k) < i:
			errs = append(errs, fmt.Errorf("%s.keys[%d]: it is there already", path, i))
		}
	}
	if c.Overlap == 0 && len(c.Keys) == 0 {
		c.Overlap = defaultOverlap
	}
	if c.AckWait == 0 {
		c.AckWait = defaultAckWait
	}
	if c.MaxDeliver == 0 {
		c.MaxDeliver = defaultMaxDeliver
	}
	if c.MaxAckPending == 0 {
		c.MaxAckPending = defaultMaxAckPending
	}
	switch {
	case len(c.Keys) > 0 && c.Overlap != 0:
		bad("overlap", "has a meaning for keys that gridfan makes; with keys, put the new one beside the old one there")
	case c.Overlap < 0 || c.Overlap > mostOverlap:
		bad("overlap", "want at most %s, got %s", mostOverlap, c.Overlap)
	}
	if c.AckWait < minAckWait || c.AckWait > maxAckWait {
		bad("ackWait", "want %s to %s, got %s", minAckWait, maxAckWait, c.AckWait)
	}
	if c.MaxDeliver < 1 || c.MaxDeliver > mostDeliver {
		bad("maxDeliver", "want 1 to %d, got %d", mostDeliver, c.MaxDeliver)
	}
	if c.MaxAckPending < 1 || c.MaxAckPending > mostPending {
		bad("maxAckPending", "want 1 to %d, got %d", mostPending, c.MaxAckPending)
	}
	return errors.Join(errs...)
}
