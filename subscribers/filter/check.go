package filter

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"
)

// checked is an expression that is known to be good, and what explains its
// errors.
type checked struct {
	ast   *cel.Ast
	loops bool
	notes []string
}

// check reads an expression and refuses what is no filter.
func check(env *cel.Env, expr string, s *Schema) (*checked, error) {
	if strings.TrimSpace(expr) == "" {
		return nil, errors.New("the expression is empty")
	}
	parsed, issues := env.Parse(expr)
	if err := issues.Err(); err != nil {
		return nil, describe(issues, nil, s)
	}
	checkedAST, issues := env.Check(parsed)
	if err := issues.Err(); err != nil {
		return nil, describe(issues, parsed.NativeRep(), s)
	}
	c := &checked{ast: checkedAST}
	if t := checkedAST.OutputType(); !t.IsExactType(types.BoolType) {
		if t.Kind() == types.DynKind {
			return nil, fmt.Errorf("1:1: whether the result is true or false shows only at run time; compare it, as in %s == true", shorten(expr))
		}
		return nil, fmt.Errorf("1:1: the result is of type %s, not true or false", cel.FormatCELType(t))
	}
	if err := c.walk(checkedAST.NativeRep(), s); err != nil {
		return nil, err
	}
	estimate, err := env.EstimateCost(checkedAST, sizes{})
	if err != nil {
		return nil, fmt.Errorf("estimate the cost: %w", err)
	}
	if estimate.Max > maxEstimate {
		return nil, fmt.Errorf("1:1: with lists of %d elements this may cost more than a filter may; nest fewer loops, or look at less in them", usualList)
	}
	return c, nil
}

// usualList and usualText are the sizes that the cost is estimated with.
const (
	usualList = 100
	usualText = 1024
)

// sizes estimates what an expression reads.
type sizes struct{}

// EstimateSize implements [cost.Estimator].
func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	size := cost.SizeEstimate{Max: usualList}
	if k := n.Type().Kind(); k == types.StringKind || k == types.BytesKind {
		size.Max = usualText
	}
	return &size
}

// EstimateCallCost implements [cost.Estimator]: as CEL does.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// missing are functions whose result, or whose time, may be many times what they
// read, which CEL charges for only when it has happened.
var missing = map[string]string{
	"format":      "compare the parts one by one",
	"indexOf":     "use contains, startsWith or matches",
	"join":        "compare the parts one by one",
	"lastIndexOf": "use contains, endsWith or matches",
	"replace":     "use matches",
}

// walk refuses what could grow, and notes what looks like a mistake.
func (c *checked) walk(a *ast.AST, s *Schema) error {
	var err error
	bad := func(e ast.Expr, format string, args ...any) {
		if err == nil {
			err = fmt.Errorf("%s: %s", place(a, e.ID()), fmt.Sprintf(format, args...))
		}
	}
	ast.PostOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.CallKind:
			if fix, ok := missing[e.AsCall().FunctionName()]; ok {
				bad(e, "%s is not available in a filter; %s", e.AsCall().FunctionName(), fix)
			}
		case ast.ListKind:
			for _, elem := range e.AsList().Elements() {
				if !small(a, elem) {
					bad(elem, "a list that a filter builds can hold texts, numbers and parts of the event, no lists, maps or results of dynamic type")
				}
			}
		case ast.MapKind, ast.StructKind:
			bad(e, "maps and objects cannot be built in a filter; compare the parts one by one")
		case ast.ComprehensionKind:
			c.loops = true
			if r := e.AsComprehension().IterRange(); r.Kind() == ast.ListKind && r.AsList().Size() == 0 {
				bad(e, "optMap and optFlatMap are not available in a filter; use orValue")
			}
		case ast.SelectKind:
			c.note(a, e.AsSelect(), e, s)
		}
	}))
	return err
}

// small says whether a value can be put into a list: a scalar, or a part of the
// event. A list that holds lists that were built could hold the same one many
// times, and comparing it take without end.
func small(a *ast.AST, e ast.Expr) bool {
	switch a.GetType(e.ID()).Kind() {
	case types.BoolKind, types.BytesKind, types.DoubleKind, types.DurationKind, types.IntKind, types.NullTypeKind,
		types.StringKind, types.TimestampKind, types.UintKind:
		return true
	}
	return part(a, e)
}

