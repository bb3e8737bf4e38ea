package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// value is one node of the file.
type value struct {
	path    string // as shown to people: sources.prod.kind
	pattern string // as in the tables of keys.go: sources.<name>.kind
	at      pos
	kind    kind
	text    string   // of a scalar, before references are resolved
	fields  []*field // of a mapping, in the file's order, each name once
	items   []*value // of a list
}

type field struct {
	name  string
	at    pos
	value *value
}

type pos struct{ line, column int }

type kind int

const (
	null kind = iota
	text
	number
	boolean
	list
	mapping
	alias // reported already
)

func (k kind) String() string {
	return [...]string{"nothing", "a text", "a number", "true or false", "a list", "a mapping", "an alias"}[k]
}

// get returns the field called name, or nil when there is none or it is null.
func (v *value) get(names ...string) *value {
	for _, name := range names {
		if v == nil {
			return nil
		}
		i := slices.IndexFunc(v.fields, func(f *field) bool { return f.name == name })
		if i < 0 {
			return nil
		}
		v = v.fields[i].value
		if v.kind == null || v.kind == alias {
			return nil
		}
	}
	return v
}

// locate finds what s is about, which begins with a path below v and goes on
// with a message: ".push.auth.anyOf[1].key: too short". Names hold dots and
// colons too, so the tree says where they end. The place is that of the deepest
// node on the path.
func (v *value) locate(s string) (at pos, path, message string) {
	for {
		next, rest := v.step(s)
		if next == nil {
			key, message, _ := strings.Cut(s, ": ")
			return v.at, v.path + key, message
		}
		v, s = next, rest
	}
}

// step finds the node directly below v that s begins with, and the rest of s.
func (v *value) step(s string) (next *value, rest string) {
	for i, item := range v.items {
		if after, ok := strings.CutPrefix(s, fmt.Sprintf("[%d]", i)); ok {
			return item, after
		}
	}
	if v.path != "" && !strings.HasPrefix(s, ".") {
		return nil, s
	}
	s = strings.TrimPrefix(s, ".")
	for _, f := range v.fields {
		after, ok := strings.CutPrefix(s, f.name)
		ends := after == "" || after[0] == '.' || after[0] == '[' || strings.HasPrefix(after, ": ")
		if ok && ends && (next == nil || len(after) < len(rest)) {
			next, rest = f.value, after
		}
	}
	return next, rest
}

const example = "examples/gridfan.yaml is a complete one"

// parse turns YAML into a tree, or returns nil after recording why it cannot.
func (d *decoder) parse(src []byte) *value {
	start := pos{1, 1}
	s := strings.TrimPrefix(string(src), "\uFEFF")
	if len(s) > maxFile {
		d.problem(start, "", "the file is larger than %d bytes", maxFile)
		return nil
	}
	if at, what := unreadable(s); what != "" {
		d.problem(at, "", "%s", what)
		return nil
	}
	file, at, err := parseYAML(s)
	if err != nil {
		at, message := explain(s, at, err.Error())
		d.problem(at, "", "%s", message)
		return nil
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch _, directive := doc.Body.(*ast.DirectiveNode); {
		case doc.Body == nil || directive:
		case body == nil:
			body = doc.Body
		default:
			at := begin(doc.Body)
			if doc.Start != nil {
				at = place(doc.Start)
			}
			d.problem(at, "", "a second document begins here; a configuration is one document")
		}
	}
	if body == nil || body.Type() == ast.NullType {
		d.problem(start, "", "the file is empty; it needs at least one source (%s)", example)
		return nil
	}
	root := d.tree(body, "", "", begin(body))
	if root.kind == alias {
		return nil
	}
	if root.kind != mapping {
		d.problem(root.at, "", "want a mapping with %s, got %s (%s)", strings.Join(keysOf(""), ", "), root.kind, example)
		return nil
	}
	d.check(root)
	return root
}

// unreadable finds what no YAML file may hold. goccy/go-yaml lets it pass.
func unreadable(s string) (pos, string) {
	at := pos{1, 1}
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			return at, "the file is not UTF-8 text; save it as UTF-8"
		case r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f:
			return at, fmt.Sprintf("control character %#U; remove it", r)
		}
		at.column++
		if r == '\n' {
			at = pos{at.line + 1, 1}
		}
	}
	return at, ""
}

