// Package event is gridfan's internal schema: one event with the CloudEvents
// 1.0 attributes, whatever wire format it came in by.
//
// An Event is made by a parser (schemas/eventgrid, schemas/businessevent),
// stored on a NATS subject in the binary mode of CloudEvents (Encode, Decode),
// and sent on in either mode (Header, JSON). The package does no I/O.
package event

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Event is one occurrence at a source. The zero value of an optional field
// means the attribute is not set.
type Event struct {
	ID     string // required; unique per Source, together with it
	Source string // required; a URI reference
	Type   string // required

	Subject         string    // what the event is about, within Source
	Time            time.Time // when it happened
	DataContentType string    // media type of Data; empty means JSON
	DataSchema      string    // a URI

	// Extensions are sorted by name, each name once. Use Set and Get.
	Extensions []Extension

	// Data is the payload as it goes over the wire; nil means none.
	Data []byte
	// DataJSON says that Data is one JSON value, to be embedded as such.
	// It usually follows from DataContentType, but senders do declare
	// text/plain and then send an object.
	DataJSON bool
}

// Names of the extension attributes gridfan sets.
const (
	ExtSource       = "gridfansource" // name of the configured source
	ExtLegalEntity  = "legalentity"   // company, lower case
	ExtAction       = "action"        // created, updated, deleted, occurred
	ExtVia          = "via"           // push, poll, reconcile, replay
	ExtLate         = "late"          // true: read back from where its source had given up on it
	ExtSequence     = "sequence"      // the sender's ordering number, as text
	ExtPartitionKey = "partitionkey"
	ExtRecordedTime = "recordedtime" // when gridfan accepted it, RFC 3339
	ExtOriginalID   = "originalid"   // the sender's id, where it was reused
	ExtTraceParent  = "traceparent"
	ExtMatchKey     = "matchkey" // what a pushed and a polled event of one change share
)

// Extension is one extension attribute.
type Extension struct {
	Name  string // lower-case letters and digits
	Value string // canonical text form
	Type  ExtensionType
}

// ExtensionType is the CloudEvents type of an extension's value. It is kept so
// that an integer that came in as a JSON number goes out as one.
type ExtensionType uint8

// The types of the CloudEvents type system that JSON tells apart.
const (
	String ExtensionType = iota
	Integer
	Boolean
)

// Get returns the text of an extension attribute, empty when it is not set.
func (e *Event) Get(name string) string {
	if i, ok := e.find(name); ok {
		return e.Extensions[i].Value
	}
	return ""
}

// Set sets an extension attribute to a string; an empty value removes it.
func (e *Event) Set(name, value string) {
	if value != "" {
		e.SetExtension(Extension{Name: name, Value: value})
	} else if i, ok := e.find(name); ok {
		e.Extensions = slices.Delete(e.Extensions, i, i+1)
	}
}

// SetExtension adds x, or replaces the extension of that name.
func (e *Event) SetExtension(x Extension) {
	i, ok := e.find(x.Name)
	if ok {
		e.Extensions[i] = x
		return
	}
	if e.Extensions == nil {
		// Room for the two or three that a sender gives, partitionkey, and what
		// the router sets.
		e.Extensions = make([]Extension, 0, 8)
	}
	e.Extensions = slices.Insert(e.Extensions, i, x)
}

func (e *Event) find(name string) (int, bool) {
	return slices.BinarySearchFunc(e.Extensions, name, func(x Extension, n string) int {
		return strings.Compare(x.Name, n)
	})
}

// Clone returns a copy that shares only Data, which nobody changes.
func (e *Event) Clone() *Event {
	c := *e
	c.Extensions = slices.Clone(e.Extensions)
	return &c
}

// reserved says whether name is an attribute that is no extension; data and
// data_base64 are members of the JSON form and so cannot be extension names
// either.
func reserved(name string) bool {
	switch name {
	case "id", "source", "type", "specversion", "subject", "time", "datacontenttype", "dataschema", "data", "data_base64":
		return true
	}
	return false
}

