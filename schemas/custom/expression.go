package custom

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// maxExpression is how long an expression may be, in bytes. Real ones have a
// line; the sandbox's arithmetic relies on there being an end.
const maxExpression = 1024

// An expression is one compiled field of a mapping.
type expression struct {
	steps []step     // of a path; unless code is set
	code  *gojq.Code // of all else
	paths bool       // code gives the paths of elements, not their values
}

// compile checks an expression and makes it ready to run. each is for Each.
func compile(text string, each bool) (*expression, error) {
	trimmed := strings.TrimSpace(text)
	switch {
	case trimmed == "":
		return nil, errors.New("the expression is empty")
	case len(text) > maxExpression:
		return nil, fmt.Errorf("the expression has %d bytes; at most %d are allowed", len(text), maxExpression)
	case trimmed == "$" || strings.HasPrefix(trimmed, "$.") || strings.HasPrefix(trimmed, "$["):
		path := trimmed[1:]
		if !strings.HasPrefix(path, ".") {
			path = "." + path
		}
		return nil, fmt.Errorf("%.64q is JSONPath; jq's path has no $: write %.64s", trimmed, path)
	}
	q, err := gojq.Parse(text)
	if err != nil {
		if e, ok := errors.AsType[*gojq.ParseError](err); ok {
			return nil, fmt.Errorf("not jq: %v, near byte %d", e, e.Offset)
		}
		return nil, fmt.Errorf("not jq: %v", err)
	}
	if steps, ok := plainPath(q); ok {
		return &expression{steps: steps}, nil
	}
	x := &expression{paths: each && givesPaths(q)}
	if err := restrict(q); err != nil {
		return nil, err
	}
	switch {
	case x.paths:
		q = &gojq.Query{Term: function("path", q)}
	case each:
		q = guarded(q, guardDeep)
	}
	if x.code, err = gojq.Compile(q, sandbox()...); err != nil {
		return nil, err
	}
	return x, x.probe(each)
}

// probe runs the expression on values of every kind that a body can lack a
// member in. What fails on all of them in a way that no other body can mend is
// an error of the mapping's.
func (x *expression) probe(each bool) error {
	var last *event.Fault
	for _, body := range []string{"null", "{}", "[]", `""`} {
		f := x.try([]byte(body), each)
		if f == nil || f.Code == event.FaultType {
			return nil
		}
		if last = f; f.Detail == overBudget {
			break
		}
	}
	return errors.New(last.Detail)
}

func (x *expression) try(body []byte, each bool) *event.Fault {
	if each {
		_, f := x.elements(body)
		return f
	}
	_, f := x.text(newInput(body))
	return f
}

// input is an element that expressions are evaluated on, taken apart as far as
// they ask for it.
type input struct {
	root    node
	decoded func() (any, *event.Fault)
}

func newInput(raw []byte) *input {
	in := &input{root: node{raw: raw}}
	var v any
	var f *event.Fault
	done := false
	in.decoded = func() (any, *event.Fault) {
		if !done {
			v, f = decode(raw)
			done = true
		}
		return v, f
	}
	return in
}

// text gives the text of the expression's one result on an element, empty if it
// has none. See Mapping.
func (x *expression) text(in *input) (string, *event.Fault) {
	var text string
	n := 0
	one := func(t string, f *event.Fault) *event.Fault {
		if n++; n > 1 {
			return event.Faultf(event.FaultAmbiguous, "the expression gives more than one result; take one with first(…)")
		}
		if f == nil && len(t) > maxText {
			f = event.Faultf(event.FaultInvalid, "the result has %d bytes; at most %d can be an attribute", len(t), maxText)
		}
		text = t
		return f
	}
	if x.code == nil {
		f := walk(&in.root, x.steps, func(n *node) *event.Fault { return one(rawText(n.raw)) })
		return text, f
	}
	v, f := in.decoded()
	if f == nil {
		f = x.run(v, len(in.root.raw), func(v any) *event.Fault { return one(valueText(v)) })
	}
	return text, f
}

// elements gives the elements that Each picks out of a body.
func (x *expression) elements(body []byte) ([][]byte, *event.Fault) {
	root := &node{raw: body}
	var elems [][]byte
	if x.code == nil {
		f := walk(root, x.steps, func(n *node) *event.Fault {
			elems = append(elems, n.raw)
			return nil
		})
		return elems, f
	}
	v, f := decode(body)
	if f != nil {
		return nil, f
	}
	f = x.run(v, len(body), func(v any) *event.Fault {
		if !x.paths {
			raw, err := gojq.Marshal(v)
			if err != nil {
				return event.Faultf(event.FaultInvalid, "a result cannot be written as JSON")
			}
			elems = append(elems, raw)
			return nil
		}
		path, _ := v.([]any)
		n, f := resolve(root, path)
		if f == nil {
			elems = append(elems, n.raw)
		}
		return f
	})
	return elems, f
}

