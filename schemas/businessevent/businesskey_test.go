package businessevent_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
)

func TestSetBusinessKey(t *testing.T) {
	const body = `{"BusinessEventId":"A","EventId":"E1","Order":"PO-1","Line":9007199254740993,"Lines":[],"None":null,"Empty":""}`
	for _, tt := range []struct {
		name    string
		members []string
		subject string
	}{
		{"one", []string{"Order"}, "PO-1"},
		{"two, a number with all its digits", []string{"Order", "Line"}, "PO-1/9007199254740993"},
		{"none named", nil, ""},
		{"not there", []string{"Order", "Missing"}, ""},
		{"null", []string{"None"}, ""},
		{"no scalar", []string{"Lines"}, ""},
		{"empty", []string{"Empty"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := businessevent.Parse("prod", nil, []byte(body))[0].Event
			if ok := businessevent.SetBusinessKey(e, tt.members); ok != (tt.subject != "") {
				t.Errorf("got %v", ok)
			}
			if e.Subject != tt.subject || e.Get(event.ExtPartitionKey) != tt.subject {
				t.Errorf("subject %q, partition key %q, want %q", e.Subject, e.Get(event.ExtPartitionKey), tt.subject)
			}
		})
	}
	wrapped := `{"id":"E1","eventType":"A","topic":"/t","subject":"Cat_A_USMF","data":` + body + `}`
	e := businessevent.Parse("prod", nil, []byte(wrapped))[0].Event
	businessevent.SetBusinessKey(e, []string{"Order"})
	if e.Subject != "PO-1" || e.Get("envelopesubject") != "Cat_A_USMF" || e.Get(event.ExtPartitionKey) != "PO-1" {
		t.Errorf("in an envelope: subject %q, envelopesubject %q", e.Subject, e.Get("envelopesubject"))
	}
}