func part(a *ast.AST, e ast.Expr) bool {
	switch e.Kind() {
	case ast.IdentKind:
		return !strings.HasPrefix(e.AsIdent(), "@") // a result that a macro builds
	case ast.SelectKind:
		return part(a, e.AsSelect().Operand())
	case ast.CallKind:
		call := e.AsCall()
		switch call.FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
			return part(a, call.Args()[0])
		case "orValue":
			return call.IsMemberFunction() && part(a, call.Target()) && small(a, call.Args()[0])
		case "value":
			return call.IsMemberFunction() && part(a, call.Target())
		}
	}
	return false
}

// note remarks on names that nobody knows but that are close to known ones.
func (c *checked) note(a *ast.AST, sel ast.SelectExpr, e ast.Expr, s *Schema) {
	name := sel.FieldName()
	known, what := membersOf(a, sel.Operand(), s)
	if slices.Contains(known, name) {
		return
	}
	if near := nearest(name, known); near != "" {
		c.notes = append(c.notes, fmt.Sprintf("%s: %s.%s is unknown here and may be absent; did you mean %s.%s?", place(a, e.ID()), what, name, what, near))
	}
}

// membersOf gives the names that are known of what an expression leads to, and
// how it is called.
func membersOf(a *ast.AST, operand ast.Expr, s *Schema) (names []string, what string) {
	switch operand.Kind() {
	case ast.IdentKind:
		if operand.AsIdent() == "event" {
			return attributeNames(), "event"
		}
	case ast.SelectKind:
		if o := s.object(typeName(a, operand, s)); o != nil {
			return o.names(), pathOf(operand)
		}
	}
	return nil, ""
}

// typeName gives the name of the object type that a path from event leads to,
// without the help of the checker, which may have failed.
func typeName(a *ast.AST, e ast.Expr, s *Schema) string {
	if s == nil || e.Kind() != ast.SelectKind {
		return ""
	}
	sel := e.AsSelect()
	if o := sel.Operand(); o.Kind() == ast.IdentKind && o.AsIdent() == "event" && sel.FieldName() == "data" {
		return s.root.TypeName()
	}
	if o := s.object(typeName(a, sel.Operand(), s)); o != nil {
		if t, ok := o.field(sel.FieldName()); ok {
			return t.TypeName()
		}
	}
	return ""
}

// pathOf writes a selection down.
func pathOf(e ast.Expr) string {
	switch e.Kind() {
	case ast.IdentKind:
		return e.AsIdent()
	case ast.SelectKind:
		return pathOf(e.AsSelect().Operand()) + "." + e.AsSelect().FieldName()
	}
	return "…"
}

// place gives line:column of a part of the expression.
func place(a *ast.AST, id int64) string {
	at := a.SourceInfo().GetStartLocation(id)
	if at.Line() < 1 {
		return "1:1"
	}
	return fmt.Sprintf("%d:%d", at.Line(), at.Column()+1)
}

// nullable is how CEL writes the type of what may be null.
var nullable = regexp.MustCompile(`wrapper\((\w+)\)`)

var guessed = regexp.MustCompile(` \(did you mean [^)]*\)`)

// maxIssues is how many mistakes are told at once.
const maxIssues = 3

// describe tells what CEL refuses, with line and column, and the fix where there
// is one. parsed is nil where there is no tree.
func describe(issues *cel.Issues, parsed *ast.AST, s *Schema) error {
	var texts []string
	for _, e := range issues.Errors() {
		if len(texts) == maxIssues {
			texts = append(texts, "…")
			break
		}
		message, _, _ := strings.Cut(e.Message, "\n")
		message = strings.ReplaceAll(message, " (in container '')", "")
		message, _, _ = strings.Cut(message, " expecting ")
		message = nullable.ReplaceAllString(message, "$1 or null")
		message = guessed.ReplaceAllString(message, "") // remedy knows more of what there is
		for _, known := range []struct{ cel, ours string }{
			{"Syntax error: mismatched input '<EOF>'", "the expression ends early"},
			{"recursion depth exceeded", fmt.Sprintf("nested more than %d deep; use fewer brackets and operators, or a list and in", maxDepth)},
			{"recursion limit exceeded", fmt.Sprintf("nested more than %d deep; use fewer brackets and operators, or a list and in", maxDepth)},
			{"comprehension exceeds nesting limit", fmt.Sprintf("more than %d loops inside or after each other", maxNesting)},
		} {
			if strings.Contains(message, known.cel) {
				message = known.ours
			}
		}
		if fix := remedy(e, parsed, s); fix != "" {
			message += "; " + fix
		}
		texts = append(texts, fmt.Sprintf("%d:%d: %s", max(1, e.Location.Line()), max(0, e.Location.Column())+1, message))
	}
	return errors.New(strings.Join(texts, "; "))
}

