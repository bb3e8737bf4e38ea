package filter_test

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/filter"
)

const order = `{"PurchaseOrderAmount":1000.5,"whole":1000,"big":9223372036854775807,"bigger":18446744073709551615,"huge":123456789012345678901234567890,
	"neg":-9007199254740993,"zero":-0,"exp":1e3,"text":"Hällo","none":null,"yes":true,"no":false,"nested":{"a":{"b":[1,{"c":"d"}]}},
	"lines":[{"item":"A","qty":2,"tags":["x","y"]},{"item":"B","qty":7.5,"tags":[]},{"item":"C"}],"empty":[],"obj":{},"when":"2026-11-02T10:20:30Z","x y":1}`

func newEvent(data string) *event.Event {
	e := &event.Event{
		ID: "id-1", Source: "/d365/fno/prod", Type: "PurchaseOrderConfirmedBusinessEvent", Subject: "PO-1",
		Time:            time.Date(2026, 11, 2, 10, 20, 30, 0, time.UTC),
		DataContentType: "application/json", Data: []byte(data), DataJSON: true,
	}
	e.Set("legalentity", "usmf")
	e.Set("action", "created")
	e.SetExtension(event.Extension{Name: "rank", Value: "7", Type: event.Integer})
	e.SetExtension(event.Extension{Name: "late", Value: "true", Type: event.Boolean})
	return e
}

func compile(t testing.TB, expr string, schemas ...*filter.Schema) *filter.Filter {
	t.Helper()
	f, err := filter.Compile(expr, schemas...)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return f
}

// outcome is "true", "false", or the error.
func outcome(f *filter.Filter, e *event.Event) string {
	ok, err := f.Match(e)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(ok)
}

