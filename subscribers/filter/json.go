package filter

import (
	"bytes"
	"math"
	"reflect"
	"strconv"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

// reading counts how many bytes of an event's data are gone through. Each level
// that an expression goes down goes through all that is below.
type reading struct{ left int }

// newReading lets an expression go through data of size bytes some times, which
// is more than the depth of what people send.
func newReading(size int) *reading { return &reading{1<<20 + 8*size} }

// take says whether n bytes more may be gone through.
func (r *reading) take(n int) ref.Val {
	if r.left -= n; r.left < 0 {
		return failf("the filter reads too much of data that are nested so deep; look at less of them")
	}
	return nil
}

// value gives a JSON value as CEL sees it. Objects and arrays are taken apart
// when somebody asks for what is inside.
//
// Whole numbers are int, uint beyond, and double beyond that and with a point or
// an exponent: 64-bit ids keep every digit.
func (r *reading) value(raw []byte) ref.Val {
	switch raw[0] {
	case '{':
		return &object{reading: r, raw: raw}
	case '[':
		return &array{reading: r, raw: raw}
	case '"':
		s, ok := rawjson.Text(raw)
		if !ok {
			return failf("a text holds half of a surrogate pair or a bad byte")
		}
		return types.String(s)
	case 't':
		return types.True
	case 'f':
		return types.False
	case 'n':
		return types.NullValue
	}
	if !bytes.ContainsAny(raw, ".eE") {
		if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
			return types.Int(n)
		}
		if n, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
			return types.Uint(n)
		}
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil && !math.IsInf(f, 0) {
		return failf("a number is none")
	}
	return types.Double(f)
}

// few is up to how many members an object is searched one by one.
const few = 256

// object is a JSON object. It serves one goroutine.
type object struct {
	reading *reading
	raw     []byte
	members []rawjson.Member
	values  []ref.Val      // of members, as far as they were asked for
	index   map[string]int // of members, when there are many
	err     ref.Val
	split   bool
}

// parts takes the object apart.
func (o *object) parts() ref.Val {
	if o.split {
		return o.err
	}
	o.split = true
	if o.err = o.reading.take(len(o.raw)); o.err != nil {
		return o.err
	}
	var err error
	if o.members, err = rawjson.Members(o.raw); err != nil {
		o.err = failf("%v", err)
		return o.err
	}
	o.values = make([]ref.Val, len(o.members))
	if len(o.members) > few {
		o.index = make(map[string]int, len(o.members))
		for i, m := range o.members {
			o.index[m.Name] = i
		}
	}
	return nil
}

// Find implements [traits.Mapper].
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	if err := o.parts(); err != nil {
		return err, false
	}
	name, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), false
	}
	i := -1
	if o.index != nil {
		if at, ok := o.index[string(name)]; ok {
			i = at
		}
	} else {
		for at := range o.members {
			if o.members[at].Name == string(name) {
				i = at
				break
			}
		}
	}
	if i < 0 {
		return nil, false
	}
	v := o.value(i)
	return v, !types.IsError(v)
}

func (o *object) value(i int) ref.Val {
	if o.values[i] == nil {
		o.values[i] = o.reading.value(o.members[i].Value)
	}
	return o.values[i]
}

// Get implements [traits.Indexer].
func (o *object) Get(key ref.Val) ref.Val {
	v, found := o.Find(key)
	switch {
	case found, v != nil:
		return v
	}
	return types.NewErr("no such key")
}

// Contains implements [traits.Container].
func (o *object) Contains(key ref.Val) ref.Val {
	v, found := o.Find(key)
	if v != nil && types.IsError(v) {
		return v
	}
	return types.Bool(found)
}

// Size implements [traits.Sizer].
func (o *object) Size() ref.Val {
	if err := o.parts(); err != nil {
		return err
	}
	return types.Int(len(o.members))
}

// Iterator implements [traits.Iterable]: the names.
func (o *object) Iterator() traits.Iterator {
	if err := o.parts(); err != nil {
		return &elements{array: broken(err)}
	}
	names := make([]string, len(o.members))
	for i, m := range o.members {
		names[i] = m.Name
	}
	return types.NewStringList(types.DefaultTypeAdapter, names).Iterator()
}

// Equal implements [ref.Val].
func (o *object) Equal(other ref.Val) ref.Val {
	m, ok := other.(traits.Mapper)
	if !ok {
		return types.False
	}
	if err := o.parts(); err != nil {
		return err
	}
	switch size := m.Size(); {
	case types.IsError(size):
		return size
	case size != o.Size():
		return types.False
	}
	for i, member := range o.members {
		theirs, found := m.Find(types.String(member.Name))
		if !found {
			return types.False
		}
		if eq := types.Equal(o.value(i), theirs); eq != types.True {
			return eq
		}
	}
	return types.True
}

