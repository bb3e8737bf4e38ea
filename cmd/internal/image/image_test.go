package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
)

// committed is a commit's time.
var committed = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// opened is one platform's image, read back.
type opened struct {
	manifest ocispec.Manifest
	config   ocispec.Image
	layers   [][]byte // as tar archives
}

// open reads an image of a layout with the library that pushes it, which checks
// every digest and size.
func open(t *testing.T, layout fs.FS, tag, arch string) opened {
	t.Helper()
	s, err := oci.NewFromFS(t.Context(), layout)
	if err != nil {
		t.Fatal(err)
	}
	top, err := s.Resolve(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	fetch(t, s, top, &index)
	i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Platform.OS == "linux" && d.Platform.Architecture == arch
	})
	if i < 0 {
		t.Fatalf("no image for %s among %+v", arch, index.Manifests)
	}
	var o opened
	fetch(t, s, index.Manifests[i], &o.manifest)
	fetch(t, s, o.manifest.Config, &o.config)
	for _, d := range o.manifest.Layers {
		packed, err := content.FetchAll(t.Context(), s, d)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		o.layers = append(o.layers, plain)
	}
	return o
}

func fetch(t *testing.T, s *oci.ReadOnlyStore, d ocispec.Descriptor, v any) {
	t.Helper()
	b, err := content.FetchAll(t.Context(), s, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// unpack writes what is in the image to a folder, and gives it the owners where we
// may.
func (o opened) unpack(t *testing.T, dir string) (headers []tar.Header) {
	t.Helper()
	for _, l := range o.layers {
		for r := tar.NewReader(bytes.NewReader(l)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			headers = append(headers, *h)
			name := filepath.Join(dir, filepath.FromSlash(h.Name))
			if h.Typeflag == tar.TypeDir {
				err = os.MkdirAll(name, fs.FileMode(h.Mode))
			} else {
				var b []byte
				if b, err = io.ReadAll(r); err == nil {
					err = os.WriteFile(name, b, fs.FileMode(h.Mode))
				}
			}
			if err == nil && os.Getuid() == 0 {
				err = os.Chown(name, h.Uid, h.Gid)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return headers
}

// readTree gives all files below dir.
func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		all[strings.TrimPrefix(name, dir)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// limit is what an image may weigh on the network and in a registry.
const limit = 40e6

func TestImage(t *testing.T) {
	dir := t.TempDir()
	o := options{
		out: filepath.Join(dir, "image"), version: "v1.2.3+local", revision: "0123456789abcdef0123456789abcdef01234567",
		created: committed, platforms: []ocispec.Platform{{OS: "linux", Architecture: runtime.GOARCH}},
	}
	first, err := build(t.Context(), o, compile)
	if err != nil {
		t.Fatal(err)
	}

	again := o
	again.out = filepath.Join(dir, "elsewhere", "again")
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("GOFLAGS", "-tags=somebodys_own")
	t.Setenv("GOAMD64", "v3")
	second, err := build(t.Context(), again, compile)
	if err != nil {
		t.Fatal(err)
	}
	if first.index.Digest != second.index.Digest {
		t.Errorf("%s and then %s: not reproducible", first.index.Digest, second.index.Digest)
	}
	was, is := readTree(t, o.out), readTree(t, again.out)
	if !maps.Equal(was, is) {
		t.Errorf("the layouts differ: %v, %v", slices.Sorted(maps.Keys(was)), slices.Sorted(maps.Keys(is)))
	}
	a, err := os.ReadFile(o.out + ".tar")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(again.out + ".tar")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the archives differ")
	}

	image := open(t, os.DirFS(o.out), "v1.2.3_local", runtime.GOARCH)
	labels := map[string]string{
		"org.opencontainers.image.title":       "gridfan",
		"org.opencontainers.image.description": "Fans events of Dynamics 365 and Azure Event Grid out to many systems",
		"org.opencontainers.image.source":      "https://github.com/gridfan/gridfan",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     "v1.2.3+local",
		"org.opencontainers.image.revision":    o.revision,
		"org.opencontainers.image.created":     "2026-02-03T04:05:06Z",
	}
	want := ocispec.ImageConfig{
		User: "65532:65532", ExposedPorts: map[string]struct{}{"8080/tcp": {}, "8081/tcp": {}},
		Entrypoint: []string{"/gridfan"}, Cmd: []string{"serve", "-c", "/etc/gridfan/gridfan.yaml"},
		WorkingDir: "/var/lib/gridfan", StopSignal: "SIGTERM", Labels: labels,
	}
	if d := cmp.Diff(want, image.config.Config); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	if p := image.config.Platform; p.OS != "linux" || p.Architecture != runtime.GOARCH {
		t.Errorf("the config is for %+v", p)
	}

	// One program and nothing that could run another.
	root := t.TempDir()
	type file struct {
		Name     string
		Mode     int64
		UID, GID int
	}
	var files []file
	for _, h := range image.unpack(t, root) {
		files = append(files, file{h.Name, h.Mode, h.Uid, h.Gid})
		if !h.ModTime.Equal(committed) {
			t.Errorf("%s is of %v, want the commit's time", h.Name, h.ModTime)
		}
	}
	if d := cmp.Diff([]file{
		{"etc/", 0o755, 0, 0}, {"etc/gridfan/", 0o755, 0, 0}, {"gridfan", 0o755, 0, 0},
		{"var/", 0o755, 0, 0}, {"var/lib/", 0o755, 0, 0}, {"var/lib/gridfan/", 0o700, 65532, 65532},
	}, files); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	binary, err := elf.Open(filepath.Join(root, "gridfan"))
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, p := range binary.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic linker, which the image does not have")
		}
	}

	size := image.manifest.Config.Size
	for _, l := range image.manifest.Layers {
		size += l.Size
	}
	t.Logf("%.1f MB to pull, of %.1f MB", float64(size)/1e6, float64(len(image.layers[0]))/1e6)
	if size > limit {
		t.Errorf("%d bytes to pull, want at most %d", size, int(limit))
	}

	cmd := exec.Command(filepath.Join(root, "gridfan"), "--version")
	cmd.Env = []string{"TMPDIR=/nonexistent"}
	said, err := cmd.CombinedOutput()
	if err != nil || string(said) != "gridfan v1.2.3+local\n" {
		t.Errorf("--version: %q, %v", said, err)
	}
}

// given stands in for the compiler where the binary's content does not matter.
func given(_ context.Context, p ocispec.Platform, version, file string) error {
	return os.WriteFile(file, []byte("gridfan "+version+" for "+p.Architecture), 0o700)
}

func TestPlatforms(t *testing.T) {
	platforms, err := parsePlatforms("linux/amd64,linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "image")
	o := options{out: dir, version: "v1", created: committed, platforms: platforms}
	m, err := build(t.Context(), o, given)
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		image := open(t, os.DirFS(dir), "v1", arch)
		if image.config.Architecture != arch {
			t.Errorf("%s: the config is for %s", arch, image.config.Architecture)
		}
		root := t.TempDir()
		image.unpack(t, root)
		if b, err := os.ReadFile(filepath.Join(root, "gridfan")); err != nil || string(b) != "gridfan v1 for "+arch {
			t.Errorf("%s has the binary %q, %v", arch, b, err)
		}
		if _, ok := image.config.Config.Labels["org.opencontainers.image.revision"]; ok {
			t.Errorf("%s names a commit that nobody has told", arch)
		}
	}
	// The archive has the layout's files, and names for those that know no layouts.
	archive, err := oci.NewFromTar(t.Context(), dir+".tar")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := archive.Resolve(t.Context(), "v1"); err != nil || d.Digest != m.index.Digest {
		t.Errorf("the archive has %s, %v, want %s", d.Digest, err, m.index.Digest)
	}
	var docker []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &docker); err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, l := range docker {
		tags = append(tags, l.RepoTags...)
		for _, name := range append(l.Layers, l.Config) {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
	}
	if d := cmp.Diff([]string{"gridfan:v1", "gridfan:v1-arm64"}, tags); d != "" {
		t.Errorf("tags of docker load (-want +got):\n%s", d)
	}

	// Another version is another image, and takes the place of the one before.
	o.version = "v2"
	next, err := build(t.Context(), o, given)
	if err != nil {
		t.Fatal(err)
	}
	if next.index.Digest == m.index.Digest {
		t.Error("v1 and v2 have one digest")
	}
	for name := range readTree(t, dir) {
		if strings.HasSuffix(name, m.index.Digest.Encoded()) {
			t.Errorf("%s of the version before is still there", name)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	amd := []ocispec.Platform{{OS: "linux", Architecture: "amd64"}}
	if _, err := build(t.Context(), options{out: full, platforms: amd}, given); err == nil || !strings.Contains(err.Error(), full) {
		t.Errorf("a folder with something in it is replaced: %v", err)
	}
	if _, err := os.Stat(filepath.Join(full, "precious")); err != nil {
		t.Error(err)
	}
	broken := errors.New("does not compile")
	out := filepath.Join(t.TempDir(), "image")
	if _, err := build(t.Context(), options{out: out, platforms: amd}, func(context.Context, ocispec.Platform, string, string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written all the same: %v", err)
	}
	for _, list := range []string{"", "amd64", "windows/amd64", "linux/arm/v7", "linux/amd64,"} {
		if _, err := parsePlatforms(list); err == nil {
			t.Errorf("platforms %q pass", list)
		}
	}
	for _, args := range [][]string{nil, {"bake"}, {"push"}, {"build", "-platforms", "plan9/386"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q passes", args)
		}
	}
}

func TestTag(t *testing.T) {
	for version, want := range map[string]string{
		"v1.2.3": "v1.2.3", "v1.2.3+meta": "v1.2.3_meta", "fb0ad23-dirty": "fb0ad23-dirty", "": "dev", "-x": "x", ".": "dev",
		strings.Repeat("a", 200): strings.Repeat("a", 128),
	} {
		if got := tag(version); got != want {
			t.Errorf("%q: got %q, want %q", version, got, want)
		}
	}
}

// TestDockerfile holds the Dockerfile to what the tool makes.
func TestDockerfile(t *testing.T) {
	b, err := os.ReadFile("../../../infra/image/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "\\\n", " ")
	build, final, ok := strings.Cut(text, "\nFROM scratch\n")
	if !ok {
		t.Fatal("the last stage is not scratch")
	}
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(mod), "\ngo ")
	version, _, _ := strings.Cut(rest, "\n")
	minor := strings.Join(strings.Split(version, ".")[:2], ".")
	if want := "FROM --platform=$BUILDPLATFORM golang:" + minor + "-"; !strings.Contains(build, want) {
		t.Errorf("it does not build with the Go of go.mod: no %q", want)
	}
	said := map[string][]string{}
	for line := range strings.SplitSeq(final, "\n") {
		if name, rest, ok := strings.Cut(line, " "); ok && name != "#" {
			said[name] = append(said[name], strings.TrimSpace(rest))
		}
	}
	c := options{version: "v", revision: "r", created: committed}.config()
	list := func(words []string) string {
		return `["` + strings.Join(words, `", "`) + `"]`
	}
	for name, want := range map[string]string{
		"USER": c.User, "WORKDIR": c.WorkingDir, "STOPSIGNAL": c.StopSignal, "EXPOSE": "8080 8081",
		"ENTRYPOINT": list(c.Entrypoint), "CMD": list(c.Cmd),
	} {
		if d := cmp.Diff([]string{want}, said[name]); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for key, value := range c.Labels {
		switch value {
		case "v":
			value = "$VERSION"
		case "r":
			value = "$REVISION"
		case committed.Format(time.RFC3339):
			value = "$CREATED"
		}
		if want := key + `="` + value + `"`; !strings.Contains(strings.Join(said["LABEL"], " "), want) {
			t.Errorf("no label %s", want)
		}
	}
}
