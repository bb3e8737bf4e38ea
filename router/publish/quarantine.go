package publish

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// Headers of entries in quarantine.
const (
	headerSource   = "Gridfan-Source"
	headerReason   = "Gridfan-Reason"
	headerDetail   = "Gridfan-Detail"
	headerReceived = "Gridfan-Received"
	headerRequest  = "Gridfan-Request-" // prefix for headers of the request
)

// quarantineHeaderRoom is more than a quarantine entry's headers take.
const quarantineHeaderRoom = 48 << 10

// prepareQuarantine makes the entry for a result that was not understood.
func (t *target) prepareQuarantine(o Origin, r *event.Result, w *outgoing) error {
	if len(r.Raw) > t.maxPayload-quarantineHeaderRoom {
		return ErrTooLarge
	}
	w.status, w.msg = Quarantined, quarantineMessage(o, r)
	return nil
}

func quarantineMessage(o Origin, r *event.Result) *nats.Msg {
	h := nats.Header{
		headerMsgID:    {identity("quarantine", o.Source, string(r.Raw))},
		headerSource:   {o.Source},
		headerReason:   {string(r.Fault.Code)},
		headerDetail:   {url.PathEscape(r.Fault.Detail)},
		headerReceived: {event.FormatTime(o.Accepted)},
	}
	for name, value := range o.Header {
		h[headerRequest+name] = []string{url.PathEscape(value)}
	}
	return &nats.Msg{Subject: broker.Quarantine(o.Source), Header: h, Data: r.Raw}
}

// stillQuarantined makes sure that a repeated body is in quarantine: the broker
// remembers its id for a while even after somebody dropped the entry.
func (t *target) stillQuarantined(ctx context.Context, w *outgoing, sequence uint64) error {
	_, err := t.quarantine.GetMsg(ctx, sequence)
	if err == nil {
		w.repeated, w.late = true, w.resent || t.unsure.take(w.id())
		w.kept = w.late
		return nil
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return t.failure(err)
	}
	w.msg.Header.Del(headerMsgID)
	w.done, w.begun = false, time.Now()
	t.send(w)
	return t.finish(ctx, w)
}

// Quarantine is what the headers of an entry in quarantine say.
type Quarantine struct {
	Source   string          `json:"source"`
	Reason   event.FaultCode `json:"reason"`
	Detail   string          `json:"detail"`
	Received time.Time       `json:"received"`
	// Request holds the headers of the request that explain the body.
	Request map[string]string `json:"request,omitempty"`
}

// DecodeQuarantine reads the headers of an entry back. What is unreadable in
// them stays empty.
func DecodeQuarantine(h map[string][]string) Quarantine {
	q := Quarantine{Request: map[string]string{}}
	for name, values := range h {
		if len(values) == 0 {
			continue
		}
		text, err := url.PathUnescape(values[0])
		if err != nil {
			text = values[0]
		}
		switch name {
		case headerSource:
			q.Source = text
		case headerReason:
			q.Reason = event.FaultCode(text)
		case headerDetail:
			q.Detail = text
		case headerReceived:
			q.Received, _ = event.ParseTime(text)
		default:
			if r, ok := strings.CutPrefix(name, headerRequest); ok {
				q.Request[r] = text
			}
		}
	}
	return q
}