// maxDepth is far above what any key needs. The parser recurses, and its time
// grows with the square of the depth.
const maxDepth = 100

// parseYAML parses s. The place has a meaning only with an error.
func parseYAML(s string) (file *ast.File, at pos, err error) {
	at = pos{1, 1}
	// The parser is not ours and has panicked on odd input
	// (github.com/goccy/go-yaml/issues/890, open in 2026-07); a reload must never
	// take the process down.
	defer func() {
		if r := recover(); r != nil {
			file, err = nil, errors.New("this is not YAML that can be read")
		}
	}()
	tokens := lexer.Tokenize(s)
	depth, line, entries := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		case token.SequenceEntryType, token.MappingKeyType:
			entries++
		}
		if depth > maxDepth || entries > maxDepth {
			return nil, place(t), fmt.Errorf("nested deeper than %d levels", maxDepth)
		}
		if depth < 0 {
			return nil, place(t), fmt.Errorf("this %s closes nothing", t.Value)
		}
	}
	// Duplicate keys are found by tree, which can name both places.
	file, err = parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if syntax, ok := errors.AsType[*yaml.SyntaxError](err); ok {
		// Only the message: the full text quotes the lines around, secrets and all.
		return nil, place(syntax.Token), errors.New(syntax.Message)
	}
	if err != nil {
		return nil, at, errors.New("this is not YAML that can be read")
	}
	return file, at, nil
}

var (
	indentTab    = regexp.MustCompile(`^ *\t`)
	bareRef      = regexp.MustCompile(`[{\[].*[:,\[]\s*\$\{`)
	missingBlank = regexp.MustCompile(`^\s*(- +)?[A-Za-z]+:[^\s]`)
	quotedStart  = regexp.MustCompile(`^\s*[A-Za-z]+:\s+"[^"]*"\s*[^\s#]`)
	bareBrackets = regexp.MustCompile(`[{,]\s*[A-Za-z]+:\s+\.[^'",]*[\[{]`)
)

// explain adds to the parser's message what is the matter in the usual cases.
func explain(s string, at pos, message string) (pos, string) {
	lines := strings.Split(s, "\n")
	line := ""
	if at.line <= len(lines) {
		line = lines[at.line-1]
	}
	message = "YAML syntax: " + message
	switch {
	case indentTab.MatchString(line):
		return pos{at.line, strings.Index(line, "\t") + 1}, "YAML syntax: a tab cannot indent; use spaces"
	case bareRef.MatchString(line):
		message += `; inside { } and [ ] a reference needs quotes: "${env:NAME}"`
	case missingBlank.MatchString(line):
		message += `; a blank belongs between a key's colon and its value`
	case quotedStart.MatchString(line):
		message += `; what begins with a quote must end with it: put a whole jq expression in '…'`
	case bareBrackets.MatchString(line):
		message += `; inside { } and [ ] a jq expression needs quotes: '.orders[]'`
	}
	return at, message
}

func place(t *token.Token) pos {
	if t == nil || t.Position == nil {
		return pos{1, 1}
	}
	return pos{max(t.Position.Line, 1), max(t.Position.Column, 1)}
}

// begin is where a node begins. The parser's own token of a mapping is its
// first colon.
func begin(n ast.Node) pos {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return begin(n.Values[0].Key)
		}
		return place(n.Start)
	case *ast.MappingValueNode:
		return begin(n.Key)
	}
	if n == nil {
		return pos{1, 1}
	}
	return place(n.GetToken())
}

