package transform_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/subscribers/transform"
)

// slow is far beyond what the budget allows, also for a machine that fuzzes on
// all its cores.
const slow = 10 * time.Second

// FuzzApply looks for programs that hang, break gojq or get out of the sandbox,
// and for results that are no event.
func FuzzApply(f *testing.F) {
	for _, expr := range []string{
		`{id, n: .lines[0].qty}`, `.lines |= map(select(.qty > 0))`, `del(.a, .b[0])`, `with_entries(.value |= tostring)`,
		`reduce .[] as $x (0; . + $x)`, `[foreach .[] as [$i] (0; . + 1; {$i})]`, `def f(g): g | g; f(. * 2)`, `label $out | 1, break $out`,
		`group_by(.a) | map(add)`, `.a[.b:.c] = [1]`, `.a -= 1 | .b *= 2 | .c //= 3`, `[paths] | length`, `walk(if type == "number" then . + 1 else . end)`,
		`[limit(3; repeat(1))]`, `setpath(["a", 1, "b"]; 2)`, `pick(.a, .b.c)`, `to_entries | from_entries`, `$event.subject + "x"`,
		`try error("x") catch .`, `.. |= .`, `(.a, .b) = (1, 2)`, `until(. > 100; . * 2)`, `"\(.)" * 3`, `gsub("(?<x>[a-z])"; .x)`,
	} {
		f.Add(expr, `{"a":{"b":[1.10,"x"]},"lines":[{"id":"1","qty":2}],"n":9223372036854775807,"b":[{"a":1}],"c":null}`)
		f.Add(expr, `[[1,2,[3]],"a",true]`)
	}
	f.Fuzz(func(t *testing.T, expr, data string) {
		if !rawjson.Valid([]byte(data)) {
			return
		}
		start := time.Now()
		x, err := transform.Compile(expr)
		if err == nil {
			e := newEvent(data)
			before := string(e.JSON())
			got, err := x.Apply(e)
			if after := string(e.JSON()); after != before {
				t.Errorf("the event was changed from %s to %s", before, after)
			}
			switch {
			case err == nil && !rawjson.Valid(got.Data):
				t.Errorf("not JSON: %.1000q", got.Data)
			case err == nil && (len(got.Data) > transform.MaxData || got.Validate() != nil):
				t.Errorf("not an event: %v", got.Validate())
			case err != nil && strings.Contains(err.Error(), "interpreter failed"):
				t.Errorf("gojq panicked: %v", err)
			}
		} else if strings.Contains(err.Error(), "interpreter failed") {
			t.Errorf("gojq panicked: %v", err)
		}
		if took := time.Since(start); took > slow {
			t.Errorf("took %v", took)
		}
	})
}
