package filter

import (
	"regexp"

	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// matches takes the place of CEL's call of a regular expression. CEL charges for
// a call when it is over, and one on a text of 4 MiB takes a second; this one
// pays first.
type matches struct {
	call     interpreter.InterpretableCall
	text     interpreter.InterpretableV2
	pattern  interpreter.InterpretableV2
	compiled *regexp.Regexp // nil: the pattern shows at run time
}

// payFirst puts it in.
func payFirst(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || call.Function() != overloads.Matches || len(call.Args()) != 2 {
		return i, nil
	}
	m := &matches{call: call, text: call.Args()[0], pattern: call.Args()[1]}
	if constant, ok := m.pattern.(interpreter.InterpretableConst); ok {
		pattern, ok := constant.Value().(types.String)
		if !ok {
			return i, nil
		}
		var err error
		if m.compiled, err = types.CompileRegexWithLimit(string(pattern), maxProgram); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ID implements [interpreter.Interpretable].
func (m *matches) ID() int64 { return m.call.ID() }

// Eval implements [interpreter.Interpretable].
func (m *matches) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, m.Exec)
}

// Exec implements [interpreter.InterpretableV2].
func (m *matches) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	text := m.text.Exec(frame)
	if types.IsUnknownOrError(text) {
		return text
	}
	pattern := m.pattern.Exec(frame)
	if types.IsUnknownOrError(pattern) {
		return pattern
	}
	t, isText := text.(types.String)
	p, isPattern := pattern.(types.String)
	if !isText || !isPattern {
		return types.LabelErrNode(m.ID(), types.NewErr("no such overload"))
	}
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalBinary(frame, m.ID(), m.call, t, p, types.False)
	}
	re := m.compiled
	if re == nil {
		var err error
		if re, err = types.CompileRegexWithLimit(string(p), maxProgram); err != nil {
			return types.LabelErrNode(m.ID(), failf("the pattern is no regular expression, or one of more than %d instructions", maxProgram))
		}
	}
	return types.Bool(re.MatchString(string(t)))
}