// IsZeroValue implements [traits.Zeroer].
func (o *object) IsZeroValue() bool { return o.Size() == types.IntZero }

// ConvertToType implements [ref.Val].
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("type conversion error from 'map' to '%s'", t)
}

// ConvertToNative implements [ref.Val]. Nothing asks for it.
func (o *object) ConvertToNative(t reflect.Type) (any, error) { return nil, notNative(t) }

// Type implements [ref.Val].
func (o *object) Type() ref.Type { return types.MapType }

// Value implements [ref.Val].
func (o *object) Value() any { return o }

// array is a JSON array. It serves one goroutine.
type array struct {
	reading *reading
	raw     []byte
	elems   [][]byte
	values  []ref.Val // of elems, as far as they were asked for
	err     ref.Val
	split   bool
}

func (a *array) parts() ref.Val {
	if a.split {
		return a.err
	}
	a.split = true
	if err := a.reading.take(len(a.raw)); err != nil {
		*a = *broken(err)
		return a.err
	}
	var err error
	if a.elems, _, err = rawjson.Elements(a.raw); err != nil {
		*a = *broken(failf("%v", err))
		return a.err
	}
	a.values = make([]ref.Val, len(a.elems))
	return nil
}

// broken is what cannot be taken apart: its one element is the error, so that
// nobody takes it for empty.
func broken(err ref.Val) *array {
	return &array{elems: make([][]byte, 1), values: []ref.Val{err}, err: err, split: true}
}

// Get implements [traits.Indexer].
func (a *array) Get(index ref.Val) ref.Val {
	if err := a.parts(); err != nil {
		return err
	}
	i, err := types.GetOrError(index)
	if err != nil {
		return types.WrapErr(err)
	}
	if i < 0 || i >= len(a.elems) {
		return types.NewErr("index out of bounds: %d", i)
	}
	if a.values[i] == nil {
		a.values[i] = a.reading.value(a.elems[i])
	}
	return a.values[i]
}

// Contains implements [traits.Container].
func (a *array) Contains(elem ref.Val) ref.Val {
	if err := a.parts(); err != nil {
		return err
	}
	for i := range a.elems {
		if types.Equal(elem, a.Get(types.Int(i))) == types.True {
			return types.True
		}
	}
	return types.False
}

// Size implements [traits.Sizer].
func (a *array) Size() ref.Val {
	_ = a.parts() // the error is an element
	return types.Int(len(a.elems))
}

// Add implements [traits.Adder]: lists of an event are not added, because the
// sums could share what is in them without end.
func (a *array) Add(ref.Val) ref.Val { return failf("lists of an event cannot be added") }

// Iterator implements [traits.Iterable].
func (a *array) Iterator() traits.Iterator { return &elements{array: a} }

// elements goes through an array.
type elements struct {
	*array
	next int
}

// HasNext implements [traits.Iterator].
func (e *elements) HasNext() ref.Val { return types.Bool(types.Int(e.next) < e.Size().(types.Int)) }

// Next implements [traits.Iterator].
func (e *elements) Next() ref.Val {
	e.next++
	return e.Get(types.Int(e.next - 1))
}

// Equal implements [ref.Val].
func (a *array) Equal(other ref.Val) ref.Val {
	l, ok := other.(traits.Lister)
	if !ok {
		return types.False
	}
	if err := a.parts(); err != nil {
		return err
	}
	if l.Size() != a.Size() {
		return types.False
	}
	for i := range a.elems {
		if eq := types.Equal(a.Get(types.Int(i)), l.Get(types.Int(i))); eq != types.True {
			return eq
		}
	}
	return types.True
}

// IsZeroValue implements [traits.Zeroer].
func (a *array) IsZeroValue() bool { return a.Size() == types.IntZero }

// ConvertToType implements [ref.Val].
func (a *array) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.ListType:
		return a
	case types.TypeType:
		return types.ListType
	}
	return types.NewErr("type conversion error from 'list' to '%s'", t)
}

// ConvertToNative implements [ref.Val]. Nothing asks for it.
func (a *array) ConvertToNative(t reflect.Type) (any, error) { return nil, notNative(t) }

// Type implements [ref.Val].
func (a *array) Type() ref.Type { return types.ListType }

// Value implements [ref.Val].
func (a *array) Value() any { return a }
