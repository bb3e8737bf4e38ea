package bicep_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// patience is how long a test waits for what must come, also on a busy machine.
const patience = 2 * time.Minute

// program builds a command of this module or of one that it needs.
func program(t testing.TB, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), filepath.Base(pkg))
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, pkg).CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// tokens are the words of a template that are to be replaced.
func tokens(text string) []string { return sorted(all(`(__[A-Z0-9_]+?__)`, text)) }

// interpolate evaluates a text of Bicep as far as the templates go: ${name}, and
// ${name ? 'a' : 'b'} where name is "true" or not. \${ is a literal ${.
func interpolate(t testing.TB, text string, vars map[string]string) string {
	t.Helper()
	return regexp.MustCompile(`\\?\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}`).ReplaceAllStringFunc(text, func(s string) string {
		if rest, escaped := strings.CutPrefix(s, `\`); escaped {
			return rest
		}
		name, choice, conditional := strings.Cut(s[2:len(s)-1], " ? ")
		value, known := vars[name]
		if !known {
			t.Fatalf("nothing is known of ${%s}", name)
		}
		if !conditional {
			return value
		}
		m := regexp.MustCompile(`^'(.*)' : '(.*)'$`).FindStringSubmatch(choice)
		if m == nil {
			t.Fatalf("cannot read %s", s)
		}
		if value == "true" {
			return m[1]
		}
		return m[2]
	})
}

// nodes are the addresses of the NATS nodes that main.bicep gives them by default.
func nodes(t testing.TB, n int) []string {
	t.Helper()
	main := read(t, "main.bicep")
	if !strings.Contains(main, "param addressPrefix string = '10.20.0.0/16'") ||
		!strings.Contains(main, "param nodesPrefix string = cidrSubnet(addressPrefix, 27, 32)") ||
		!strings.Contains(main, "[for i in range(0, natsNodes): cidrHost(nodesPrefix, 3 + i)]") {
		t.Fatal("the nodes have other addresses than this test, and README.md, think")
	}
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("10.20.4.%d", 4+i)) // the 33rd /27; cidrHost counts from 0
	}
	return list
}

// mode is one way to deploy.
type mode struct {
	name, natsMode, role string
	nodes                int
	vars                 map[string]string // of external
}

var modes = []mode{
	{name: "embedded", natsMode: "embedded", role: "all"},
	{name: "cluster of three, router", natsMode: "cluster", role: "router", nodes: 3},
	{name: "cluster of three, subscribers", natsMode: "cluster", role: "subscribers", nodes: 3},
	{name: "cluster of one", natsMode: "cluster", role: "router", nodes: 1},
	{name: "external with everything", natsMode: "external", role: "router", vars: map[string]string{
		"natsUser": "gridfan", "natsSyncAlways": "true", "natsPrivateCa": "true"}},
	{name: "external", natsMode: "external", role: "subscribers", vars: map[string]string{}},
}

// configuration renders gridfan.yaml as main.bicep does.
func configuration(t testing.TB, m mode) string {
	t.Helper()
	main := read(t, "main.bicep")
	var urls, monitors []string
	for _, ip := range nodes(t, m.nodes) {
		urls = append(urls, interpolate(t, one(t, `var clusterUrls = join\(map\(nodeAddresses, ip => '(.*)'\), ','\)`, main), map[string]string{"ip": ip}))
		monitors = append(monitors, interpolate(t, one(t, `var clusterMonitors = join\(map\(nodeAddresses, ip => '(.*)'\), ', '\)`, main), map[string]string{"ip": ip}))
	}
	vars := map[string]string{
		"clusterUrls": strings.Join(urls, ","), "clusterMonitors": strings.Join(monitors, ", "), "natsNodes": fmt.Sprint(m.nodes),
		"natsUrl": "nats://nats.example.com:4222", "natsReplicas": "3", "externalLogin": "", "natsSyncAlways": "false", "natsPrivateCa": "false",
	}
	maps.Copy(vars, m.vars)
	if vars["natsUser"] != "" {
		vars["externalLogin"] = interpolate(t, one(t, `var externalLogin = empty\(natsUser\) \? '' : '(.*)'\n`, main), vars)
	}
	text := read(t, "modules/gridfan.yaml")
	values := map[string]string{
		"__BROKER__":             interpolate(t, one(t, `(?m)^  `+m.natsMode+`: '(\{.*\})'$`, main), vars),
		"__STORAGE__":            one(t, `(?m)^param storageMaxBytes = '(\w+)'`, read(t, "main.dev.bicepparam")),
		"__ENVIRONMENT__":        "dev",
		"__TENANT__":             "11111111-2222-3333-4444-555555555555",
		"__AUTHORITY__":          "https://login.microsoftonline.com",
		"__WEBHOOK_APP_ID__":     "66666666-7777-8888-9999-000000000000",
		"__WEBHOOK_APP_URI__":    "api://66666666-7777-8888-9999-000000000000",
		"__DEADLETTERS__":        "https://stgridfanabcdefghijklm.blob.core.windows.net/",
		"__SERVICE_BUS__":        "sbns-gridfan-abcdefghijklm.servicebus.windows.net",
		"__IDENTITY_CLIENT_ID__": "99999999-8888-7777-6666-555555555555",
	}
	if d := cmp.Diff(tokens(text), sorted(all(`'(__[A-Z0-9_]+__)'`, main))); d != "" {
		t.Fatalf("words of gridfan.yaml (-), those that main.bicep replaces (+):\n%s", d)
	}
	for _, token := range tokens(text) {
		value, known := values[token]
		if !known {
			t.Fatalf("this test has nothing for %s", token)
		}
		text = strings.ReplaceAll(text, token, value)
	}
	return text
}

// secretValue is every secret of a test.
const secretValue = "0123456789abcdef0123456789abcdef"

// environment is what an app has in its environment, as app.bicep says.
func environment(t testing.TB) []string {
	t.Helper()
	list := os.Environ()
	for _, name := range variables(t) {
		list = append(list, name+"="+secretValue)
	}
	return list
}

// variables are the environment variables that app.bicep sets by itself.
func variables(t testing.TB) []string {
	app := read(t, "modules/app.bicep")
	return sorted(slices.Concat(all(`variable: '(\w+)'`, app), all(`\{ name: '([A-Z_]+)', value:`, app)))
}

// arguments are those of the container, as app.bicep has them.
func arguments(t testing.TB, role, file string) []string {
	t.Helper()
	var list []string
	for arg := range strings.SplitSeq(one(t, `(?m)^ +args: \[(.*)\]$`, read(t, "modules/app.bicep")), ", ") {
		switch arg {
		case "role":
			list = append(list, role)
		case "'/etc/gridfan/gridfan.yaml'":
			list = append(list, file)
		default:
			list = append(list, strings.Trim(arg, "'"))
		}
	}
	return list
}

// TestConfigurationIsValid has the program check what it is given in each mode.
func TestConfigurationIsValid(t *testing.T) {
	bin := program(t, "../cmd/gridfan")
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "gridfan.yaml")
			if err := os.WriteFile(file, []byte(configuration(t, m)), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), bin, "config", "check", "-c", file)
			cmd.Env = environment(t)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("gridfan config check: %v\n%s\n%s", err, out, configuration(t, m))
			}
			if strings.Contains(string(out), "warning") {
				t.Errorf("gridfan config check warns:\n%s", out)
			}
		})
	}
}

// free is an address of this machine where nobody listens.
func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestProgramAgrees starts the program with the arguments, the environment and the
// configuration that app.bicep gives it, asks what the probes ask, and has wait-ready.sh
// wait for it: alone, and as a router whose NATS nodes are still being made.
func TestProgramAgrees(t *testing.T) {
	bin := program(t, "../cmd/gridfan")
	for _, m := range modes[:2] {
		t.Run(m.natsMode, func(t *testing.T) { testProgram(t, bin, m) })
	}
}

func testProgram(t *testing.T, bin string, m mode) {
	dir := t.TempDir()
	brokertest.NewAuthority(t).Node(dir, "127.0.0.1")
	app := read(t, "modules/app.bicep")
	text := configuration(t, m)
	public, admin := free(t), free(t)
	moved := map[string]string{
		`addr: ":` + one(t, `var publicPort = (\d+)`, app) + `"`: `addr: "` + public + `"`,
		`addr: ":` + one(t, `var adminPort = (\d+)`, app) + `"`:  `addr: "` + admin + `"`,
		"sbns-gridfan-abcdefghijklm.servicebus.windows.net":      "localhost", // where nothing is
		"maxBytes: 1GiB": "maxBytes: 256MiB",
	}
	if m.natsMode == "embedded" {
		moved["dir: /var/lib/gridfan,"] = "dir: " + filepath.Join(dir, "data") + ", listen: none,"
	} else {
		nowhere := free(t)
		for _, ip := range nodes(t, m.nodes) {
			moved[ip+":4222"], moved[ip+":8222"] = nowhere, nowhere
		}
		moved["/etc/gridfan/nats-ca.pem"] = filepath.Join(dir, "ca.pem")
	}
	for from, to := range moved {
		if !strings.Contains(text, from) {
			t.Fatalf("the configuration has no %s:\n%s", from, text)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	file := filepath.Join(dir, "gridfan.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	// Where there are tokens for an identity, in Azure.
	tokens := httptest.NewServer(http.NotFoundHandler())
	defer tokens.Close()
	var logged bytes.Buffer // read when the program has ended
	cmd := exec.CommandContext(t.Context(), bin, arguments(t, m.role, file)...)
	cmd.Env = append(environment(t), "IDENTITY_ENDPOINT="+tokens.URL, "IDENTITY_HEADER=x")
	cmd.Stderr = &logged
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	get := func(path, token string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	wait := func(what string, done func() bool) {
		for deadline := time.Now().Add(patience); !done(); {
			select {
			case err := <-ended:
				t.Fatalf("gridfan %v ended: %v\n%s", cmd.Args[1:], err, &logged)
			case <-time.After(50 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill()
				<-ended
				t.Fatalf("%s:\n%s", what, &logged)
			}
		}
	}
	probes := all(`httpGet: \{ path: '([^']+)', port: adminPort \}`, app)
	if len(probes) != 3 {
		t.Errorf("there are %d probes, want 3", len(probes))
	}
	for _, path := range probes {
		wait("probe "+path+" does not succeed", func() bool { return get(path, "") == http.StatusOK })
	}
	if m.natsMode == "embedded" {
		wait("the admin API does not answer its token", func() bool { return get("/api/v1/status", secretValue) == http.StatusOK })
	}
	if code := get("/api/v1/status", ""); code == http.StatusOK {
		t.Error("the admin API answers without a token")
	}
	sources := strings.Join(all(`'(\w+)'`, one(t, `var pushedSources = \[(.*)\]`, read(t, "main.bicep"))), " ")
	if out, err := waitReady(t, "http://"+public, sources); err != nil {
		t.Errorf("wait-ready.sh: %v\n%s", err, out)
	}

	_ = cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-ended:
		if err != nil && m.natsMode == "embedded" { // without its broker it says so
			t.Errorf("it ends with %v:\n%s", err, &logged)
		}
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-ended
		t.Errorf("it does not end:\n%s", &logged)
	}
}

// TestNames compares the names that parts of the deployment share.
func TestNames(t *testing.T) {
	main, app, template := read(t, "main.bicep"), read(t, "modules/app.bicep"), read(t, "modules/gridfan.yaml")

	// Environment: what the configuration asks for, and what is set.
	asked := sorted(append(all(`\$\{env:(\w+)\}`, template), all(`\$\{env:(\w+)\}`, main)...))
	if d := cmp.Diff(sorted(append(asked, "AZURE_CLIENT_ID")), variables(t)); d != "" {
		t.Errorf("variables that the configuration refers to (-), that app.bicep sets (+):\n%s", d)
	}

	// Secrets: what apps and nodes read is what main.bicep writes.
	written := all(`(?m)^      '([\w-]+)': \w+$`, main)
	readFrom := slices.Concat(all(`\{ name: '([\w-]+)', variable:`, app), all(`\['(nats-ca)'\] : \[\]`, app), all(`"(nats-[\w-]+)": "`, read(t, "modules/cloud-init.yaml")))
	if d := cmp.Diff(sorted(written), sorted(readFrom)); d != "" {
		t.Errorf("secrets that main.bicep writes (-), that apps and nodes read (+):\n%s", d)
	}

	// Ports: of the listeners, and of NATS and the rules of the network.
	for listener, port := range map[string]string{"public": one(t, `var publicPort = (\d+)`, app), "admin": one(t, `var adminPort = (\d+)`, app)} {
		if got := one(t, `(?m)^  `+listener+`: \{ addr: ":(\d+)"`, template); got != port {
			t.Errorf("gridfan's %s listener has port %s, app.bicep says %s", listener, got, port)
		}
	}
	if !strings.Contains(app, "targetPort: publicPort") || strings.Contains(app, "additionalPortMappings") {
		t.Error("the ingress is to lead to the public port and to no other")
	}
	conf, network := read(t, "modules/nats.conf.tmpl"), read(t, "modules/network.bicep")
	open := sorted(all(`'(\d{4})'`, strings.Join(all(`destinationPortRanges: \[(.*)\]`, network), " ")))
	if d := cmp.Diff(sorted(all(`"__IP__:(\d+)"`, conf)), open); d != "" {
		t.Errorf("ports of the NATS nodes (-), that the network lets through (+):\n%s", d)
	}
	if got := sorted(all(`(?:tls|http)://\$\{ip\}:(\d+)`, main)); !slices.Equal(got, []string{"4222", "8222"}) {
		t.Errorf("gridfan reaches the nodes at %v", got)
	}

	// Paths: of what is mounted.
	mounts := map[string]string{}
	for _, m := range regexp.MustCompile(`volumeName: (\w+), mountPath: '([^']+)'`).FindAllStringSubmatch(app, -1) {
		mounts[m[1]] = m[2]
	}
	for _, file := range all(`path: '(gridfan\.yaml|nats-ca\.pem)'`, app) {
		if path := mounts["configurationVolume"] + "/" + file; !strings.Contains(app+main, path) {
			t.Errorf("nobody reads %s", path)
		}
	}
	if !strings.Contains(main, "dir: "+mounts["dataVolume"]+", ephemeral: true ") {
		t.Errorf("the store is not in %s, or not said to go with the replica", mounts["dataVolume"])
	}

	// Times: the program stops before the platform ends it.
	grace, err := time.ParseDuration(one(t, `(?m)^shutdown: \{ grace: (\w+) \}$`, read(t, "modules/gridfan.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	platform, err := time.ParseDuration(one(t, `terminationGracePeriodSeconds: (\d+)`, app) + "s")
	if err != nil {
		t.Fatal(err)
	}
	if grace+5*time.Second > platform {
		t.Errorf("gridfan takes %s to stop, and the platform ends it after %s", grace, platform)
	}

	// Sources and queues.
	var rendered struct {
		Sources map[string]struct {
			Push    any
			Receive struct {
				ServiceBus struct{ Queue string } `yaml:"serviceBus"`
			}
		}
	}
	if err := yaml.Unmarshal([]byte(configuration(t, modes[0])), &rendered); err != nil {
		t.Fatal(err)
	}
	var pushed, queues []string
	for name, s := range rendered.Sources {
		if s.Push != nil {
			pushed = append(pushed, name)
		}
		if q := s.Receive.ServiceBus.Queue; q != "" {
			queues = append(queues, q)
		}
	}
	list := func(name string) []string { return sorted(all(`'(\w+)'`, one(t, `var `+name+` = \[(.*)\]`, main))) }
	if d := cmp.Diff(sorted(pushed), list("pushedSources")); d != "" {
		t.Errorf("sources that are pushed to (-), that wait-ready.sh asks (+):\n%s", d)
	}
	if d := cmp.Diff(sorted(pushed), sorted(all(`(?m)^    source: '(\w+)'$`, read(t, "subscriptions.bicepparam")))); d != "" {
		t.Errorf("sources that are pushed to (-), that have a subscription (+):\n%s", d)
	}
	if d := cmp.Diff(sorted(queues), list("queueNames")); d != "" {
		t.Errorf("queues that gridfan receives from (-), that there are (+):\n%s", d)
	}

	// What a scaler asks about is what the broker has.
	for pattern, where := range map[string]string{
		`account: '(\w+)'`: `(?m)^  (\w+) \{\n    jetstream: enabled`,
	} {
		if got, want := one(t, pattern, app), one(t, where, conf); got != want {
			t.Errorf("the scaler asks for the account %s, the servers have %s", got, want)
		}
	}
	if stream := one(t, `stream: '(\w+)'`, app); !strings.Contains(read(t, "../infra/broker/streams.go")+read(t, "../infra/broker/store.go")+read(t, "../infra/broker/broker.go"), `"`+stream+`"`) {
		t.Errorf("gridfan has no stream %s", stream)
	}
}

// TestCommands holds that the variables of the command line that README.md and the apps
// rely on are the program's.
func TestCommands(t *testing.T) {
	for name, file := range map[string]string{"GRIDFAN_ADMIN_TOKEN": "../cmd/internal/cli/cli.go"} {
		if !strings.Contains(read(t, file), `"`+name+`"`) {
			t.Errorf("%s does not read %s", file, name)
		}
	}
}

// TestMessages looks for each message of the log that alerts and the workbook wait for in
// the program.
func TestMessages(t *testing.T) {
	var wanted []string
	for _, list := range all(`(?m)^var (?:serious|behind) = \[(.*)\]$`, read(t, "modules/alerts.bicep")) {
		wanted = append(wanted, all(`'([^']+)'`, list)...)
	}
	for _, list := range all(`what in \(([^)]*)\)`, read(t, "modules/workbook.json")) {
		wanted = append(wanted, all(`\\"([^\\]+)\\"`, list)...)
	}
	var source strings.Builder
	for _, dir := range []string{"../router", "../subscribers", "../infra", "../cmd/internal"} {
		err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
				source.WriteString(read(t, name))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	code := source.String()
	if len(wanted) < 20 {
		t.Errorf("only %v", wanted)
	}
	for _, what := range sorted(wanted) {
		if strings.Contains(code, `"`+what+`"`) {
			continue
		}
		// subscriber.retries-full is put together from its parts.
		parts := regexp.MustCompile(`^subscriber\.(\w+)-full$`).FindStringSubmatch(what)
		if parts == nil || !strings.Contains(code, `"subscriber."+what+"-full"`) || !strings.Contains(code, `report("`+parts[1]+`"`) {
			t.Errorf("gridfan logs no %q", what)
		}
	}
}

// TestNodes renders the files of a NATS node as nats-vm.bicep does. The server takes its
// configuration; cloud-init is YAML that Azure has room for.
func TestNodes(t *testing.T) {
	module := read(t, "modules/nats-vm.bicep")
	server := program(t, "github.com/nats-io/nats-server/v2")
	for _, n := range []int{1, 3} {
		dir := t.TempDir()
		ips := nodes(t, n)
		var routes []string
		for _, ip := range ips {
			routes = append(routes, interpolate(t, one(t, `var routes = join\(map\(allAddresses, ip => '(.*)'\), ', '\)`, module), map[string]string{"ip": ip}))
		}
		conf := read(t, "modules/nats.conf.tmpl")
		if n == 1 {
			cut := strings.ReplaceAll(one(t, `length\(allAddresses\) > 1 \? template : split\(template, '(.*)'\)\[0\]`, module), `\n`, "\n")
			before, _, found := strings.Cut(conf, cut)
			if !found {
				t.Fatalf("nats.conf.tmpl has no %q", cut)
			}
			conf = before
		}
		values := map[string]string{"__NODE__": "nats-1", "__ZONE__": "1", "__IP__": ips[0], "__ROUTES__": strings.Join(routes, ", "), "__CLUSTER__": "gridfan-abcdefghijklm"}
		for _, token := range tokens(read(t, "modules/nats.conf.tmpl")) {
			if values[token] == "" || !strings.Contains(module, "'"+token+"'") {
				t.Errorf("nats-vm.bicep does not replace %s", token)
			}
		}
		for token, value := range values {
			conf = strings.ReplaceAll(conf, token, value)
		}

		init := read(t, "modules/cloud-init.yaml")
		values = map[string]string{
			"__NATS_CONF__": base64.StdEncoding.EncodeToString([]byte(conf)), "__VAULT_URL__": "https://kv-gridfan-abcdefghijklm.vault.azure.net/",
			"__IDENTITY_CLIENT_ID__": "99999999-8888-7777-6666-555555555555", "__NATS_VERSION__": "2.15.2",
			"__NATS_SHA256_AMD64__": strings.Repeat("a", 64), "__NATS_SHA256_ARM64__": strings.Repeat("b", 64),
		}
		for _, token := range tokens(init) {
			if values[token] == "" || !strings.Contains(module, "'"+token+"'") {
				t.Errorf("nats-vm.bicep does not replace %s", token)
			}
			init = strings.ReplaceAll(init, token, values[token])
		}
		var parsed struct {
			WriteFiles []struct{ Path, Encoding, Content string } `yaml:"write_files"`
		}
		if err := yaml.Unmarshal([]byte(init), &parsed); err != nil {
			t.Fatalf("cloud-init.yaml: %v", err)
		}
		// 64 KB in base64 (learn.microsoft.com/azure/virtual-machines/custom-data, read 2026-11).
		if size := base64.StdEncoding.EncodedLen(len(init)); size > 64_000 {
			t.Errorf("cloud-init comes to %d bytes in base64, Azure takes 64 KB", size)
		}
		got := ""
		for _, f := range parsed.WriteFiles {
			if f.Path == "/etc/nats/nats.conf" && f.Encoding == "b64" {
				b, err := base64.StdEncoding.DecodeString(f.Content)
				if err != nil {
					t.Fatal(err)
				}
				got = string(b)
			}
		}
		if got != conf {
			t.Fatal("cloud-init does not write nats.conf as it was rendered")
		}

		brokertest.NewAuthority(t).Node(dir, ips...)
		got = strings.ReplaceAll(got, "/etc/nats/certs", dir)
		got = strings.ReplaceAll(got, `"/var/lib/nats"`, `"`+filepath.Join(dir, "store")+`"`)
		file := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), server, "-t", "-c", file)
		cmd.Env = []string{
			`NATS_PASSWORD="gridfan-gridfan-gridfan"`, `NATS_SYS_PASSWORD="sys-sys-sys-sys"`, `NATS_ROUTE_PASSWORD="route-route-route"`,
			"NATS_ROUTES=[" + strings.ReplaceAll(strings.Join(routes, ", "), "tls://", "tls://route:route-route-route@") + "]", "NATS_MAX_STORE=21474836480",
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("nats-server -t with %d nodes: %v\n%s", n, err, out)
		}
	}
}

// answer is a handshake that allows Event Grid.
func answer(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodOptions && r.Header.Get("WebHook-Request-Origin") == "eventgrid.azure.net" {
		w.Header().Set("WebHook-Allowed-Origin", "eventgrid.azure.net")
	}
}

// waitReady runs wait-ready.sh.
func waitReady(t testing.TB, url, sources string, env ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "./wait-ready.sh")
	cmd.WaitDelay = time.Second // for a curl that holds the pipe
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "ROUTER_URL=" + url, "INGRESS_SOURCES=" + sources, "WAIT_INTERVAL=0"}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestWaitReady(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("wait-ready.sh needs curl; install it")
	}
	var mu sync.Mutex
	var asked []string // in order; mu guards it
	tests := []struct {
		name    string
		handler func(n int, w http.ResponseWriter, r *http.Request)
		sources string
		env     []string
		code    int
		says    []string
		asked   []string
	}{
		{
			name:    "answers",
			handler: func(_ int, w http.ResponseWriter, r *http.Request) { answer(w, r) },
			sources: "fno events", asked: []string{"/ingress/fno", "/ingress/events"},
			says: []string{"/ingress/fno answers", "/ingress/events answers"},
		},
		{
			name: "answers everybody",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("webhook-allowed-origin", "*")
			},
			sources: "fno", asked: []string{"/ingress/fno"},
		},
		{
			name: "not yet",
			handler: func(n int, w http.ResponseWriter, r *http.Request) {
				if n < 3 {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				answer(w, r)
			},
			sources: "fno", asked: []string{"/ingress/fno", "/ingress/fno", "/ingress/fno", "/ingress/fno"},
			says: []string{"waiting for", "503"},
		},
		{
			name: "hangs at first",
			handler: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 0 {
					<-r.Context().Done() // until the script gives up
					return
				}
				answer(w, r)
			},
			sources: "fno", env: []string{"WAIT_TIMEOUT=1"}, asked: []string{"/ingress/fno", "/ingress/fno"},
			says: []string{"timed out", "answers"},
		},
		{
			name:    "refuses",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
			sources: "fno", env: []string{"WAIT_SECONDS=0"}, code: 1,
			says: []string{"does not answer the handshake", "401", "az containerapp logs"},
		},
		{
			name: "allows somebody else",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WebHook-Allowed-Origin", "example.com")
			},
			sources: "fno", env: []string{"WAIT_SECONDS=0"}, code: 1, says: []string{`"example.com"`, "not eventgrid.azure.net"},
		},
		{
			name:    "answers without the header, as a placeholder image does",
			handler: func(int, http.ResponseWriter, *http.Request) {},
			sources: "fno", env: []string{"WAIT_SECONDS=0"}, code: 1, says: []string{"does not answer the handshake"},
		},
		{
			name: "one of two",
			handler: func(_ int, w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/ingress/fno" {
					answer(w, r)
					return
				}
				w.WriteHeader(http.StatusNotFound)
			},
			sources: "fno events", env: []string{"WAIT_SECONDS=0"}, code: 1, says: []string{"/ingress/fno answers", "/ingress/events does not answer"},
		},
		{name: "was told nothing", sources: "", code: 2, says: []string{"ROUTER_URL and INGRESS_SOURCES"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked = nil
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				n := len(asked)
				asked = append(asked, r.URL.Path)
				mu.Unlock()
				tt.handler(n, w, r)
			}))
			out, err := waitReady(t, srv.URL+"/", tt.sources, tt.env...)
			srv.Close()
			code := 0
			if e, ok := errors.AsType[*exec.ExitError](err); ok {
				code = e.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tt.code {
				t.Errorf("it ends with %d, want %d:\n%s", code, tt.code, out)
			}
			for _, s := range tt.says {
				if !strings.Contains(out, s) {
					t.Errorf("it does not say %q:\n%s", s, out)
				}
			}
			if tt.asked != nil && !slices.Equal(asked, tt.asked) {
				t.Errorf("it asked %v, want %v", asked, tt.asked)
			}
		})
	}

	t.Run("nobody is there", func(t *testing.T) {
		srv := httptest.NewServer(http.NotFoundHandler())
		url := srv.URL
		srv.Close()
		out, err := waitReady(t, url, "fno", "WAIT_SECONDS=0")
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 1 || !strings.Contains(out, "curl:") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
