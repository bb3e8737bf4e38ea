package custom

import (
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Query is one expression by itself, in the language and the sandbox of a Mapping,
// for those who take an answer apart and not an event. It is immutable and safe for
// concurrent use.
type Query struct{ expr *expression }

// CompileQuery checks an expression that gives one text.
func CompileQuery(text string) (*Query, error) {
	x, err := compile(text, false)
	if err != nil {
		return nil, err
	}
	return &Query{x}, nil
}

// CompileElements checks an expression that gives any number of values.
func CompileElements(text string) (*Query, error) {
	x, err := compile(text, true)
	if err != nil {
		return nil, err
	}
	return &Query{x}, nil
}

// Text gives the text of the one result on raw, which must be a JSON value; empty for
// null and for nothing.
func (q *Query) Text(raw []byte) (string, *event.Fault) { return q.expr.text(newInput(raw)) }

// Values gives the values that the expression picks out of raw, which must be a JSON
// value: their bytes, unless the expression makes new ones.
func (q *Query) Values(raw []byte) ([][]byte, *event.Fault) { return q.expr.elements(raw) }

// Elements is Values, but one that is an array stands for what it holds.
func (q *Query) Elements(raw []byte) ([][]byte, *event.Fault) {
	elems, f := q.expr.elements(raw)
	if f != nil || len(elems) != 1 || elems[0][0] != '[' {
		return elems, f
	}
	inner, _, err := rawjson.Elements(elems[0])
	if err != nil {
		return nil, event.Faultf(event.FaultNotJSON, "%v", err)
	}
	return inner, nil
}
