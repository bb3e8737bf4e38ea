package deliver_test

import (
	"testing"

	"github.com/gridfan/gridfan/subscribers/deliver"
)

func TestMatchSubject(t *testing.T) {
	for _, tt := range []struct {
		pattern, subject string
		want             bool
	}{
		{"events.>", "events.fno.prod.usmf.Paid", true},
		{"events.>", "events", false},
		{"events.>", "events.", false},
		{"events.fno.*.usmf.>", "events.fno.prod.usmf.Paid", true},
		{"events.fno.*.usmf.>", "events.fno.prod.usmf", false},
		{"events.fno.*.usmf.>", "events.fno.prod.brmf.Paid", false},
		{"events.fno.*.usmf.*", "events.fno.prod.usmf.Paid", true},
		{"events.fno.*.usmf.*", "events.fno.prod.usmf.Paid.Late", false},
		{"events.fno.prod", "events.fno.prod", true},
		{"events.fno.prod", "events.fno.pro", false},
		{"events.fno.prod", "events.fno.prod.usmf", false},
		{"events.fno.prod.usmf", "events.fno.prod", false},
		{"events.*", "events.", false}, // NATS stores no subject with an empty token
		{"events.a.*", "events.a.", false},
		{"events.*", "events.a.b", false},
		{"events.*.b", "events.a.b", true},
		{"events.*.b", "events.a.c", false},
		{">", "events.a", true},
	} {
		if got := deliver.MatchSubject(tt.pattern, tt.subject); got != tt.want {
			t.Errorf("%s matches %s: %v", tt.pattern, tt.subject, got)
		}
	}
	if n := testing.AllocsPerRun(10, func() { deliver.MatchSubject("events.fno.*.usmf.>", "events.fno.prod.usmf.Paid") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestOverlapSubjects(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"events.fno.>", "events.*.*.usmf.A", true},
		{"events.fno.>", "events.fno.prod", true},
		{"events.fno.>", "events.fno", false},
		{"events.fno.*", "events.*.prod", true},
		{"events.fno.*", "events.*.prod.usmf", false},
		{"events.fno.>", "events.cloudevents.>", false},
		{"events.a", "events.a", true},
		{"events.a", "events.b", false},
	} {
		if deliver.OverlapSubjects(tt.a, tt.b) != tt.want || deliver.OverlapSubjects(tt.b, tt.a) != tt.want {
			t.Errorf("%s and %s: want %v", tt.a, tt.b, tt.want)
		}
	}
}
