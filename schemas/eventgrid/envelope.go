package eventgrid

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// ParseInside reads one element that holds an object of another format, either
// bare or in the data of an event that Parse knows. build gets the
// object, its members and the envelope, nil if there is none. Where data is no
// object, build gets no members.
//
// data may also be a string that holds the object: so F&O sends its business
// events (chrismckelt/blog, configure-d365-fo-and-event-grid, a capture of 2019;
// read 2026-11).
func ParseInside(source string, header map[string][]string, raw []byte, build func(obj []byte, members []rawjson.Member, env *event.Event) event.Result) event.Result {
	members, err := rawjson.Members(raw)
	if err != nil {
		return event.Result{Raw: raw, Fault: event.Faultf(event.FaultNotEvent, "%v", err)}
	}
	if !wrapped(members) {
		return build(raw, members, nil)
	}
	r := parseMembers(source, header, raw, members)
	if r.Event == nil {
		return r
	}
	data := r.Event.Data
	obj := bytes.TrimSpace(data)
	// What was an object when the envelope was read needs no second look.
	if !r.Event.DataJSON || len(obj) == 0 || obj[0] != '{' {
		if s, ok := rawjson.Text(data); ok && r.Event.DataJSON {
			data = []byte(s)
		}
		elems, array, err := rawjson.Elements(data)
		if err != nil || array || elems[0][0] != '{' {
			return build(data, nil, r.Event)
		}
		obj = elems[0]
	}
	if members, err = rawjson.Members(obj); err != nil {
		return event.Result{Raw: raw, Fault: event.Faultf(event.FaultNotEvent, "data: %v", err)}
	}
	return build(obj, members, r.Event)
}

// wrapped says whether members are an envelope's. An object of another format
// could well have a member named eventType, so that alone does not decide.
func wrapped(members []rawjson.Member) bool {
	var eventType, inside bool
	for _, m := range members {
		switch m.Name {
		case "specversion":
			if !rawjson.IsNull(m.Value) {
				return true
			}
		case "eventType":
			eventType = true
		case "data", "topic":
			inside = true
		}
	}
	return eventType && inside
}

// Keep adds an extension for something an envelope says; an empty value is
// nothing. If the sender used its name already, as another gridfan in front of
// this one does, both stay: see event.Event.Unmapped.
func Keep(e *event.Event, name, value string) {
	if value == "" {
		return
	}
	quoted, _ := jsontext.AppendQuote(nil, value)
	members := []rawjson.Member{{Name: name, Value: quoted}}
	if before := e.Get("unmapped"); before != "" && e.Get(name) != "" {
		quoted, _ := jsontext.AppendQuote(nil, before)
		members = append(members, rawjson.Member{Name: "unmapped", Value: quoted})
	}
	e.Unmapped(members)
}
