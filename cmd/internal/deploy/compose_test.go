package deploy_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/gridfan/gridfan/cmd/internal/cli"
	"github.com/gridfan/gridfan/cmd/internal/config"
)

// composeFile is compose.yaml as far as it is used; what is not named here is a mistake.
type composeFile struct {
	Name     string                    `yaml:"name"`
	NATS     any                       `yaml:"x-nats"`
	Gridfan  any                       `yaml:"x-gridfan"`
	Services map[string]composeService `yaml:"services"`
	Networks map[string]any            `yaml:"networks"`
	Volumes  map[string]any            `yaml:"volumes"`
	Secrets  map[string]struct {
		Environment string `yaml:"environment"`
	} `yaml:"secrets"`
}

type composeService struct {
	Image           string            `yaml:"image"`
	Command         []string          `yaml:"command"`
	Hostname        string            `yaml:"hostname"`
	Environment     map[string]string `yaml:"environment"`
	EnvFile         []string          `yaml:"env_file"`
	Volumes         []string          `yaml:"volumes"`
	Ports           []string          `yaml:"ports"`
	Secrets         []string          `yaml:"secrets"`
	Networks        []string          `yaml:"networks"`
	ExtraHosts      []string          `yaml:"extra_hosts"`
	DependsOn       any               `yaml:"depends_on"`
	Restart         string            `yaml:"restart"`
	StopSignal      string            `yaml:"stop_signal"`
	StopGracePeriod string            `yaml:"stop_grace_period"`
	ReadOnly        bool              `yaml:"read_only"`
	CapDrop         []string          `yaml:"cap_drop"`
	SecurityOpt     []string          `yaml:"security_opt"`
	Healthcheck     struct {
		Test     []string `yaml:"test"`
		Interval string   `yaml:"interval"`
		Timeout  string   `yaml:"timeout"`
		Retries  int      `yaml:"retries"`
	} `yaml:"healthcheck"`
}

const composeDir = "infra/compose"

func readCompose(t testing.TB) composeFile {
	t.Helper()
	var c composeFile
	if err := yaml.UnmarshalWithOptions([]byte(read(t, composeDir+"/compose.yaml")), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return c
}

// flagsKnown fails where gridfan does not know one of the flags of a command line.
func flagsKnown(t *testing.T, args []string) {
	t.Helper()
	var out, errs bytes.Buffer
	code := cli.Main(t.Context(), append(slices.Clone(args), "--help"), cli.Env{Out: &out, Err: &errs, Version: "test", Getenv: func(string) string { return "" }})
	if code != 0 {
		t.Errorf("gridfan %s: %s", strings.Join(args, " "), errs.String())
	}
}

func TestComposeIsWhole(t *testing.T) {
	c := readCompose(t)
	var bind []string
	for name, s := range c.Services {
		if !regexp.MustCompile(`:v?\d+\.\d+\.\d+(-[a-z]+)?$`).MatchString(s.Image) && !strings.HasPrefix(s.Image, "${GRIDFAN_IMAGE:?") {
			t.Errorf("%s: image %s is not pinned to a version", name, s.Image)
		}
		for k, v := range s.Environment {
			if regexp.MustCompile(`TOKEN|PASSWORD|KEY|SECRET`).MatchString(k) && !strings.HasPrefix(v, "${") {
				t.Errorf("%s: %s has a value in the file", name, k)
			}
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to other machines", name, p)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, "./") {
				bind = append(bind, from)
			} else if _, ok := c.Volumes[from]; !ok {
				t.Errorf("%s: there is no volume %s", name, from)
			}
		}
		bind = append(bind, s.EnvFile...)
		for _, secret := range s.Secrets {
			if _, ok := c.Secrets[secret]; !ok {
				t.Errorf("%s: there is no secret %s", name, secret)
			}
		}
		for _, n := range s.Networks {
			if _, ok := c.Networks[n]; !ok {
				t.Errorf("%s: there is no network %s", name, n)
			}
		}
		var needs []string
		switch on := s.DependsOn.(type) {
		case map[string]any:
			needs = slices.Collect(maps.Keys(on))
		case []any:
			for _, n := range on {
				needs = append(needs, n.(string))
			}
		}
		for _, n := range needs {
			if _, ok := c.Services[n]; !ok {
				t.Errorf("%s: there is no service %s", name, n)
			}
		}
	}
	for _, path := range bind {
		if strings.HasPrefix(path, "./generated/") {
			continue // prepare.sh makes it, see its test
		}
		if _, err := os.Stat(filepath.Join(root, composeDir, path)); err != nil {
			t.Error(err)
		}
	}
	// Nothing of what prepare.sh makes gets into the repository.
	ignored := read(t, ".gitignore")
	for _, path := range []string{"/infra/compose/.env\n", "/infra/compose/generated/\n"} {
		if !strings.Contains(ignored, path) {
			t.Errorf(".gitignore does not have %s", path)
		}
	}
}

