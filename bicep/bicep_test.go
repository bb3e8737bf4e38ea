// Package bicep_test holds the rules of the templates beside it that the Bicep compiler
// does not know: that everything is reached and described, that it names what the program
// and its configuration have, and that what it renders is valid. It reads the templates as
// text; make bicep compiles them, where there is a compiler.
package bicep_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// entries are what is deployed by itself.
var entries = []string{"main.bicep", "subscriptions.bicep"}

// types are the resource types with the versions that the templates were checked
// against (Azure/bicep-types-az, commit 1f896de, 2026-08).
var types = []string{
	"Microsoft.App/containerApps@2026-01-01",
	"Microsoft.App/managedEnvironments@2026-01-01",
	"Microsoft.Authorization/roleAssignments@2022-04-01",
	"Microsoft.Compute/disks@2025-01-02",
	"Microsoft.Compute/virtualMachines@2025-04-01",
	"Microsoft.ContainerRegistry/registries@2025-11-01",
	"Microsoft.EventGrid/topics/eventSubscriptions@2025-02-15",
	"Microsoft.EventGrid/topics@2025-02-15",
	"Microsoft.Insights/actionGroups@2023-01-01",
	"Microsoft.Insights/diagnosticSettings@2021-05-01-preview",
	"Microsoft.Insights/metricAlerts@2018-03-01",
	"Microsoft.Insights/scheduledQueryRules@2023-12-01",
	"Microsoft.Insights/workbooks@2023-06-01",
	"Microsoft.KeyVault/vaults/secrets@2025-05-01",
	"Microsoft.KeyVault/vaults@2025-05-01",
	"Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30",
	"Microsoft.Network/natGateways@2025-05-01",
	"Microsoft.Network/networkInterfaces@2025-05-01",
	"Microsoft.Network/networkSecurityGroups@2025-05-01",
	"Microsoft.Network/publicIPAddresses@2025-05-01",
	"Microsoft.Network/virtualNetworks@2025-05-01",
	"Microsoft.OperationalInsights/workspaces@2025-07-01",
	"Microsoft.Resources/resourceGroups@2025-04-01",
	"Microsoft.ServiceBus/namespaces/queues/authorizationRules@2024-01-01",
	"Microsoft.ServiceBus/namespaces/queues@2024-01-01",
	"Microsoft.ServiceBus/namespaces@2024-01-01",
	"Microsoft.Storage/storageAccounts@2025-06-01",
	"Microsoft.Storage/storageAccounts/blobServices/containers@2025-06-01",
}

// read gives a file beside this one, or of the repository by "../".
func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// files lists what is beside this file and below, with slashes.
func files(t testing.TB) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// templates are all files of Bicep itself.
func templates(t testing.TB) []string {
	return slices.DeleteFunc(files(t), func(name string) bool { return !strings.HasSuffix(name, ".bicep") })
}

