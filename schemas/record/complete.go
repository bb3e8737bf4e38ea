package record

import (
	"strings"
	"time"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Complete makes of a pushed event of Dataverse from which parts were taken out one
// with the columns of its row r, which was read at a time. What becomes of data:
//
//	changed, columns  those of the row, all of them: which were written is not known
//	formatted         the row's
//	context           the event's, and what else the row says: @odata.etag, …
//
// All else stays: images, parameters and the parent were taken out and are in no row.
// The event's id, type, subject and time stay, too, because they are about what
// happened; matchkey and sequence become the row's, for they are about its version.
// Extension completed is when the row was read, and newer says that it had been
// changed again by then. Within the second of the event nobody can tell. It is pure
// and leaves e as it is.
func (s *Shape) Complete(e *event.Event, r Row, read time.Time) (*event.Event, *event.Fault) {
	of := s.Event(r)
	if of.Fault != nil {
		return nil, of.Fault
	}
	pushed, err := rawjson.Members(e.Data)
	if err != nil {
		return nil, event.Faultf(event.FaultNotEvent, "the event's data: %v", err)
	}
	row, err := rawjson.Members(of.Event.Data)
	if err != nil {
		return nil, event.Faultf(event.FaultNotEvent, "the row's data: %v", err)
	}
	data := newObject(make([]byte, 0, len(e.Data)+len(of.Event.Data)))
	for _, m := range pushed {
		switch m.Name {
		case "formatted":
		case "changed":
			data.add(m.Name, rawjson.Find(row, m.Name))
		case "columns":
			data.add(m.Name, rawjson.Find(row, m.Name))
			if v := rawjson.Find(row, "formatted"); v != nil {
				data.add("formatted", v)
			}
		case "context":
			context, err := joined(m.Value, rawjson.Find(row, m.Name))
			if err != nil {
				return nil, event.Faultf(event.FaultNotEvent, "the event's data: %v", err)
			}
			data.add(m.Name, context)
		default:
			data.add(m.Name, m.Value)
		}
	}
	out := e.Clone()
	out.Data = data.end()
	if out.Time.IsZero() {
		out.Time = of.Event.Time
	}
	for _, name := range []string{event.ExtMatchKey, event.ExtSequence, event.ExtLegalEntity} {
		if v := of.Event.Get(name); v != "" {
			out.Set(name, v)
		}
	}
	out.Set(dataverse.ExtIncomplete, "")
	out.Set(dataverse.ExtIncompleteReason, "")
	out.Set(dataverse.ExtCompleted, event.FormatTime(read.UTC()))
	if !e.Time.IsZero() && r.Modified.Truncate(time.Second).After(e.Time) {
		out.SetExtension(event.Extension{Name: dataverse.ExtNewer, Value: "true", Type: event.Boolean})
	}
	if f := event.CheckDepth(out.Data); f != nil {
		return nil, f
	}
	if err := out.Validate(); err != nil {
		return nil, event.FaultOf(err)
	}
	return out, nil
}

// joined adds the members of one object to those of another, which stay as they are.
func joined(first, second []byte) ([]byte, error) {
	a, err := rawjson.Members(first)
	if err != nil {
		return nil, err
	}
	b, err := rawjson.Members(second)
	if err != nil {
		return nil, err
	}
	o := newObject(nil)
	for _, m := range a {
		o.add(m.Name, m.Value)
	}
	for _, m := range b {
		if strings.Contains(m.Name, "@") && rawjson.Find(a, m.Name) == nil {
			o.add(m.Name, m.Value)
		}
	}
	return o.end(), nil
}