func TestMatch(t *testing.T) {
	tests := []struct{ expr, want string }{
		// Attributes.
		{`true`, "true"},
		{`event.id == "id-1"`, "true"},
		{`event.source.endsWith("/prod") && event.type.startsWith("Purchase")`, "true"},
		{`event.specversion == "1.0"`, "true"},
		{`event.time > timestamp("2026-01-01T00:00:00Z")`, "true"},
		{`event.time.getFullYear() == 2026`, "true"},
		{`event.time - timestamp("2026-11-02T10:00:00Z") > duration("20m")`, "true"},
		{`event.legalentity == "usmf"`, "true"},
		{`event.legalentity in ["demf", "usmf"]`, "true"},
		{`event.rank == 7 && event.rank > 6.5 && event.late`, "true"},
		{`has(event.legalentity)`, "true"},
		{`has(event.partitionkey)`, "false"},
		{`has(event.dataschema)`, "false"},
		{`has(event.whatever)`, "false"},
		{`event.partitionkey == "x"`, `1:6: attribute partitionkey is not set; guard with has(event.partitionkey), or take a default: event.?partitionkey.orValue("")`},
		{`event.?partitionkey.orValue("none") == "none"`, "true"},
		{`has(event.partitionkey) && event.partitionkey == "x"`, "false"},
		{`event.partitionkey == "x" || event.id == "id-1"`, "true"},
		{`event.dataschema == ""`, `1:6: attribute dataschema is not set; guard with has(event.dataschema), or take a default: event.?dataschema.orValue("")`},
		{`dyn(event).legalentity == "usmf" && !has(dyn(event).partitionkey)`, "true"},
		{`event == event`, "true"},

		// Numbers.
		{`event.data.PurchaseOrderAmount > 1000.0`, "true"},
		{`event.data.PurchaseOrderAmount > 1000`, "true"},
		{`event.data.whole > 999.9 && event.data.whole > 999 && event.data.whole <= 1000.0 && event.data.whole == 1000.0`, "true"},
		{`event.data.big == 9223372036854775807 && event.data.big != 9223372036854775806`, "true"},
		{`event.data.big > 9223372036854775806`, "true"},
		{`event.data.bigger == 18446744073709551615u && event.data.bigger > event.data.big`, "true"},
		{`event.data.huge > 1e29 && event.data.huge > event.data.bigger`, "true"},
		{`event.data.neg == -9007199254740993 && event.data.neg != -9007199254740992`, "true"},
		{`event.data.zero == 0 && event.data.exp == 1000`, "true"},
		{`event.data.whole + 1 == 1001`, "true"},
		{`event.data.whole * 2.0 == 2000.0`, `1:18: a value is of another type than this operation takes`},
		{`double(event.data.whole) * 2.0 == 2000.0`, "true"},
		{`int(event.data.exp) == 1000`, "true"},
		{`event.data.whole / 0 == 1`, `1:18: division by zero`},
		{`type(event.data.whole) == int && type(event.data.bigger) == uint && type(event.data.exp) == double`, "true"},

		// Texts, null, booleans.
		{`event.data.text == "Hällo" && size(event.data.text) == 5`, "true"},
		{`event.data.text.matches("^H.llo$")`, "true"},
		{`event.data.text.lowerAscii().contains("h") && event.data.text.substring(0, 1) == "H"`, "true"},
		{`event.data.none == null && has(event.data.none)`, "true"},
		{`event.data.none == "x"`, "false"},
		{`event.data.yes == true && !event.data.no`, "true"},
		{`timestamp(event.data.when) == event.time`, "true"},
		{`event.data["x y"] == 1`, "true"},
		{"event.data.none > 1", "1:17: a value is of another type than this operation takes"},
		{`timestamp(event.data.text) == event.time`, `1:10: invalid RFC 3339 timestamp`},
		{`int(event.data.text) == 1`, `1:4: `},

		// Structure.
		{`event.data.nested.a.b[1].c == "d"`, "true"},
		{`event.data.nested.a.b == [1, event.data.nested.a.b[1]]`, "true"},
		{`event.data.nested == event.data.nested && event.data.nested != event.data.obj`, "true"},
		{`"a" in event.data.nested && !("b" in event.data.nested)`, "true"},
		{`"x" in event.data.lines[0].tags`, "true"},
		{`size(event.data.lines) == 3 && size(event.data.nested) == 1 && size(event.data.empty) == 0`, "true"},
		{`event.data.lines.exists(l, l.item == "B" && l.qty > 7)`, "true"},
		{`event.data.lines.all(l, l.item != "")`, "true"},
		{`event.data.lines.exists(l, l.qty > 100)`, `1:29: l.qty is absent; guard with has(l.qty), or take a default: l.?qty.orValue(…)`},
		{`event.data.lines.exists(l, l.?qty.orValue(0) > 100)`, "false"},
		{`event.data.lines.filter(l, has(l.qty)).size() == 2`, "true"},
		{`"C" in event.data.lines.map(l, l.item)`, "true"},
		{`event.data.lines.exists_one(l, l.?tags[?0].orValue("") == "x")`, "true"},
		{`event.data.lines.exists(l, has(l.tags) && l.tags.exists(t, t == "y"))`, "true"},
		{`event.data.nested.exists(k, k == "a")`, "true"},
		{`event.data.empty.all(x, x == 1) && !event.data.empty.exists(x, true)`, "true"},
		{`has(event.data.nested.a) && !has(event.data.nested.b) && !has(event.data.absent)`, "true"},
		{`event.data.absent == 1`, `1:11: event.data.absent is absent; guard with has(event.data.absent), or take a default: event.data.?absent.orValue(…)`},
		{`event.data.?absent.?deeper.orValue(3) == 3`, "true"},
		{`event.data.lines[9].item == "A"`, `index out of bounds`},
		{`event.data.text.x == 1`, `event.data.text.x is absent`},
		{`event.data.lines + event.data.lines == []`, `lists of an event cannot be added`},
		{`math.greatest(event.data.whole, 5) == 1000`, "true"},
		{`cel.bind(x, 1, x == 1)`, `error: 1:1: undeclared reference to 'cel'`},
	}
	for _, tt := range tests {
		t.Run(tt.expr, func(t *testing.T) {
			got := ""
			if f, err := filter.Compile(tt.expr); err != nil {
				got = "error: " + err.Error()
			} else {
				e := newEvent(order)
				before := string(e.JSON())
				got = outcome(f, e)
				if again := outcome(f, e); again != got {
					t.Errorf("the second time: %s", again)
				}
				if after := string(e.JSON()); after != before {
					t.Errorf("the event was changed: %s", after)
				}
			}
			if got != tt.want && (tt.want == "true" || tt.want == "false" || !strings.Contains(got, tt.want)) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestErrorsQuoteNothing: what a run says of an event is in records and logs.
func TestErrorsQuoteNothing(t *testing.T) {
	for _, expr := range []string{
		`int(event.data.s) == 1`, `double(event.data.s) == 1.0`, `timestamp(event.data.s) == event.time`, `duration(event.data.s) == duration("1s")`,
		`event.data[event.data.s] == 1`, `event.data.s.matches(event.data.re)`, `event.data.s > 1`, `event.data.s.x == 1`, `event.data.l[event.data.s] == 1`,
		`event.data.l[event.data.n] == 1`, `bool(event.data.s)`, `event.data.s.substring(event.data.n) == ""`, `event.data.m[event.data.m] == 1`, `event.data.m.y == 1`,
	} {
		f := compile(t, expr)
		_, err := f.Match(newEvent(`{"s":"hunter2","re":"(hunter2","l":["hunter2"],"n":424242,"m":{"hunter2":1}}`))
		if err == nil {
			t.Errorf("%s: no error", expr)
		} else if strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), "4242") {
			t.Errorf("%s: %v", expr, err)
		}
		t.Log(expr, "→", err)
	}
}

func TestOtherData(t *testing.T) {
	tests := []struct {
		name string
		e    *event.Event
		expr string
		want string
	}{
		{"no data", &event.Event{}, `has(event.data)`, "false"},
		{"no data, read", &event.Event{}, `event.data.x == 1`, "1:11: the event has no data; guard with has(event.data)"},
		{"no time, read", &event.Event{}, `event.time > timestamp("2026-01-01T00:00:00Z")`, "1:6: attribute time is not set; guard with has(event.time)"},
		{"text", &event.Event{DataContentType: "text/plain", Data: []byte("a;b")}, `event.data == "a;b" && event.data.split(";")[1] == "b"`, "true"},
		{"bytes", &event.Event{DataContentType: "image/png", Data: []byte("\x89PNG\xff")}, `event.data == b"\x89PNG\xff" && size(event.data) == 5`, "true"},
		{"a number", &event.Event{Data: []byte("7"), DataJSON: true}, `event.data == 7`, "true"},
		{"null", &event.Event{Data: []byte("null"), DataJSON: true}, `has(event.data) && event.data == null`, "true"},
		{"an array", &event.Event{Data: []byte("[1]"), DataJSON: true}, `event.data[0] == 1`, "true"},
		{"member twice", newEvent(`{"x":{"a":1,"a":2}}`), `event.data.x.b == 1`, `member "a" stands twice with different values`},
		{"member twice, in a loop", newEvent(`{"x":{"a":1,"a":2}}`), `event.data.x.all(k, k != "z")`, `member "a" stands twice with different values`},
		{"member twice, counted", newEvent(`{"x":{"a":1,"a":2}}`), `size(event.data.x) == 0`, `member "a" stands twice with different values`},
		{"member twice, compared", newEvent(`{"x":{"a":1,"a":2},"y":{}}`), `event.data.y == event.data.x`, `member "a" stands twice with different values`},
		{"member twice, elsewhere", newEvent(`{"x":{"a":1,"a":2},"y":3}`), `event.data.y == 3`, "true"},
		{"bad text", newEvent(`{"x":"\ud800","y":3}`), `event.data.x == ""`, "1:11: a text holds half of a surrogate pair or a bad byte"},
		{"many members", newEvent(many(100)), `event.data.m99 == 99 && !has(event.data.m100) && size(event.data) == 100`, "true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := outcome(compile(t, tt.expr), tt.e); got != tt.want && (tt.want == "true" || !strings.Contains(got, tt.want)) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func many(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, `,"m%d":%d`, i, i)
	}
	return "{" + s.String()[1:] + "}"
}

func TestCompileErrors(t *testing.T) {
	tests := []struct{ expr, want string }{
		{``, `the expression is empty`},
		{` // nothing`, `1:12: the expression ends early`},
		{`event.data.x >`, `1:15: the expression ends early`},
		{`event.id`, `1:1: the result is of type string, not true or false`},
		{`event.data.flag`, `1:1: whether the result is true or false shows only at run time; compare it, as in event.data.flag == true`},
		{`event.legalEntity == "usmf"`, `1:6: undefined field 'legalEntity'; did you mean event.legalentity?`},
		{`event.PurchaseOrderAmount > 1`, `1:6: undefined field 'PurchaseOrderAmount'; attributes have lower-case letters and digits; what the sender sent is below event.data`},
		{`event.id > 5`, `1:10: found no matching overload for '_>_' applied to '(string, int)'`},
		{`event.time > "2026"`, `1:12: found no matching overload for '_>_' applied to '(timestamp, string)'`},
		{`subject == "x"`, `1:1: undeclared reference to 'subject'; did you mean event.subject?`},
		{`evnt.type == "a"`, `1:1: undeclared reference to 'evnt'; did you mean event?`},
		{`data.x == 1`, `1:1: undeclared reference to 'data'; did you mean event.data?`},
		{`Amount > 1`, `1:1: undeclared reference to 'Amount'; a member of the data is event.data.Amount, and a text "Amount"`},
		{"true &&\n  event.ID == \"x\"", `2:8: undefined field 'ID'`},
		{`event.data.t.matches("(")`, `1:22: invalid matches argument`},
		{`event.time > timestamp("soon")`, `1:24: invalid timestamp argument`},
		{`event.data.t.replace("a", "b") == "c"`, `1:21: replace is not available in a filter; use matches`},
		{`event.data.l.join(",") == "c"`, `1:18: join is not available in a filter; compare the parts one by one`},
		{`"%s".format([event.data]) == "c"`, `format is not available in a filter`},
		{`event.data.t.indexOf("a") == 1`, `indexOf is not available in a filter; use contains, startsWith or matches`},
		{`event.data.l == [[1]]`, `1:18: a list that a filter builds can hold texts, numbers and parts of the event`},
		{`[event.data].map(x, [x, x]) == []`, `1:21: a list that a filter builds can hold`},
		{`[dyn([1])] == []`, `a list that a filter builds can hold`},
		{`[true ? event.data : event.data.x] == []`, `a list that a filter builds can hold`},
		{`{"a": 1} == event.data`, `maps and objects cannot be built in a filter`},
		{`event == gridfan.Event{id: "1"}`, `maps and objects cannot be built in a filter`},
		{`optional.of(1).optMap(x, x + 1).hasValue()`, `optMap and optFlatMap are not available in a filter; use orValue`},
		{`event.data.a.all(a, a.b.all(b, b.c.all(c, c == 1)))`, `with lists of 100 elements this may cost more than a filter may`},
		{`event.data.a.map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).size() == 1`, `more than 4 loops inside or after each other`},
		{`event.data.a.all(a, event.data.b.all(b, ` + strings.TrimSuffix(strings.Repeat(`a.x.matches(b.x) && `, 20), " && ") + `))`, `with lists of 100 elements this may cost more than a filter may`},
		{strings.Repeat(" ", 5000) + "true", `the expression has 5004 bytes; at most 4096 are allowed`},
		{strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000), `1:1: nested more than 250 deep`},
		{strings.Repeat("!", 1000) + "true", ``},
		{`event.data.t.matches("((a{1,30}){1,30})")`, `regex program size`},
		{`nosuch(event.id)`, `1:7: undeclared reference to 'nosuch'`},
		{`now() > event.time`, `undeclared reference to 'now'`},
	}
	for _, tt := range tests {
		name := tt.expr
		if len(name) > 60 {
			name = name[:60]
		}
		t.Run(name, func(t *testing.T) {
			_, err := filter.Compile(tt.expr)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if tt.want == "" != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if len(got) > 2000 || strings.Contains(got, "\n") {
				t.Errorf("not one short line: %s", got)
			}
		})
	}
}

func schemaOf(t testing.TB, text []byte) *filter.Schema {
	t.Helper()
	s, err := filter.ReadSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchemas(t *testing.T) {
	change, business := schemaOf(t, dataverse.Schema), schemaOf(t, businessevent.Schema)
	tests := []struct {
		name   string
		schema *filter.Schema
		expr   string
		want   string // part of the error, empty for none
		notes  int
	}{
		{"known", change, `event.data.table == "account" && event.data.columns.name == "x"`, "", 0},
		{"nullable", change, `event.data.id == null || event.data.id == "1"`, "", 0},
		{"unknown", change, `event.data.tabel == "account"`, `1:11: undefined field 'tabel'; did you mean event.data.table?`, 0},
		{"unknown in has", change, `has(event.data.mesage)`, `undefined field 'mesage'; did you mean event.data.message?`, 0},
		{"unknown and far", change, `event.data.Amount > 1`, `undefined field 'Amount'; event.data has changed, columns, context, formatted, id,`, 0},
		{"unknown deeper", change, `event.data.parent.parent.tabel == "x"`, `undefined field 'tabel'; did you mean event.data.parent.parent.table?`, 0},
		{"another type", change, `event.data.table > 5`, `found no matching overload for '_>_' applied to '(string, int)'`, 0},
		{"list", change, `"name" in event.data.changed`, "", 0},
		{"list of another type", change, `5 in event.data.changed`, `found no matching overload for '@in'`, 0},
		{"image", change, `event.data.preImages["pre"].columns.name == "x"`, "", 0},
		{"open", business, `event.data.PurchaseOrderAmount > 1000`, "", 0},
		{"open, near a known name", business, `event.data.EventID == "x"`, "", 1},
		{"known type", business, `event.data.BusinessEventId > 5`, `found no matching overload`, 0},
		{"nullable text", business, `event.data.LegalEntity == "usmf" && event.data.BusinessEventLegalEntity.startsWith("u")`, "", 0},
		{"a number that may be a text", business, `event.data.ControlNumber > 5`, "", 0},
		{"extension near a known one", nil, `has(event.legalentitiy)`, "", 1},
		{"extension of somebody's own", nil, `has(event.warehouse)`, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var schemas []*filter.Schema
			if tt.schema != nil {
				schemas = append(schemas, tt.schema)
			}
			f, err := filter.Compile(tt.expr, schemas...)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if (tt.want == "") != (err == nil) || !strings.Contains(got, tt.want) {
				t.Fatalf("got  %s\nwant %s", got, tt.want)
			}
			if f != nil && len(f.Notes()) != tt.notes {
				t.Errorf("notes: %q", f.Notes())
			}
		})
	}
	// With two, what one of them knows passes.
	if _, err := filter.Compile(`event.data.table == "x"`, business, change); err != nil {
		t.Error(err)
	}
	if _, err := filter.Compile(`event.data.table > 5`, change, business); err != nil {
		t.Error(err)
	}
	// And real data agree with the types.
	f := compile(t, `event.data.table == "account" && event.data.id != null && event.data.changed.exists(c, c == "name") && event.data.columns.name == "A"`, change)
	if got := outcome(f, newEvent(`{"table":"account","message":"Update","id":"1","changed":["name"],"columns":{"name":"A"},"preImages":{},"postImages":{},"context":{}}`)); got != "true" {
		t.Errorf("got %s", got)
	}
	if _, err := filter.ReadSchema([]byte(`{`)); err == nil {
		t.Error("half a schema is read")
	}
}

// TestHostile: whatever an expression and data do together, it ends soon, and
// small.
func TestHostile(t *testing.T) {
	const costs = "the filter costs more than a filter may (250000 units) with this event; look at less of the data"
	text := `{"t":"` + strings.Repeat("a", 4<<20) + `"}`
	numbers := `{"l":[0` + strings.Repeat(",1", 20000) + `],"o":{"k":[1` + strings.Repeat(",1", 100_000) + `]}}`
	longList := `{"l":[1` + strings.Repeat(",1", 1<<20) + `]}`
	deep := `{"d":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`
	tests := []struct{ name, expr, data, want string }{
		{"each with each", `event.data.l.all(a, event.data.l.all(b, a + b >= 0))`, numbers, costs},
		{"each with each, by in", `event.data.l.all(a, !(a + 5 in event.data.l))`, numbers, costs},
		{"each with all", `event.data.l.all(a, event.data.o == event.data.o)`, numbers, costs},
		{"a long list", `event.data.l.all(a, a == 1)`, longList, costs},
		{"text doubled", `(event.data.t` + strings.Repeat(` + event.data.t`, 100) + `) == ""`, text, costs},
		{"text in a list", `event.data.t in [` + strings.TrimSuffix(strings.Repeat(`event.data.t + "b",`, 150), ",") + `]`, text, costs},
		{"a pattern on a long text", `event.data.t.matches("(a+)+b")`, text, costs},
		{"a short pattern on a long text", `event.data.t.matches("b$")`, text, costs},
		{"a pattern of the data's", `event.data.t.matches(event.data.t)`, `{"t":"` + strings.Repeat("(a?){50}", 100) + `"}`, "the pattern is no regular expression, or one of more than 1000 instructions"},
		{"a pattern of megabytes", `"".matches(event.data.t)`, text, costs},
		{"contains", `event.data.t.contains(event.data.t + "b")`, text, costs},
		{"split", `event.data.t.split("").size() == 5`, text, costs},
		{"case", `event.data.t.upperAscii().lowerAscii().upperAscii() == ""`, text, costs},
		{"deep, compared", `event.data.d == event.data.d`, deep, "reads too much of data that are nested so deep"},
		{"deep, walked", `event.data.d` + strings.Repeat("[0]", 100) + ` == []`, deep, "reads too much of data that are nested so deep"},
		{"alternatives", strings.TrimSuffix(strings.Repeat(`event.data.t == "b" || `, 150), " || "), text, ""},
		{"a list of many parts", `[` + strings.TrimSuffix(strings.Repeat("event.data,", 300), ",") + `] == [` + strings.TrimSuffix(strings.Repeat("event.data,", 40), ",") + `]`, numbers, costs},
		{"a big list mapped", `event.data.l.map(a, a).map(a, a).map(a, a).size() == 0`, longList, costs},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			got := ""
			f, err := filter.Compile(tt.expr)
			compiled := time.Since(start)
			if err != nil {
				got = err.Error()
			} else if _, err := f.Match(newEvent(tt.data)); err != nil {
				got = err.Error()
			}
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			mem := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("compiled in %v, ran %v, allocated %d MiB: %.100s", compiled, took-compiled, mem, got)
			if got != tt.want && (tt.want == "" || !strings.Contains(got, tt.want)) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			// Below half a second on an idle machine; the race detector and
			// neighbours take their share. Without limits it would be hours.
			if took > time.Minute || mem > 512 {
				t.Errorf("took %v and allocated %d MiB", took, mem)
			}
		})
	}
}