// all gives the first group of each match.
func all(pattern, text string) []string {
	var found []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// sorted gives each text once.
func sorted(list []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

// one gives the first group of the only match.
func one(t testing.TB, pattern, text string) string {
	t.Helper()
	found := all(pattern, text)
	if len(found) != 1 {
		t.Fatalf("%d matches of %s, want 1", len(found), pattern)
	}
	return found[0]
}

// parameters are the names of a template's parameters.
func parameters(text string) []string { return all(`(?m)^param (\w+)`, text) }

// outputs are the names of a template's outputs.
func outputs(text string) []string { return all(`(?m)^output (\w+)`, text) }

func TestEverythingIsReached(t *testing.T) {
	names := files(t)
	reached := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		if reached[name] {
			return
		}
		reached[name] = true
		if !strings.HasSuffix(name, ".bicep") {
			return
		}
		text := read(t, name)
		for _, to := range all(`(?m)(?:^module \w+|^import \{[^}]*\} from|\bload(?:TextContent|JsonContent)\() ?'([^']+)'`, text) {
			to = filepath.ToSlash(filepath.Join(filepath.Dir(name), to))
			if !slices.Contains(names, to) {
				t.Errorf("%s names %s, which is not there", name, to)
				continue
			}
			visit(to)
		}
	}
	for _, name := range entries {
		visit(name)
	}
	for _, name := range names {
		switch {
		case reached[name], strings.HasSuffix(name, ".go"), name == "README.md", name == "wait-ready.sh", name == "bicepconfig.json":
		case strings.HasSuffix(name, ".bicepparam"):
			if using := one(t, `(?m)^using '([^']+)'$`, read(t, name)); !slices.Contains(entries, using) {
				t.Errorf("%s is for %s, want one of %v", name, using, entries)
			}
		default:
			t.Errorf("%s is reached from none of %v", name, entries)
		}
	}
	for _, name := range entries {
		if param := name + "param"; !slices.Contains(names, param) {
			t.Errorf("%s has no %s", name, param)
		}
	}
	if text := read(t, "../.ci/run"); !strings.Contains(text, "make check") {
		t.Error(".ci/run does not run the tests")
	}
}

func TestTypesAndModules(t *testing.T) {
	used := map[string]bool{}
	for _, name := range templates(t) {
		text := read(t, name)
		for _, typ := range all(`(?m)^resource \w+ '([^']+)'`, text) {
			used[typ] = true
			if !slices.Contains(types, typ) {
				t.Errorf("%s: %s was not checked in this version", name, typ)
			}
		}
		if n, known := len(all(`(?m)^(resource) `, text)), len(all(`(?m)^resource \w+ ('[^']+') (?:existing )?=`, text)); n != known {
			t.Errorf("%s: %d resources, of which %d can be read", name, n, known)
		}
		for _, path := range all(`(?m)^module \w+ '([^']+)'`, text) {
			if strings.Contains(path, ":") {
				t.Errorf("%s: module %s is in a registry, which a build would have to reach", name, path)
			}
		}
	}
	for _, typ := range types {
		if !used[typ] {
			t.Errorf("%s is not used; take it out of the list", typ)
		}
	}
}

// TestDescriptions wants every parameter, output, exported type or variable, and
// property of a type described. Of parameters and properties it says whether one must give
// them.
func TestDescriptions(t *testing.T) {
	count := 0
	for _, name := range templates(t) {
		text := read(t, name)
		if !strings.HasPrefix(text, "metadata name = '") || !strings.Contains(text, "\nmetadata description = '") {
			t.Errorf("%s: want metadata name and description at its beginning", name)
		}
		lines := strings.Split(text, "\n")
		inType := false
		for i, line := range lines {
			var what, declared string
			switch m := regexp.MustCompile(`^(param|output|type|var|  )\s*(\w+)(.*)`).FindStringSubmatch(line); {
			case m == nil:
			case m[1] == "type":
				inType, what = true, "type "+m[2]
			case m[1] == "  " && inType && strings.HasPrefix(strings.TrimLeft(m[3], " "), ":"):
				what, declared = "property "+m[2], m[3]
			case m[1] == "param":
				what, declared = "param "+m[2], m[3]
			case m[1] == "output", m[1] == "var" && i > 0 && strings.HasPrefix(lines[i-1], "@"):
				what = m[1] + " " + m[2]
			}
			if line == "}" {
				inType = false
			}
			if what == "" {
				continue
			}
			count++
			said := ""
			for j := i - 1; j >= 0 && strings.HasPrefix(strings.TrimSpace(lines[j]), "@"); j-- {
				if d := all(`^\s*@description\('(.+)'\)$`, lines[j]); len(d) == 1 {
					said = d[0]
				}
			}
			if said == "" || !strings.HasSuffix(said, ".") {
				t.Errorf("%s:%d: %s has no description that ends in a full stop", name, i+1, what)
				continue
			}
			if strings.HasPrefix(what, "param") || strings.HasPrefix(what, "property") {
				want := "Required. "
				if strings.Contains(declared, " = ") || strings.HasSuffix(declared, "?") {
					want = "Optional. "
				}
				if !strings.HasPrefix(said, want) {
					t.Errorf("%s:%d: the description of %s begins %.12q, want %q", name, i+1, what, said, want)
				}
			}
		}
	}
	if count < 150 {
		t.Errorf("only %d declarations were found", count)
	}
}

// TestSecrets looks at what a compiler lets pass: secrets by another name.
func TestSecrets(t *testing.T) {
	secure := all(`(?m)^@secure\(\)\nparam (\w+)`, read(t, "main.bicep"))
	want := []string{"adminToken", "natsCa", "natsNodeCert", "natsNodeKey", "natsPassword", "natsRoutePassword", "natsSysPassword"}
	if d := cmp.Diff(want, sorted(secure)); d != "" {
		t.Errorf("secure parameters (-want +got):\n%s", d)
	}
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".bicepparam") {
			continue
		}
		text := read(t, name)
		for _, param := range secure {
			for _, value := range all(`(?m)^param `+param+` = (.*)$`, text) {
				if value != "''" && !strings.HasPrefix(value, "readEnvironmentVariable('GRIDFAN_") {
					t.Errorf("%s: %s is in the file; take it from the environment", name, param)
				}
			}
		}
		// build-params fails where a variable is missing and has no default.
		for _, call := range all(`readEnvironmentVariable\(([^)]*)\)`, text) {
			if !strings.Contains(call, ", ") {
				t.Errorf("%s: readEnvironmentVariable(%s) has no default", name, call)
			}
		}
	}
	for _, name := range templates(t) {
		for _, output := range all(`(?m)^output \w+ \S+ = (.*)$`, read(t, name)) {
			if strings.Contains(output, "list") && strings.Contains(output, "Keys()") || slices.ContainsFunc(secure, func(p string) bool {
				return regexp.MustCompile(`\b` + p + `\b`).MatchString(output)
			}) {
				t.Errorf("%s gives a secret out: %s", name, output)
			}
		}
	}
}

