// Package blobtest plays a container of Azure Storage for tests: as much of the REST
// API of blobs as the unchanged azblob client asks for when it lists, reads, marks and
// deletes (v1.7.0; 2026-11): List Blobs in pages, Get Blob, Set Blob Metadata and
// Delete Blob, with ETags and the errors that belong to them. The account stands in
// the path, as Azurite has it.
package blobtest

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Account is the name of the account, and Key its key.
const (
	Account = "devstoreaccount1"
	Key     = "Y2FuYXJ5LWtleS1vZi1hLXN0b3JhZ2UtYWNjb3VudA=="
)

// Server has one container. It is safe for concurrent use.
type Server struct {
	URL       string // of the account
	Container string
	// Page is how many blobs it lists at once at most; 0: as many as are asked for.
	Page int

	mu     sync.Mutex // guards all below
	blobs  map[string]*blob
	serial int
	counts map[string]int
	answer func(w http.ResponseWriter, r *http.Request) bool
}

type blob struct {
	body     []byte
	etag     string
	metadata map[string]string
}

// Start serves an empty container until the test ends.
func Start(t testing.TB, container string) *Server {
	s := &Server{Container: container, blobs: map[string]*blob{}, counts: map[string]int{}}
	srv := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(srv.Close)
	s.URL = srv.URL + "/" + Account
	return s
}

// ConnectionString is that of the account.
func (s *Server) ConnectionString() string {
	return "DefaultEndpointsProtocol=http;AccountName=" + Account + ";AccountKey=" + Key + ";BlobEndpoint=" + s.URL + ";"
}

// Put makes a blob, or another one in the place of one.
func (s *Server) Put(name, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	s.blobs[name] = &blob{body: []byte(body), etag: fmt.Sprintf(`"0x8D%013d"`, s.serial), metadata: map[string]string{}}
}

// Names lists the blobs there are, and Marked those that have metadata.
func (s *Server) Names() []string { return s.names(func(*blob) bool { return true }) }

// Marked lists the blobs that have metadata.
func (s *Server) Marked() []string { return s.names(func(b *blob) bool { return len(b.metadata) > 0 }) }

func (s *Server) names(want func(*blob) bool) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []string{}
	for name, b := range s.blobs {
		if want(b) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// Count is how many requests there were of a kind: list, get, delete, mark.
func (s *Server) Count(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[kind]
}

// Answer makes f answer in place of the container where it says so; nil: nobody does.
func (s *Server) Answer(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// Refuse answers as the service does.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	answer := s.answer
	s.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	auth := r.Header.Get("Authorization")
	if !strings.HasPrefix(auth, "SharedKey "+Account+":") && r.URL.Query().Get("sig") != Key {
		Refuse(w, http.StatusForbidden, "AuthenticationFailed", "Server failed to authenticate the request: "+auth)
		return
	}
	if r.Header.Get("X-Ms-Version") == "" {
		Refuse(w, http.StatusBadRequest, "MissingRequiredHeader", "x-ms-version")
		return
	}
	container, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"+Account+"/"), "/")
	q := r.URL.Query()
	switch {
	case container != s.Container:
		Refuse(w, http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	case name == "" && r.Method == http.MethodGet && q.Get("restype") == "container" && q.Get("comp") == "list":
		s.counts["list"]++
		s.list(w, q.Get("prefix"), q.Get("marker"), q.Get("maxresults"), strings.Contains(q.Get("include"), "metadata"))
	default:
		s.one(w, r, name)
	}
}

// enumeration is the answer to List Blobs (learn.microsoft.com, rest/api/storageservices/
// list-blobs; read 2026-11).
type enumeration struct {
	XMLName    xml.Name `xml:"EnumerationResults"`
	Blobs      []listed `xml:"Blobs>Blob"`
	NextMarker string   `xml:"NextMarker"`
}

type listed struct {
	Name   string `xml:"Name"`
	Length int    `xml:"Properties>Content-Length"`
	Etag   string `xml:"Properties>Etag"`
	// Modified is required, and is always the same.
	Modified string   `xml:"Properties>Last-Modified"`
	Metadata metadata `xml:"Metadata"`
}

type metadata map[string]string

// MarshalXML writes an element for each.
func (m metadata) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	if err := e.EncodeToken(start); err != nil {
		return err
	}
	for name, value := range m {
		if err := e.EncodeElement(value, xml.StartElement{Name: xml.Name{Local: name}}); err != nil {
			return err
		}
	}
	return e.EncodeToken(start.End())
}

func (s *Server) list(w http.ResponseWriter, prefix, marker, most string, withMetadata bool) {
	size, err := strconv.Atoi(most)
	if err != nil || size > 5000 {
		size = 5000
	}
	if s.Page > 0 {
		size = min(size, s.Page)
	}
	var names []string
	for name := range s.blobs {
		if strings.HasPrefix(name, prefix) && name >= marker {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out enumeration
	for i, name := range names {
		if i == size {
			out.NextMarker = name
			break
		}
		b := s.blobs[name]
		l := listed{Name: name, Length: len(b.body), Etag: strings.Trim(b.etag, `"`), Modified: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat)}
		if withMetadata {
			l.Metadata = b.metadata
		}
		out.Blobs = append(out.Blobs, l)
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, xml.Header)
	_ = xml.NewEncoder(w).Encode(out) // the client is gone if this fails
}

func (s *Server) one(w http.ResponseWriter, r *http.Request, name string) {
	b := s.blobs[name]
	if b == nil {
		Refuse(w, http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.")
		return
	}
	// The header has quotes, a listing has none; the service takes both.
	if want := r.Header.Get("If-Match"); want != "" && strings.Trim(want, `"`) != strings.Trim(b.etag, `"`) {
		Refuse(w, http.StatusPreconditionFailed, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
		return
	}
	switch {
	case r.Method == http.MethodGet:
		s.counts["get"]++
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("ETag", b.etag)
		w.Header().Set("X-Ms-Blob-Type", "BlockBlob")
		_, _ = w.Write(b.body) // the client is gone if this fails
	case r.Method == http.MethodDelete:
		s.counts["delete"]++
		delete(s.blobs, name)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut && r.URL.Query().Get("comp") == "metadata":
		s.counts["mark"]++
		s.serial++
		b.metadata, b.etag = map[string]string{}, fmt.Sprintf(`"0x8D%013d"`, s.serial)
		for header, values := range r.Header {
			if key, ok := strings.CutPrefix(strings.ToLower(header), "x-ms-meta-"); ok {
				b.metadata[key] = values[0]
			}
		}
		w.Header().Set("ETag", b.etag)
		w.WriteHeader(http.StatusOK)
	default:
		Refuse(w, http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.")
	}
}
