package transform_test

import (
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/transform"
)

func newEvent(data string) *event.Event {
	e := &event.Event{
		ID: "id-1", Source: "/d365/fno/prod", Type: "PurchaseOrderConfirmedBusinessEvent", Subject: "PO-1",
		Time:            time.Date(2026, 11, 2, 10, 20, 30, 123000000, time.UTC),
		DataContentType: "application/json; charset=utf-8", DataSchema: "urn:x", Data: []byte(data), DataJSON: true,
	}
	e.Set("legalentity", "usmf")
	e.SetExtension(event.Extension{Name: "rank", Value: "7", Type: event.Integer})
	e.SetExtension(event.Extension{Name: "late", Value: "true", Type: event.Boolean})
	return e
}

func compile(t testing.TB, expr string) *transform.Transform {
	t.Helper()
	x, err := transform.Compile(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return x
}

func TestContract(t *testing.T) {
	e := newEvent(`{"b":1.10,"a":[12345678901234567890]}`)
	before := string(e.JSON())
	got, err := compile(t, `{x: .b, all: ., subject: $event.subject, time: $event.time, rank: $event.rank, late: $event.late, absent: $event.none, company: $event.legalentity}`).Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"specversion":"1.0","id":"id-1","source":"/d365/fno/prod","type":"PurchaseOrderConfirmedBusinessEvent","subject":"PO-1","time":"2026-11-02T10:20:30.123Z",` +
		`"datacontenttype":"application/json","late":true,"legalentity":"usmf","rank":7,` +
		`"data":{"absent":null,"all":{"a":[12345678901234567890],"b":1.10},"company":"usmf","late":true,"rank":7,"subject":"PO-1","time":"2026-11-02T10:20:30.123Z","x":1.10}}`
	if d := cmp.Diff(want, string(got.JSON())); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if after := string(e.JSON()); after != before {
		t.Errorf("the event was changed: %s", after)
	}

	text := &event.Event{ID: "1", Source: "s", Type: "t", DataContentType: "text/plain", Data: []byte("a,b")}
	if got, err := compile(t, `split(",")`).Apply(text); err != nil || string(got.Data) != `["a","b"]` || got.DataContentType != "application/json" {
		t.Errorf("text: got %v, %v", got, err)
	}
	none := &event.Event{ID: "1", Source: "s", Type: "t"}
	if got, err := compile(t, `{none: ., id: $event.id}`).Apply(none); err != nil || string(got.Data) != `{"id":"1","none":null}` {
		t.Errorf("no data: got %v, %v", got, err)
	}
	bytes := &event.Event{ID: "1", Source: "s", Type: "t", DataContentType: "image/png", Data: []byte("\x89PNG\xff")}
	if got, err := compile(t, `.`).Apply(bytes); err == nil || err.Error() != `the data are neither JSON nor text (datacontenttype "image/png")` {
		t.Errorf("bytes: got %v, %v", got, err)
	}
}

const order = `{"id":"PO-1","total":1000.50,"big":9223372036854775807,"huge":12345678901234567890.12345678901234567890,
	"vendor":{"no":"V1","name":"Ann \"A\" Ü","tags":["x","y","x"]},"lines":[{"item":"A","qty":2,"price":1.10},{"item":"B","qty":0,"price":3},{"item":"A","qty":5,"price":2.50}],
	"when":"2026-11-02T10:20:30Z","kv":[{"key":"a","value":1},{"key":"b","value":null}],"text":"a-b--c 12 34","nested":"{\"n\":12345678901234567890}","none":null}`

func TestExpressions(t *testing.T) {
	tests := []struct{ expr, want string }{
		{`.id`, `"PO-1"`},
		{`.none`, `null`},
		{`{id, total, big, huge}`, `{"big":9223372036854775807,"huge":12345678901234567890.12345678901234567890,"id":"PO-1","total":1000.50}`},
		{`.huge`, `12345678901234567890.12345678901234567890`},
		{`.big + 1`, `9223372036854775808`},
		{`.total + 0`, `1000.5`},
		{`[.lines[] | {item, amount: (.qty * .price)}]`, `[{"amount":2.2,"item":"A"},{"amount":0,"item":"B"},{"amount":12.5,"item":"A"}]`},
		{`.lines | map(select(.qty > 0) | .item)`, `["A","A"]`},
		{`.lines | group_by(.item) | map({item: .[0].item, qty: (map(.qty) | add)})`, `[{"item":"A","qty":7},{"item":"B","qty":0}]`},
		{`.lines | sort_by(-.qty) | map(.qty)`, `[5,2,0]`},
		{`.lines | unique_by(.item) | length`, `2`},
		{`.lines | max_by(.qty).qty, min_by(.qty).qty | [.] | add`, `the transform gives more than one result; collect them with [ … ], or take one with first(…)`},
		{`[.lines | max_by(.qty).qty, min_by(.qty).qty]`, `[5,0]`},
		{`.vendor | with_entries(.key |= ascii_upcase)`, `{"NAME":"Ann \"A\" Ü","NO":"V1","TAGS":["x","y","x"]}`},
		{`.vendor | to_entries | map(.key)`, `["name","no","tags"]`},
		{`.kv | from_entries`, `{"a":1,"b":null}`},
		{`.vendor | del(.tags, .no)`, `{"name":"Ann \"A\" Ü"}`},
		{`del(.lines[] | select(.qty == 0)) | .lines | length`, `2`},
		{`del(.lines[0, 2]) | [.lines[].item]`, `["B"]`},
		{`.lines |= map(.qty) | .lines`, `[2,0,5]`},
		{`.lines[].qty |= . + 1 | [.lines[].qty]`, `[3,1,6]`},
		{`.lines[].qty += 1 | [.lines[].qty]`, `[3,1,6]`},
		{`.lines[0].qty -= 1 | .lines[0].qty *= 10 | .lines[0].qty`, `10`},
		{`.total /= 2 | .total`, `500.25`},
		{`.lines[2].qty %= 3 | .lines[2].qty`, `2`},
		{`.none //= "x" | .none`, `"x"`},
		{`.lines[] |= empty | .lines`, `[]`},
		{`.vendor.name = .id | .vendor.name`, `"PO-1"`},
		{`(.lines[] | select(.item == "A") | .price) = 0 | [.lines[].price]`, `[0,3,0]`},
		{`.new.deep[1].x = 1 | .new`, `{"deep":[null,{"x":1}]}`},
		{`(.lines | first | .qty, .price) |= 9 | .lines[0]`, `{"item":"A","price":9,"qty":9}`},
		{`setpath(["vendor","no"]; "V2") | .vendor.no`, `"V2"`},
		{`getpath(["vendor","no"])`, `"V1"`},
		{`delpaths([["lines"],["kv"]]) | has("lines")`, `false`},
		{`pick(.vendor.no, .lines[0].qty)`, `{"lines":[{"qty":2}],"vendor":{"no":"V1"}}`},
		{`[.vendor | paths]`, `[["name"],["no"],["tags"],["tags",0],["tags",1],["tags",2]]`},
		{`[.lines | paths(type == "number")] | length`, `6`},
		{`[path(.lines[].qty)]`, `[["lines",0,"qty"],["lines",1,"qty"],["lines",2,"qty"]]`},
		{`.vendor | walk(if type == "string" then ascii_downcase else . end)`, `{"name":"ann \"a\" Ü","no":"v1","tags":["x","y","x"]}`},
		{`.lines[0] | map_values(tostring)`, `{"item":"A","price":"1.10","qty":"2"}`},
		{`reduce .lines[] as $l (0; . + $l.qty)`, `7`},
		{`reduce .lines[] as {item: $i, qty: $q} ({}; .[$i] += $q)`, `{"A":7,"B":0}`},
		{`[foreach .lines[] as $l (0; . + $l.qty; {item: $l.item, sum: .})] | last`, `{"item":"A","sum":7}`},
		{`[limit(2; .lines[].item)]`, `["A","B"]`},
		{`[range(3)]`, `[0,1,2]`},
		{`[range(0; 10; 5)]`, `[0,5]`},
		{`[.lines[].item] - ["A"]`, `["B"]`},
		{`.vendor * {no: "V9", x: {y: 1}} | [.no, .x.y]`, `["V9",1]`},
		{`"ab" * 2`, `"abab"`},
		{`[label $out | .lines[] | if .qty == 0 then break $out else .qty end]`, `[2]`},
		{`first(.lines[] | select(.qty > 2)) | .qty`, `5`},
		{`def double: . * 2; def twice(f): f | f; .lines[0].qty | twice(double)`, `8`},
		{`def sum($a; $b): $a + $b; sum(1; 2)`, `3`},
		{`def fac: if . <= 1 then 1 else . * (. - 1 | fac) end; 20 | fac`, `2432902008176640000`},
		{`def map(f): "mine"; map(.)`, `"mine"`},
		{`.lines as [$a, $b] | [$a.qty, $b.qty]`, `[2,0]`},
		{`"\(.id): \(.lines | length) lines, \(.total)"`, `"PO-1: 3 lines, 1000.50"`},
		{`.when | fromdate | todate`, `"2026-11-02T10:20:30Z"`},
		{`.when | strptime("%Y-%m-%dT%H:%M:%SZ") | mktime`, `1793614830`},
		{`.text | split("-")`, `["a","b","","c 12 34"]`},
		{`.text | split("-+"; null)`, `error: split/2: argument 2 must be a literal string in a transform`},
		{`.text | split("-+"; "")`, `["a","b","c 12 34"]`},
		{`[.text | scan("[0-9]+")]`, `["12","34"]`},
		{`.text | gsub("-+"; "_")`, `"a_b_c 12 34"`},
		{`.text | capture("(?<n>[0-9]+)") | .n | tonumber`, `12`},
		{`.text | [match("[a-z]").string]`, `["a"]`},
		{`.nested | fromjson | .n`, `12345678901234567890`},
		{`.vendor.tags | unique | join("+")`, `"x+y"`},
		{`.vendor.name[0:3]`, `"Ann"`},
		{`.lines[.lines | length - 1:] | length`, `1`},
		{`[.[] | numbers] | length`, `3`},
		{`try error("no lines") catch .`, `"no lines"`},
		{`if .lines == [] then error("order without lines") else .id end`, `"PO-1"`},
		{`error("no vendor 12")`, `the expression fails: no vendor 12`},
		{`{a: {b: 1}} | del(.a.b)`, `{"a":{}}`},
		{`[1, [2, 3]] | del(.[1][0])`, `[1,[3]]`},
		{`[.lines[] | .qty as $q | $q] | add / length`, `2.3333333333333335`},
		{`add(.lines[].qty)`, `7`},
		{`[.lines[].qty] | until(length < 2; .[1:])`, `[5]`},
		{`[2 | while(. < 100; . * .)]`, `[2,4,16]`},
		{`[1 | limit(3; repeat(.))]`, `[1,1,1]`},
		{`.lines[0].qty | [recurse(if . < 4 then . + 1 else empty end)]`, `[2,3,4]`},
		{`2 | pow(.; 10), sqrt`, `more than one`},
		{`pow(2; 10)`, `1024`},
		{`@base64 "x\(.id)"`, `"xUE8tMQ=="`},
		{`.lines[0] | keys`, `["item","price","qty"]`},
		{`.id | explode | implode`, `"PO-1"`},
		{`nth(1; .lines[]) | .item`, `"B"`},
		{`$event.id + "/" + .id`, `"id-1/PO-1"`},
		{`1e1000`, `a number that is not finite`},
		{`.a.b.c`, `null`},
		{`.id.x`, `the expression fails: expected an object but got: string`},
		{`.lines[].qty`, `more than one`},
		{`.lines[] | select(.qty > 99)`, `the transform gives no result; give null for no data, and leave events out with a filter`},
		{`.vendor[.id, "no"]`, `more than one`},
	}
	for _, tt := range tests {
		t.Run(tt.expr, func(t *testing.T) {
			var got string
			x, err := transform.Compile(tt.expr)
			if err != nil {
				got = "error: " + err.Error()
			} else if e, err := x.Apply(newEvent(order)); err != nil {
				got = err.Error()
			} else {
				got = string(e.Data)
			}
			if got != tt.want && (strings.HasPrefix(tt.want, `"`) || !strings.Contains(got, tt.want) || tt.want == "") {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Setenv("GRIDFAN_TEST_SECRET", "hunter2")
	const na = " is not available in a transform"
	tests := []struct{ expr, want string }{
		{``, `the expression is empty`},
		{`# nothing`, `the expression is empty`},
		{`.a |`, `not jq: unexpected EOF, near byte 4`},
		{`$.a`, `"$.a" is JSONPath; jq's path has no $: write .a`},
		{strings.Repeat(".", 5000), `the expression has 5000 bytes; at most 4096 are allowed`},
		{`env`, `function env/0` + na + `; a member is .env and a text "env"`},
		{`$ENV.GRIDFAN_TEST_SECRET`, `variable $ENV` + na},
		{`{$ENV}`, `variable $ENV` + na},
		{`$__loc__`, `variable $__loc__` + na},
		{`input`, `function input/0` + na + `; a member is .input and a text "input"`},
		{`[inputs]`, `function inputs/0` + na + `; a member is .inputs and a text "inputs"`},
		{`debug`, `function debug/0` + na + `; a member is .debug and a text "debug"`},
		{`now`, `function now/0` + na + `; a member is .now and a text "now"`},
		{`localtime`, `function localtime/0` + na + `; a member is .localtime and a text "localtime"`},
		{`halt`, `function halt/0` + na + `; a member is .halt and a text "halt"`},
		{`import "a" as a; a::f`, `modules are not available in a transform`},
		{`include "a"; f`, `modules are not available in a transform`},
		{`import "data" as $d; $d`, `modules are not available in a transform`},
		{`transpose`, `function transpose/0` + na + `; a member is .transpose and a text "transpose"`},
		{`indices(1)`, `function indices/1` + na},
		{`error(.a)`, `error/1: argument 1 must be a literal string in a transform`},
		{`$gridfan`, `variable $gridfan` + na},
		{`$gridfan_root`, `variable $gridfan_root` + na},
		{`. as $gridfan | 1`, `variable $gridfan` + na},
		{`def f($gridfan): 1; f(2)`, `variable $gridfan` + na},
		{`gridfan_deep(1)`, `function gridfan_deep/1` + na},
		{`def gridfan_deep(f): .; 1`, `def gridfan_deep: a name that begins with gridfan_` + na},
		{`def f(gridfan_deep): .; 1`, `def f: a name that begins with gridfan_` + na},
		{`def _modify(a; b): .; 1`, `def _modify/2: another definition of what assignments are made of` + na},
		{`def path(f): .; 1`, `def path/1: another definition of what assignments are made of` + na},
		{`_modify(.a; 1)`, `function _modify/2` + na},
		{`def f: g; def g: 1; f`, `function g/0` + na + `; a member is .g and a text "g"`},
		{`(def f: 1; f) | f`, `function f/0` + na + `; a member is .f and a text "f"`},
		{`. as [$x] ?// $x | 1`, `?// is not available in a transform`},
		{`test(.re)`, `test/1: argument 1 must be a literal string in a transform`},
		{`break $x`, `label not defined: $x`},
		{`$x`, `variable not defined: $x`},
		// What fails whatever the data.
		{`empty`, `the transform gives no result; give null for no data, and leave events out with a filter`},
		{`1, 2`, `the transform gives more than one result; collect them with [ … ], or take one with first(…)`},
		{`1 / 0 * 1e999 | infinite`, `function infinite/0` + na + `; a member is .infinite and a text "infinite"`},
		{`[range(1e12)]`, `the expression needs more steps than its budget for this body`},
		{`def f: f; f`, `the expression needs more steps than its budget for this body`},
	}
	for _, tt := range tests {
		t.Run(tt.expr, func(t *testing.T) {
			if _, err := transform.Compile(tt.expr); err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// TestHostile: whatever a program and data do together, it ends soon, and small.
// Each case would take hours or all memory without the budget.
func TestHostile(t *testing.T) {
	const spent = "the expression needs more steps than its budget for this body"
	const deep = "a value is nested too deep"
	const long = "a number of more than 1024 digits"
	numbers := "[1" + strings.Repeat(",1", 2000) + "]"
	double := func(by string, times int) string { return strings.TrimPrefix(strings.Repeat("|"+by, times), "|") }
	dag := double(`[.,.]`, 60)
	nest := func(n int) string { return strings.Repeat(`[`, n) + strings.Repeat("]", n) }
	tests := []struct{ name, expr, data, want string }{
		{"range", `[range(1e12)]`, `1`, spent},
		{"range of ranges", `[range(1e6) | range(1e6)] | length`, `1`, spent},
		{"repeat", `[limit(1e9; repeat("x"))]`, `1`, spent},
		{"repeat, counted", `[limit(1e9; repeat("x"))] | length`, `1`, spent},
		{"while", `last(while(true; .))`, `1`, spent},
		{"until", `until(false; .)`, `1`, spent},
		{"until that grows", `until(false; . + .)`, `"x"`, spent},
		{"recurse", `[recurse(.)]`, `1`, spent},
		{"recursion", `def f: [f]; f`, `1`, spent},
		{"recursion that forks", `def f: f, f; f`, `1`, spent},
		{"recursion over arguments", `def f(g): f(g | g); f(. + 1)`, `1`, spent},
		{"mutual recursion", `def f: def g: f; [g, g]; f`, `1`, spent},
		{"text by number", `"x" * 1e9`, `1`, spent},
		{"number by text", `1e9 * "x"`, `1`, spent},
		{"text by the data's number", `"x" * .`, `1e18`, spent},
		{"text by a number, assigned", `.a *= 1e9`, `{"a":"x"}`, spent},
		{"text by a number again and again", `reduce range(40) as $i ("x"; . * 2)`, `1`, spent},
		{"text doubled", `reduce range(100) as $i ("x"; . + .)`, `1`, spent},
		{"text doubled by interpolation", double(`"\(.)\(.)"`, 60), `"x"`, spent},
		{"text doubled by join", `reduce range(100) as $i ("x"; [., .] | join(""))`, `1`, spent},
		{"text doubled by add", `reduce range(100) as $i ("x"; [., .] | add)`, `1`, spent},
		{"text doubled by +=", `reduce range(100) as $i ({a: "x"}; .a += .a)`, `1`, spent},
		{"text doubled by |=", `reduce range(100) as $i ({a: "x"}; .a |= . + .)`, `1`, spent},
		{"text grown by gsub", `reduce range(100) as $i ("x"; gsub("x"; "xx"))`, `1`, spent},
		{"array doubled", `reduce range(100) as $i ([1]; . + .)`, `1`, spent},
		{"object of many members", `reduce range(1e6) as $i ({}; .["\($i)"] = $i)`, `1`, spent},
		{"object merged with itself", `reduce range(1e5) as $i (` + `{}` + `; . * {"\($i)": .})`, `1`, spent},
		{"arrays doubled, then written", dag, `1`, spent},
		{"arrays doubled, then stored", `{} | .a = (` + dag + `) | .a |= 1`, `1`, spent},
		{"arrays doubled, then updated", dag + ` | .[0] |= 1`, `1`, spent},
		{"arrays doubled, then deleted in", `[` + dag + `, 1] | del(.[1])`, `1`, spent},
		{"arrays doubled by map_values, one deleted", `[1, 2] | map_values(if . == 1 then (` + dag + `) else empty end)`, `1`, spent},
		{"arrays doubled by |=, one deleted", `[1, 2] | .[] |= if . == 1 then (` + dag + `) else empty end`, `1`, spent},
		{"arrays doubled, then sorted by", `(` + dag + `) as $x | [1, 2] | sort_by($x) | 1`, `1`, spent},
		{"arrays doubled, then grouped by", `(` + dag + `) as $x | [1, 2] | group_by($x) | 1`, `1`, spent},
		{"arrays doubled, then compared", `(` + dag + `) == (` + dag + `)`, `1`, spent},
		{"arrays doubled, then taken away", `[` + dag + `] - [` + dag + `] | 1`, `1`, spent},
		{"arrays doubled, then walked", `(` + dag + `) | walk(.) | 1`, `1`, spent},
		{"arrays doubled, then flattened", `(` + dag + `) | flatten | 1`, `1`, spent},
		{"arrays doubled, then merged", `{a: ` + dag + `} * {a: 1} | 1`, `1`, spent},
		{"objects doubled, then merged", `(` + double(`{a:.,b:.}`, 60) + `) as $x | $x * $x | 1`, `1`, spent},
		{"arrays doubled in path", `[(` + dag + `) | paths] | length`, `1`, spent},
		{"each without each", `([range(20000)] - [range(20000) | . + 50000]) | length`, `1`, spent},
		{"an element far away", `.[1e8] = 1`, `null`, spent},
		{"an element far away by setpath", `setpath([4e8]; 1)`, `null`, spent},
		{"an element far away by |=", `.[400000000] |= 1`, `null`, spent},
		{"an element far away in pick", `pick(.[1e8])`, `null`, spent},
		{"many elements far away", `[range(1000) | [] | .[500000] = 1] | length`, `null`, spent},
		{"holes in holes", `reduce range(1000) as $i (null; .[$i * 1000] = 1) | length`, `null`, spent},
		{"built deep", `reduce range(1e4) as $i (1; [.])`, `1`, deep},
		{"built deep, then paths of all", `reduce range(1e4) as $i (1; [.]) | [paths] | length`, `1`, deep},
		{"built deep by setpath", `setpath([range(5000)] | map("a"); 1)`, `null`, deep},
		{"built deep by recursion", `def f: if . > 1e5 then 1 else [. + 1 | f] end; 0 | f`, `1`, spent},
		{"sent deep", `.`, nest(9000), deep},
		{"sent deep, updated everywhere", `.. |= .`, nest(9000), deep},
		{"endless paths", `[path(recurse(.a))] | length`, `null`, spent},
		{"endless paths, updated", `recurse(.a) |= .`, `null`, spent},
		{"endless paths, deleted", `del(recurse(.a))`, `null`, spent},
		{"containers copied again and again", `(range(1e4) as $i | ., .[0]) |= .`, numbers, spent},
		{"product of iterations", `[.[] as $a | .[] as $b | .[] as $c | 1] | length`, numbers, spent},
		{"slices", `. as $x | [range(1e5) | $x[1:]] | length`, numbers, spent},
		{"search for an array", `. as $x | $x[$x]`, numbers, "want a name or a number in [ ], got array"},
		{"a number squared", double(`. * .`, 60), `3`, long},
		{"a big power", `reduce range(100) as $i (10; . * .)`, `1`, long},
		{"digits", `. + 1`, strings.Repeat("7", 1<<20), long},
		{"a pattern for all matches", `gsub("(x+x+)+y|z"; "")`, `"` + strings.Repeat("x", 1<<18) + `"`, spent},
		{"matches of nothing", `[scan("")] | length`, `"` + strings.Repeat("x", 1<<20) + `"`, spent},
		{"a failure swallowed again and again", `[range(1e6) | try error("x") catch .] | length`, `1`, spent},
		{"a spent budget swallowed", `try (reduce range(100) as $i ("x"; . + .)) catch "got away"`, `1`, spent},
		{"a spent budget swallowed by ?", `[(reduce range(100) as $i ("x"; . + .))?, 1]`, `1`, spent},
		{"a spent budget and //", `(reduce range(100) as $i ("x"; . + .)) // 1`, `1`, spent},
		{"foreach", `[foreach range(1e9) as $i (0; . + 1)] | length`, `1`, spent},
		{"entries", `[range(1e6) | {key: "\(.)", value: .}] | from_entries | length`, `1`, spent},
		{"large result", `[range(100)] | map("\u0000") | add | [range(200) as $i | .]`, `1`, ``},
		{"a result of more than 4 MiB", `. as $x | [range(10) | $x]`, `"` + strings.Repeat("x", 1<<19) + `"`, "the result has more than 4194304 bytes"},
		{"a result of more than 4 MiB when escaped", `. as $x | [$x, $x]`, `"` + strings.Repeat(`\u0001`, 400_000) + `"`, "the result has more than 4194304 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEvent(tt.data)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			got := ""
			x, err := transform.Compile(tt.expr)
			compiled := time.Since(start)
			start = time.Now()
			if err == nil {
				_, err = x.Apply(e)
			}
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err != nil {
				got = strings.TrimPrefix(err.Error(), "the expression fails: ")
			}
			mem := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%s: compiled in %v, ran %v, allocated %d MiB", tt.name, compiled, took, mem)
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			// Some 20 ms a run on an idle machine; the race detector and neighbours
			// take their share.
			if compiled+took > time.Minute || mem > 512 {
				t.Errorf("took %v and allocated %d MiB", compiled+took, mem)
			}
		})
	}
}

// TestConcurrent: gojq makes constants of literals, which all runs share, and
// deletes in place.
func TestConcurrent(t *testing.T) {
	for _, expr := range []string{
		`{a: {b: 1, c: {d: 2}}, x: ([1, [2, 3]] | del(.[0]))} | del(.a.zz, .q) | .a.c.d = 3`,
		`({"a": {"b": {"c": 1}}} | del(.z)), empty | map_values(.)`,
		`{k: [{a: -1, b: [1, {c: 2}]}]} | .k[0].b[1].c |= empty`,
		`[[1, 2], [{"a": null}]] | del(.[5])`,
	} {
		x := compile(t, expr)
		want, err := x.Apply(newEvent(`{}`))
		if err != nil {
			t.Fatalf("%s: %v", expr, err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 200 {
					if got, err := x.Apply(newEvent(`{}`)); err != nil || string(got.Data) != string(want.Data) {
						t.Errorf("%s: got %v, %v; want %s", expr, got, err, want.Data)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func BenchmarkApply(b *testing.B) {
	for name, expr := range map[string]string{
		"pick":  `{id, amount: .total, vendor: .vendor.no, company: $event.legalentity}`,
		"lines": `.lines |= map(select(.qty > 0) | {item, amount: (.qty * .price)})`,
	} {
		b.Run(name, func(b *testing.B) {
			x, e := compile(b, expr), newEvent(order)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := x.Apply(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestDocs compiles every program of the documentation.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/filters.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "## Transforms")
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1)
	for _, row := range rows {
		compile(t, strings.ReplaceAll(row[1], `\|`, "|"))
	}
	if len(rows) < 6 {
		t.Errorf("the documentation has %d programs", len(rows))
	}
}
