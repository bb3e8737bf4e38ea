package rawjson_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

func TestElements(t *testing.T) {
	tests := []struct {
		name, body string
		want       []string
		array      bool
		err        string
	}{
		{name: "array", body: ` [ {"a": 1} , 2,"x" ] `, want: []string{`{"a": 1}`, "2", `"x"`}, array: true},
		{name: "one object", body: ` {"a":9223372036854775807} `, want: []string{`{"a":9223372036854775807}`}},
		{name: "byte order mark", body: "\xef\xbb\xbf{}", want: []string{"{}"}},
		{name: "null is an empty array", body: "null", array: true},
		{name: "empty array", body: "[]", array: true},
		{name: "a repeated name is kept for later", body: `[{"a":1,"a":2},{}]`, want: []string{`{"a":1,"a":2}`, "{}"}, array: true},
		{name: "a bad byte is kept for later", body: "[\"\xff\",1]", want: []string{"\"\xff\"", "1"}, array: true},
		{name: "empty", body: " \n", err: "the body is empty"},
		{name: "cut off", body: `[{"a":1},{"b"`, array: true, err: "the JSON ends early, at byte 13"},
		{name: "cut off after a comma", body: `[{"a":1},`, array: true, err: "the JSON ends early, at byte 9"},
		{name: "text", body: "hello", err: "not JSON at byte 0"},
		{name: "two values", body: "{} {}", err: "there is more after the JSON value"},
		{name: "too deep", body: strings.Repeat("[", 20000), array: true, err: "not JSON at byte 10000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			elems, array, err := rawjson.Elements([]byte(tt.body))
			var got []string
			for _, e := range elems {
				got = append(got, string(e))
			}
			if d := cmp.Diff(tt.want, got); d != "" || array != tt.array {
				t.Errorf("array %v, elements (-want +got):\n%s", array, d)
			}
			if msg := errText(err); msg != tt.err {
				t.Errorf("error %q, want %q", msg, tt.err)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestMembers(t *testing.T) {
	got, err := rawjson.Members([]byte(`{ "b" : [1, 2], "a\u0041":"x", "b":[1,2] }`))
	want := []rawjson.Member{{Name: "b", Value: []byte("[1, 2]")}, {Name: "aA", Value: []byte(`"x"`)}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("err %v, members (-want +got):\n%s", err, d)
	}
	for body, want := range map[string]string{
		`{"id":1,"id":2}`:  `member "id" stands twice with different values`,
		`[]`:               "want a JSON object, got an array",
		"{\"a\":\"\xff\"}": "the text is not valid UTF-8",
	} {
		if _, err := rawjson.Members([]byte(body)); errText(err) != want {
			t.Errorf("%s: got %q, want %q", body, errText(err), want)
		}
	}
}

func TestSum(t *testing.T) {
	equal := [][2]string{
		{`{"a":1,"b":[2,{"c":null}]}`, "{ \"b\" : [2, {\"c\":null}],\n\"a\":1 }"},
		{`"a\u0041"`, `"aA"`},
		{"{", "{"},
	}
	for _, p := range equal {
		if rawjson.Sum([]byte(p[0])) != rawjson.Sum([]byte(p[1])) {
			t.Errorf("%s and %s differ", p[0], p[1])
		}
	}
	all := []string{
		`9223372036854775807`, `9223372036854775806`, `1.5`, `1.50`, `"1.5"`, `[]`, `{}`, `[[]]`, `[{}]`, `""`, `null`, `"null"`,
		`"\ud800"`, `"\ud801"`, `{"a":1}`, `{"a":2}`, `{"b":1}`, `{"a":"1"}`, `[1,2]`, `[2,1]`, `[12]`, `{"a":{"b":1}}`, `{"a":1,"b":1}`,
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if rawjson.Sum([]byte(a)) == rawjson.Sum([]byte(b)) {
				t.Errorf("%s and %s have one sum", a, b)
			}
		}
	}
}

// A body made to be slow takes time in proportion to its size, no more.
func BenchmarkSumDeep(b *testing.B) {
	const depth = 9000
	inner := `"` + strings.Repeat("x", 3<<20) + `"`
	deep := []byte(strings.Repeat(`{"b":1,"a":`, depth) + inner + strings.Repeat("}", depth))
	b.SetBytes(int64(len(deep)))
	for b.Loop() {
		rawjson.Sum(deep)
	}
}

func TestCompact(t *testing.T) {
	if got := rawjson.Compact([]byte(`{ "b": 1.50, "a": 9223372036854775807, "b":1 }`)); string(got) != `{"b":1.50,"a":9223372036854775807,"b":1}` {
		t.Errorf("got %s", got)
	}
}

func TestRewritePrefixed(t *testing.T) {
	in := `{ "x": "x", "l": ["x", "y\"x", {"x" : "x"}], "n": 1.0 }`
	got := rawjson.RewritePrefixed([]byte(in), "", func(s string) (string, bool) { return "«" + s + "»", s != `y"x` })
	want := `{ "x": "«x»", "l": ["«x»", "y\"x", {"x" : "«x»"}], "n": 1.0 }`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzElements(f *testing.F) {
	for _, s := range []string{`[{"a":"/Date(1)/"},null]`, "null", `{"a":{"b":[1e400]}}`, "\xef\xbb\xbf[]", "[\"\\\"\"]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		elems, _, err := rawjson.Elements(body)
		if err != nil {
			return
		}
		for _, e := range elems {
			same := rawjson.RewritePrefixed(e, "", func(s string) (string, bool) { return s, false })
			if string(same) != string(e) {
				t.Errorf("rewriting nothing changed %q to %q", e, same)
			}
			if !rawjson.Valid(e) {
				continue // invalid UTF-8 inside: found by Members
			}
			out := rawjson.RewritePrefixed(e, "", func(s string) (string, bool) { return s, true })
			if !rawjson.Valid(out) || rawjson.Sum(out) != rawjson.Sum(e) {
				t.Errorf("rewriting each string by itself changed %q to %q", e, out)
			}
			if m, err := rawjson.Members(e); err == nil {
				for _, m := range m {
					if !rawjson.Valid(m.Value) {
						t.Errorf("member %q of %q has invalid value %q", m.Name, e, m.Value)
					}
				}
			}
		}
	})
}
