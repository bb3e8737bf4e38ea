package complete

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
)

// Headers of what is kept, beside those of the event and broker.HeldUntil and the
// like: its origin, and what it is recognised and placed by.
const (
	headerKind        = "Gridfan-Held-Kind"
	headerEnvironment = "Gridfan-Held-Environment"
	headerVia         = "Gridfan-Held-Via"
	headerLate        = "Gridfan-Held-Late"
	headerKey         = "Gridfan-Held-Key"
	headerDigest      = "Gridfan-Held-Digest"
	headerScope       = "Gridfan-Held-Scope"
	headerName        = "Gridfan-Held-Name"
	headerUncommitted = "Gridfan-Held-Uncommitted"
	headerMsgID       = "Nats-Msg-Id"
)

var errNoRoom = errors.New("there is no room to keep events that are to be completed")

// keep stores one event in HELD.
func (c *Completer) keep(ctx context.Context, s *source, o publish.Origin, r *event.Result, w way) (publish.Status, error) {
	if err := c.parts.Broker.Room(); err != nil {
		return "", fmt.Errorf("%w: %w", publish.ErrStorageFull, err)
	}
	header, body := r.Event.Encode()
	for name, value := range map[string]string{
		headerMsgID:      w.id + "-" + r.Digest,
		broker.HeldFor:   w.why,
		broker.HeldSince: event.FormatTime(o.Accepted.UTC()),
		broker.HeldUntil: event.FormatTime(o.Accepted.Add(s.Within).UTC()),
		headerKind:       o.Kind, headerEnvironment: url.PathEscape(o.Environment), headerVia: o.Via, headerLate: flag(o.Late),
		headerKey: url.PathEscape(r.Key), headerDigest: r.Digest, headerScope: url.PathEscape(r.Scope), headerName: url.PathEscape(r.Name),
		headerUncommitted: flag(w.why == forCompletion && dataverse.Uncommitted(r.Event)),
	} {
		header[name] = []string{value}
	}
	m := &nats.Msg{Subject: broker.Held(s.Name, w.line), Header: header, Data: body}
	for {
		repeated := false
		err := c.parts.Broker.Change(ctx, func() error {
			ack, err := c.js.PublishMsg(ctx, m)
			c.parts.Broker.Suspect(err)
			if err != nil {
				return err
			}
			if repeated = ack.Duplicate; !repeated {
				return nil
			}
			// The broker remembers an id for a while after its message has gone.
			_, err = c.held.GetMsg(ctx, ack.Sequence)
			return err
		})
		switch {
		case err == nil && repeated:
			c.parts.Tally.Repeated(o.Source, 1)
			return publish.Duplicate, nil
		case err == nil:
			return publish.Completing, nil
		case repeated && errors.Is(err, jetstream.ErrMsgNotFound):
			if _, published := c.parts.Known(o, r); published {
				c.parts.Tally.Repeated(o.Source, 1)
				return publish.Duplicate, nil
			}
			m.Header.Del(headerMsgID)
			continue
		case broker.IsFull(err) && !errors.Is(err, broker.ErrDiskFull):
			return "", fmt.Errorf("%w: %w", publish.ErrStorageFull, errNoRoom)
		case broker.IsFull(err):
			return "", fmt.Errorf("%w: %w", publish.ErrStorageFull, err)
		}
		return "", fmt.Errorf("%w: %w", publish.ErrBroker, err)
	}
}

// flag writes a yes.
func flag(yes bool) string {
	if yes {
		return "true"
	}
	return ""
}

// entry is what HELD has of one event.
type entry struct {
	sequence uint64
	subject  string
	why      string
	since    time.Time
	until    time.Time
	// uncommitted: it was sent within the transaction of its change.
	uncommitted bool
}

// source is that of an entry.
func (e *entry) source() string { return broker.HeldSource(e.subject) }

// entryOf reads an entry's headers. What is unreadable in them is as if its time was
// over.
func entryOf(sequence uint64, subject string, h nats.Header) entry {
	e := entry{sequence: sequence, subject: subject, why: h.Get(broker.HeldFor), uncommitted: h.Get(headerUncommitted) != ""}
	e.since, _ = event.ParseTime(h.Get(broker.HeldSince))
	e.until, _ = event.ParseTime(h.Get(broker.HeldUntil))
	return e
}

// decode gives back what keep was given.
func decode(m *jetstream.RawStreamMsg) (publish.Origin, event.Result, error) {
	h := m.Header
	text := func(name string) string {
		s, err := url.PathUnescape(h.Get(name))
		if err != nil {
			return h.Get(name)
		}
		return s
	}
	since, err := event.ParseTime(h.Get(broker.HeldSince))
	if err != nil {
		return publish.Origin{}, event.Result{}, fmt.Errorf("header %s: %w", broker.HeldSince, err)
	}
	o := publish.Origin{
		Source: broker.HeldSource(m.Subject), Kind: h.Get(headerKind), Environment: text(headerEnvironment), Via: h.Get(headerVia),
		Late: h.Get(headerLate) != "", Accepted: since, Kept: true,
	}
	r := event.Result{Key: text(headerKey), Digest: h.Get(headerDigest), Scope: text(headerScope), Name: text(headerName)}
	own := nats.Header{}
	for name, values := range h {
		if !strings.HasPrefix(name, "Gridfan-Held-") && name != headerMsgID {
			own[name] = values
		}
	}
	if r.Event, err = event.Decode(own, m.Data); err != nil {
		return o, r, err
	}
	r.Raw = m.Data
	return o, r, nil
}