// rawText gives the text of a JSON value that was picked from the bytes.
func rawText(raw []byte) (string, *event.Fault) {
	switch raw[0] {
	case 'n':
		return "", nil
	case '"':
		s, ok := rawjson.Text(raw)
		if !ok {
			return "", event.Faultf(event.FaultType, "the result holds half of a surrogate pair or a bad byte, which is no text")
		}
		return s, nil
	case '{', '[':
		return "", notScalar(rawjson.Kind(raw))
	}
	return string(raw), nil
}

// valueText gives the text of a value that gojq made.
func valueText(v any) (string, *event.Fault) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case bool, int, json.Number:
		return fmt.Sprint(v), nil
	case *big.Int:
		if v.BitLen() > maxDigits*4 {
			return "", event.Faultf(event.FaultInvalid, "the result is %s", longNumber)
		}
		return v.String(), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "", event.Faultf(event.FaultInvalid, "the result is not a finite number")
		}
		text, err := gojq.Marshal(v)
		if err != nil {
			return "", event.Faultf(event.FaultInvalid, "the result cannot be written")
		}
		return string(text), nil
	case []any:
		return "", notScalar("an array")
	}
	return "", notScalar("an object")
}

func notScalar(kind string) *event.Fault {
	return event.Faultf(event.FaultInvalid, "the result is %s; an attribute is a string, a number or a boolean", kind)
}

// decode reads a JSON value as gojq wants it. Numbers stay as they are written.
func decode(raw []byte) (any, *event.Fault) {
	d := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	v, err := decodeValue(d)
	if f, ok := errors.AsType[*event.Fault](err); ok {
		return nil, f
	}
	if err != nil {
		return nil, event.Faultf(event.FaultNotJSON, "not JSON")
	}
	return v, nil
}

func decodeValue(d *jsontext.Decoder) (any, error) {
	tok, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch tok.Kind() {
	case 'n':
		return nil, nil
	case 't', 'f':
		return tok.Bool(), nil
	case '"':
		return tok.String(), nil
	case '0':
		return json.Number(tok.String()), nil
	case '[':
		list := []any{}
		for d.PeekKind() != ']' {
			v, err := decodeValue(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.ReadToken()
		return list, err
	}
	object := map[string]any{}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		v, err := decodeValue(d)
		if err != nil {
			return nil, err
		}
		if before, twice := object[key]; twice && !equal(before, v) {
			return nil, twoValues(key)
		}
		object[key] = v
	}
	_, err = d.ReadToken()
	return object, err
}

func twoValues(name string) *event.Fault {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return event.Faultf(event.FaultAmbiguous, "member %q stands twice with different values", name)
}

// equal compares what decode makes. Numbers are equal when written alike.
func equal(a, b any) bool {
	switch a := a.(type) {
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || !equal(v, w) {
				return false
			}
		}
		return true
	}
	switch b.(type) {
	case []any, map[string]any:
		return false
	}
	return a == b
}

// run evaluates code on v, which size bytes of JSON were decoded to, and hands
// every result to yield until that has a fault.
func (x *expression) run(v any, size int, yield func(any) *event.Fault) (f *event.Fault) {
	defer func() {
		// gojq panics on states it believes impossible. A stranger's body must
		// not bring the router down if one is not.
		if recover() != nil {
			f = event.Faultf(event.FaultInvalid, "%s", interpreterFailed)
		}
	}()
	b := newBudget(size)
	results := x.code.RunWithContext(b, v, b)
	for {
		v, ok := results.Next()
		if b.left <= 0 {
			return event.Faultf(event.FaultInvalid, "%s", overBudget)
		}
		if !ok {
			return nil
		}
		if err, failed := v.(error); failed {
			return event.Faultf(event.FaultType, "the expression fails: %s", withoutPayload(err))
		}
		if f := yield(v); f != nil {
			return f
		}
	}
}

const overBudget = "the expression needs more steps than its budget for this body"

const interpreterFailed = "the jq interpreter failed on this expression; write it in another way"

// withoutPayload gives gojq's message up to the place where it quotes a value,
// which may be confidential.
func withoutPayload(err error) string {
	if e, ok := errors.AsType[sandboxError](err); ok {
		return e.Error()
	}
	msg := err.Error()
	if i := strings.IndexAny(msg, "\"([{-0123456789"); i >= 0 {
		msg = msg[:i]
	}
	if msg = strings.TrimRight(msg, " :"); msg == "" {
		return "a function refuses its input"
	}
	return msg
}
