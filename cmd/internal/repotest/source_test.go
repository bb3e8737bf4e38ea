package repotest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// source is one Go file.
type source struct {
	name string // path from root
	file *ast.File
	fset *token.FileSet
	test bool
}

func parse(name string, content []byte) (*source, error) {
	s := &source{name: name, fset: token.NewFileSet(), test: strings.HasSuffix(name, "_test.go")}
	var err error
	s.file, err = parser.ParseFile(s.fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
	return s, err
}

func sources(t *testing.T) []*source {
	t.Helper()
	var list []*source
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata/") {
			continue
		}
		content, ok := read(t, name)
		if !ok {
			continue
		}
		s, err := parse(name, content)
		if err != nil {
			t.Error(err)
			continue
		}
		list = append(list, s)
	}
	return list
}

func (s *source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.name, s.fset.Position(p).Line)
}

// excuse says whether the line of p ends in a comment "// word: reason".
func (s *source) excuse(p token.Pos, word string) bool {
	line := s.fset.Position(p).Line
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			reason, ok := strings.CutPrefix(c.Text, "// "+word+": ")
			if ok && strings.TrimSpace(reason) != "" && s.fset.Position(c.Pos()).Line == line {
				return true
			}
		}
	}
	return false
}

func TestPackageComments(t *testing.T) {
	for _, v := range packageComments(sources(t)) {
		t.Error(v)
	}
}

func packageComments(list []*source) []string {
	var found []string
	commented := map[string][]string{} // files with a package comment, by folder
	code := map[string]bool{}          // folders with more than tests
	for _, s := range list {
		dir := path.Dir(s.name)
		commented[dir] = append(commented[dir], nil...)
		code[dir] = code[dir] || !s.test
		if vague[s.file.Name.Name] {
			found = append(found, fmt.Sprintf("%s: package %s: the name says nothing of what is inside", s.name, s.file.Name.Name))
		}
		if s.file.Doc == nil {
			continue
		}
		commented[dir] = append(commented[dir], s.name)
		want := "Package " + s.file.Name.Name + " "
		if s.file.Name.Name == "main" {
			want = "Command " + path.Base(dir) + " "
		}
		if text := s.file.Doc.Text(); !strings.HasPrefix(text, want) {
			found = append(found, fmt.Sprintf("%s: the package comment begins %q, want %q: go doc shows its first sentence alone", s.name, firstWords(text), want))
		}
	}
	for _, s := range list {
		// A comment on the package clause of a test is shown nowhere.
		if dir := path.Dir(s.name); s.test && s.file.Doc != nil && code[dir] {
			found = append(found, s.name+": the package comment belongs into a file that is no test")
		}
	}
	for dir, names := range commented {
		if len(names) != 1 {
			found = append(found, fmt.Sprintf("%s: %d package comments %v, want one: it teaches its part of the program", dir, len(names), names))
		}
	}
	slices.Sort(found)
	return found
}

func firstWords(text string) string {
	words := strings.Fields(text)
	return strings.Join(words[:min(len(words), 3)], " ")
}

func TestDocComments(t *testing.T) {
	for _, s := range sources(t) {
		for _, v := range docComments(s) {
			t.Error(v)
		}
	}
}

// contract are methods whose contract is that of a well-known interface.
var contract = map[string]bool{
	"Error": true, "Unwrap": true, "Is": true, "As": true, "String": true, "GoString": true, "Format": true,
	"MarshalText": true, "UnmarshalText": true, "MarshalJSON": true, "UnmarshalJSON": true,
	"MarshalYAML": true, "UnmarshalYAML": true, "LogValue": true, "ServeHTTP": true,
	"Len": true, "Less": true, "Swap": true, "Read": true, "Write": true,
	"Describe": true, "Collect": true, // prometheus.Collector
}

// docComments lists what is exported and has no comment that begins with its
// name. Names in a group may share the comment of the group, as constants of
// one type do.
func docComments(s *source) []string {
	if s.test {
		return nil
	}
	var found []string
	check := func(name *ast.Ident, doc *ast.CommentGroup) {
		if !name.IsExported() {
			return
		}
		text := doc.Text()
		for _, article := range []string{"A ", "An ", "The "} {
			if rest, ok := strings.CutPrefix(text, article); ok {
				text = rest
				break
			}
		}
		rest, ok := strings.CutPrefix(text, name.Name)
		if !ok || rest == "" || strings.ContainsAny(rest[:1], "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") {
			found = append(found, fmt.Sprintf("%s: %s has no comment that begins with its name and gives its contract", s.at(name.Pos()), name.Name))
		}
	}
	for _, decl := range s.file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil || ast.IsExported(receiver(d)) && !(contract[d.Name.Name] && d.Doc == nil) {
				check(d.Name, d.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if d.Lparen.IsValid() {
						check(spec.Name, spec.Doc)
					} else {
						check(spec.Name, d.Doc)
					}
				case *ast.ValueSpec:
					if d.Lparen.IsValid() && (d.Doc != nil || spec.Doc != nil || spec.Comment != nil) {
						continue
					}
					for _, name := range spec.Names {
						check(name, d.Doc)
					}
				}
			}
		}
	}
	return found
}