func TestEnvironmentURLs(t *testing.T) {
	for _, name := range templates(t) {
		for i, line := range strings.Split(read(t, name), "\n") {
			if m := regexp.MustCompile(`[\w-]+\.(windows|azure|microsoftonline|microsoft)\.(net|com)`).FindString(line); m != "" &&
				!strings.HasPrefix(strings.TrimSpace(line), "@description") && !strings.HasPrefix(strings.TrimSpace(line), "//") {
				t.Errorf("%s:%d: %s is of one cloud; take it from environment() or a resource", name, i+1, m)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	for _, name := range []string{"bicepconfig.json", "abbreviations.json", "modules/workbook.json"} {
		var v map[string]any
		if err := json.Unmarshal([]byte(read(t, name)), &v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	var config struct {
		Analyzers struct {
			Core struct {
				Enabled bool
				Rules   map[string]struct{ Level string }
			}
		}
	}
	if err := json.Unmarshal([]byte(read(t, "bicepconfig.json")), &config); err != nil {
		t.Fatal(err)
	}
	if rules := config.Analyzers.Core.Rules; !config.Analyzers.Core.Enabled || len(rules) < 23 {
		t.Errorf("bicepconfig.json has %d rules", len(rules))
	} else {
		for name, rule := range rules {
			if want := map[bool]string{true: "off", false: "error"}[name == "use-recent-api-versions"]; rule.Level != want {
				t.Errorf("rule %s has the level %q, want %q", name, rule.Level, want)
			}
		}
	}

	var short map[string]string
	if err := json.Unmarshal([]byte(read(t, "abbreviations.json")), &short); err != nil {
		t.Fatal(err)
	}
	for _, name := range all(`\$\{abbreviations\.(\w+)`, read(t, "main.bicep")) {
		if short[name] == "" {
			t.Errorf("abbreviations.json has no %s", name)
		}
	}
}

// TestAzd holds azure.yaml to what azd takes for layers: no path and module of their own
// beside them, each layer's files and hooks where it says.
func TestAzd(t *testing.T) {
	var project struct {
		Name  string
		Infra struct {
			Provider, Path, Module string
			Layers                 []struct {
				Name, Path, Module string
				DependsOn          []string `yaml:"dependsOn"`
				Hooks              map[string]struct{ Shell, Run string }
			}
		}
		Services map[string]any
	}
	if err := yaml.UnmarshalWithOptions([]byte(read(t, "../azure.yaml")), &project, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if project.Infra.Path != "" || project.Infra.Module != "" || len(project.Services) != 0 {
		t.Error("with layers, path, module and services are to be left out")
	}
	var modules []string
	for _, layer := range project.Infra.Layers {
		modules = append(modules, layer.Module+".bicep")
		for _, name := range []string{layer.Module + ".bicep", layer.Module + ".bicepparam"} {
			if _, err := os.Stat(filepath.Join("..", layer.Path, name)); err != nil {
				t.Errorf("layer %s: %v", layer.Name, err)
			}
		}
		for when, hook := range layer.Hooks {
			info, err := os.Stat(filepath.Join("..", layer.Path, hook.Run))
			if err != nil {
				t.Errorf("layer %s, %s: %v", layer.Name, when, err)
			} else if info.Mode()&0o100 == 0 {
				t.Errorf("%s cannot be executed", hook.Run)
			}
		}
	}
	if d := cmp.Diff(entries, modules); d != "" {
		t.Errorf("layers (-want +got):\n%s", d)
	}
	last := project.Infra.Layers[len(project.Infra.Layers)-1]
	if d := cmp.Diff([]string{project.Infra.Layers[0].Name}, last.DependsOn); d != "" {
		t.Errorf("the subscriptions follow the core (-want +got):\n%s", d)
	}
	if last.Hooks["preprovision"].Run != "./wait-ready.sh" {
		t.Error("nothing waits for gridfan before the subscriptions are made")
	}
}

// TestOutputsReachTheSubscriptions follows what azd hands from one layer to the next.
func TestOutputsReachTheSubscriptions(t *testing.T) {
	given := outputs(read(t, "main.bicep"))
	asked := slices.Concat(
		all(`readEnvironmentVariable\('(\w+)'`, read(t, "subscriptions.bicepparam")),
		all(`\$\{(ROUTER_URL|INGRESS_SOURCES)`, read(t, "wait-ready.sh")),
		[]string{"AZURE_RESOURCE_GROUP"}, // where azd deploys a layer of resource group scope
	)
	for _, name := range sorted(asked) {
		if !slices.Contains(given, name) {
			t.Errorf("%s is no output of main.bicep, which has %v", name, given)
		}
	}
	for _, name := range parameters(read(t, "subscriptions.bicep")) {
		if !slices.Contains(given, strings.ToUpper(name)) && len(all(`(?m)^param (`+name+`) [^=\n]*$`, read(t, "subscriptions.bicep"))) == 1 &&
			!slices.Contains(all(`(?m)^param (\w+) =`, read(t, "subscriptions.bicepparam")), name) {
			t.Errorf("subscriptions.bicepparam does not give %s", name)
		}
	}
}

// TestReadme holds that what the README names is there, and that every output and every
// parameter of the environment is told of.
func TestReadme(t *testing.T) {
	readme := read(t, "README.md")
	main := read(t, "main.bicep")
	given := outputs(main)
	environment := slices.Concat(
		all(`readEnvironmentVariable\('(\w+)'`, read(t, "main.bicepparam")),
		all(`readEnvironmentVariable\('(\w+)'`, read(t, "main.prod.bicepparam")),
		all(`\$\{(WAIT_\w+|ROUTER_URL|INGRESS_SOURCES)`, read(t, "wait-ready.sh")),
		all(`(GRIDFAN_\w+)`, read(t, "modules/gridfan.yaml")),
	)
	for _, name := range sorted(all(`\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b`, readme)) {
		own := strings.Contains(readme, "\n"+name+"=") || strings.Contains(readme, "variable: '"+name+"'")
		if !slices.Contains(given, name) && !slices.Contains(environment, name) && !own {
			t.Errorf("README.md names %s, which is no output of main.bicep, nor read by a parameter file", name)
		}
	}
	for _, name := range given {
		if !strings.Contains(readme, name) {
			t.Errorf("README.md does not tell of the output %s", name)
		}
	}
	for _, name := range sorted(environment) {
		if !strings.Contains(readme, name) {
			t.Errorf("README.md does not tell of the variable %s", name)
		}
	}
	known := slices.Concat(parameters(main), parameters(read(t, "subscriptions.bicep")))
	for _, name := range all("`((?:nats|router|subscribers|storage|zone|deploy|with|lag|fno|alert|log|purge|ingress|publisher)[A-Z]\\w*)`", readme) {
		if !slices.Contains(known, name) {
			t.Errorf("README.md names the parameter %s, which there is not", name)
		}
	}
	for _, name := range all(`\]\(((?:\.\./|modules/)[^)#]+)[^)]*\)`, readme) {
		if _, err := os.Stat(filepath.FromSlash(name)); err != nil {
			t.Errorf("README.md links to %s: %v", name, err)
		}
	}
}
