package repotest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// workflow is what is checked of a file in .github/workflows.
type workflow struct {
	Permissions map[string]string
	Jobs        map[string]struct {
		Timeout     int `yaml:"timeout-minutes"`
		Permissions map[string]string
		Steps       []step
	}
}

type step struct {
	Name, Run, Uses string
	With            map[string]any
}

var (
	// pinned is an action at a commit, with its version for whoever reads that.
	pinned = regexp.MustCompile(`^uses: ([\w.-]+/[\w./-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	// made are the targets that a script makes; variables may follow them.
	made = regexp.MustCompile(`(?:^|[\s;&|])make((?: +[a-z][a-z-]*)+)(?:[ \t]|$)`)
	// word is a path in a script.
	word = regexp.MustCompile(`[\w.*-]+(?:/[\w.*-]+)+`)
	// remark is a line of a script that is not run.
	remark = regexp.MustCompile(`(?m)^\s*#.*$`)
	// target begins a rule of the Makefile.
	target = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)
)

// workflowFaults lists what is wrong in a workflow. targets are the Makefile's;
// exists says whether the repository, or what make writes, has a path.
func workflowFaults(name, text string, targets map[string]bool, exists func(string) bool) []string {
	var found []string
	report := func(format string, args ...any) {
		found = append(found, name+": "+fmt.Sprintf(format, args...))
	}
	var w workflow
	if err := yaml.Unmarshal([]byte(text), &w); err != nil {
		return []string{name + ": " + err.Error()}
	}
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "- ")
		if strings.HasPrefix(line, "uses:") && !pinned.MatchString(line) {
			report("%q: pin the action to a commit and name its version, as in owner/name@0123… # v1.2.3: a tag can be moved", line)
		}
	}
	if w.Permissions == nil {
		report("no permissions at the top: the token may then do what the repository's setting says")
	}
	for what, may := range w.Permissions {
		if may != "read" && may != "none" {
			report("permissions: %s: %s for all jobs; give it to the one that needs it", what, may)
		}
	}
	for id, j := range w.Jobs {
		if j.Timeout == 0 {
			report("%s: no timeout-minutes: one that hangs takes six hours", id)
		}
		if len(j.Steps) == 0 {
			report("%s: no steps", id)
		}
		for _, s := range j.Steps {
			if strings.HasPrefix(s.Uses, "actions/checkout@") && s.With["persist-credentials"] != false {
				report("%s: checkout without persist-credentials: false leaves the token to every later step", id)
			}
			if file, ok := s.With["go-version-file"].(string); ok && !exists(file) {
				report("%s: %s does not exist", id, file)
			}
			for _, v := range s.With {
				if p, ok := v.(string); ok && strings.HasPrefix(p, "bin/") && !exists(p) {
					report("%s: no rule of the Makefile writes %s", id, p)
				}
			}
			for _, f := range scriptFaults(s.Run, targets, exists) {
				report("%s: %s", id, f)
			}
		}
	}
	slices.Sort(found)
	return found
}

// scriptFaults lists targets and paths of this repository that a script names and
// that are not there.
func scriptFaults(script string, targets map[string]bool, exists func(string) bool) []string {
	var found []string
	script = remark.ReplaceAllString(script, "")
	for _, m := range made.FindAllStringSubmatch(script, -1) {
		for t := range strings.FieldsSeq(m[1]) {
			if !targets[t] {
				found = append(found, "the Makefile has no target "+t)
			}
		}
	}
	for _, p := range word.FindAllString(script, -1) {
		top, _, _ := strings.Cut(p, "/")
		if (top == "bin" || tops[top]) && !exists(p) {
			found = append(found, p+" does not exist")
		}
	}
	return found
}

// tops are the folders whose paths are this repository's wherever they stand.
var tops = map[string]bool{".ci": true, ".github": true, "bicep": true, "cmd": true, "docs": true, "examples": true, "infra": true, "router": true, "schemas": true, "subscribers": true}

func TestWorkflows(t *testing.T) {
	makefile, _ := read(t, "Makefile")
	targets := map[string]bool{}
	for _, m := range target.FindAllSubmatch(makefile, -1) {
		targets[string(m[1])] = true
	}
	exists := func(name string) bool {
		if made, ok := strings.CutPrefix(name, "bin/"); ok {
			return strings.Contains(string(makefile), filepath.Base(made)) || strings.HasSuffix(made, "/*") && strings.Contains(string(makefile), strings.TrimSuffix(name, "/*"))
		}
		_, err := os.Stat(filepath.Join(root, name))
		return err == nil
	}
	seen := 0
	versions := map[string]string{}
	for _, name := range files(t) {
		text, ok := read(t, name)
		switch {
		case !ok:
		case strings.HasPrefix(name, ".github/workflows/"):
			seen++
			for _, f := range workflowFaults(name, string(text), targets, exists) {
				t.Error(f)
			}
			for line := range strings.SplitSeq(string(text), "\n") {
				_, uses, ok := strings.Cut(line, "uses: ")
				action, at, _ := strings.Cut(uses, "@")
				if was := versions[action]; ok && was != "" && was != at {
					t.Errorf("%s: %s at %s, and elsewhere at %s", name, action, at, was)
				}
				versions[action] = at
			}
		case strings.HasPrefix(name, ".ci/"):
			seen++
			for _, f := range scriptFaults(string(text), targets, exists) {
				t.Errorf("%s: %s", name, f)
			}
		}
	}
	if seen < 3 {
		t.Errorf("%d workflows and scripts of CI were looked at", seen)
	}
}

// TestWorkflowRules shows that the checkers find what they should.
func TestWorkflowRules(t *testing.T) {
	const good = `
permissions: { contents: read }
jobs:
  a:
    timeout-minutes: 5
    permissions: { packages: write }
    steps:
      - uses: actions/checkout@0123456789abcdef0123456789abcdef01234567 # v7.0.1
        with: { persist-credentials: false, go-version-file: go.mod, path: bin/out }
      - run: |
          # make sense of docs/nothing
          cd x && make build check FOO=bar; bash .ci/run
          echo "https://example.com/cmd/of/theirs is not ours, nor is bin/out of make"
`
	targets := map[string]bool{"build": true, "check": true}
	exists := func(name string) bool {
		return slices.Contains([]string{"go.mod", ".ci/run", "bin/out"}, name)
	}
	tests := []struct {
		name, from, to string
		want           []string
	}{
		{"good", "", "", nil},
		{"tag", "@0123456789abcdef0123456789abcdef01234567 # v7.0.1", "@v7", []string{`w: "uses: actions/checkout@v7": pin`}},
		{"no version", " # v7.0.1", "", []string{`w: "uses: actions/checkout@0`}},
		{"no permissions", "permissions: { contents: read }\n", "", []string{"w: no permissions"}},
		{"all may write", "contents: read", "contents: write", []string{"w: permissions: contents: write"}},
		{"no limit", "timeout-minutes: 5", "name: a", []string{"w: a: no timeout"}},
		{"token kept", "persist-credentials: false, ", "", []string{"w: a: checkout without"}},
		{"file", "go.mod", "go.work", []string{"w: a: go.work does not exist"}},
		{"made file", "path: bin/out", "path: bin/other", []string{"w: a: no rule of the Makefile writes bin/other"}},
		{"target", "build check", "build chekc", []string{"w: a: the Makefile has no target chekc"}},
		{"path", ".ci/run", ".ci/walk", []string{"w: a: .ci/walk does not exist"}},
		{"no YAML", "jobs:", "jobs: [", []string{"w: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := workflowFaults("w", strings.Replace(good, tt.from, tt.to, 1), targets, exists)
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
