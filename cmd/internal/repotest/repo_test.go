package repotest

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// root is the top of the repository, seen from this package.
const root = "../../.."

// module is the path of our module.
const module = "github.com/gridfan/gridfan"

// files are the repository's files, with slashes and relative to root.
func files(t *testing.T) []string {
	t.Helper()
	list, err := listFiles()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var listFiles = sync.OnceValues(func() ([]string, error) {
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return walk() // an unpacked archive, or no git
	}
	var list []string
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		// What was deleted stays listed until that is committed.
		if info, err := os.Stat(filepath.Join(root, name)); err == nil && info.Mode().IsRegular() {
			list = append(list, name)
		}
	}
	return list, nil
})

// walk stands in for git where there is none; it passes over what .gitignore
// names at the top.
func walk() ([]string, error) {
	var list []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err = filepath.Rel(root, name)
		if err != nil {
			return err
		}
		switch name = filepath.ToSlash(name); {
		case d.IsDir() && (name == ".git" || name == "bin" || name == "data"):
			return fs.SkipDir
		case d.Type().IsRegular():
			list = append(list, name)
		}
		return nil
	})
	return list, err
}

// read returns a file of the list, or false when it has gone since.
func read(t *testing.T, name string) ([]byte, bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
	return b, true
}

// TestWalk also keeps "go test" from reporting a cached result after a file was
// added: it does not see what git reads, but the folders that walk reads.
func TestWalk(t *testing.T) {
	list, err := walk()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range list {
		found[name] = true
	}
	for _, name := range []string{"go.mod", "schemas/event/event.go", "cmd/internal/repotest/repo_test.go"} {
		if !found[name] {
			t.Errorf("walk does not find %s", name)
		}
	}
}

func TestTopLevel(t *testing.T) {
	allowed := map[string]bool{}
	for name := range strings.FieldsSeq(`router subscribers schemas infra bicep cmd docs examples
		azure.yaml .ci .github go.mod go.sum Makefile README.md LICENSE .gitignore staticcheck.conf`) {
		allowed[name] = true
	}
	told := map[string]bool{}
	for _, name := range files(t) {
		top, _, _ := strings.Cut(name, "/")
		if !allowed[top] && !told[top] {
			told[top] = true
			t.Errorf("%s: folders at the top name roles in the flow, and there are no others; see the list in this test", top)
		}
	}
}

func TestFolderNames(t *testing.T) {
	told := map[string]bool{}
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "/testdata/") {
			continue
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if vague[path.Base(dir)] && !told[dir] {
				told[dir] = true
				t.Errorf("%s: the name says nothing of what is inside; a helper lives unexported beside its user", dir)
			}
		}
	}
}

// vague are names that no package has.
var vague = map[string]bool{
	"util": true, "utils": true, "common": true, "helper": true, "helpers": true,
	"model": true, "models": true, "type": true, "types": true, "base": true, "pkg": true,
}
