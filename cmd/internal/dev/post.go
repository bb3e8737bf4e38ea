package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/samples"
	"github.com/gridfan/gridfan/schemas/event"
)

// sourceOf says which source takes a kind's samples.
var sourceOf = map[string]string{event.KindFnO: "prod", event.KindEventGrid: "files"}

// firstRound is posted at once: a handshake as Event Grid begins with, and the
// wire shapes that differ most.
var firstRound = []string{
	"purchase-order-confirmed", "validation", "blob-created", "free-text-invoice-posted",
	"invoice-over-eventgrid", "customer-changed", "batch-of-three", "alert",
}

// poster sends samples to the ingress as Dynamics and Event Grid would.
type poster struct {
	base   string            // URL of the ingress
	keys   map[string]string // by source
	screen *screen
	client *http.Client
}

func newPoster(base string, keys map[string]string, s *screen) *poster {
	return &poster{base: base, keys: keys, screen: s, client: &http.Client{
		Timeout: 30 * time.Second,
		// Not the default one: no proxy, and connections that end with dev.
		Transport: &http.Transport{},
	}}
}

func (p *poster) close() { p.client.CloseIdleConnections() }

// post sends one new event and prints the answer. An answer that is no success
// is news for the user and no error of dev's.
func (p *poster) post(ctx context.Context, name string) error {
	s, ok := samples.Find(name)
	if !ok {
		return fmt.Errorf("no sample %q", name)
	}
	source := sourceOf[s.Kind]
	path := "/ingress/" + source
	header, body := s.Request(time.Now())
	header.Set("X-Gridfan-Key", p.keys[source])
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header
	tell := p.screen.hold()
	defer tell(plain, "")
	resp, err := p.client.Do(req)
	if ctx.Err() != nil {
		if err == nil {
			_ = resp.Body.Close() // unread
		}
		return nil // stopping
	}
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		tell(red, fmt.Sprintf(postColumns, path, name, 0, "no answer: "+err.Error()))
		return nil
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // the status tells enough
	c := blue
	if resp.StatusCode != http.StatusOK {
		c = red
	}
	tell(c, fmt.Sprintf(postColumns, path, name, resp.StatusCode, inWords(answer)))
	return nil
}

// inWords shortens the ingress's answer.
func inWords(body []byte) string {
	var a struct {
		Published, Duplicate, Quarantined, Control int
		ValidationResponse, Detail                 string
	}
	if json.Unmarshal(body, &a) != nil {
		return "answer not understood"
	}
	switch {
	case a.Detail != "":
		return a.Detail
	case a.ValidationResponse != "":
		return "handshake answered"
	}
	var words []string
	for _, n := range []struct {
		what  string
		count int
	}{{"published", a.Published}, {"duplicate", a.Duplicate}, {"control", a.Control}, {"quarantined", a.Quarantined}} {
		if n.count > 0 {
			words = append(words, fmt.Sprintf("%s %d", n.what, n.count))
		}
	}
	return strings.Join(words, ", ")
}

// events lists the samples that subscribers get, in the order they are posted
// one by one.
func events() []string {
	var names []string
	for _, s := range samples.All() {
		if sourceOf[s.Kind] != "" && !s.Control {
			names = append(names, s.Name)
		}
	}
	return names
}
