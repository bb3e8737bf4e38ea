package receive

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/schemas/event"
)

// message is one that a broker has given us.
type message struct {
	// id names it to people, in the broker's words.
	id     string
	header map[string][]string
	body   []byte
	// fault says why body is none.
	fault *event.Fault
	// enqueued is when the broker got it; zero for unknown.
	enqueued time.Time
	// handle is what the inbox needs to settle it.
	handle any

	verdict     verdict
	quarantined int // elements up to here that had to be are in quarantine

	reason *event.Fault // of a verdict tooLarge
	late   bool         // it was given up on before
	lost   bool         // it is no longer locked for us
}

// verdict is what is to become of a message.
type verdict int

const (
	undecided verdict = iota
	stored            // all that is in it is durable here
	tooLarge          // not even quarantine can hold it; a note of it is durable there
)

// Application properties whose values become headers.
const (
	// The AMQP binding of CloudEvents has two spellings (cloudevents/spec,
	// bindings/amqp-protocol-binding.md 1.0.2, §3.1.3; read 2026-11).
	cloudEventsColon      = "cloudEvents:"
	cloudEventsUnderscore = "cloudEvents_"
	// dataverseSize is set by Dataverse where it left things out to keep a message
	// small enough; the headers of its webhooks say so otherwise.
	dataverseSize       = "MessageMaxSizeExceeded"
	dataverseSizeHeader = "X-Ms-Dynamics-Msg-Size-Exceeded"
)

const (
	// maxHeaders bounds what is taken over of a message's properties; the service
	// allows 64 KB of them (learn.microsoft.com, service-bus-quotas; read 2026-11).
	maxHeaders    = 64 << 10
	maxHeaderName = 256
)

// headers gives what stands beside a message as the headers that it would have had
// over HTTP, which is what parsers know.
func headers(contentType string, properties map[string]any) map[string][]string {
	h, total := http.Header{}, 0
	if contentType != "" {
		h.Set("Content-Type", printableASCII(contentType))
	}
	for name, v := range properties {
		value, ok := propertyText(v)
		total += len(name) + len(value)
		if !ok || len(name) > maxHeaderName || total > maxHeaders {
			continue
		}
		attribute, isEvent := strings.CutPrefix(name, cloudEventsColon)
		if !isEvent {
			attribute, isEvent = strings.CutPrefix(name, cloudEventsUnderscore)
		}
		switch {
		case isEvent:
			// As in HTTP, where a percent sign begins an escape.
			h["Ce-"+strings.ToLower(attribute)] = []string{strings.NewReplacer("%", "%25", `"`, "%22").Replace(value)}
		case strings.EqualFold(name, dataverseSize):
			h.Set(dataverseSizeHeader, value)
		case len(name) > 4 && strings.EqualFold(name[:4], "aeg-"):
			h.Set(name, value)
		}
	}
	return h
}

func printableASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

// propertyText writes a property as the CloudEvents type system does (§3.1 of the
// AMQP binding maps its types).
func propertyText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case amqp.Symbol:
		return string(v), true
	case bool:
		return strconv.FormatBool(v), true
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano), true
	case []byte:
		return base64.StdEncoding.EncodeToString(v), true
	case amqp.UUID:
		return v.String(), true
	case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// bodyOf puts the body of an AMQP message together: its data sections, or the text or
// bytes that its value is.
func bodyOf(data [][]byte, value any, sequence [][]any) ([]byte, *event.Fault) {
	switch {
	case len(data) == 1:
		return data[0], nil
	case len(data) > 1:
		var all []byte
		for _, d := range data {
			all = append(all, d...)
		}
		return all, nil
	}
	switch v := value.(type) {
	case nil:
		if len(sequence) == 0 {
			return nil, nil
		}
		return nil, event.Faultf(event.FaultUnsupported, "the body is an AMQP sequence; send data, or a value that is a text")
	case string:
		return []byte(v), nil
	case []byte:
		return v, nil
	}
	return nil, event.Faultf(event.FaultUnsupported, "the body is an AMQP value that is neither text nor bytes; send data")
}

// unreadable recognises what Dataverse sends in its other two formats. JSON is the
// third (learn.microsoft.com, data-platform/azure-integration: ".NET binary", the
// default, "XML or JSON"; read 2026-11). A serialized text in .NET binary begins with
// the record of an element, 0x40, 0x56 or 0x0b (MS-NBFX §2.2.1).
func unreadable(kind, contentType string, body []byte) *event.Fault {
	if kind != event.KindDataverse && kind != event.KindFnO {
		return nil
	}
	format := ""
	trimmed := strings.TrimLeft(string(body[:min(len(body), 64)]), "\ufeff \t\r\n")
	switch {
	case strings.HasPrefix(contentType, "application/msbin1"), len(body) > 1 && (body[0] == 0x40 || body[0] == 0x56) && body[1] < 0x20:
		format = ".NET binary"
	case strings.HasPrefix(trimmed, "<"):
		format = "XML"
	default:
		return nil
	}
	return event.Faultf(event.FaultUnsupported,
		"the message is in Dataverse's %s format, and only JSON is read; set Message Format to JSON on the service endpoint (Plug-in Registration Tool, Update; column messageformat of table serviceendpoint)", format)
}

// quarantineHeaders are those that a body in quarantine can be read again with.
func quarantineHeaders(header map[string][]string) map[string]string {
	const maxValue, maxTotal = 1024, 16 << 10
	kept, total := map[string]string{}, 0
	for name, values := range header {
		if len(values) == 0 || len(values[0]) > maxValue {
			continue
		}
		// Encoding may triple it.
		if total += len(name) + 3*len(values[0]); total <= maxTotal {
			kept[strings.ToLower(name)] = values[0]
		}
	}
	return kept
}

// hostOf gives an address's host, for people.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Host
}
