package deploy_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// The sums are anything of their length: nothing is fetched here.
var cloudInitWords = map[string]string{
	"NATS_CONF": "", "VAULT_URL": "https://kv.vault.azure.net/", "IDENTITY_CLIENT_ID": "00000000-0000-0000-0000-000000000001",
	"NATS_VERSION": "2.15.2", "NATS_SHA256_AMD64": strings.Repeat("a", 64), "NATS_SHA256_ARM64": strings.Repeat("b", 64),
}

type cloudFile struct {
	Path        string `yaml:"path"`
	Permissions string `yaml:"permissions"`
	Encoding    string `yaml:"encoding"`
	Content     string `yaml:"content"`
}

// cloudInit renders cloud-init.yaml with a configuration and takes it apart.
func cloudInit(t testing.TB, conf string) (text string, files map[string]cloudFile, commands [][]string) {
	t.Helper()
	words := map[string]string{}
	for k, v := range cloudInitWords {
		words[k] = v
	}
	words["NATS_CONF"] = base64.StdEncoding.EncodeToString([]byte(conf))
	text = render(t, read(t, "bicep/modules/cloud-init.yaml"), words)
	var doc struct {
		PackageUpdate bool        `yaml:"package_update"`
		Users         []any       `yaml:"users"`
		WriteFiles    []cloudFile `yaml:"write_files"`
		RunCmd        [][]string  `yaml:"runcmd"`
	}
	if err := yaml.UnmarshalWithOptions([]byte(text), &doc, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	files = map[string]cloudFile{}
	for _, f := range doc.WriteFiles {
		if f.Encoding == "b64" {
			b, err := base64.StdEncoding.DecodeString(f.Content)
			if err != nil {
				t.Fatal(err)
			}
			f.Content = string(b)
		}
		files[f.Path] = f
	}
	return text, files, doc.RunCmd
}

// All that cloud-init writes hangs together, and has room in the machine's custom data.
func TestCloudInit(t *testing.T) {
	c := zoned(t, "1", "2", "3")
	conf, err := os.ReadFile(c.nodes[0].conf)
	if err != nil {
		t.Fatal(err)
	}
	text, files, commands := cloudInit(t, string(conf))
	if !strings.HasPrefix(text, "#cloud-config\n") {
		t.Error("it does not begin with #cloud-config, so cloud-init leaves it alone")
	}
	// 64 KiB before base64: Microsoft.Compute virtualMachines, osProfile.customData (2026-11).
	if len(text) > 65535 {
		t.Errorf("it has %d bytes, custom data may have 65535", len(text))
	}
	if files["/etc/nats/nats.conf"].Content != string(conf) {
		t.Error("the configuration is another one after rendering")
	}
	units := map[string]string{}
	for path, f := range files {
		if !regexp.MustCompile(`^0[67][0-7]{2}$`).MatchString(f.Permissions) {
			t.Errorf("%s: permissions %q", path, f.Permissions)
		}
		if strings.HasPrefix(path, "/usr/local/sbin/") && (f.Permissions != "0755" || !strings.HasPrefix(f.Content, "#!/")) {
			t.Errorf("%s cannot be run", path)
		}
		if name, ok := strings.CutPrefix(path, "/etc/systemd/system/"); ok {
			units[name] = f.Content
		}
	}
	if len(units) == 0 {
		t.Fatal("there are no units")
	}
	for name, unit := range units {
		for _, m := range regexp.MustCompile(`(?m)^(?:ExecStart|EnvironmentFile)=(\S+)`).FindAllStringSubmatch(unit, -1) {
			// Two of them are made on the machine.
			if _, ok := files[m[1]]; !ok && m[1] != "/usr/local/bin/nats-server" && m[1] != "/etc/nats/nats.env" {
				t.Errorf("%s: nothing writes %s", name, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`(?m)^(?:Wants|Requires|After)=(.*)$`).FindAllStringSubmatch(unit, -1) {
			for other := range strings.FieldsSeq(m[1]) {
				if _, ok := units[other]; !ok && !strings.HasSuffix(other, ".target") {
					t.Errorf("%s: there is no %s", name, other)
				}
			}
		}
	}
	enabled := false
	for _, command := range commands {
		if !slices.Contains(command, "enable") {
			continue
		}
		enabled = true
		for _, arg := range command {
			if ext := filepath.Ext(arg); (ext == ".service" || ext == ".timer") && !strings.Contains(units[arg], "[Install]") {
				t.Errorf("%s is enabled and cannot be", arg)
			}
		}
	}
	if !enabled {
		t.Error("nothing is enabled")
	}
	// A stop must have time for the server's lame duck.
	var grace int
	for _, m := range regexp.MustCompile(`(?m)^lame_duck_(?:grace_period|duration): "(\d+)s"$`).FindAllStringSubmatch(string(conf), -1) {
		grace += atoi(t, m[1])
	}
	stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(units["nats-server.service"])
	if grace == 0 || stop == nil || atoi(t, stop[1]) <= grace {
		t.Errorf("systemd waits %v seconds, the server needs %d", stop, grace)
	}
}

// The version that is installed is the one that everything is tested with.
func TestNATSVersion(t *testing.T) {
	m := regexp.MustCompile(`nats-server/v2 v(\S+)`).FindStringSubmatch(read(t, "go.mod"))
	if m == nil {
		t.Fatal("go.mod has no nats-server")
	}
	for _, path := range []string{"bicep/modules/cloud-init.yaml", "infra/compose/compose.yaml", "infra/nats/README.md"} {
		text := read(t, path)
		if !strings.Contains(text, m[1]) {
			t.Errorf("%s does not name version %s", path, m[1])
		}
		for _, v := range regexp.MustCompile(`\b2\.1[5-9]\.\d+\b`).FindAllString(text, -1) {
			if v != m[1] {
				t.Errorf("%s names version %s, go.mod has %s", path, v, m[1])
			}
		}
	}
}
