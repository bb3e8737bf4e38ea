package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// options are what an image is made of.
type options struct {
	// out is the folder of the layout; out + ".tar" is the archive.
	out       string
	version   string
	revision  string
	created   time.Time
	platforms []ocispec.Platform
}

// made tells of an image that was made.
type made struct {
	index ocispec.Descriptor
	tag   string
	built []built
}

// built is the image for one platform. Its size is that of all that is pulled.
type built struct {
	manifest       ocispec.Descriptor
	size, unpacked int64
}

func (m *made) print(w io.Writer, out string) error {
	var b bytes.Buffer
	for _, p := range m.built {
		fmt.Fprintf(&b, "%s/%s  %s  %.1f MB to pull, %.1f MB unpacked\n", p.manifest.Platform.OS, p.manifest.Platform.Architecture, p.manifest.Digest, float64(p.size)/1e6, float64(p.unpacked)/1e6)
	}
	fmt.Fprintf(&b, "OCI layout %s, archive %s.tar (docker load -i, then gridfan:%s)\ndigest %s\n", out, out, m.tag, m.index.Digest)
	_, err := w.Write(b.Bytes())
	return err
}

// parsePlatforms reads "linux/amd64,linux/arm64".
func parsePlatforms(list string) ([]ocispec.Platform, error) {
	var all []ocispec.Platform
	for one := range strings.SplitSeq(list, ",") {
		system, arch, ok := strings.Cut(one, "/")
		if !ok || system != "linux" || arch == "" || strings.Contains(arch, "/") {
			return nil, fmt.Errorf("-platforms: %q: want linux/amd64, linux/arm64 or both separated by a comma", one)
		}
		all = append(all, ocispec.Platform{OS: system, Architecture: arch})
	}
	return all, nil
}

// compile builds gridfan's binary for a platform and writes it to file.
func compile(ctx context.Context, p ocispec.Platform, version, file string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", file, "github.com/gridfan/gridfan/cmd/gridfan")
	// What a developer has set otherwise would be in the binary.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture,
		"GOFLAGS=", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0", "GOFIPS140=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build for %s/%s: %w\n%s", p.OS, p.Architecture, err, bytes.TrimSpace(text))
	}
	return nil
}

// build makes the image and writes it as a layout and as an archive. What stood at
// out before is replaced.
func build(ctx context.Context, o options, compile func(ctx context.Context, p ocispec.Platform, version, file string) error) (*made, error) {
	if len(o.platforms) == 0 {
		return nil, errors.New("no platform to build for")
	}
	if err := replaceable(o.out); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gridfan-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)

	s := newStore()
	m := &made{tag: tag(o.version)}
	var manifests []ocispec.Descriptor
	for _, p := range o.platforms {
		file := filepath.Join(dir, "gridfan-"+p.Architecture)
		if err := compile(ctx, p, o.version, file); err != nil {
			return nil, err
		}
		binary, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		one, err := s.image(o, p, binary)
		if err != nil {
			return nil, err
		}
		m.built = append(m.built, one)
		manifests = append(manifests, one.manifest)
	}
	m.index, err = s.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests, Annotations: o.labels(),
	})
	if err != nil {
		return nil, err
	}
	files, err := s.layout(m)
	if err != nil {
		return nil, err
	}
	if err := writeFolder(o.out, files); err != nil {
		return nil, err
	}
	return m, writeArchive(o.out+".tar", files, o.created)
}

// replaceable keeps a mistyped folder from being deleted.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile)); err != nil {
		return fmt.Errorf("-out %s is a folder with something else in it than an OCI layout; name another, or empty it", dir)
	}
	return nil
}

// tag makes a tag of a version: letters, digits, "_", "." and "-", at most 128
// (OCI distribution specification v1.1, section Pulling manifests).
func tag(version string) string {
	t := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, version)
	if t = strings.TrimLeft(t, ".-"); t == "" {
		return "dev"
	}
	return t[:min(len(t), 128)]
}
