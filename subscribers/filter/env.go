package filter

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"

	"github.com/gridfan/gridfan/schemas/event"
)

// eventType is the name of event's type. Nothing in CEL can be called so.
const eventType = "gridfan.Event"

// base is what all environments share; making it takes milliseconds.
var base = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.OptionalTypes(),
		ext.Strings(ext.StringsVersion(5)),
		ext.Math(),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(maxDepth),
		// Macros write their argument out several times.
		cel.ExpressionNodeLimit(4*maxExpression),
		cel.RegexProgramSizeLimit(maxProgram),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateComprehensionNestingLimit(maxNesting),
		),
	)
})

const (
	// maxProgram is how many instructions a pattern may compile to; those of
	// real ones have a few dozen.
	maxProgram = 1000
	// maxNesting counts loops inside of loops, and over what loops give, as in
	// l.filter(…).map(…).exists(…). What they cost is estimated besides.
	maxNesting = 4
	// maxDepth is how deep an expression may be nested.
	maxDepth = 250
)

func environment(s *Schema) (*cel.Env, error) {
	env, err := base()
	if err != nil {
		return nil, err
	}
	return env.Extend(
		cel.CustomTypeProvider(&provider{Provider: env.CELTypeProvider(), schema: s}),
		cel.Variable("event", cel.ObjectType(eventType)),
	)
}

// programOptions are how a checked expression is run.
func programOptions(loops bool) []cel.ProgramOption {
	options := []cel.ProgramOption{
		cel.EvalOptions(cel.OptOptimize),
		cel.CostLimit(maxCost),
		cel.CostTracking(charges{}),
		cel.CustomDecoratorV2(payFirst),
	}
	if loops {
		options = append(options, cel.InterruptCheckFrequency(100))
	}
	return options
}

// How much is done for a unit of cost, some 100 ns.
const (
	bytesPerUnit = 8  // of JSON compared, or taken apart to be compared
	textPerUnit  = 32 // of text compared or copied
	stepsPerUnit = 16 // of a pattern over a text
)

// charges says what calls cost that CEL's own model does not know: those on JSON
// values of ours, and those whose types show only at run time. All else costs
// what it does in CEL.
type charges struct{}

// CallCost implements [cost.ActualCostEstimator].
func (charges) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	n := uint64(1)
	switch function {
	case operators.Equals, operators.NotEquals:
		if len(args) != 2 {
			return nil
		}
		// Those of another size are told apart at once.
		n += min(extent(args[0]), extent(args[1]))
	case operators.In:
		if len(args) != 2 {
			return nil
		}
		n += within(args[0], args[1])
	case operators.Add:
		n += extent(result)
	case overloads.Matches:
		if len(args) != 2 {
			return nil
		}
		text, _ := args[0].(types.String)
		pattern, _ := args[1].(types.String)
		n += uint64(len(text))*uint64(len(pattern))/stepsPerUnit + uint64(len(pattern))/4 // to compile it
	default:
		return nil
	}
	return &n
}

// within is the cost of looking for a value in a list or a map.
func within(v, list ref.Val) uint64 {
	built, ok := list.(traits.Lister)
	if _, ours := list.(*array); ours || !ok {
		return extent(list)
	}
	size, _ := built.Size().(types.Int)
	n, mine := uint64(size), extent(v)
	for i := range size {
		n += min(mine, extent(built.Get(i)))
	}
	return n
}

// extent is the cost of looking through a value.
func extent(v ref.Val) uint64 {
	switch v := v.(type) {
	case *object:
		return uint64(len(v.raw) / bytesPerUnit)
	case *array:
		return uint64(len(v.raw) / bytesPerUnit)
	case types.String:
		return uint64(len(v) / textPerUnit)
	case types.Bytes:
		return uint64(len(v) / textPerUnit)
	case traits.Lister:
		// One that the expression built holds parts of the event.
		n, _ := v.Size().(types.Int)
		total := uint64(n)
		for i := range n {
			total += extent(v.Get(i))
		}
		return total
	}
	return 0
}

// problem is an error of ours; it quotes nothing of an event.
type problem struct{ text string }

func (p *problem) Error() string { return p.text }

// failf makes a value that is an error of ours.
func failf(format string, args ...any) ref.Val {
	return types.WrapErr(&problem{fmt.Sprintf(format, args...)})
}

// provider knows the type of event, and those that a schema makes.
type provider struct {
	types.Provider
	schema *Schema
}

// attribute is one of event's own.
type attribute struct {
	name string
	t    *types.Type
	get  func(v *view) (any, bool)
}

func textAttribute(name string, of func(e *event.Event) string) attribute {
	return attribute{name, types.StringType, func(v *view) (any, bool) {
		s := of(v.event)
		return types.String(s), s != ""
	}}
}

var attributes = []attribute{
	textAttribute("id", func(e *event.Event) string { return e.ID }),
	textAttribute("source", func(e *event.Event) string { return e.Source }),
	textAttribute("type", func(e *event.Event) string { return e.Type }),
	textAttribute("specversion", func(*event.Event) string { return event.SpecVersion }),
	textAttribute("subject", func(e *event.Event) string { return e.Subject }),
	{"time", types.TimestampType, func(v *view) (any, bool) {
		return types.Timestamp{Time: v.event.Time}, !v.event.Time.IsZero()
	}},
	textAttribute("datacontenttype", func(e *event.Event) string { return e.DataContentType }),
	textAttribute("dataschema", func(e *event.Event) string { return e.DataSchema }),
	{"data", types.DynType, func(v *view) (any, bool) { return v.contents(), v.event.Data != nil }},
}

