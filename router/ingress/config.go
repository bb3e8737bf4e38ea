package ingress

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
)

// Config is what the public listener serves.
type Config struct {
	Sources []Source

	// Since is when this configuration took effect. An unknown source is
	// answered 503 for RolloutGrace from then on, so that a sender which was
	// configured first does not lose events.
	Since time.Time
}

// RolloutGrace is how long an unknown source counts as one whose configuration
// is still on its way.
const RolloutGrace = 10 * time.Minute

// Source is one configured place that events are pushed from.
type Source struct {
	// Name is the last part of the ingress URL and a token of every subject.
	Name string
	// Kind is the wire format family: event.KindEventGrid or event.KindFnO.
	Kind string
	// Environment scopes identity: the same event through two sources of one
	// environment is published once. Default: the name.
	Environment string
	// Rationale is the operator's reason for the pattern, shown in status.
	Rationale string

	// Keys are the secrets a sender may show, any one of them. None at all
	// needs NoAuth.
	Keys []secret.String
	// NoAuth lets everybody in; it is the operator's explicit word.
	NoAuth bool
	// Origins are answered in the CloudEvents handshake. Default
	// eventgrid.azure.net; "*" allows all.
	Origins []string
	// MaxBody is the largest request body in bytes. Default 4 MiB.
	MaxBody int64
}

// DefaultOrigin is what Event Grid calls itself in the handshake (captured
// request, Blackbaud SKY API webhook overview; read 2026-11).
const DefaultOrigin = "eventgrid.azure.net"

// DefaultMaxBody is four times what Event Grid can send in one request.
const DefaultMaxBody = 4 << 20

// maxMaxBody keeps one element below what the broker stores.
const maxMaxBody = 7 << 20

// Kinds lists the source kinds understood.
func Kinds() []string { return []string{event.KindEventGrid, event.KindFnO} }

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (s *Source) Validate() error {
	var errs []error
	path := "sources." + s.Name
	if !ValidName(s.Name) {
		errs = append(errs, fmt.Errorf("%s: a name is 1 to 63 lower-case letters, digits and dashes, and begins with a letter or digit", path))
	}
	if !slices.Contains(Kinds(), s.Kind) {
		errs = append(errs, fmt.Errorf("%s.kind: want eventgrid or fno, got %q", path, s.Kind))
	}
	if s.Environment == "" {
		s.Environment = s.Name
	}
	if len(s.Origins) == 0 {
		s.Origins = []string{DefaultOrigin}
	}
	if s.MaxBody == 0 {
		s.MaxBody = DefaultMaxBody
	}
	if s.MaxBody < 1024 || s.MaxBody > maxMaxBody {
		errs = append(errs, fmt.Errorf("%s.limits.body: want 1KiB to 7MiB", path))
	}
	if len(s.Keys) == 0 && !s.NoAuth {
		errs = append(errs, fmt.Errorf("%s.push.auth: say who may send: anyOf: [ { key: \"${env:…}\" } ], or none", path))
	}
	if len(s.Keys) > 0 && s.NoAuth {
		errs = append(errs, fmt.Errorf("%s.push.auth: none and keys exclude each other", path))
	}
	for i, k := range s.Keys {
		// Sixteen characters of base64 are 96 bits: out of reach for guessing.
		if len(k.Reveal()) < 16 {
			errs = append(errs, fmt.Errorf("%s.push.auth.anyOf[%d].key: want at least 16 characters", path, i))
		}
	}
	return errors.Join(errs...)
}

// ValidName says whether name can stand in a URL, a subject and a file alike.
func ValidName(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
