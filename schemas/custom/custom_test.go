package custom_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

func compile(t testing.TB, m custom.Mapping) *custom.Parser {
	t.Helper()
	p, err := custom.Compile(m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// one parses a body of one element that must give an event.
func one(t *testing.T, m custom.Mapping, body string) event.Result {
	t.Helper()
	r := compile(t, m).Parse("src", nil, []byte(body))
	if len(r) != 1 || r[0].Event == nil {
		t.Fatalf("%.200s\nno event: %.500s", body, schematest.Briefs(r))
	}
	invariants.Check(t, r[0])
	return r[0]
}

func TestDefaults(t *testing.T) {
	const none = `{"specversion":"1.0","id":"sha256-`
	tests := []struct {
		name, body string
		want       []string
	}{
		{"empty array", `[]`, nil},
		{"null", `null`, nil},
		{"an object", ` {"b": 1.10,"a":9223372036854775808} `, []string{none + `","source":"/gridfan/src","type":"custom","datacontenttype":"application/json","data":{"b": 1.10,"a":9223372036854775808}}`}},
		{"an array", `[{"a":1},"x",[2],true]`, []string{
			none + `","source":"/gridfan/src","type":"custom","datacontenttype":"application/json","data":{"a":1}}`,
			none + `","source":"/gridfan/src","type":"custom","datacontenttype":"application/json","data":"x"}`,
			none + `","source":"/gridfan/src","type":"custom","datacontenttype":"application/json","data":[2]}`,
			none + `","source":"/gridfan/src","type":"custom","datacontenttype":"application/json","data":true}`}},
		{"one bad element costs only itself", "[null,{\"a\":\"\xff\"},1]", []string{
			`not-an-event: the element is null`, `not-an-event: the text is not valid UTF-8`,
			none + `","source":"/gridfan/src","type":"custom","datacontenttype":"application/json","data":1}`}},
		{"nothing", ``, []string{`not-json: the body is empty`}},
		{"cut off", `{"a"`, []string{`not-json: the JSON ends early, at byte 4`}},
		{"text", `hello`, []string{`not-json: not JSON at byte 0`}},
		{"two bodies", `{}{}`, []string{`not-json: there is more after the JSON value`}},
		{"too deep", strings.Repeat("[", 10000) + strings.Repeat("]", 10000), []string{`invalid-event: the JSON is nested deeper than an event can carry`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			results := compile(t, custom.Mapping{}).Parse("src", nil, []byte(tt.body))
			got := schematest.Briefs(results)
			for i, r := range results {
				invariants.Check(t, r)
				if r.Event == nil {
					continue
				}
				if r.Key != r.Event.ID || r.Event.ID != "sha256-"+event.Digest("", "", r.Raw, true) || r.Scope != "" || r.Name != "custom" {
					t.Errorf("key %q, id %q, scope %q, name %q", r.Key, r.Event.ID, r.Scope, r.Name)
				}
				got[i] = strings.Replace(got[i], r.Event.ID, "sha256-", 1)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestContentType(t *testing.T) {
	for head, want := range map[string]string{
		"application/x-www-form-urlencoded": `not-json: not JSON at byte 0; its Content-Type is "application/x-www-form-urlencoded": let the sender post application/json`,
		"application/json; charset=utf-8":   `not-json: not JSON at byte 0`,
	} {
		got := schematest.Briefs(compile(t, custom.Mapping{}).Parse("src", map[string][]string{"content-type": {head}}, []byte("payload=1")))
		if d := cmp.Diff([]string{want}, got); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// TestExpressions is about what one expression gives, and in which form.
func TestExpressions(t *testing.T) {
	const big = "123456789012345678901234567890"
	tests := []struct{ expr, body, want string }{
		// Paths keep every digit and byte.
		{`.a.b[0]`, `{"a":{"b":["x",2]}}`, `x`},
		{`.["x y"]."z"`, `{"x y":{"z":"é\u20ac"}}`, `é€`},
		{`.a | .[-1]`, `{"a":[1,2]}`, `2`},
		{`.n`, `{"n":1.10}`, `1.10`},
		{`.n`, `{"n":-0}`, `-0`},
		{`.n`, `{"n":1E400}`, `1E400`},
		{`.n`, `{"n":-9223372036854775808}`, `-9223372036854775808`},
		{`.n`, `{"n":` + big + `}`, big},
		{`.b`, `{"b":false}`, `false`},
		{`.s`, `{"s":"line\r\nline"}`, "line\r\nline"},
		{`.`, `"x"`, `x`},
		{`.[]`, `["x"]`, `x`},

		// Nothing there, or nothing said.
		{`.a`, `{}`, ``},
		{`.a.b.c[3].d`, `{"a":null}`, ``},
		{`.a`, `{"a":null}`, ``},
		{`.a`, `{"a":""}`, ``},
		{`.[]`, `[]`, ``},
		{`.a[7]`, `{"a":[1]}`, ``},
		{`.a[-7]`, `{"a":[1]}`, ``},
		{`.a[0]?`, `{"a":"x"}`, ``},
		{`.a.b?`, `{"a":1}`, ``},
		{`.a[]?`, `{"a":1}`, ``},
		{`empty`, `1`, ``},
		{`null`, `1`, ``},
		{`select(.a)`, `{}`, ``},

		// Another kind than the expression wants.
		{`.a`, `[1]`, `wrong-type: mapping.subject: want an object with member "a", got an array`},
		{`.a.b`, `{"a":"secret"}`, `wrong-type: mapping.subject: want an object with member "b", got a string`},
		{`.a[0]`, `{"a":{}}`, `wrong-type: mapping.subject: want an array with element 0, got an object`},
		{`.a[]`, `{"a":null}`, `wrong-type: mapping.subject: want an array, got null`},
		{`.a?.b`, `{"a":1}`, `wrong-type: mapping.subject: want an object with member "b", got a number`},
		{`.a`, `{"a":{}}`, `invalid-event: mapping.subject: the result is an object; an attribute is a string, a number or a boolean`},
		{`.a | .`, `{"a":[]}`, `invalid-event: mapping.subject: the result is an array; an attribute is a string, a number or a boolean`},
		{`.a // .b`, `{"b":[]}`, `invalid-event: mapping.subject: the result is an array; an attribute is a string, a number or a boolean`},
		{`.a // .b`, `{"b":{}}`, `invalid-event: mapping.subject: the result is an object; an attribute is a string, a number or a boolean`},
		{`.a[]`, `{"a":[1,2]}`, `ambiguous: mapping.subject: the expression gives more than one result; take one with first(…)`},
		{`.a, .b`, `{}`, `ambiguous: mapping.subject: the expression gives more than one result; take one with first(…)`},
		{`.a`, `{"a":1,"a":2}`, `ambiguous: mapping.subject: member "a" stands twice with different values`},
		{`.a + 1`, `{"x":{"a":1,"a":[2]}}`, `ambiguous: mapping.subject: member "a" stands twice with different values`},
		{`.x.a + 1`, `{"x":{"a":1, "a": 1}}`, `2`},
		{`.x.a`, `{"x":{"a":1, "a": 1}}`, `1`},
		{`.a`, `{"a":"\ud800"}`, `wrong-type: mapping.subject: the result holds half of a surrogate pair or a bad byte, which is no text`},
		{`.a`, `{"a":"` + strings.Repeat("x", 65537) + `"}`, `invalid-event: mapping.subject: the result has 65537 bytes; at most 65536 can be an attribute`},

		// Messages say what is wrong and quote nothing of the body.
		{`.a.b + "x"`, `{"a":"secret"}`, `wrong-type: mapping.subject: the expression fails: expected an object but got: string`},
		{`.a | tonumber`, `{"a":"secret"}`, `wrong-type: mapping.subject: the expression fails: tonumber cannot be applied to`},
		{`.a * 2`, `{"a":"secret"}`, `wrong-type: mapping.subject: the expression fails: want a number, got string`},
		{`.a + 1`, `{"a":"secret"}`, `wrong-type: mapping.subject: the expression fails: cannot add: string`},
		{`.a | test("x")`, `{"a":[12345]}`, `wrong-type: mapping.subject: the expression fails: want a string, got array`},
		{`.a | todate`, `{"a":"secret"}`, `wrong-type: mapping.subject: the expression fails: strftime`},
		{`.a | fromjson | .b`, `{"a":"{secret"}`, `wrong-type: mapping.subject: the expression fails: fromjson cannot be applied to`},

		// Evaluated expressions: integers exact, decimals as they are until
		// they are reckoned with.
		{`.a // .b`, `{"b":1.10}`, `1.10`},
		{`"\(.a)/\(.b)"`, `{"a":1.10,"b":` + big + `}`, `1.10/` + big},
		{`.a + 1`, `{"a":9223372036854775807}`, `9223372036854775808`},
		{`.a - 1`, `{"a":` + big + `}`, `123456789012345678901234567889`},
		{`-.a`, `{"a":` + big + `}`, `-` + big},
		{`.a * .a`, `{"a":4611686018427387905}`, `21267647932558653975684285001340289025`},
		{`.a + 0`, `{"a":1.10}`, `1.1`},
		{`.a | tonumber`, `{"a":"007"}`, `7`},
		{`.a == 9007199254740993`, `{"a":9007199254740992}`, `false`},
		{`1 / 3`, `0`, `0.3333333333333333`},
		{`.a / 0`, `{"a":1}`, `wrong-type: mapping.subject: the expression fails: cannot divide number`},
		{`.a * 1e308 * 10`, `{"a":1e308}`, `invalid-event: mapping.subject: the result is not a finite number`},
		{`"const"`, `{}`, `const`},
		{`true`, `{}`, `true`},
		{`if .s == "n" then "created" elif .s then "updated" else null end`, `{"s":"n"}`, `created`},
		{`first(.items[] | select(.kind == "main") | .no)`, `{"items":[{"kind":"x","no":1},{"kind":"main","no":2},{"kind":"main","no":3}]}`, `2`},
		{`[.items[].id] | join("-")`, `{"items":[{"id":1},{"id":20000000000000000001}]}`, `1-20000000000000000001`},
		{`.items | map(.qty) | add`, `{"items":[{"qty":1},{"qty":2}]}`, `3`},
		{`.url | split("/") | last | ascii_upcase`, `{"url":"https://x/y/z1"}`, `Z1`},
		{`.id | gsub("[{}-]"; "")`, `{"id":"{a-b-c}"}`, `abc`},
		{`.id | sub("^(?<t>[a-z]+)-.*"; "\(.t)!")`, `{"id":"ab-1"}`, `ab!`},
		{`.id | test("^AB"; "i")`, `{"id":"abc"}`, `true`},
		{`.s[1:3]`, `{"s":"añbc"}`, `ñb`},
		{`.[.key]`, `{"key":"k","k":"v"}`, `v`},
		{`."\(.key)"`, `{"key":"k","k":"v"}`, `v`},
		{`.a as {b: [$x], $c} | "\($x)\($c)"`, `{"a":{"b":[1],"c":2}}`, `12`},
		{`{a: .x, "b": .y, (.k): 1} | to_entries | map("\(.key)=\(.value)") | join(",")`, `{"x":1,"y":2,"k":"z"}`, `a=1,b=2,z=1`},
		{`@base64d`, `"YWJj"`, `abc`},
		{`@uri "?q=\(.q)"`, `{"q":"a b"}`, `?q=a%20b`},
		{`try (.a | tonumber) catch "none"`, `{"a":"x"}`, `none`},
		{`[.. | strings] | join("")`, `{"a":["b",{"c":"d"}]}`, `bd`},
		{`.tags | any(. == "x")`, `{"tags":["y","x"]}`, `true`},
		{`.t | todate`, `{"t":1700000000}`, `2023-11-14T22:13:20Z`},
		{`.t | strptime("%d.%m.%Y %H:%M") | mktime | todate`, `{"t":"02.03.2024 10:20"}`, `2024-03-02T10:20:00Z`},
	}
	for _, tt := range tests {
		t.Run(tt.expr, func(t *testing.T) {
			r := compile(t, custom.Mapping{Subject: tt.expr}).Parse("src", nil, wrap(tt.body))
			if len(r) != 1 {
				t.Fatalf("%d results", len(r))
			}
			invariants.Check(t, r[0])
			got := ""
			if r[0].Event != nil {
				got = r[0].Event.Subject
			} else {
				got = r[0].Fault.Error()
			}
			if got != tt.want {
				t.Errorf("%.100s: got  %.200q\nwant %.200q", tt.body, got, tt.want)
			}
		})
	}
}

// TestFunctions calls every function that the package comment names and no test
// above does.
func TestFunctions(t *testing.T) {
	const body = `{"n":-1.5,"s":" Text ","l":[3,1,2,1],"t":"Text","m":{"b":1,"a":null},"z":[[1],[2,[3]]],"d":"2024-03-02T10:20:30Z"}`
	tests := []struct{ expr, want string }{
		{`.n | abs`, `1.5`}, {`.n | ceil`, `-1`}, {`.n | floor`, `-2`}, {`.n | round`, `-2`}, {`.n | trunc`, `-1`},
		{`.l | add`, `7`}, {`.l | max`, `3`}, {`.l | min`, `1`}, {`.l | sort | tojson`, `[1,1,2,3]`}, {`.l | unique | tojson`, `[1,2,3]`}, {`.l | reverse | tojson`, `[1,2,1,3]`},
		{`.l | length`, `4`}, {`.l | first`, `3`}, {`.l | last`, `1`}, {`last(.l[])`, `1`}, {`.z | flatten | tojson`, `[1,2,3]`}, {`.l | has(3)`, `true`},
		{`[true, false] | all`, `false`}, {`[true, false] | any`, `true`}, {`.l | all(. > 0)`, `true`}, {`all(.l[]; . > 1)`, `false`}, {`any(.l[]; . > 2)`, `true`}, {`isempty(.l[])`, `false`},
		{`.m | keys | join(",")`, `a,b`}, {`.m | has("a")`, `true`}, {`.m | has("c")`, `false`}, {`.m | to_entries | map(.key) | join("")`, `ab`}, {`.m.a | not`, `true`},
		{`[.[] | arrays] | length`, `2`}, {`[.[] | objects] | length`, `1`}, {`[.[] | strings] | length`, `3`}, {`[.[] | numbers] | length`, `1`}, {`[.m[] | nulls] | length`, `1`}, {`[.m[] | values] | length`, `1`},
		{`[.[] | scalars] | length`, `4`}, {`[.[] | booleans] | length`, `0`}, {`[.z | recurse | numbers] | length`, `3`}, {`.z | type`, `array`},
		{`.s | trim`, `Text`}, {`.s | ltrim`, `Text `}, {`.s | rtrim`, ` Text`}, {`.t | ltrimstr("T")`, `ext`}, {`.t | rtrimstr("t")`, `Tex`}, {`.t | trimstr("T")`, `ext`},
		{`.t | startswith("Te")`, `true`}, {`.t | endswith("xt")`, `true`}, {`.t | contains("ex")`, `true`}, {`.t | ascii_downcase`, `text`}, {`"true" | toboolean`, `true`},
		{`.d | fromdate`, `1709374830`}, {`.d | fromdate | strftime("%d.%m.%Y")`, `02.03.2024`}, {`.l | tostring`, `[3,1,2,1]`}, {`"[1.10]" | fromjson | .[0]`, `1.10`}, {`.z[1][1][0]`, `3`},
		{`.l | @csv`, `3,1,2,1`}, {`.t | @html`, `Text`}, {`.t | @json`, `"Text"`}, {`.t | @sh`, `'Text'`}, {`.l | @tsv`, "3\t1\t2\t1"}, {`.t | @text`, `Text`}, {`"a%20b" | @urid`, `a b`}, {`.t | @base64`, `VGV4dA==`},
	}
	for _, tt := range tests {
		if got := one(t, custom.Mapping{Subject: tt.expr}, body).Event.Subject; got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.expr, got, tt.want)
		}
	}
}

// wrap makes a body of one element, which may be an array.
func wrap(elem string) []byte { return []byte("[" + elem + "]") }

func TestFields(t *testing.T) {
	m := custom.Mapping{
		ID: `.no`, Type: `"shipment." + .what`, Time: `.at`, Scope: `.site`, Subject: `.sub`, Name: `.name`,
		PartitionKey: `.key`, LegalEntity: `.company`, Action: `.action`, Extensions: map[string]string{"rank": `.rank`, "flag": `.flag`},
	}
	r := one(t, m, `{"no":12345678901234567890,"what":"posted","at":"2024-03-02 10:20:00","site":"Hall.7 *","sub":"S-1","name":"Posted.Late",
		"key":"K","company":"USMF","action":"created","rank":1.50,"flag":true}`)
	const want = `{"specversion":"1.0","id":"12345678901234567890","source":"/gridfan/src","type":"shipment.posted","subject":"S-1","time":"2024-03-02T10:20:00Z",` +
		`"datacontenttype":"application/json","action":"created","flag":"true","legalentity":"usmf","partitionkey":"K","rank":"1.50","data":`
	if got := string(r.Event.JSON()); !strings.HasPrefix(got, want) {
		t.Errorf("got  %s\nwant %s…", got, want)
	}
	if got := event.Subject(event.KindCustom, "src", r.Scope, r.Name); got != "events.custom.src.Hall%2E7%20%2A.Posted.Late" || r.Key != "12345678901234567890" {
		t.Errorf("subject %s, key %q", got, r.Key)
	}
	// What is absent falls back.
	r = one(t, m, `{"what":"x","sub":"S","at":"1900-01-01T00:00:00Z","flag":null}`)
	const least = `","source":"/gridfan/src","type":"shipment.x","subject":"S","datacontenttype":"application/json","partitionkey":"S","data":`
	if got := string(r.Event.JSON()); !strings.Contains(got, least) || r.Name != "shipment.x" || r.Scope != "" {
		t.Errorf("got %s, name %q, scope %q", got, r.Name, r.Scope)
	}
	if got := one(t, m, `{"what":"x","at":"soon"}`).Event.Get("originaltime"); got != "soon" {
		t.Errorf("originaltime is %q", got)
	}
}

func TestEach(t *testing.T) {
	tests := []struct {
		name, each, body string
		want             []string // data of each event, or a fault
	}{
		{"a path, byte for byte", `.items[]`, "\xef\xbb\xbf {\"items\" : [ {\"a\": 1.10 , \"a\":1.10}, 2 ]}\n", []string{`{"a": 1.10 , "a":1.10}`, `2`}},
		{"members, by name", `.items[]`, `{"items":{"b":1,"a":2}}`, []string{`2`, `1`}},
		{"one", `.item`, `{"item":{"a":1}}`, []string{`{"a":1}`}},
		{"the array as one element", `.`, `[1,2]`, []string{`[1,2]`}},
		{"none", `.items[]`, `{"items":[]}`, nil},
		{"null body", `.items[]`, `null`, nil},
		{"empty array", `.[].items[]`, `[]`, nil},
		{"arrays in an array", `.[].items[]`, `[{"items":[1]},{"items":[2,3]}]`, []string{`1`, `2`, `3`}},
		{"missing", `.items[]`, `{}`, []string{`wrong-type: mapping.each: want an array, got null`}},
		{"missing and allowed to be", `.items[]?`, `{}`, nil},
		{"null element", `.item`, `{}`, []string{`not-an-event: the element is null`}},
		{"a bad byte costs its element only", `.items[]`, "{\"items\":[1,\"\xff\",2]}", []string{`1`, `not-an-event: the text is not valid UTF-8`, `2`}},
		{"the same when evaluated", `.items[] | select(true)`, "{\"items\":[1,\"\xff\",2]}", []string{`1`, `not-an-event: the text is not valid UTF-8`, `2`}},
		{"member twice", `.items[]`, `{"items":[1],"items":[2]}`, []string{`ambiguous: mapping.each: member "items" stands twice with different values`}},
		{"chosen, byte for byte", `.items[] | select(.v >= 1.1)`, `{"items":[{"v": 1.0},{"v": 1.10},{ "v":3e0 }]}`, []string{`{"v": 1.10}`, `{ "v":3e0 }`}},
		{"either", `(.items // .rows)[]`, `{"rows":[ 1.10 ]}`, []string{`1.10`}},
		{"by condition", `if type == "array" then .[] else .one end`, `{"one": 1.10}`, []string{`1.10`}},
		{"two places", `.a, .b[1:][]`, `{"a":1,"b":[2,3.0]}`, []string{`1`, `3.0`}},
		{"found at any depth", `.. | objects | select(has("id"))`, `{"x":[{ "id":1 }],"y":{ "id":2 }}`, []string{`{ "id":1 }`, `{ "id":2 }`}},
		{"new values, digits kept", `.orders[] as $o | $o.lines[] | {order: $o.id, line: .}`, `{"orders":[{"id":12345678901234567890,"lines":[1.10,"<é>"]}]}`, []string{
			`{"line":1.10,"order":12345678901234567890}`, `{"line":"<é>","order":12345678901234567890}`}},
		{"fails", `.items[] | select(.a.b)`, `{"items":[{"a":"secret"}]}`, []string{`wrong-type: mapping.each: the expression fails: expected an object but got: string`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, r := range compile(t, custom.Mapping{Each: tt.each}).Parse("src", nil, []byte(tt.body)) {
				invariants.Check(t, r)
				if r.Event == nil {
					got = append(got, r.Fault.Error())
					continue
				}
				if string(r.Raw) != string(r.Event.Data) {
					t.Errorf("Raw is %s", r.Raw)
				}
				got = append(got, string(r.Event.Data))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	m := custom.Mapping{ID: `.id`, Type: `.type`, Subject: `.sub`}
	a := one(t, m, `{"id":"1","type":"t","sub":"s","n":1.10}`)
	if b := one(t, m, `{ "sub":"s", "n": 1.10, "type":"t", "id":"1" }`); a.Key != b.Key || a.Digest != b.Digest {
		t.Errorf("layout: got %q %s, want %q %s", b.Key, b.Digest, a.Key, a.Digest)
	}
	if b := one(t, m, `{"id":"1","type":"t","sub":"s","n":1.1}`); a.Key != b.Key || a.Digest == b.Digest {
		t.Errorf("content: got %q %s, want %q and another", b.Key, b.Digest, a.Key)
	}
	c, d := one(t, m, `{"type":"t"}`), one(t, m, ` {"type" : "t"} `)
	if c.Key != d.Key || c.Event.ID != d.Event.ID || !strings.HasPrefix(c.Key, "sha256-") {
		t.Errorf("without an id: got %q and %q", c.Key, d.Key)
	}
}

func TestCompileErrors(t *testing.T) {
	_, err := custom.Compile(custom.Mapping{
		Each: `.items[`, ID: `$.order.id`, Type: `shipment`, Time: `now`, Scope: `  `, Subject: `$x`, Name: `{a: 1}`,
		PartitionKey: `"a", "b"`, LegalEntity: `.a = 1`, Action: strings.Repeat(".", 2000),
		Extensions: map[string]string{"z": `.a |`, "action": `.a`, "gridfansource": `.a`, "A-b": `.a`, "id": `.a`, "empty": ``, "comment": `# .a`},
	})
	want := []string{
		`mapping.each: not jq: unexpected EOF, near byte 7`,
		`mapping.id: "$.order.id" is JSONPath; jq's path has no $: write .order.id`,
		`mapping.type: function shipment/0 is not available in a mapping; a member is .shipment and a text "shipment"`,
		`mapping.time: function now/0 is not available in a mapping; a member is .now and a text "now"`,
		`mapping.scope: the expression is empty`,
		`mapping.subject: variable not defined: $x`,
		`mapping.name: the result is an object; an attribute is a string, a number or a boolean`,
		`mapping.partitionKey: the expression gives more than one result; take one with first(…)`,
		`mapping.legalEntity: =: assignments are not available in a mapping`,
		`mapping.action: the expression has 2000 bytes; at most 1024 are allowed`,
		`mapping.extensions: name "A-b": want lower-case letters and digits, and no attribute of CloudEvents' own`,
		`mapping.extensions.action: use mapping.action`,
		`mapping.extensions.comment: the expression is empty`,
		`mapping.extensions.empty: the expression is empty`,
		`mapping.extensions.gridfansource: the router sets it`,
		`mapping.extensions: name "id": want lower-case letters and digits, and no attribute of CloudEvents' own`,
		`mapping.extensions.z: not jq: unexpected EOF, near byte 4`,
	}
	if err == nil {
		t.Fatal("no error")
	}
	if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestSandbox: what an expression must not do is refused before an event comes.
func TestSandbox(t *testing.T) {
	t.Setenv("GRIDFAN_TEST_SECRET", "hunter2")
	const na = ` is not available in a mapping`
	tests := []struct{ expr, want string }{
		{`def f: f; f`, `def f: definitions are not available in a mapping`},
		{`.a | (def f: f; f)`, `def f: definitions are not available in a mapping`},
		{`[range(1e18)]`, `function range/1` + na},
		{`[limit(1e9; repeat(1))]`, `function limit/2` + na},
		{`[.a | recurse(.)]`, `function recurse/1` + na},
		{`last(while(true; .))`, `function while/2` + na},
		{`until(false; .)`, `function until/2` + na},
		{`"a" * 1e9`, `* works on numbers only in a mapping`},
		{`1e9 * "a"`, `* works on numbers only in a mapping`},
		{`reduce .[] as $x (0; . + $x)`, `reduce, foreach, label and break are not available in a mapping`},
		{`foreach .[] as $x (0; . + $x)`, `reduce, foreach, label and break are not available in a mapping`},
		{`label $x | break $x`, `reduce, foreach, label and break are not available in a mapping`},
		{`env`, `function env/0` + na + `; a member is .env and a text "env"`},
		{`$ENV`, `variable $ENV` + na},
		{`$ENV.GRIDFAN_TEST_SECRET`, `variable $ENV` + na},
		{`{$ENV} | tojson`, `variable $ENV` + na},
		{`. as $ENV | 1`, `variable $ENV` + na},
		{`. as [{$ENV}] | 1`, `variable $ENV` + na},
		{`$gridfan`, `variable $gridfan` + na},
		{`. as $gridfan | .a + 1`, `variable $gridfan` + na},
		{`$__loc__`, `variable $__loc__` + na},
		{`$__loc__.line`, `variable $__loc__` + na},
		{`gridfan_deep(1)`, `function gridfan_deep/1` + na},
		{`input`, `function input/0` + na + `; a member is .input and a text "input"`},
		{`[inputs]`, `function inputs/0` + na + `; a member is .inputs and a text "inputs"`},
		{`input_filename`, `function input_filename/0` + na + `; a member is .input_filename and a text "input_filename"`},
		{`import "a" as a; a::f`, `modules are not available in a mapping`},
		{`include "a"; f`, `modules are not available in a mapping`},
		{`a::f`, `function a::f/0` + na + `; a member is .a::f and a text "a::f"`},
		{`"x" | debug`, `function debug/0` + na + `; a member is .debug and a text "debug"`},
		{`halt`, `function halt/0` + na + `; a member is .halt and a text "halt"`},
		{`now | todate`, `function now/0` + na + `; a member is .now and a text "now"`},
		{`localtime`, `function localtime/0` + na + `; a member is .localtime and a text "localtime"`},
		{`error("x")`, `function error/1` + na},
		{`path(..)`, `function path/1` + na},
		{`setpath([1e8]; 1)`, `function setpath/2` + na},
		{`.[1e8] = 1`, `=: assignments are not available in a mapping`},
		{`.a |= 1`, `|=: assignments are not available in a mapping`},
		{`. as [$x] ?// $x | 1`, `?// is not available in a mapping`},
		{`. as {(.k): $x} | 1`, `a computed name in a pattern is not available in a mapping`},
		{`.a[.b:]`, `a slice's bounds are whole numbers in a mapping`},
		{`.a | test(.re)`, `test/1: argument 1 must be a literal string in a mapping`},
		{`.a | test("(")`, "test/1: not a regular expression: error parsing regexp: missing closing ): `(`"},
		{`.a | sub("x"; "y"; "g")`, `sub/3: flag 'g': want i or m; all matches are gsub's`},
		{`join(.sep)`, `join/1: argument 1 must be a literal string in a mapping`},
		{`@nope`, `format @nope` + na},
		{`.a | @nope "x\(.)"`, `format @nope` + na},
		{`[.a] - ["x"] - "y"`, `- works on numbers only in a mapping`},
	}
	for _, tt := range tests {
		t.Run(tt.expr, func(t *testing.T) {
			_, err := custom.Compile(custom.Mapping{Subject: tt.expr})
			if err == nil || err.Error() != "mapping.subject: "+tt.want {
				t.Errorf("got  %v\nwant mapping.subject: %s", err, tt.want)
			}
			if _, err := custom.Compile(custom.Mapping{Each: tt.expr}); err == nil || !strings.HasPrefix(err.Error(), "mapping.each: ") {
				t.Errorf("each: got %v", err)
			}
		})
	}
}

func TestPatternSize(t *testing.T) {
	_, err := custom.Compile(custom.Mapping{ID: `.a | test("((a{1,30}){1,30})")`})
	if err == nil || !strings.HasPrefix(err.Error(), "mapping.id: test/1: the regular expression compiles to ") {
		t.Errorf("got %v", err)
	}
}

// TestBudget: what only shows with a body ends soon, and small, whatever the
// body. Each case would take hours or all memory without the budget.
func TestBudget(t *testing.T) {
	const spent = "the expression needs more steps than its budget for this body"
	const long = "the expression fails: a number of more than 1024 digits"
	digits := strings.Repeat("7", 1<<20)
	numbers := "[1" + strings.Repeat(",1", 2000) + "]"
	// double fills an expression of room bytes.
	double := func(by string, room int) string {
		return strings.TrimPrefix(strings.Repeat("|"+by, room/(len(by)+1)), "|")
	}
	tests := []struct {
		name, expr, body, want string
	}{
		{"text doubled", double(`"\(.)\(.)"`, 1000), `"aaaaaaaa"`, spent},
		{"text added", double(`. + .`, 1000), `"aaaaaaaa"`, spent},
		{"arrays doubled, then written", double(`[.,.]`, 1000) + ` | tojson`, `1`, spent},
		{"arrays doubled, then compared", `(` + double(`[.,.]`, 500) + `) == (` + double(`[.,.]`, 500) + `)`, `1`, spent},
		{"arrays doubled, then sorted", double(`[.,.]`, 900) + ` | [., .] | sort | length`, `1`, spent},
		{"arrays doubled, then flattened", double(`[.,.]`, 900) + ` | flatten | length`, `1`, spent},
		{"arrays doubled, then walked", double(`[.,.]`, 900) + ` | [..] | length`, `1`, spent},
		{"arrays added", double(`. + .`, 1000) + ` | length`, numbers, spent},
		{"objects doubled", double(`{a:.,b:.}`, 1000) + ` | tostring`, `1`, spent},
		{"a number squared", double(`. * .`, 1000), `3`, long},
		{"a number added to itself", double(`. + .`, 1000), digits[:1000], ``},
		{"product of iterations", `[.[] as $a | .[] as $b | .[] as $c | 1] | length`, numbers, spent},
		{"the same in a condition", `any(.[] as $a | .[] as $b | .[] as $c | $c; . == 2)`, numbers, spent},
		{"big parts", `[.[] as $x | $x] | map("` + strings.Repeat(`\(.)`, 200) + `") | length`, `["` + strings.Repeat("x", 1<<18) + `"]`, spent},
		{"iteration begun many times", `. as $all | [.[] | first($all[])] | length`, numbers, spent},
		{"slices of a long text", `.t as $t | [.n[] | $t[0:1]] | length`, `{"t":"` + strings.Repeat("x", 1<<18) + `","n":` + numbers + `}`, spent},
		{"lengths of a long text", `.t as $t | [.n[] | $t | length] | add`, `{"t":"` + strings.Repeat("x", 1<<18) + `","n":` + numbers + `}`, spent},
		{"digits read", `.a | tonumber`, `{"a":"` + digits + `"}`, "the expression fails: the text is no number or boolean"},
		{"digits reckoned with", `.a + 1`, `{"a":` + digits + `}`, long},
		{"digits compared", `.a == .b`, `{"a":` + digits + `,"b":1}`, long},
		{"digits negated", `-.a`, `{"a":` + digits + `}`, long},
		{"digits as an index", `.b[.a]`, `{"a":` + digits + `,"b":[]}`, long},
		{"digits in a text", `.a | fromjson + 1`, `{"a":"` + digits + `"}`, long},
		{"digits sorted", `sort | length`, `[` + digits + `,1]`, long},
		{"digits rounded", `.a | floor`, `{"a":` + digits + `}`, long},
		{"a pattern for all matches", `.a | gsub("(x+x+)+y|z"; "")`, `{"a":"` + strings.Repeat("x", 1<<18) + `"}`, spent},
		{"a big pattern", `.a | test("(x?){100}(x?){100}y")`, `{"a":"` + strings.Repeat("x", 1<<18) + `"}`, spent},
		{"a pattern many times", `.t as $t | [.n[] | $t | test("x+y")] | length`, `{"t":"` + strings.Repeat("x", 1<<14) + `","n":` + numbers + `}`, spent},
		{"search for an array", `.l[.l]`, `{"l":` + "[1" + strings.Repeat(",1", 100_000) + "]" + `}`, "the expression fails: want a name or a number in [ ], got array"},
		{"a failure swallowed again and again", `[.[] as $a | .[] | try (` + double(`"\(.)\(.)"`, 900) + `) catch 1] | length`, numbers, spent},
		{"deep", `[..] | length`, strings.Repeat(`[`, 9000) + strings.Repeat("]", 9000), ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			got := ""
			if p, err := custom.Compile(custom.Mapping{Subject: tt.expr}); err != nil {
				got = err.Error()
			} else if r := p.Parse("src", nil, wrap(tt.body)); r[0].Fault != nil {
				got = r[0].Fault.Detail
			}
			took := time.Since(start)
			t.Log(took)
			runtime.ReadMemStats(&after)
			want := tt.want
			if want != "" {
				want = "mapping.subject: " + want
			}
			if got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			// Below a tenth of a second on an idle machine; the race detector and
			// neighbours take their share.
			if mem := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 5*time.Second || mem > 256 {
				t.Errorf("took %v and allocated %d MiB", took, mem)
			}
		})
	}
}

// TestEachBudget is the same for Each, whose budget grows with the body.
func TestEachBudget(t *testing.T) {
	numbers := "[" + strings.Repeat(`{"a":1},`, 5000) + "1]"
	for _, each := range []string{`.[] as $a | .[] as $b | .[] as $c | $c`, `[.[] as $a | .[] as $b | .[] as $c | $c] | .[0:1]`} {
		r := compile(t, custom.Mapping{Each: each}).Parse("src", nil, []byte(numbers))
		if len(r) != 1 || r[0].Fault == nil || !strings.Contains(r[0].Fault.Detail, "budget") {
			t.Errorf("%s: got %d results", each, len(r))
		}
	}
	// And an honest body of many elements gets through.
	r := compile(t, custom.Mapping{Each: `.[] | select(type == "object" and .a == 1)`, ID: `"x" + (.a | tostring)`}).Parse("src", nil, []byte(numbers))
	if len(r) != 5000 || r[4999].Event == nil || r[4999].Event.ID != "x1" {
		t.Errorf("got %d results", len(r))
	}
}

func TestConcurrent(t *testing.T) {
	p := compile(t, custom.Mapping{Each: `.[] | select(.a)`, ID: `.a | gsub("x"; "y")`})
	body := []byte(`[{"a":"x1"},{"a":"x2"}]`)
	done := make(chan string)
	for range 8 {
		go func() { done <- fmt.Sprint(schematest.Briefs(p.Parse("src", nil, body))) }()
	}
	first := <-done
	for range 7 {
		if got := <-done; got != first {
			t.Errorf("got %s, want %s", got, first)
		}
	}
}
