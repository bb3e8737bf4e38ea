package custom_test

import (
	"strings"
	"testing"

	"github.com/gridfan/gridfan/schemas/custom"
)

func TestQuery(t *testing.T) {
	const body = `{"items": [{"id": 9007199254740993, "v": 1.10}, {"id": 2}], "next": "c1", "one": {"a": 1}, "none": null}`
	for _, tt := range []struct{ query, want string }{
		{".items[]", `{"id": 9007199254740993, "v": 1.10}|{"id": 2}`},
		{".items", `{"id": 9007199254740993, "v": 1.10}|{"id": 2}`},
		{".items[] | select(.v)", `{"id": 9007199254740993, "v": 1.10}`},
		{".one", `{"a": 1}`},
		{".items[] | {id}", `{"id":9007199254740993}|{"id":2}`},
		{".absent[]?", ""},
	} {
		q, err := custom.CompileElements(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		elems, f := q.Elements([]byte(body))
		if f != nil {
			t.Fatalf("%s: %v", tt.query, f)
		}
		var texts []string
		for _, e := range elems {
			texts = append(texts, string(e))
		}
		if got := strings.Join(texts, "|"); got != tt.want {
			t.Errorf("%s: got %s", tt.query, got)
		}
	}
	q, err := custom.CompileElements(".items")
	if err != nil {
		t.Fatal(err)
	}
	if got, f := q.Values([]byte(body)); f != nil || len(got) != 1 {
		t.Errorf("got %s, %v", got, f)
	}
	for _, tt := range []struct{ query, want string }{{".next", "c1"}, {".none", ""}, {".items[0].id", "9007199254740993"}, {".items | length", "2"}} {
		q, err := custom.CompileQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		if got, f := q.Text([]byte(body)); f != nil || got != tt.want {
			t.Errorf("%s: got %q, %v", tt.query, got, f)
		}
	}
	if _, f := q.Text([]byte(body)); f == nil {
		t.Error("an array is a text")
	}
	for _, text := range []string{"", "$.items", ".a | input", "range(9)"} {
		if _, err := custom.CompileQuery(text); err == nil {
			t.Errorf("%q compiles", text)
		}
		if _, err := custom.CompileElements(text); err == nil {
			t.Errorf("%q compiles", text)
		}
	}
}
