package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// user is not root, has no entry anywhere, and is the one that distroless
	// images call nonroot, which policies know.
	user = 65532
	// dataDir is where a volume belongs. It is gridfan's working directory, so that
	// the default ./data is on that volume too.
	dataDir = "var/lib/gridfan"
)

// config is how the image is started. Dockerfile says the same; a test compares.
func (o options) config() ocispec.ImageConfig {
	return ocispec.ImageConfig{
		User:         "65532:65532",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}, "8081/tcp": {}},
		Entrypoint:   []string{"/gridfan"},
		Cmd:          []string{"serve", "-c", "/etc/gridfan/gridfan.yaml"},
		WorkingDir:   "/" + dataDir,
		StopSignal:   "SIGTERM",
		Labels:       o.labels(),
	}
}

// labels are the pre-defined annotation keys of the OCI image specification
// (annotations.md, v1.1.1).
func (o options) labels() map[string]string {
	l := map[string]string{
		ocispec.AnnotationTitle:       "gridfan",
		ocispec.AnnotationDescription: "Fans events of Dynamics 365 and Azure Event Grid out to many systems",
		ocispec.AnnotationSource:      "https://github.com/gridfan/gridfan",
		ocispec.AnnotationLicenses:    "Apache-2.0",
		ocispec.AnnotationVersion:     o.version,
		ocispec.AnnotationCreated:     o.created.Format(time.RFC3339),
	}
	if o.revision != "" {
		l[ocispec.AnnotationRevision] = o.revision
	}
	return l
}

// store has the blobs of an image, by digest.
type store struct{ blobs map[digest.Digest][]byte }

func newStore() *store { return &store{map[digest.Digest][]byte{}} }

func (s *store) add(mediaType string, b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	s.blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (s *store) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	return s.add(mediaType, b), err
}

// image adds the image for one platform.
func (s *store) image(o options, p ocispec.Platform, binary []byte) (built, error) {
	plain, err := layer(binary, o.created)
	if err != nil {
		return built{}, err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return built{}, err
	}
	// Writing to a buffer does not fail.
	_, _ = z.Write(plain)
	_ = z.Close()
	files := s.add(ocispec.MediaTypeImageLayerGzip, packed.Bytes())
	config, err := s.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created: &o.created, Platform: p, Config: o.config(),
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}},
		History: []ocispec.History{{Created: &o.created, CreatedBy: "cmd/internal/image", Comment: "gridfan " + o.version}},
	})
	if err != nil {
		return built{}, err
	}
	manifest, err := s.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{files}, Annotations: o.labels(),
	})
	manifest.Platform = &p
	return built{manifest: manifest, size: manifest.Size + config.Size + files.Size, unpacked: int64(len(binary))}, err
}

// layer is the one layer: everything that is in the image.
func layer(binary []byte, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "etc/", Mode: 0o755},
		{Name: "etc/gridfan/", Mode: 0o755}, // the configuration is mounted here
		{Name: "gridfan", Mode: 0o755, Size: int64(len(binary))},
		{Name: "var/", Mode: 0o755},
		{Name: "var/lib/", Mode: 0o755},
		// A new named volume takes owner and mode from here.
		{Name: dataDir + "/", Mode: 0o700, Uid: user, Gid: user},
	} {
		h.ModTime, h.Format, h.Typeflag = at, tar.FormatPAX, tar.TypeDir
		if h.Name == "gridfan" {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(binary); err != nil {
				return nil, err
			}
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// layout gives the files of an OCI image layout (image-layout.md, v1.1.1), and
// beside them manifest.json, by which versions of Docker before 25, and those that
// do not keep images in containerd, load an archive (moby v28, image/spec/README.md).
func (s *store) layout(m *made) (map[string][]byte, error) {
	top := m.index
	top.Annotations = map[string]string{
		ocispec.AnnotationRefName:  m.tag,
		"io.containerd.image.name": "docker.io/library/gridfan:" + m.tag, // what docker load calls it
	}
	type loadable struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var docker []loadable
	name := func(d digest.Digest) string {
		return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
	}
	for i, b := range m.built {
		var manifest ocispec.Manifest
		if err := json.Unmarshal(s.blobs[b.manifest.Digest], &manifest); err != nil {
			return nil, err
		}
		l := loadable{Config: name(manifest.Config.Digest), RepoTags: []string{"gridfan:" + m.tag}}
		if i > 0 { // a tag names one image there
			l.RepoTags[0] += "-" + b.manifest.Platform.Architecture
		}
		for _, d := range manifest.Layers {
			l.Layers = append(l.Layers, name(d.Digest))
		}
		docker = append(docker, l)
	}
	files := map[string][]byte{}
	for file, v := range map[string]any{
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		ocispec.ImageIndexFile: ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{top},
		},
		"manifest.json": docker,
	} {
		var err error
		if files[file], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	for d, b := range s.blobs {
		files[name(d)] = b
	}
	return files, nil
}

// writeFolder replaces dir by the files.
func writeFolder(dir string, files map[string][]byte) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for name, b := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeArchive writes the files in one order, so that the archive is the same each
// time too.
func writeArchive(name string, files map[string][]byte, at time.Time) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: at, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := io.Copy(w, bytes.NewReader(files[name])); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}