func TestConcurrent(t *testing.T) {
	f := compile(t, `event.data.lines.exists(l, l.?qty.orValue(0) > 5) && event.legalentity in ["usmf"] && event.data.text.matches("^H")`)
	var wg sync.WaitGroup
	e := newEvent(order)
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if got := outcome(f, e); got != "true" {
					t.Errorf("got %s", got)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestAttributesOnly: an expression that does not name data must not read them.
func TestAttributesOnly(t *testing.T) {
	e := newEvent(`no JSON at all`)
	if got := outcome(compile(t, `event.legalentity == "usmf" && event.time > timestamp("2026-01-01T00:00:00Z")`), e); got != "true" {
		t.Errorf("got %s", got)
	}
	small, large := newEvent(payload(t, 1<<10)), newEvent(payload(t, 1<<20))
	f := compile(t, `event.legalentity == "usmf" && event.type.startsWith("Purchase")`)
	count := func(e *event.Event) float64 {
		return testing.AllocsPerRun(100, func() { _ = outcome(f, e) })
	}
	if a, b := count(small), count(large); a != b {
		t.Errorf("%v allocations with 1 KiB of data, %v with 1 MiB", a, b)
	}
}

// payload is an order of about n bytes.
func payload(t testing.TB, n int) string {
	t.Helper()
	body, err := os.ReadFile("../../cmd/internal/samples/bodies/purchase-order-confirmed.json")
	if err != nil {
		t.Fatal(err)
	}
	body = regexp.MustCompile(`\{\{\w+\}\}`).ReplaceAll(body, []byte("7"))
	var s strings.Builder
	s.WriteString(strings.TrimRight(strings.TrimSpace(string(body)), "}"))
	for i := 0; s.Len() < n; i++ {
		fmt.Fprintf(&s, `,"Field%d":"some text of a usual length %d"`, i, i)
	}
	s.WriteString(`,"Total":1234.5,"lines":[{"qty":1,"item":"A"},{"qty":7,"item":"B"}]}`)
	return s.String()
}

func BenchmarkMatch(b *testing.B) {
	for _, size := range []int{1 << 10, 4 << 10} {
		for _, bb := range []struct{ name, expr string }{
			{"attributes", `event.legalentity == "usmf" && event.type.startsWith("Purchase")`},
			{"data", `event.data.Total > 1000.0`},
			{"loop", `event.data.lines.exists(l, l.qty > 5)`},
			{"many", `event.data.Total > 1000 && event.data.BusinessEventId != "" && has(event.data.lines) && event.legalentity in ["usmf", "demf"] && event.type.matches("^Purchase.*Event$")`},
		} {
			b.Run(fmt.Sprintf("%s/%dKB", bb.name, size>>10), func(b *testing.B) {
				e := newEvent(payload(b, size))
				f := compile(b, bb.expr)
				if got := outcome(f, e); strings.Contains(got, " ") {
					b.Fatal(got)
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := f.Match(e); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestDocs compiles every filter of the documentation.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/filters.md")
	if err != nil {
		t.Fatal(err)
	}
	section, _, _ := strings.Cut(string(doc), "## Transforms")
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1)
	for _, row := range rows {
		if _, err := filter.Compile(row[1]); err != nil {
			t.Errorf("%s: %v", row[1], err)
		}
	}
	_, functions, _ := strings.Cut(section, "**Functions.**")
	for _, m := range regexp.MustCompile("`math\\.(\\w+)`").FindAllStringSubmatch(functions, -1) {
		arg := map[bool]string{true: "1.0", false: "1.0, 2.0"}[m[1] != "greatest" && m[1] != "least"]
		if _, err := filter.Compile("math." + m[1] + "(" + arg + ") > 0.5"); err != nil {
			t.Error(err)
		}
	}
	if len(rows) < 9 {
		t.Errorf("the documentation has %d filters", len(rows))
	}
}
