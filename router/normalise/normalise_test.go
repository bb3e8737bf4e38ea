package normalise_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
)

// What a source's options add to what the parsers below schemas do. The bodies that
// were published are taken all the way to the stream by the ingress's tests.
func TestNew(t *testing.T) {
	const order = `{"BusinessEventId":"OrderPostedBusinessEvent","BusinessEventLegalEntity":"USMF","ControlNumber":7,"EventId":"55A81094-A14E-46A6-A12C-07ED5C5990C6","EventTimeIso8601":"2026-11-01T10:00:00Z","OrderId":"SO-1"}`
	mapped := &custom.Mapping{ID: ".no", Type: ".what"}
	for name, tt := range map[string]struct {
		kind   string
		o      normalise.Options
		header map[string][]string
		body   string
		want   []string // type and subject of events, the kind of controls, the code of faults
	}{
		"business key":        {event.KindFnO, normalise.Options{BusinessKeys: map[string][]string{"OrderPostedBusinessEvent": {"OrderId"}}}, nil, order, []string{"OrderPostedBusinessEvent SO-1"}},
		"without one":         {event.KindFnO, normalise.Options{}, nil, order, []string{"OrderPostedBusinessEvent "}},
		"mapped":              {event.KindCustom, normalise.Options{Mapping: mapped}, nil, `[{"no":"1","what":"placed"},7]`, []string{"placed ", "wrong-type"}},
		"mapped, and deleted": {event.KindCustom, normalise.Options{Mapping: mapped}, map[string][]string{"Aeg-Event-Type": {"SubscriptionDeletion"}}, `[{"id":"1","topic":"/t","subject":"","eventType":"Microsoft.EventGrid.SubscriptionDeletedEvent","eventTime":"2026-11-01T10:00:00Z","data":{"eventSubscriptionId":"/s"}}]`, []string{"control"}},
		"no JSON":             {event.KindDataverse, normalise.Options{}, nil, `<xml/>`, []string{"not-json"}},
	} {
		t.Run(name, func(t *testing.T) {
			parse, err := normalise.New(tt.kind, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range parse("s", tt.header, []byte(tt.body)) {
				switch {
				case r.Event != nil:
					got = append(got, r.Event.Type+" "+r.Event.Subject)
				case r.Control != nil:
					got = append(got, "control")
				default:
					got = append(got, string(r.Fault.Code))
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	for _, kind := range normalise.Kinds() {
		if !normalise.Known(kind) {
			t.Errorf("%s is not known", kind)
		}
	}
	if _, err := normalise.New("nonsense", normalise.Options{}); err == nil || normalise.Known("nonsense") {
		t.Error("a kind that there is not is known")
	}
}
