package deliver

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Record is one line of the ATTEMPTS stream: how the broker's message of one
// event was settled for one subscriber.
//
// There is one record per (Subscriber, Sequence, Hop), and one of a final
// outcome per (Subscriber, Sequence): the books count those.
type Record struct {
	Subscriber string `json:"subscriber"`
	// Sequence is the event's place in EVENTS.
	Sequence uint64 `json:"seq"`
	// Hop is 0 for the event itself and counts its trips over the retry lane.
	Hop int `json:"hop"`
	// ID and Subject are the event's.
	ID      string `json:"id"`
	Subject string `json:"subject"`
	// Outcome is one of those below.
	Outcome string `json:"outcome"`
	// Attempts were made so far in all.
	Attempts int `json:"attempts"`
	// Status, Fault, Reason and Millis are those of the last attempt.
	Status int    `json:"status,omitempty"`
	Fault  Fault  `json:"fault,omitempty"`
	Reason string `json:"reason,omitempty"`
	Millis int64  `json:"ms"`
	// Cause says why a dead letter is one.
	Cause string `json:"cause,omitempty"`
	// Probe: the last attempt was made to see whether the subscriber is back.
	Probe bool `json:"probe,omitempty"`
	// Earlier are the attempts since the record before, without the last.
	Earlier []Try `json:"earlier,omitempty"`
	// Time is when that attempt ended; Next when the next one is due.
	Time time.Time  `json:"time"`
	Next *time.Time `json:"next,omitempty"`
}

// Try is one attempt in a Record.
type Try struct {
	Time   time.Time `json:"time"` // when it ended
	Status int       `json:"status,omitempty"`
	Fault  Fault     `json:"fault,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Millis int64     `json:"ms"`
}

// The outcomes in records. The first ones begin or continue something, the
// others end an event for the subscriber.
const (
	RecordTried    = "tried"    // failed, and kept in hand: no settlement, and Hop stays
	RecordRetry    = "retry"    // failed, and waits for its next attempt
	RecordLocked   = "locked"   // handed to a receiver, which is to say before Next what became of it
	RecordBehind   = "behind"   // waits on the retry lane until those before it are settled
	RecordRedriven = "redriven" // a dead letter that is sent out anew; Hop is the dead letter's
	RecordReplayed = "replayed" // an event that is sent once more because somebody asked; Hop is the new one's

	RecordDelivered  = "delivered"
	RecordDeadLetter = "dead-letter"
	RecordFiltered   = "filtered" // the subscriber's filter does not want it
	RecordShed       = "shed"     // dropped to make room, where the operator chose that
	RecordDropped    = "dropped"  // a dead letter that an operator deleted; Hop is the dead letter's
)

// place is an event of one subscriber.
type place struct {
	subscriber string
	sequence   uint64
}

// progress is how far an event has come: the highest hop that was settled, and
// whether that ended it. It is small: thousands are remembered for each subscriber.
type progress struct {
	hop   int32
	final bool
}

// passed says whether a message of a hop has nothing to do any more. It was
// settled itself and its ack got lost; or a later one was; or it is the retry of
// a hop whose record a crash prevented, and that was ended when it came again.
// Whoever sends an event out anew after its end gives it a hop further on.
func (p progress) passed(hop int) bool {
	last := int(p.hop)
	return hop <= last || p.final && hop == last+1
}

// then is the progress after another settlement. An event that is sent out anew
// has not ended any more, however its life before did.
func (p progress) then(q progress) progress {
	switch {
	case q.hop > p.hop:
		return q
	case q.hop < p.hop:
		return p
	}
	return progress{p.hop, p.final || q.final}
}

// progress is what a record says of its event, and nothing if it settles none.
func (r Record) progress() (p progress, ok bool) {
	switch r.Outcome {
	case RecordTried, RecordRedriven, RecordReplayed, RecordDropped:
		return progress{}, false
	}
	return progress{int32(r.Hop), r.Outcome != RecordRetry && r.Outcome != RecordBehind && r.Outcome != RecordLocked}, true
}

// appendTo appends the record as one line of a block. It is what encoding/json
// makes of it, but for the escapes in strings, and costs a tenth.
func (r *Record) appendTo(b []byte) []byte {
	text := func(name, value string) {
		b = append(b, name...)
		b, _ = jsontext.AppendQuote(b, value) // invalid UTF-8 is replaced
	}
	number := func(name string, n int64) { b = strconv.AppendInt(append(b, name...), n, 10) }
	moment := func(name string, t time.Time) {
		b = append(b, name...)
		b = append(t.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
	}
	answer := func(status int, f Fault, reason string) {
		if status != 0 {
			number(`,"status":`, int64(status))
		}
		if f != "" {
			text(`,"fault":`, string(f))
		}
		if reason != "" {
			text(`,"reason":`, reason)
		}
	}
	text(`{"subscriber":`, r.Subscriber)
	b = strconv.AppendUint(append(b, `,"seq":`...), r.Sequence, 10)
	number(`,"hop":`, int64(r.Hop))
	text(`,"id":`, r.ID)
	text(`,"subject":`, r.Subject)
	text(`,"outcome":`, r.Outcome)
	number(`,"attempts":`, int64(r.Attempts))
	answer(r.Status, r.Fault, r.Reason)
	number(`,"ms":`, r.Millis)
	if r.Cause != "" {
		text(`,"cause":`, r.Cause)
	}
	if r.Probe {
		b = append(b, `,"probe":true`...)
	}
	for i, t := range r.Earlier {
		b = append(b, map[bool]string{true: `,"earlier":[`, false: `,`}[i == 0]...)
		moment(`{"time":`, t.Time)
		answer(t.Status, t.Fault, t.Reason)
		number(`,"ms":`, t.Millis)
		b = append(b, '}')
	}
	if len(r.Earlier) > 0 {
		b = append(b, ']')
	}
	moment(`,"time":`, r.Time)
	if r.Next != nil {
		moment(`,"next":`, *r.Next)
	}
	return append(b, "}\n"...)
}

// ParseRecords reads the body of a message of the ATTEMPTS stream: one JSON
// object a line.
func ParseRecords(block []byte) ([]Record, error) {
	var records []Record
	d := json.NewDecoder(bytes.NewReader(block))
	for d.More() {
		var r Record
		if err := d.Decode(&r); err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}