func receiver(d *ast.FuncDecl) string {
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr: // generic
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

func TestCalls(t *testing.T) {
	for _, s := range sources(t) {
		for _, v := range calls(s) {
			t.Error(v)
		}
	}
}

// calls lists calls that have no place where they stand.
func calls(s *source) []string {
	var found []string
	report := func(p token.Pos, text string) { found = append(found, s.at(p)+": "+text) }
	imported := map[string]string{} // import path by local name
	for _, spec := range s.file.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		imported[name] = p
	}
	for _, decl := range s.file.Decls {
		f, isFunc := decl.(*ast.FuncDecl)
		mayExit := s.file.Name.Name == "main" && path.Base(s.name) == "main.go" || s.test && isFunc && f.Recv == nil && f.Name.Name == "TestMain"
		ast.Inspect(decl, func(n ast.Node) bool {
			// Not only calls: to hand log.Fatal on is no better.
			switch x := n.(type) {
			case *ast.CallExpr:
				if f, ok := x.Fun.(*ast.Ident); ok && f.Name == "panic" && !s.test && !s.excuse(x.Pos(), "panic") {
					report(x.Pos(), "panic: input and outages are errors; for a bug that cannot go on, end the line with \"// panic: reason\"")
				}
			case *ast.SelectorExpr:
				on, ok := x.X.(*ast.Ident)
				if !ok {
					return true
				}
				switch from, name := imported[on.Name], x.Sel.Name; {
				case s.test && from == "time" && name == "Sleep" && !s.excuse(x.Pos(), "sleep"):
					report(x.Pos(), "time.Sleep: slow where it is long enough and flaky where it is not; wait on a channel, poll with a deadline, or use testing/synctest; else end the line with \"// sleep: reason\"")
				case !mayExit && from == "os" && name == "Exit",
					!mayExit && from == "log" && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Panic")):
					report(x.Pos(), on.Name+"."+name+": only main exits; return the error, so that others can shut down too")
				case from == "" && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, name) && slices.Contains([]string{"t", "b", "f", "tb"}, on.Name):
					report(x.Pos(), on.Name+"."+name+": make test skips nothing; what cannot run there belongs into make check-full")
				case from == "testing" && name == "Short":
					report(x.Pos(), "testing.Short: make test skips nothing; make the test quick instead")
				}
			}
			return true
		})
	}
	return found
}

// TestSourceRules shows that the checkers find what they should.
func TestSourceRules(t *testing.T) {
	tests := []struct {
		name, file, content string
		want                []string
	}{
		{"good", "a/b/b.go", "// Package b is good.\npackage b\n\n// F does.\nfunc F() {\n\tpanic(1) // panic: a bug\n}\n\n// A T is.\ntype T[X any] int\n\nfunc (T[X]) String() string { return \"\" }\n\n// The kinds.\nconst (\n\tA = 1\n\tB = 2\n)\n\nconst (\n\tC = 1 // see\n)\n", nil},
		{"main", "cmd/gridfan/main.go", "// Command gridfan runs.\npackage main\n\nimport \"os\"\n\nfunc main() { os.Exit(1) }\n", nil},
		{"main elsewhere", "cmd/gridfan/other.go", "package main\n\nimport \"os\"\n\nfunc f() { os.Exit(1) }\n\n// Command gridfan runs.\n", []string{"cmd/gridfan/other.go:5: os.Exit", "cmd/gridfan: 0 package comments"}},
		{"no comments", "a/b/b.go", "package b\n\nfunc F() {}\n\ntype T int\n\nfunc (*T) M() {}\n\nfunc (T) private() {}\n\nconst (\n\tA = 1\n)\n\nvar V = 1\n", []string{
			"a/b/b.go:3: F has no comment", "a/b/b.go:5: T has no comment", "a/b/b.go:7: M has no comment",
			"a/b/b.go:12: A has no comment", "a/b/b.go:15: V has no comment", "a/b: 0 package comments",
		}},
		{"other words", "a/b/b.go", "// b is\npackage b\n\n// Fx does.\nfunc F() {}\n\n// A thing.\ntype T int\n", []string{
			"a/b/b.go:5: F has no comment", "a/b/b.go:8: T has no comment", "a/b/b.go: the package comment begins",
		}},
		{"vague", "a/util/x.go", "// Package util is\npackage util\n", []string{"a/util/x.go: package util"}},
		{"calls", "a/b/b.go", "// Package b is\npackage b\n\nimport (\n\tl \"log\"\n\t\"os\"\n)\n\nfunc f() {\n\tl.Fatalf(\"\")\n\tos.Exit(1)\n\tpanic(2)\n\tpanic(3) // panic:\n}\n", []string{
			"a/b/b.go:10: l.Fatalf", "a/b/b.go:11: os.Exit", "a/b/b.go:12: panic", "a/b/b.go:13: panic",
		}},
		{"test", "a/b/b_test.go", "// Package b is\npackage b\n\nimport (\n\t\"os\"\n\t\"testing\"\n\t\"time\"\n)\n\nfunc TestMain(m *testing.M) { os.Exit(m.Run()) }\n\nfunc TestF(t *testing.T) {\n\tt.Skip(\"no\")\n\ttime.Sleep(1)\n\ttime.Sleep(2) // sleep: to see that nothing comes\n\tpanic(1)\n\tif testing.Short() {\n\t\tos.Exit(1)\n\t}\n}\n", []string{
			"a/b/b_test.go:13: t.Skip", "a/b/b_test.go:14: time.Sleep", "a/b/b_test.go:17: testing.Short", "a/b/b_test.go:18: os.Exit",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := parse(tt.file, []byte(tt.content))
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Concat(calls(s), docComments(s), packageComments([]*source{s}))
			for i := range got {
				if i < len(tt.want) && strings.HasPrefix(got[i], tt.want[i]) {
					got[i] = tt.want[i]
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