// ValidExtensionName says whether name can be an extension attribute's name:
// lower-case ASCII letters and digits, and none of CloudEvents' own.
// (CloudEvents 1.0.2, spec.md "Attribute naming convention".)
func ValidExtensionName(name string) bool {
	if name == "" || len(name) > 64 || reserved(name) {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// Validate reports everything that keeps e from being a CloudEvent.
func (e *Event) Validate() error {
	var errs []error
	for _, a := range []struct{ name, value string }{{"id", e.ID}, {"source", e.Source}, {"type", e.Type}} {
		if a.value == "" {
			errs = append(errs, fmt.Errorf("attribute %s is missing", a.name))
		}
	}
	for _, a := range []struct{ name, value string }{
		{"id", e.ID}, {"source", e.Source}, {"type", e.Type}, {"subject", e.Subject},
		{"datacontenttype", e.DataContentType}, {"dataschema", e.DataSchema},
	} {
		if !utf8.ValidString(a.value) {
			errs = append(errs, fmt.Errorf("attribute %s is not valid UTF-8", a.name))
		}
	}
	for i := range len(e.DataContentType) {
		// It stands in a header, where nothing is encoded (RFC 2045 §5.1).
		if c := e.DataContentType[i]; c < 0x20 || c > 0x7e {
			errs = append(errs, errors.New("attribute datacontenttype is not a media type"))
			break
		}
	}
	if y := e.Time.Year(); !e.Time.IsZero() && (y < 1 || y > 9999) {
		errs = append(errs, fmt.Errorf("attribute time has year %d", y))
	}
	for i, x := range e.Extensions {
		switch {
		case !ValidExtensionName(x.Name):
			errs = append(errs, fmt.Errorf("extension name %.64q: want lower-case letters and digits", x.Name))
		case i > 0 && e.Extensions[i-1].Name >= x.Name:
			errs = append(errs, fmt.Errorf("extension %s is out of order or set twice", x.Name))
		case !utf8.ValidString(x.Value):
			errs = append(errs, fmt.Errorf("extension %s is not valid UTF-8", x.Name))
		}
	}
	return errors.Join(errs...)
}

// Result is what a parser made of one element of a request body: exactly one
// of Event, Control and Fault is set.
type Result struct {
	Event   *Event
	Control *Control
	Fault   *Fault

	// Raw is the element as it was received; it shares the body's memory.
	Raw []byte

	// Scope and Name become the last parts of the event's NATS subject.
	Scope, Name string

	// Key is the sender's own identity of the event. Two events with one Key
	// and one Digest are the same event come twice; with one Key and two
	// Digests they are two events whose sender reused an id.
	Key    string
	Digest string
}

// Control is an element that is addressed to the router and not fanned out.
type Control struct {
	Kind ControlKind
	// ValidationCode is what a validation must be answered with.
	ValidationCode string
	// ValidationURL answers a validation too, when it is fetched.
	ValidationURL string
	// Subscription names the event subscription a deletion speaks of.
	Subscription string
}

// ControlKind says what a control element asks for.
type ControlKind string

// The control elements known.
const (
	Validation ControlKind = "validation" // prove that you want these events
	Deletion   ControlKind = "deletion"   // the subscription is gone
	Test       ControlKind = "test"       // the sender tries the endpoint
)

// Fault says why an element is not an event. Its element goes to quarantine.
type Fault struct {
	Code   FaultCode
	Detail string // one sentence, naming the member and the fix; no payload
}

// FaultCode is stable: operators filter on it.
type FaultCode string

// The reasons for quarantine.
const (
	FaultNotJSON       FaultCode = "not-json"       // the body is not JSON
	FaultNotEvent      FaultCode = "not-an-event"   // JSON, but no shape we know
	FaultMissing       FaultCode = "missing-member" // a required member is absent
	FaultType          FaultCode = "wrong-type"     // a member has another JSON type
	FaultAmbiguous     FaultCode = "ambiguous"      // two readings are possible
	FaultUnsupported   FaultCode = "unsupported"    // known, but not handled
	FaultInvalid       FaultCode = "invalid-event"  // parsed, but breaks a rule
	FaultTooLarge      FaultCode = "too-large"      // more than the broker stores
	FaultEncodedBody   FaultCode = "encoded-body"   // compressed or in another charset
	FaultControlFailed FaultCode = "bad-handshake"  // a handshake without its code
)

// Faultf makes a Fault.
func Faultf(code FaultCode, format string, args ...any) *Fault {
	return &Fault{Code: code, Detail: fmt.Sprintf(format, args...)}
}

func (f *Fault) Error() string { return string(f.Code) + ": " + f.Detail }
