package rawjson

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

// agree checks that the scanner takes v if and only if jsontext does, and that
// both make the same of it.
func agree(t *testing.T, v []byte) {
	t.Helper()
	before := bytes.Clone(v)

	end := skip(v, space(v, 0), maxDepth)
	taken := end >= 0 && space(v, end) == len(v)
	if want, deep := strictTakes(v); utf8.Valid(v) && taken != want && !deep {
		t.Fatalf("%.200q: scanner %v, jsontext %v", v, taken, want)
	} else if taken && !want && utf8.Valid(v) {
		t.Fatalf("%.200q: the scanner takes what jsontext refuses", v)
	}
	fast, ok := sumFast(v)
	if ok != (taken && utf8.Valid(v)) {
		t.Fatalf("%.200q: sum %v, skip %v", v, ok, taken)
	}
	if ok && fast != sumStrict(v) {
		t.Errorf("%.200q: sums differ", v)
	}
	if utf8.Valid(v) {
		if got, ok := membersFast(nil, v); ok {
			want, err := membersStrict(v)
			if d := cmp.Diff(want, got); d != "" || err != nil {
				t.Errorf("%.200q: err %v, members (-jsontext +scanner):\n%s", v, err, d)
			}
		} else if taken && v[space(v, 0)] == '{' {
			t.Errorf("%.200q: no members", v)
		}
	}
	if got, want := Compact(v), compactStrict(v); !bytes.Equal(got, want) {
		t.Errorf("compact %.200q: got %.200q, want %.200q", v, got, want)
	}
	if Valid(v) {
		for _, prefix := range []string{"", "/"} {
			if got, want := RewritePrefixed(v, prefix, double), rewriteStrict(v, prefix, double); !bytes.Equal(got, want) {
				t.Errorf("rewrite %.200q: got %.200q, want %.200q", v, got, want)
			}
		}
	}
	if got, ok := Text(v); len(v) > 0 && v[0] == '"' {
		want, err := jsontext.AppendUnquote(nil, v)
		if ok != (err == nil) || ok && got != string(want) {
			t.Errorf("text of %.200q: got %q, %v, want %q, %v", v, got, ok, want, err)
		}
		var texts Texts
		texts.Grow([]Member{{Value: v}})
		if shared, sharedOK := texts.Text(v); shared != got || sharedOK != ok {
			t.Errorf("shared text of %.200q: got %q, %v, want %q, %v", v, shared, sharedOK, got, ok)
		}
	}
	if !bytes.Equal(v, before) {
		t.Errorf("%.200q was changed to %.200q", before, v)
	}
}

// strictTakes says whether v is one value for jsontext, and whether it is
// deeper than what the scanner looks at.
func strictTakes(v []byte) (ok, deep bool) {
	d := jsontext.NewDecoder(bytes.NewBuffer(v), lenient...)
	depth := 0
	for {
		_, err := d.ReadToken()
		if err != nil {
			return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && d.InputOffset() > 0, depth > maxDepth
		}
		depth = max(depth, d.StackDepth())
		if _, n := d.StackIndex(0); n > 1 {
			return false, depth > maxDepth
		}
	}
}

func double(s string) (string, bool) { return s + s, len(s)%3 != 0 }

// rewriteStrict is RewritePrefixed by jsontext.
func rewriteStrict(v []byte, prefix string, f func(string) (string, bool)) []byte {
	d := jsontext.NewDecoder(bytes.NewBuffer(v), lenient...)
	var out []byte
	for {
		before := int(d.InputOffset())
		tok, err := d.ReadToken()
		if err != nil {
			return append(out, v[before:]...)
		}
		end := int(d.InputOffset())
		kind, n := d.StackIndex(d.StackDepth())
		if name := kind == '{' && n%2 == 1; tok.Kind() == '"' && !name && strings.HasPrefix(tok.String(), prefix) {
			if s, ok := f(tok.String()); ok {
				start := before + bytes.IndexByte(v[before:], '"')
				out = append(out, v[before:start]...)
				out, _ = jsontext.AppendQuote(out, s)
				continue
			}
		}
		out = append(out, v[before:end]...)
	}
}

var odd = []string{
	"", " ", "null", " true ", "false", "nul", "truefalse", "nullnull", `""`, `"`, `"\`, `"\"`, `"\u`, `"\u00`, `"\u00e9"`, `"\ud800"`, `"\ud83d\ude00"`, `"\x"`, `"\u00g0"`,
	"0", "-0", "-", "01", "1.", ".5", "1.5e", "1e+", "1E-07", "-1.50e+400", "1 2", "1,", ",1", "1]", "+1", "NaN",
	"[]", "[ ]", "[,]", "[1,]", "[1 2]", "[1", "[1}", "{}", "{ }", "{,}", `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":1`, `{"a":1]`, `{"a" 1}`, `{a:1}`, `{1:1}`, `{"a":1}}`, `{} {}`, `{}x`,
	`{"b":1,"a":{"b":[{"c":"\/Date(1)\/"},[[],{}]]},"a\u0041":"/x","\ud800":2,"b":1}`,
	`{"long name that is more than eight bytes":1,"long name that is more than eight":2,"long na":3,"long nam":4,"":5,"\u0000":6}`,
	`["�","\ufffd",{"�":"\ud800"}]`, "[\"\xff\"]", "{\"\xc3\":1}", "[\"\x7f\",\"\x1f\"]", "\xef\xbb\xbf{}", "{\"a\"\v:1}", "\u00a0{}",
	strings.Repeat("[", 511) + strings.Repeat("]", 511), strings.Repeat("[", 512) + strings.Repeat("]", 512), strings.Repeat("[", 513) + strings.Repeat("]", 513),
	strings.Repeat(`{"b":1,"a":`, 600) + `"x"` + strings.Repeat("}", 600),
	`[` + strings.Repeat(`"a text of some length","",[1,{}],`, 400) + `null]`,
	`{` + strings.Repeat(`"m":"a text of some length",`, 400) + `"n":null}`,
	`{"x":"` + strings.Repeat("long text é ", 1000) + `","a":[` + strings.Repeat(`"\n",`, 3000) + `1]}`,
}

func TestScan(t *testing.T) {
	for _, v := range odd {
		agree(t, []byte(v))
	}
	// Every byte at every place in a string, which is read eight at a time.
	for n := range 10 {
		for c := range 256 {
			v := []byte(`"` + strings.Repeat("a", n) + string(rune('x')) + `bcdefghij"`)
			v[n+1] = byte(c)
			agree(t, v)
		}
	}
}

// Hostile values cost no more than their size: nothing is done over and over,
// and nothing recurses deeper than maxDepth.
func TestScanHostile(t *testing.T) {
	const n = 1 << 17
	for _, v := range []string{
		strings.Repeat("[", n), strings.Repeat(`{"a":`, n), `"` + strings.Repeat(`\n`, n) + `"`, `"` + strings.Repeat(`\"`, n),
		"[" + strings.Repeat("0,", n) + "0]", "[" + strings.Repeat("[],", n) + "0]", `{` + strings.Repeat(`"":{},`, n) + `"":{}}`, strings.Repeat(" ", n) + "1" + strings.Repeat(" ", n),
	} {
		if fast, ok := sumFast([]byte(v)); ok && fast != sumStrict([]byte(v)) {
			t.Errorf("%.20q: sums differ", v)
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, v := range odd {
		if len(v) < 1<<10 { // long ones slow it down
			f.Add([]byte(v))
		}
	}
	f.Fuzz(func(t *testing.T, v []byte) { agree(t, v) })
}