// tree converts a node. Lists and mappings are placed at their key, scalars at
// themselves.
func (d *decoder) tree(n ast.Node, path, pattern string, at pos) *value {
	v := &value{path: path, pattern: pattern, at: at}
	scalar := func(k kind, s string) *value {
		v.kind, v.text, v.at = k, s, begin(n)
		return v
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		v.kind = mapping
		d.fields(v, n.Values)
	case *ast.MappingValueNode:
		v.kind = mapping
		d.fields(v, []*ast.MappingValueNode{n})
	case *ast.SequenceNode:
		v.kind = list
		for i, item := range n.Values {
			below := pattern + "[]"
			if slices.Contains(oneOrMore, pattern) {
				below = pattern
			}
			v.items = append(v.items, d.tree(item, fmt.Sprintf("%s[%d]", path, i), below, begin(item)))
		}
	case *ast.StringNode:
		return scalar(text, n.Value)
	case *ast.LiteralNode:
		return scalar(text, n.Value.Value)
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return scalar(number, n.GetToken().Value)
	case *ast.BoolNode:
		return scalar(boolean, n.GetToken().Value)
	case *ast.AnchorNode:
		d.problem(begin(n), path, "anchors (&) are not supported; write the value where it is used")
		return d.tree(n.Value, path, pattern, at)
	case *ast.AliasNode:
		d.problem(begin(n), path, "aliases (*) are not supported; write the value out")
		v.kind = alias
	case *ast.TagNode:
		d.problem(begin(n), path, "tags (!) are not supported; remove it")
		return d.tree(n.Value, path, pattern, at)
	}
	return v // null, or reported
}

func (d *decoder) fields(v *value, values []*ast.MappingValueNode) {
	for _, mv := range values {
		at := begin(mv.Key)
		var name string
		switch k := mv.Key.(type) {
		case *ast.StringNode:
			name = k.Value
		case *ast.MergeKeyNode:
			d.problem(at, v.path, "merge keys (<<) are not supported; write the keys out")
			continue
		case *ast.MappingKeyNode:
			d.problem(at, v.path, "complex keys (?) are not supported")
			continue
		default:
			d.problem(at, v.path, "a key must be a text; put it in quotes")
			continue
		}
		if i := slices.IndexFunc(v.fields, func(f *field) bool { return f.name == name }); i >= 0 {
			first := v.fields[i]
			d.problem(at, first.value.path, "this key is here a second time; the first is at %d:%d", first.at.line, first.at.column)
			continue
		}
		pattern := below(v.pattern, name)
		if named(v.pattern) {
			pattern = below(v.pattern, "<name>")
		}
		child := d.tree(mv.Value, below(v.path, shown(name)), pattern, at)
		if child.kind == null {
			child.at = at
		}
		v.fields = append(v.fields, &field{name, at, child})
	}
}

// shown is a key as part of a path: quoted if it would be mistaken there.
func shown(key string) string {
	const enough = 80
	if len(key) > enough {
		key = strings.ToValidUTF8(key[:enough], "") + "…"
	}
	if key != "" && strings.Trim(key, nameLetters) == "" {
		return key
	}
	return strconv.Quote(key)
}

// check reports every key that is unknown or still to come, and every value
// that should have been a mapping or a list.
func (d *decoder) check(v *value) {
	if v.kind == null || v.kind == alias || !parent(v.pattern) && v.pattern != "" {
		return
	}
	want := mapping
	if parent(v.pattern + "[]") {
		want = list
	}
	if v.kind == list && slices.Contains(oneOrMore, v.pattern) && !strings.HasSuffix(v.path, "]") {
		for _, item := range v.items {
			d.check(item)
		}
		return
	}
	if v.kind != want {
		// A key that can also be a scalar is judged where it is read.
		if !leaf(v.pattern) {
			d.problem(v.at, v.path, "want %s, got %s", want, v.kind)
		}
		return
	}
	for _, item := range v.items {
		d.check(item)
	}
	for _, f := range v.fields {
		p := f.value.pattern
		switch sentence, isLater := later[p]; {
		case isLater:
			d.problem(f.at, f.value.path, "%s", sentence)
		case leaf(p) || parent(p):
			d.check(f.value)
		default:
			sentence, meant := advice(v.pattern, f.name)
			path := f.value.path
			if !presentable(f.name) || meant == "" && (strings.Contains(p, ".auth.") || strings.Contains(p, ".sign.")) {
				// Possibly a secret that lost its key, below auth most of all: it
				// is not repeated.
				path = v.path
			}
			d.problem(f.at, path, "unknown key; %s", sentence)
			if meant != "" {
				// That it is missing is no news any more.
				d.trouble = append(d.trouble, below(v.path, strings.TrimPrefix(meant, below(v.pattern, ""))))
			}
		}
	}
}

// presentable says whether an unknown key looks like one.
func presentable(key string) bool {
	return key != "" && len(key) <= 40 && strings.Trim(key, nameLetters+".") == ""
}
