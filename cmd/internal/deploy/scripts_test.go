//go:build deploy

package deploy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// These run the scripts themselves, with the programs that they call: openssl, python3,
// curl and, for the disk, loop devices. "make deploy" sees to those.

func script(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustScript(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := script(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The certificate is for every node, in both directions, and what is printed brings
// everything into the environment without showing it.
func TestMakeCerts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	hosts := []string{"10.20.4.4", "10.20.4.5", "nats-3.example.com", "fd00::1"}
	out := mustScript(t, nil, absolute(t, "infra/nats/make-certs.sh"), append([]string{dir}, hosts...)...)
	names := []string{"GRIDFAN_NATS_CA", "GRIDFAN_NATS_NODE_CERT", "GRIDFAN_NATS_NODE_KEY", "GRIDFAN_NATS_PASSWORD", "GRIDFAN_NATS_SYS_PASSWORD", "GRIDFAN_NATS_ROUTE_PASSWORD", "GRIDFAN_ADMIN_TOKEN"}
	exported := map[string]string{}
	for _, name := range names {
		v := mustScript(t, nil, "sh", "-c", out+"\nprintenv "+name)
		if v = strings.TrimSpace(v); v == "" || strings.Contains(out, v) {
			t.Errorf("%s is %q; the output:\n%s", name, v, out)
		}
		exported[name] = v
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(exported["GRIDFAN_NATS_CA"])) {
		t.Fatal("no authority")
	}
	pair, err := tls.X509KeyPair([]byte(exported["GRIDFAN_NATS_NODE_CERT"]), []byte(exported["GRIDFAN_NATS_NODE_KEY"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts {
		for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	}
	if pair.Leaf.IsCA {
		t.Error("a node can sign certificates")
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if info, _ := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Again: the nodes get another certificate, the rest stays.
	again := mustScript(t, nil, absolute(t, "infra/nats/make-certs.sh"), append([]string{dir}, hosts...)...)
	for _, name := range names {
		v := strings.TrimSpace(mustScript(t, nil, "sh", "-c", again+"\nprintenv "+name))
		if renewed := v != exported[name]; renewed != strings.Contains(name, "_NODE_") {
			t.Errorf("%s: renewed is %v", name, renewed)
		}
	}
	for _, bad := range []string{"a b", "$(id)", "a'", ""} {
		if out, err := script(t, nil, absolute(t, "infra/nats/make-certs.sh"), dir, bad); err == nil {
			t.Errorf("%q is taken for a host:\n%s", bad, out)
		}
	}
}

// render.sh gives what Bicep and cloud-init give.
func TestRenderScript(t *testing.T) {
	secrets := t.TempDir()
	mustScript(t, nil, absolute(t, "infra/nats/make-certs.sh"), secrets, "127.0.0.1")
	password := func(name string) string {
		return strings.TrimSpace(content(t, filepath.Join(secrets, "passwords", name)))
	}
	for _, nodes := range []int{3, 1} {
		var routes []string
		hosts := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}[:nodes]
		for _, h := range hosts {
			routes = append(routes, fmt.Sprintf(`"tls://%s:6222"`, h))
		}
		out := t.TempDir()
		mustScript(t, []string{"MAX_STORE=21474836480"}, absolute(t, "infra/nats/render.sh"), append([]string{secrets, out, "nats-1", "1", "10.0.0.1"}, hosts...)...)
		want := render(t, read(t, "bicep/modules/nats.conf.tmpl"), map[string]string{"NODE": "nats-1", "ZONE": "1", "IP": "10.0.0.1", "ROUTES": strings.Join(routes, ", "), "CLUSTER": "gridfan"})
		if nodes == 1 {
			want, _, _ = strings.Cut(want, "cluster {\n")
		}
		got := content(t, filepath.Join(out, "nats.conf"))
		if got != want {
			t.Errorf("%d nodes:\n%s\nwant\n%s", nodes, got, want)
		}
		wantEnv := map[string]string{}
		for _, e := range environment(got) {
			k, v, _ := strings.Cut(e, "=")
			wantEnv[k] = strings.NewReplacer(gridfanPassword, password("gridfan"), sysPassword, password("sys"), routePassword, password("route")).Replace(v)
		}
		env := envFile(t, filepath.Join(out, "nats.env"))
		delete(wantEnv, "NATS_ROUTES")
		if nodes > 1 && !strings.Contains(env["NATS_ROUTES"], `"tls://route:`+password("route")+`@10.0.0.2:6222"`) {
			t.Errorf("routes: %s", env["NATS_ROUTES"])
		}
		delete(env, "NATS_ROUTES")
		if !maps.Equal(env, wantEnv) {
			t.Errorf("environment %v, want %v", env, wantEnv)
		}
	}
	for _, env := range []string{"MAX_STORE=", "MAX_STORE=10GB"} {
		if out, err := script(t, []string{env}, absolute(t, "infra/nats/render.sh"), secrets, t.TempDir(), "nats-1", "1", "h", "h"); err == nil || !strings.Contains(out, "MAX_STORE") {
			t.Errorf("%s: %v %s", env, err, out)
		}
	}
}

// envFile reads a file as systemd reads one, as far as it is used here.
func envFile(t *testing.T, path string) map[string]string {
	t.Helper()
	env := map[string]string{}
	for line := range strings.Lines(content(t, path)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || len(v) < 2 || v[0] != '\'' || v[len(v)-1] != '\'' || strings.Contains(v[1:len(v)-1], "'") {
			t.Fatalf("%s: line %q", path, line)
		}
		env[k] = v[1 : len(v)-1]
	}
	return env
}

// machine is a folder that the scripts of cloud-init take for the root of a node.
type machine struct {
	t       *testing.T
	dir     string
	scripts string
	env     []string
}

func newMachine(t *testing.T, conf string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), scripts: t.TempDir()}
	_, files, _ := cloudInit(t, conf)
	for path, f := range files {
		if name, ok := strings.CutPrefix(path, "/usr/local/sbin/"); ok {
			if err := os.WriteFile(filepath.Join(m.scripts, name), []byte(f.Content), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, d := range []string{"etc/nats", "var/lib/nats", "var/run"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("etc/nats/nats.conf", conf)
	m.env = []string{"NATS_ROOT=" + m.dir}
	return m
}

func (m *machine) path(p string) string { return filepath.Join(m.dir, p) }

func (m *machine) write(p, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(p), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) run(name string, args ...string) (string, error) {
	m.t.Helper()
	return script(m.t, m.env, filepath.Join(m.scripts, name), args...)
}

// vault is Azure as a node sees it: the token service of the machine, and a key vault.
type vault struct {
	mu      sync.Mutex // guards all below
	secrets map[string]string
	fail    []int // statuses of the next answers of the vault
	asked   []string
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	answer := func(body any) { _ = json.NewEncoder(w).Encode(body) }
	v.asked = append(v.asked, r.URL.RequestURI())
	if r.URL.Path == "/metadata/identity/oauth2/token" {
		q := r.URL.Query()
		if r.Header.Get("Metadata") != "true" || q.Get("api-version") != "2018-02-01" || q.Get("resource") != "https://vault.azure.net" || q.Get("client_id") != "the-client" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		answer(map[string]string{"access_token": "the-token", "token_type": "Bearer"})
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/secrets/")
	value, ok := v.secrets[name]
	switch {
	case r.Header.Get("Authorization") != "Bearer the-token" || r.URL.Query().Get("api-version") == "":
		w.WriteHeader(http.StatusUnauthorized)
	case len(v.fail) > 0:
		w.WriteHeader(v.fail[0])
		v.fail = v.fail[1:]
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	default:
		answer(map[string]string{"value": value, "id": "https://kv.vault.azure.net/secrets/" + name})
	}
}

func (v *vault) set(name, value string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secrets[name] = value
}

func (v *vault) files(t *testing.T, dir string) {
	t.Helper()
	v.set("nats-ca", content(t, filepath.Join(dir, "ca.pem")))
	v.set("nats-node-cert", content(t, filepath.Join(dir, "node.pem")))
	v.set("nats-node-key", content(t, filepath.Join(dir, "node-key.pem")))
}

func TestNATSSecrets(t *testing.T) {
	c := zoned(t, "1", "2", "3")
	n := c.nodes[0]
	m := newMachine(t, content(t, n.conf))
	v := &vault{secrets: map[string]string{}}
	azure := httptest.NewServer(v)
	defer azure.Close()
	reloads := filepath.Join(t.TempDir(), "reloads")
	m.env = append(m.env, "VAULT_URL="+azure.URL+"/", "NATS_IMDS="+azure.URL, "NATS_RESOURCE=https://vault.azure.net", "IDENTITY_CLIENT_ID=the-client",
		"NATS_WAIT=0.01", "NATS_RELOAD=tee -a "+reloads)
	v.files(t, n.certs)
	v.set("nats-gridfan-password", gridfanPassword)
	v.set("nats-sys-password", sysPassword)
	v.fail = []int{http.StatusForbidden, http.StatusServiceUnavailable}

	// It waits for what is not there yet.
	done := make(chan struct{})
	var out string
	var err error
	go func() {
		defer close(done)
		out, err = m.run("nats-secrets", "boot")
	}()
	eventually(t, "the last secret is asked for", func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		if !slices.ContainsFunc(v.asked, func(s string) bool { return strings.HasPrefix(s, "/secrets/nats-route-password") }) {
			return fmt.Errorf("%d requests", len(v.asked))
		}
		return nil
	})
	v.set("nats-route-password", routePassword)
	<-done
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"HTTP 403; the identity may not read it (yet)", "HTTP 503", "nats-route-password: HTTP 404; it is not there (yet)"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	for _, s := range []string{gridfanPassword, "PRIVATE", "the-token"} {
		if strings.Contains(out, s) {
			t.Errorf("a secret shows:\n%s", out)
		}
	}
	// What it wrote is what the tests of the cluster use, and a server starts with it.
	env := envFile(t, m.path("etc/nats/nats.env"))
	for _, e := range n.env {
		k, want, _ := strings.Cut(e, "=")
		if k != "NATS_MAX_STORE" && env[k] != want {
			t.Errorf("%s is %q, want %q", k, env[k], want)
		}
	}
	if n, err := strconv.ParseInt(env["NATS_MAX_STORE"], 10, 64); err != nil || n < 1<<20 {
		t.Errorf("NATS_MAX_STORE is %q", env["NATS_MAX_STORE"])
	}
	n.env = nil
	for k, v := range env {
		n.env = append(n.env, k+"="+v)
	}
	if out, err := n.command("-t").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if info, err := os.Stat(m.path("etc/nats/nats.env")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("nats.env: %v %v", info.Mode(), err)
	}

	renew := func(want string, fails bool) {
		t.Helper()
		out, err := m.run("nats-secrets", "renew")
		if (err != nil) != fails || !strings.Contains(out, want) || want == "" && out != "" {
			t.Errorf("renew: %v %q, want %q", err, out, want)
		}
	}
	cert := func() string { return content(t, m.path("etc/nats/certs/node.pem")) }
	renew("", false)
	before := cert()
	renewed, foreign := t.TempDir(), t.TempDir()
	c.ca.Node(renewed, "127.0.0.1")
	brokertest.NewAuthority(t).Node(foreign, "127.0.0.1")
	// The key of a new certificate comes a moment later.
	v.set("nats-node-cert", content(t, filepath.Join(renewed, "node.pem")))
	renew("nats-node-cert and nats-node-key", true)
	v.files(t, foreign)
	v.set("nats-ca", string(c.ca.PEM))
	renew("not of the authority", true)
	if cert() != before {
		t.Error("a certificate that does not fit is taken")
	}
	v.files(t, renewed)
	renew("new certificates", false)
	if cert() == before {
		t.Error("the new certificate is not taken")
	}
	if _, err := os.Stat(reloads); err != nil {
		t.Error("the server is not told")
	}
	// New passwords wait for a restart of the operator's.
	v.set("nats-gridfan-password", "another-another-another")
	renew("restart the nodes, one after another", false)
	if !strings.Contains(content(t, m.path("etc/nats/nats.env")), gridfanPassword) {
		t.Error("the new password is taken without a restart")
	}
	if out, err := m.run("nats-secrets", "boot"); err != nil || !strings.Contains(content(t, m.path("etc/nats/nats.env")), "another-another") {
		t.Errorf("boot: %v\n%s", err, out)
	}
	// A password that would break the configuration is refused, and a node that has been
	// up starts with what it has; also when Azure is away.
	v.set("nats-gridfan-password", `it's "quoted" $HERE`)
	if out, err := m.run("nats-secrets", "boot"); err != nil || !strings.Contains(out, "nats-gridfan-password: want at least 16") || !strings.Contains(out, "going on") {
		t.Errorf("boot: %v\n%s", err, out)
	}
	azure.Close()
	if out, err := m.run("nats-secrets", "boot"); err != nil || !strings.Contains(out, "going on") {
		t.Errorf("boot without Azure: %v\n%s", err, out)
	}
}

func TestNATSInstall(t *testing.T) {
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64"}[runtime.GOARCH]
	if arch == "" {
		t.Fatalf("nats-server is not installed on %s", runtime.GOARCH)
	}
	m := newMachine(t, "")
	releases := t.TempDir()
	release := func(version string) (sum string) {
		t.Helper()
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		body := "#!/bin/sh\necho nats-server: v" + version + "\n"
		name := fmt.Sprintf("nats-server-v%s-linux-%s", version, arch)
		for _, f := range []string{"README.md", "nats-server"} {
			if err := w.WriteHeader(&tar.Header{Name: name + "/" + f, Mode: 0o755, Size: int64(len(body)), Uid: 1001, Gid: 1001}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(releases, "v"+version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(releases, "v"+version, name+".tar.gz"), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		s := sha256.Sum256(b.Bytes())
		return hex.EncodeToString(s[:])
	}
	binary := filepath.Join(t.TempDir(), "nats-server")
	install := func(version, sum string) (string, error) {
		m.env = []string{"NATS_RELEASES=file://" + releases, "NATS_VERSION=" + version, "NATS_SHA256_AMD64=" + sum, "NATS_SHA256_ARM64=" + sum}
		return m.run("nats-install", binary)
	}
	one, two := release("2.15.1"), release("2.15.2")
	if out, err := install("2.15.1", two); err == nil || !strings.Contains(out, "nothing is installed") {
		t.Errorf("a wrong sum: %v\n%s", err, out)
	}
	if _, err := os.Stat(binary); err == nil {
		t.Error("an archive with a wrong sum is installed")
	}
	for _, step := range []struct{ version, sum, want string }{
		{"2.15.1", one, "installed nats-server: v2.15.1"}, {"2.15.1", one, ""}, {"2.15.2", two, "installed nats-server: v2.15.2"},
	} {
		if out, err := install(step.version, step.sum); err != nil || strings.TrimSpace(out) != step.want {
			t.Errorf("%s: %v %q, want %q", step.version, err, out, step.want)
		}
	}
	if out := mustScript(t, nil, binary); strings.TrimSpace(out) != "nats-server: v2.15.2" {
		t.Errorf("installed is %q", out)
	}
}

// A node reboots in its hour, and only while all are well.
func TestNATSReboot(t *testing.T) {
	status := http.StatusOK
	peers := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer peers.Close()
	m := newMachine(t, "server_name: \"nats-2\"\n  #routes: [ \"tls://127.0.0.1:6222\", \"tls://127.0.0.1:6223\" ]\n")
	_, port, _ := strings.Cut(strings.TrimPrefix(peers.URL, "http://"), ":")
	base := append(m.env, "NATS_MONITORING_PORT="+port, "NATS_REBOOT=echo reboot now")
	reboot := func(hour int, want bool, fails bool) {
		t.Helper()
		m.env = append(slices.Clone(base), "NATS_HOUR="+strconv.Itoa(hour))
		out, err := m.run("nats-reboot")
		if strings.Contains(out, "reboot now") != want || (err != nil) != fails {
			t.Errorf("%d o'clock: %v %q", hour, err, out)
		}
	}
	reboot(3, false, false) // nothing to do
	m.write("var/run/reboot-required", "")
	reboot(2, false, false)
	reboot(4, false, false)
	reboot(3, true, false)
	status = http.StatusServiceUnavailable
	reboot(3, false, true)
	peers.Close()
	reboot(3, false, true)
}

// The data disk: an empty one is formatted, one of a node's is mounted, and anything else
// is left alone.
func TestNATSDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("loop devices need root: run it with make deploy")
	}
	m := newMachine(t, "")
	// The user of the unit is not on this machine.
	stubs := t.TempDir()
	if err := os.WriteFile(filepath.Join(stubs, "chown"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.env = []string{"PATH=" + stubs + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}
	loop := func() string {
		t.Helper()
		image := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 64<<20); err != nil {
			t.Fatal(err)
		}
		device := strings.TrimSpace(mustScript(t, nil, "losetup", "--find", "--show", image))
		t.Cleanup(func() { mustScript(t, nil, "losetup", "--detach", device) })
		return device
	}
	mount := func(device string) (dir, out string, err error) {
		t.Helper()
		dir = t.TempDir()
		out, err = m.run("nats-disk", dir, "/dev/disk/not-there", device)
		if err == nil {
			t.Cleanup(func() { _, _ = script(t, nil, "umount", dir) })
		}
		return dir, out, err
	}
	device := loop()
	dir, out, err := mount(device)
	if err != nil || !strings.Contains(out, "formatting the empty disk") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "store"), []byte("events"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := m.run("nats-disk", dir, device); err != nil || out != "" {
		t.Errorf("mounted already: %v %q", err, out)
	}
	mustScript(t, nil, "umount", dir)
	dir, out, err = mount(device)
	if err != nil || strings.Contains(out, "formatting") {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := content(t, filepath.Join(dir, "store")); got != "events" {
		t.Errorf("the store has %q", got)
	}
	refused := func(name string, spoil func(device string)) {
		t.Helper()
		device := loop()
		spoil(device)
		before := mustScript(t, nil, "sha256sum", device)
		if _, out, err := mount(device); err == nil || !strings.Contains(out, "left alone") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if mustScript(t, nil, "sha256sum", device) != before {
			t.Errorf("%s: the disk was written to", name)
		}
	}
	refused("somebody else's file system", func(d string) { mustScript(t, m.env, "mkfs.ext4", "-q", "-L", "theirs", d) })
	refused("swap", func(d string) { mustScript(t, m.env, "mkswap", d) })
	refused("a partition table", func(d string) {
		record := make([]byte, 512) // of the old kind: one Linux partition from 1 MiB on
		copy(record[446:], []byte{0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0})
		record[510], record[511] = 0x55, 0xaa
		f, err := os.OpenFile(d, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(record); err != nil {
			t.Fatal(err)
		}
	})
}

// systemd understands the units.
func TestUnits(t *testing.T) {
	_, files, _ := cloudInit(t, "")
	dir := t.TempDir()
	units := map[string]string{"gridfan.service": read(t, "infra/systemd/gridfan.service")}
	for path, f := range files {
		if name, ok := strings.CutPrefix(path, "/etc/systemd/system/"); ok {
			units[name] = f.Content
		}
	}
	var args []string
	for name, text := range units {
		// What they start is not on this machine.
		for _, program := range []string{"/usr/local/sbin/nats-disk", "/usr/local/sbin/nats-install", "/usr/local/sbin/nats-secrets", "/usr/local/sbin/nats-reboot", "/usr/local/bin/nats-server", "/usr/local/bin/gridfan"} {
			text = strings.ReplaceAll(text, program, "/bin/true")
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	slices.Sort(args)
	out, err := script(t, []string{"SYSTEMD_UNIT_PATH=" + dir + ":"}, "systemd-analyze", append([]string{"verify", "--man=no"}, args...)...)
	for line := range strings.Lines(out) {
		// Of the system's own units nothing is said here.
		if strings.Contains(line, dir) || strings.Contains(line, "nats-") || strings.Contains(line, "gridfan") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
