package ingress

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
)

// Config is what the public listener serves.
type Config struct {
	Sources []Source
	// Pulled are the names of sources that gridfan itself asks. Nothing is taken
	// from who pushes to one of them; a sender is told why.
	Pulled []string

	// TrustedProxies are networks whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix

	// Tally counts what is not given to Publish, for the books; nil: nobody does.
	Tally *publish.Tally

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
	// Kind is the wire format family, one of normalise.Kinds.
	Kind string
	// Environment scopes identity: the same event through two sources of one
	// environment is published once. Default: the name.
	Environment string
	// Rationale is the operator's reason for the pattern, shown in status.
	Rationale string

	// Auth says who may send.
	Auth auth.Config
	// Origins are answered in the CloudEvents handshake. Default
	// eventgrid.azure.net; "*" allows all.
	Origins []string
	// Subscriptions are the Event Grid subscriptions that may deliver here,
	// compared without case. None at all means any.
	Subscriptions []string
	// Validation says how Event Grid's subscription validation is answered.
	// Default ValidateInAnswer.
	Validation Validation

	// BusinessKeys names, for an F&O BusinessEventId, the members of the event
	// that are its business key. Kind fno only.
	BusinessKeys map[string][]string
	// Mapping says where a custom body has what. Kind custom only.
	Mapping *custom.Mapping

	Limits Limits
}

// Limits bound what one source may take of the machine.
type Limits struct {
	// Body is the largest request body in bytes, unpacked. Default 4 MiB.
	Body int64
	// Rate is how many requests a second are taken, on average. 0 means no
	// limit.
	Rate float64
	// Concurrency is how many requests are worked on at once. Default 256.
	Concurrency int
}

// Validation is a way to answer Event Grid's subscription validation.
type Validation string

// The ways. By URL is for endpoints whose answers a gateway replaces; it takes
// up to a minute (Event Grid docs,
// end-point-validation-event-grid-events-schema; read 2026-11).
const (
	ValidateInAnswer Validation = "answer" // echo the code
	ValidateByURL    Validation = "url"    // fetch the validation URL
)

// DefaultOrigin is what Event Grid calls itself in the handshake (captured
// request, Blackbaud SKY API webhook overview; read 2026-11).
const DefaultOrigin = "eventgrid.azure.net"

const (
	// defaultMaxBody is four times what Event Grid can send in one request.
	defaultMaxBody = 4 << 20
	// maxMaxBody keeps one element below what the broker stores.
	maxMaxBody = 7 << 20
	// defaultConcurrency is what shares a sync of the disk: at ten milliseconds
	// under load that are 25,000 requests a second. Beyond it a source waits for
	// itself.
	defaultConcurrency = 256
)

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (s *Source) Validate() error {
	var errs []error
	path := "sources." + s.Name
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if !ValidName(s.Name) {
		bad("", "a name is 1 to 63 lower-case letters, digits and dashes, and begins with a letter or digit")
	}
	if s.Kind == "" {
		bad(".kind", "missing; want %s", oneOf(normalise.Kinds()))
	} else if !normalise.Known(s.Kind) {
		bad(".kind", "want %s, got %q", oneOf(normalise.Kinds()), s.Kind)
	}
	if s.Environment == "" {
		s.Environment = s.Name
	}
	if err := s.Auth.Validate(path + ".push.auth"); err != nil {
		errs = append(errs, err)
	}
	if len(s.Origins) == 0 {
		s.Origins = []string{DefaultOrigin}
	}
	switch s.Validation {
	case "":
		s.Validation = ValidateInAnswer
	case ValidateInAnswer, ValidateByURL:
	default:
		bad(".push.validation", "want %s or %s, got %q", ValidateInAnswer, ValidateByURL, s.Validation)
	}
	for i, name := range s.Subscriptions {
		if name == "" || len(name) > 64 {
			bad(fmt.Sprintf(".push.subscriptions[%d]", i), "want the name of an event subscription")
		}
	}
	if len(s.BusinessKeys) > 0 && s.Kind != event.KindFnO {
		bad(".businessKeys", "only sources of kind fno have business events")
	}
	for _, name := range slices.Sorted(maps.Keys(s.BusinessKeys)) {
		if len(s.BusinessKeys[name]) == 0 || slices.Contains(s.BusinessKeys[name], "") {
			bad(".businessKeys."+name, "want the names of one or more members of the event")
		}
	}
	switch {
	case s.Kind == event.KindCustom && s.Mapping == nil:
		bad(".mapping", "missing; a source of kind custom says where its bodies have what: mapping: { type: .kind }")
	case s.Kind != event.KindCustom && s.Mapping != nil:
		bad(".mapping", "only sources of kind custom are mapped")
	case s.Mapping != nil:
		if _, err := custom.Compile(*s.Mapping); err != nil {
			for _, e := range flatten(err) {
				errs = append(errs, fmt.Errorf("%s.%w", path, e))
			}
		}
	}
	if s.Limits.Body == 0 {
		s.Limits.Body = defaultMaxBody
	}
	if s.Limits.Body < 1024 || s.Limits.Body > maxMaxBody {
		bad(".limits.body", "want 1KiB to 7MiB")
	}
	if s.Limits.Rate < 0 || s.Limits.Rate > 1e6 {
		bad(".limits.rate", "want up to 1000000/s")
	}
	if s.Limits.Concurrency == 0 {
		s.Limits.Concurrency = defaultConcurrency
	}
	if s.Limits.Concurrency < 1 || s.Limits.Concurrency > 10000 {
		bad(".limits.concurrency", "want 1 to 10000, got %d", s.Limits.Concurrency)
	}
	return errors.Join(errs...)
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
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
