package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry takes pushes as the OCI distribution specification v1.1 says, from those
// who know its password, and checks what it is sent.
type registry struct {
	mu        sync.Mutex // guards all below
	blobs     map[string][]byte
	manifests map[string][]byte // by digest and by tag
	uploads   int
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if user, password, _ := req.BasicAuth(); user != "robot" || password != "sesame" {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	body, _ := io.ReadAll(req.Body) // a cut body has another digest
	const base = "/v2/team/gridfan/"
	kind, name, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, base), "/")
	kept := map[string]map[string][]byte{"blobs": r.blobs, "manifests": r.manifests}[kind]
	switch {
	case req.Method == http.MethodPost && kind == "blobs":
		w.Header().Set("Location", base+"blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodPut && kind == "blobs":
		d := req.URL.Query().Get("digest")
		if digest.FromBytes(body).String() != d {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.uploads++
		r.blobs[d] = body
		w.WriteHeader(http.StatusCreated)
	case req.Method == http.MethodPut && kind == "manifests":
		d := digest.FromBytes(body).String()
		r.manifests[d], r.manifests[name] = body, body
		w.Header().Set("Docker-Content-Digest", d)
		w.WriteHeader(http.StatusCreated)
	case kept[name] != nil:
		w.Header().Set("Content-Type", map[bool]string{true: ocispec.MediaTypeImageIndex, false: ocispec.MediaTypeImageManifest}[bytes.Contains(kept[name], []byte(`"manifests"`))])
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(kept[name]).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(kept[name])))
		if req.Method == http.MethodGet {
			_, _ = w.Write(kept[name])
		}
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func TestPush(t *testing.T) {
	layout := filepath.Join(t.TempDir(), "image")
	platforms, err := parsePlatforms("linux/amd64,linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	m, err := build(t.Context(), options{out: layout, version: "v1", created: committed, platforms: platforms}, given)
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{blobs: map[string][]byte{}, manifests: map[string][]byte{}}
	s := httptest.NewServer(r)
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")

	// Nobody has logged in.
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := push(t.Context(), layout, host+"/team/gridfan:v1"); err == nil || len(r.blobs) > 0 {
		t.Errorf("pushed without a password: %v", err)
	}

	login := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("robot:sesame")))
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(login), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	if err := run(t.Context(), []string{"push", "-from", layout, host + "/team/gridfan:v1", host + "/team/gridfan:latest"}, &said); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("pushed %[1]s/team/gridfan:v1@%[2]s\npushed %[1]s/team/gridfan:latest@%[2]s\n", host, m.index.Digest)
	if said.String() != want {
		t.Errorf("said %q, want %q", said.String(), want)
	}
	for _, tag := range []string{"v1", "latest"} {
		if d := digest.FromBytes(r.manifests[tag]); d != m.index.Digest {
			t.Errorf("%s is %s, want the index for all platforms, %s", tag, d, m.index.Digest)
		}
	}
	for _, p := range m.built {
		if r.manifests[p.manifest.Digest.String()] == nil {
			t.Errorf("the image for %s was not pushed", p.manifest.Platform.Architecture)
		}
	}
	if len(r.blobs) != 4 || r.uploads != 4 {
		t.Errorf("%d blobs in %d uploads, want a layer and a config for each platform, each once", len(r.blobs), r.uploads)
	}

	for _, ref := range []string{"", "gridfan", host + "/team/gridfan", host + "/team/gridfan@" + m.index.Digest.String()} {
		if _, err := push(t.Context(), layout, ref); err == nil {
			t.Errorf("push to %q passes", ref)
		}
	}
	if _, err := push(t.Context(), t.TempDir(), host+"/team/gridfan:v1"); err == nil {
		t.Error("an empty folder is pushed")
	}
}

func TestOnThisMachine(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "[::1]:5000": true,
		"ghcr.io": false, "10.0.0.1:5000": false, "localhost.example.com": false,
	} {
		if got := onThisMachine(host); got != want {
			t.Errorf("%s: got %v, want %v", host, got, want)
		}
	}
}