func remedy(e *cel.Error, parsed *ast.AST, s *Schema) string {
	if parsed == nil {
		return ""
	}
	at := find(parsed, e.ExprID)
	switch {
	case at == nil:
		return ""
	case strings.HasPrefix(e.Message, "undefined field") && at.Kind() == ast.SelectKind:
		sel := at.AsSelect()
		known, what := membersOf(parsed, sel.Operand(), s)
		if near := nearest(sel.FieldName(), known); near != "" {
			return fmt.Sprintf("did you mean %s.%s?", what, near)
		}
		if what == "event" {
			return "attributes have lower-case letters and digits; what the sender sent is below event.data"
		}
		if len(known) > 0 {
			return what + " has " + strings.Join(known, ", ")
		}
	case strings.HasPrefix(e.Message, "undeclared reference") && at.Kind() == ast.IdentKind:
		name := at.AsIdent()
		if near := nearest(name, append(attributeNames(), "event")); near == "event" {
			return "did you mean event?"
		} else if near != "" {
			return fmt.Sprintf("did you mean event.%s?", near)
		}
		return fmt.Sprintf("a member of the data is event.data.%.64s, and a text %.64q", name, name)
	case strings.HasPrefix(e.Message, "undeclared reference") && at.Kind() == ast.CallKind:
		if fix, ok := missing[at.AsCall().FunctionName()]; ok {
			return fix
		}
	}
	return ""
}

// find gives the part of the tree with an id.
func find(a *ast.AST, id int64) ast.Expr {
	var found ast.Expr
	ast.PostOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.ID() == id {
			found = e
		}
	}))
	return found
}

// explain gives an error of planning.
func (c *checked) explain(err error) error {
	return fmt.Errorf("1:1: %w", c.runtime(err))
}

// runtime gives an error of a run: what CEL says, without the values it quotes,
// which may be confidential, and with the place and the fix.
func (c *checked) runtime(err error) error {
	if cancelled, ok := errors.AsType[interpreter.EvalCancelledError](err); ok && cancelled.Cause == interpreter.CostLimitExceeded {
		return fmt.Errorf("the filter costs more than a filter may (%d units) with this event; look at less of the data", maxCost)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the filter takes more than %s with this event; look at less of the data", deadline)
	}
	a := c.ast.NativeRep()
	where := ""
	var at ast.Expr
	if e, ok := errors.AsType[*types.Err](err); ok && e.NodeID() > 0 {
		where = place(a, e.NodeID()) + ": "
		at = find(a, e.NodeID())
	}
	if p, ok := errors.AsType[*problem](err); ok {
		return errors.New(where + p.text)
	}
	message := err.Error()
	switch {
	case strings.HasPrefix(message, "no such key"):
		if at != nil && at.Kind() == ast.SelectKind {
			of, name := pathOf(at.AsSelect().Operand()), at.AsSelect().FieldName()
			return fmt.Errorf("%s%s.%s is absent; guard with has(%s.%s), or take a default: %s.?%s.orValue(…)", where, of, name, of, name, of, name)
		}
		return fmt.Errorf("%sthere is no such member; look for it with in, or take a default: event.data[?name].orValue(…)", where)
	case strings.HasPrefix(message, "no such overload"):
		return fmt.Errorf("%sa value is of another type than this operation takes", where)
	}
	if i := strings.IndexAny(message, "\"'`:({["); i >= 0 {
		message = message[:i]
	}
	return errors.New(where + strings.TrimRight(message, " "))
}

func shorten(expr string) string {
	if expr = strings.TrimSpace(expr); len(expr) > 60 || strings.Contains(expr, "\n") {
		return "…"
	}
	return expr
}

// nearest finds the known name that a wrong one probably means, empty if none
// does.
func nearest(name string, known []string) string {
	best, distance := "", 3 // more than two edits is another word
	for _, k := range known {
		n := edits(strings.ToLower(k), strings.ToLower(name))
		if n < distance && n < len(k)-1 && n < len(name) {
			best, distance = k, n
		}
	}
	return best
}

// edits is the Levenshtein distance of two names.
func edits(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			n := min(row[j], row[j-1]) + 1
			if a[i-1] == b[j-1] {
				n = min(n, before)
			} else {
				n = min(n, before+1)
			}
			before, row[j] = row[j], n
		}
	}
	return row[len(b)]
}