// extensions are those that gridfan sets, all of them texts.
var extensions = []string{
	event.ExtSource, event.ExtLegalEntity, event.ExtAction, event.ExtVia, event.ExtSequence, event.ExtPartitionKey,
	event.ExtRecordedTime, event.ExtOriginalID, event.ExtTraceParent, event.ExtMatchKey, "tracestate", "originaltime", "unmapped",
}

// attributeNames are all that event is known to have.
func attributeNames() []string {
	names := slices.Clone(extensions)
	for _, a := range attributes {
		names = append(names, a.name)
	}
	return names
}

// field finds an attribute by name; ok is false where there can be none.
func field(name string) (a attribute, ok bool) {
	for _, a := range attributes {
		if a.name == name {
			return a, true
		}
	}
	if !event.ValidExtensionName(name) {
		return a, false
	}
	t := types.DynType
	if slices.Contains(extensions, name) {
		t = types.StringType
	}
	return attribute{name, t, func(v *view) (any, bool) {
		for _, x := range v.event.Extensions {
			if x.Name == name {
				return extension(x), true
			}
		}
		return nil, false
	}}, true
}

func extension(x event.Extension) ref.Val {
	switch x.Type {
	case event.Integer, event.Boolean:
		return new(reading).value([]byte(x.Value))
	}
	return types.String(x.Value)
}

// FindStructType implements [types.Provider].
func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if name == eventType || p.schema.object(name) != nil {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldNames implements [types.Provider].
func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if name == eventType {
		return attributeNames(), true
	}
	if o := p.schema.object(name); o != nil {
		return o.names(), true
	}
	return p.Provider.FindStructFieldNames(name)
}

// FindStructFieldType implements [types.Provider].
func (p *provider) FindStructFieldType(name, member string) (*types.FieldType, bool) {
	if name == eventType {
		a, ok := field(member)
		if !ok {
			return nil, false
		}
		if member == "data" && p.schema != nil {
			a.t = p.schema.root
		}
		return &types.FieldType{
			Type: a.t,
			IsSet: func(target any) bool {
				v, ok := target.(*view)
				if !ok {
					return false
				}
				_, set := a.get(v)
				return set
			},
			GetFrom: func(target any) (any, error) {
				v, ok := target.(*view)
				if !ok {
					return nil, errors.New("not an event")
				}
				got, set := a.get(v)
				if !set {
					return nil, absent(member)
				}
				return got, nil
			},
		}, true
	}
	if o := p.schema.object(name); o != nil {
		t, ok := o.field(member)
		return &types.FieldType{Type: t}, ok
	}
	return p.Provider.FindStructFieldType(name, member)
}

func absent(name string) *problem {
	switch name {
	case "data":
		return &problem{"the event has no data; guard with has(event.data)"}
	case "time":
		return &problem{"attribute time is not set; guard with has(event.time)"}
	}
	return &problem{fmt.Sprintf("attribute %s is not set; guard with has(event.%s), or take a default: event.?%s.orValue(\"\")", name, name, name)}
}

// view is an event as an expression sees it, and the variables of one run. It
// serves one goroutine.
type view struct {
	event *event.Event
	data  ref.Val
}

// contents gives the value of event.data.
func (v *view) contents() ref.Val {
	e := v.event
	switch {
	case v.data != nil || e.Data == nil:
	case e.DataJSON:
		v.data = newReading(len(e.Data)).value(e.Data)
	case utf8.Valid(e.Data):
		v.data = types.String(e.Data)
	default:
		v.data = types.Bytes(e.Data)
	}
	return v.data
}

// ResolveName implements [cel.Activation].
func (v *view) ResolveName(name string) (any, bool) {
	if name == "event" {
		return v, true
	}
	return nil, false
}

// Parent implements [cel.Activation].
func (*view) Parent() cel.Activation { return nil }

// Get implements [traits.Indexer], for dyn(event).
func (v *view) Get(key ref.Val) ref.Val {
	name, _ := key.(types.String)
	a, ok := field(string(name))
	if !ok {
		return failf("an event has no such attribute")
	}
	got, set := a.get(v)
	if !set {
		return types.WrapErr(absent(string(name)))
	}
	value, ok := got.(ref.Val)
	if !ok {
		return failf("an event has no such attribute")
	}
	return value
}

// IsSet implements [traits.FieldTester], for dyn(event).
func (v *view) IsSet(key ref.Val) ref.Val {
	name, _ := key.(types.String)
	a, ok := field(string(name))
	if !ok {
		return types.False
	}
	_, set := a.get(v)
	return types.Bool(set)
}

var viewType = types.NewObjectType(eventType)

// ConvertToType implements [ref.Val].
func (v *view) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return viewType
	}
	return types.NewErr("type conversion error from 'event' to '%s'", t)
}

// ConvertToNative implements [ref.Val]. Nothing asks for it.
func (v *view) ConvertToNative(t reflect.Type) (any, error) { return nil, notNative(t) }

// Equal implements [ref.Val].
func (v *view) Equal(other ref.Val) ref.Val { return types.Bool(other == ref.Val(v)) }

// Type implements [ref.Val].
func (*view) Type() ref.Type { return viewType }

// Value implements [ref.Val].
func (v *view) Value() any { return v }

func notNative(t reflect.Type) error { return fmt.Errorf("no conversion to %v", t) }