// gridfan takes the file and the command lines; addresses and names agree in all files.
func TestComposeRunsGridfan(t *testing.T) {
	c := readCompose(t)
	env := map[string]string{}
	roles := map[string]bool{}
	for name, s := range c.Services {
		if !strings.HasPrefix(s.Image, "${GRIDFAN_IMAGE") {
			continue
		}
		flagsKnown(t, s.Command)
		if i := slices.Index(s.Command, "--role"); i >= 0 {
			roles[s.Command[i+1]] = true
		}
		maps.Copy(env, s.Environment)
		for _, p := range s.Ports {
			if _, in, _ := strings.Cut(strings.TrimPrefix(p, "127.0.0.1:"), ":"); in != "8080" && in != "8081" {
				t.Errorf("%s: nothing listens on %s", name, in)
			}
		}
	}
	if !roles["router"] || !roles["subscribers"] {
		t.Errorf("roles %v", roles)
	}
	used := map[string]bool{}
	cfg, err := config.Parse("gridfan.yaml", []byte(read(t, composeDir+"/gridfan.yaml")), config.Lookup{
		Env: func(name string) (string, bool) {
			used[name] = true
			_, ok := env[name]
			return "a-secret-of-the-stack", ok
		},
		File: os.ReadFile,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Warnings) > 0 {
		t.Errorf("warnings: %v", cfg.Warnings)
	}
	for name := range env {
		if !used[name] {
			t.Errorf("%s is given and not used", name)
		}
	}
	if cfg.Listen.Public != ":8080" || cfg.Listen.Admin != ":8081" {
		t.Errorf("it listens on %s and %s", cfg.Listen.Public, cfg.Listen.Admin)
	}
	nodes := 0
	for name, s := range c.Services {
		if !strings.HasPrefix(s.Image, "nats:") {
			continue
		}
		nodes++
		if s.Hostname != name {
			t.Errorf("%s is called %q", name, s.Hostname)
		}
		if !strings.Contains(cfg.Broker.URL, "tls://"+name+":4222") || !slices.Contains(cfg.Broker.Monitoring, "http://"+name+":8222") {
			t.Errorf("gridfan does not know %s", name)
		}
		if !slices.Contains(s.Healthcheck.Test, "http://"+name+":8222/healthz") {
			t.Errorf("%s: health check %v", name, s.Healthcheck.Test)
		}
		if s.StopSignal != "SIGUSR2" || !slices.Contains(s.Volumes, "./generated/"+name+":/etc/nats:ro") || !slices.Contains(s.Volumes, name+":/var/lib/nats") {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if nodes != cfg.Broker.Replicas {
		t.Errorf("%d nodes for %d replicas", nodes, cfg.Broker.Replicas)
	}
	if !slices.Contains(c.Services["router"].Volumes, "./generated/ca.pem:"+cfg.Broker.TLS.CA+":ro") {
		t.Errorf("nothing is mounted at %s", cfg.Broker.TLS.CA)
	}
}

func TestComposePrometheus(t *testing.T) {
	c := readCompose(t)
	var p struct {
		Global struct {
			ScrapeInterval string `yaml:"scrape_interval"`
		} `yaml:"global"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			Authorization struct {
				CredentialsFile string `yaml:"credentials_file"`
			} `yaml:"authorization"`
			StaticConfigs []struct {
				Targets []string          `yaml:"targets"`
				Labels  map[string]string `yaml:"labels"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.UnmarshalWithOptions([]byte(read(t, composeDir+"/prometheus.yml")), &p, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, s := range p.ScrapeConfigs {
		secret := strings.TrimPrefix(s.Authorization.CredentialsFile, "/run/secrets/")
		if !slices.Contains(c.Services["prometheus"].Secrets, secret) || c.Secrets[secret].Environment != "GRIDFAN_ADMIN_TOKEN" {
			t.Errorf("%s is not gridfan's token", s.Authorization.CredentialsFile)
		}
		for _, g := range s.StaticConfigs {
			targets = append(targets, g.Targets...)
		}
	}
	slices.Sort(targets)
	if !slices.Equal(targets, []string{"router:8081", "subscribers:8081"}) {
		t.Errorf("targets %v", targets)
	}
	if !slices.Contains(c.Services["prometheus"].Volumes, "./prometheus.yml:/etc/prometheus/prometheus.yml:ro") || !slices.Contains(c.Services["prometheus"].Command, "--config.file=/etc/prometheus/prometheus.yml") {
		t.Error("Prometheus does not read the file")
	}
}

var (
	documented = regexp.MustCompile("(?m)^\\| `(gridfan_[a-z_]+)` \\| *([^|]*?) *\\|")
	metric     = regexp.MustCompile(`gridfan_[a-z_]+`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\)`)
	matcher    = regexp.MustCompile(`(gridfan_[a-z_]+)\{([a-z_]+)[=!~]`)
)

// Each query of the dashboard is of metrics and labels that gridfan has.
func TestComposeDashboard(t *testing.T) {
	labels := map[string][]string{}
	for _, doc := range []string{"docs/metrics.md", "docs/receiving.md"} {
		for _, m := range documented.FindAllStringSubmatch(read(t, doc), -1) {
			labels[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })
		}
	}
	if len(labels) < 30 {
		t.Fatalf("only %d metrics are documented", len(labels))
	}
	// A histogram has three series under names of its own.
	of := func(name string) ([]string, bool) {
		for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok {
				if l, ok := labels[base]; ok {
					return l, true
				}
			}
		}
		return nil, false
	}
	var d struct {
		UID    string `json:"uid"`
		Panels []struct {
			Title      string `json:"title"`
			Type       string `json:"type"`
			Datasource struct {
				UID string `json:"uid"`
			} `json:"datasource"`
			Targets []struct {
				Expr         string `json:"expr"`
				LegendFormat string `json:"legendFormat"`
				Datasource   struct {
					UID string `json:"uid"`
				} `json:"datasource"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(read(t, composeDir+"/grafana/gridfan.json")), &d); err != nil {
		t.Fatal(err)
	}
	sources := read(t, composeDir+"/grafana/datasource.yaml")
	queries := 0
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			queries++
			if p.Datasource.UID != q.Datasource.UID || !strings.Contains(sources, "uid: "+q.Datasource.UID+"\n") {
				t.Errorf("%s: there is no data source %q", p.Title, q.Datasource.UID)
			}
			if strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") {
				t.Errorf("%s: brackets in %s", p.Title, q.Expr)
			}
			names := metric.FindAllString(q.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %s asks nothing of gridfan", p.Title, q.Expr)
			}
			has := map[string]bool{"le": strings.Contains(q.Expr, "_bucket")}
			for _, name := range names {
				l, ok := of(name)
				if !ok {
					t.Errorf("%s: there is no metric %s", p.Title, name)
				}
				for _, label := range l {
					has[label] = true
				}
			}
			for _, m := range matcher.FindAllStringSubmatch(q.Expr, -1) {
				if l, _ := of(m[1]); !slices.Contains(l, m[2]) {
					t.Errorf("%s: %s has no label %s", p.Title, m[1], m[2])
				}
			}
			var used []string
			for _, m := range grouping.FindAllStringSubmatch(q.Expr, -1) {
				used = append(used, strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })...)
			}
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(q.LegendFormat, -1) {
				used = append(used, m[1])
				if !strings.Contains(q.Expr, "by (") || !regexp.MustCompile(`by \([^)]*\b`+m[1]+`\b`).MatchString(q.Expr) {
					t.Errorf("%s: the legend's %s is not in the result of %s", p.Title, m[1], q.Expr)
				}
			}
			for _, label := range used {
				if !has[label] {
					t.Errorf("%s: no metric of %s has a label %s", p.Title, q.Expr, label)
				}
			}
		}
	}
	if queries < 15 {
		t.Errorf("the dashboard has %d queries", queries)
	}
	c := readCompose(t)
	g := c.Services["grafana"]
	for _, v := range []string{"./grafana/datasource.yaml:/etc/grafana/provisioning/datasources/datasource.yaml:ro", "./grafana/dashboards.yaml:/etc/grafana/provisioning/dashboards/dashboards.yaml:ro", "./grafana/gridfan.json:/etc/grafana/dashboards/gridfan.json:ro"} {
		if !slices.Contains(g.Volumes, v) {
			t.Errorf("grafana: %s is not mounted", v)
		}
	}
	if !strings.Contains(read(t, composeDir+"/grafana/dashboards.yaml"), "path: /etc/grafana/dashboards ") || !strings.Contains(sources, "url: http://prometheus:9090\n") {
		t.Error("grafana does not find the dashboard, or Prometheus")
	}
}

// The unit starts gridfan with flags that it knows, on a store that systemd makes, and
// gives it the time it needs to stop.
func TestUnitRunsGridfan(t *testing.T) {
	unit := read(t, "infra/systemd/gridfan.service")
	value := func(key string) string {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(unit)
		if m == nil {
			t.Fatalf("there is no %s", key)
		}
		return m[1]
	}
	command := strings.Fields(value("ExecStart"))
	if command[0] != "/usr/local/bin/gridfan" {
		t.Errorf("it starts %s", command[0])
	}
	flagsKnown(t, command[1:])
	if i := slices.Index(command, "--data"); i < 0 || command[i+1] != "/var/lib/"+value("StateDirectory") {
		t.Errorf("the store is not in the state directory: %v", command)
	}
	if atoi(t, value("TimeoutStopSec")) <= 20+15 {
		t.Error("systemd kills gridfan before it has ended its attempts and closed the store")
	}
	for key, want := range map[string]string{
		"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": "", "PrivateDevices": "yes",
		"SystemCallErrorNumber": "EPERM", "User": "gridfan", "UMask": "0077", "KillMode": "mixed", "Restart": "always",
	} {
		if got := value(key); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
}
