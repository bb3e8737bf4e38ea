package custom_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var invariants = schematest.Invariants{Kind: event.KindCustom, Also: func(t *testing.T, r event.Result) {
	t.Helper()
	if r.Control != nil {
		t.Fatalf("want one of Event and Fault: %+v", r)
	}
	if r.Event == nil {
		if strings.Contains(r.Fault.Detail, "interpreter failed") {
			t.Errorf("gojq panicked: %v", r.Fault)
		}
		return
	}
	if r.Name == "" {
		t.Error("no name")
	}
	if !bytes.Equal(r.Event.Data, r.Raw) {
		t.Error("data is not the element")
	}
}}

// slow is far beyond what the budget allows, also for a machine that fuzzes on
// all its cores.
const slow = 10 * time.Second

func FuzzParse(f *testing.F) {
	mappings := []custom.Mapping{
		{},
		{Each: `.items[]`, ID: `.id`, Type: `.type`, Time: `.time`, Scope: `.site`, Subject: `.sub[0]["x"]`, Name: `.name`, PartitionKey: `.k?`, LegalEntity: `.company`, Action: `.action`, Extensions: map[string]string{"a": `.a`}},
		{Each: `.items[]? | select(.id != null)`, ID: `"\(.id)-\(.n + 1)"`, Time: `.t | todate`, Subject: `.a // .b`, Name: `.name | gsub("[^a-z]+"; ".")`, Extensions: map[string]string{"x": `[.. | scalars] | tojson`}},
		{Each: `.. | objects`, ID: `.id | tonumber`, Type: `.url | split("/") | last`, Subject: `[.[] | strings] | sort | join(",")`, Scope: `@base64d`},
		{Each: `.items as $x | .n[] | {n: ., x: $x}`, ID: `.n * .n - .n / 3`, Subject: `.x[1:3] | tostring`, Time: `.n | strptime("%Y") | mktime`},
	}
	var parsers []*custom.Parser
	for _, m := range mappings {
		parsers = append(parsers, compile(f, m))
	}
	for _, g := range schematest.Load(f) {
		f.Add(g.Body)
	}
	f.Add([]byte(`{"items":[{"id":1.10,"n":9223372036854775807,"t":1700000000,"a":null,"b":"\ud800","name":"A b"},7],"n":[1,"2024",1e400]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		start := time.Now()
		for _, p := range parsers {
			invariants.Request(t, p.Parse, nil, body)
		}
		if took := time.Since(start); took > slow {
			t.Errorf("took %v", took)
		}
	})
}

// FuzzCompile looks for expressions that hang, break gojq or get out of the
// sandbox, at Compile or on a body.
func FuzzCompile(f *testing.F) {
	for _, expr := range []string{
		`.a.b[0]`, `.items[] | select(.id != null and .n > 1.5)`, `"\(.a)-\(.b + 1)"`, `.a as [$x, {y: $z}] | [$x, $z] | tojson`,
		`if .a then .b elif .c then "d" else empty end`, `try (.a | tonumber) catch "x"`, `[..] | length`, `. as $x | {$x, "a": 1, (.k): [.[]?]}`,
		`@base64 "x\(.a)"`, `.a | gsub("(?<x>[a-z])"; "\(.x)y")`, `.a[1:-1]`, `first(.a[], .b) // "c"`, `-.n % 7`, `[.a[] | ascii_upcase] | unique | join("-")`,
		`def f: f; f`, `"a" * 1e9`, `$ENV`, `input`, `$__loc__`, `reduce .[] as $x (0; . + $x)`, `import "a" as a; 1`, `. | . + . | . + . | . + .`,
	} {
		f.Add(expr)
	}
	bodies := [][]byte{
		[]byte(`null`), []byte(`{"a":{"b":[1.10,"x"]},"items":[{"id":"1","n":2}],"n":9223372036854775807,"k":"kk","b":"text","c":false}`),
		[]byte(`[[1,2,[3]],"a",true]`), []byte(`{"a":"some text of letters"}`),
	}
	f.Fuzz(func(t *testing.T, expr string) {
		start := time.Now()
		for _, m := range []custom.Mapping{{Subject: expr}, {Each: expr}} {
			p, err := custom.Compile(m)
			if err != nil {
				if strings.Contains(err.Error(), "interpreter failed") {
					t.Errorf("gojq panicked: %v", err)
				}
				if expr != "" && !strings.HasPrefix(err.Error(), "mapping.") {
					t.Errorf("no path: %v", err)
				}
				continue
			}
			for _, body := range bodies {
				if !rawjson.Valid(body) {
					t.Fatal("bad test")
				}
				for _, r := range p.Parse("src", nil, body) {
					invariants.Check(t, r)
				}
			}
		}
		if took := time.Since(start); took > slow {
			t.Errorf("took %v", took)
		}
	})
}
