package filter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/subscribers/filter"
)

// slow is far beyond what the limits allow, also for a machine that fuzzes on
// all its cores.
const slow = 10 * time.Second

// FuzzMatch looks for expressions that hang, break CEL or answer differently
// when asked again.
func FuzzMatch(f *testing.F) {
	for _, expr := range []string{
		`event.data.a > 1.5`, `event.legalentity in ["usmf"]`, `has(event.data.a) && event.data.a.b == "x"`, `event.data.l.exists(x, x > 1)`,
		`event.data.l.filter(x, x == 1).map(x, [x]).size() > 0`, `event.data.?a.?b.orValue("") == ""`, `event.data.t.matches("^a+$")`,
		`event.time > timestamp("2026-01-01T00:00:00Z")`, `[event.data.a, 1] == [1, 2]`, `event.data == event.data`, `event.data.l[0] == event.data.l[1]`,
		`event.data.t.split(",")[0].lowerAscii() == "a"`, `"a" in event.data`, `event.data.a ? true : false`, `dyn(event).x == 1`, `size(event.data) > 3`,
		`event.data.l + [1] == []`, `math.greatest(1, 2) == 2`, `event.data.all(k, k != "")`, `event.data.table == "x"`,
	} {
		f.Add(expr, `{"a":{"b":[1.10,"x"]},"l":[1,2.5,null,"x",{"y":[]}],"n":18446744073709551615,"t":"a,b"}`)
		f.Add(expr, `[[1,2,[3]],"a",true,{"a":1,"a":2}]`)
	}
	schema := schemaOf(f, dataverse.Schema)
	f.Fuzz(func(t *testing.T, expr, data string) {
		if !rawjson.Valid([]byte(data)) {
			return
		}
		start := time.Now()
		_, _ = filter.Compile(expr, schema)
		x, err := filter.Compile(expr)
		if err != nil {
			if strings.Contains(err.Error(), "internal error") || err.Error() == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q", err)
			}
			return
		}
		e := newEvent(data)
		first := outcome(x, e)
		if again := outcome(x, e); again != first {
			t.Errorf("got %s, then %s", first, again)
		}
		if strings.Contains(first, "internal error") || first == "" {
			t.Errorf("got %s", first)
		}
		if took := time.Since(start); took > slow {
			t.Errorf("took %v", took)
		}
	})
}
