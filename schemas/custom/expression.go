package custom

import (
	"errors"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/jq"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// An expression is one compiled field of a mapping.
type expression struct {
	steps []jq.Step   // of a path; unless code is set
	code  *jq.Program // of all else
	paths bool        // code gives the paths of elements, not their values
}

// compile checks an expression and makes it ready to run. each is for Each.
func compile(text string, each bool) (*expression, error) {
	q, err := jq.Mapping.Parse(text)
	if err != nil {
		return nil, err
	}
	if steps, ok := q.Path(); ok {
		return &expression{steps: steps}, nil
	}
	x := &expression{paths: each && q.GivesPaths()}
	form := jq.Texts
	switch {
	case x.paths:
		form = jq.Paths
	case each:
		form = jq.Values
	}
	if x.code, err = q.Compile(form); err != nil {
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
		if last = f; f.Detail == jq.OverBudget {
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
			v, f = jq.Decode(raw)
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
		f = x.code.Run(v, len(in.root.raw), func(v any) *event.Fault { return one(valueText(v)) })
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
	v, f := jq.Decode(body)
	if f != nil {
		return nil, f
	}
	f = x.code.Run(v, len(body), func(v any) *event.Fault {
		if !x.paths {
			raw, err := jq.Marshal(v)
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

// valueText gives the text of a value that an expression made.
func valueText(v any) (string, *event.Fault) {
	text, ok, f := jq.Text(v)
	if ok {
		return text, f
	}
	if _, array := v.([]any); array {
		return "", notScalar("an array")
	}
	return "", notScalar("an object")
}

func notScalar(kind string) *event.Fault {
	return event.Faultf(event.FaultInvalid, "the result is %s; an attribute is a string, a number or a boolean", kind)
}
