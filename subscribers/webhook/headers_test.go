package webhook

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

func TestOwnHeaders(t *testing.T) {
	e := &event.Event{
		ID: "1", Source: "/d365/fno/prod", Type: "Order.Placed", Subject: "a b\r\nX-Evil: 1", Time: time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC),
		DataContentType: "application/json", DataSchema: "urn:x", Data: []byte(`{}`), DataJSON: true,
	}
	e.Set("legalentity", "usmf")
	e.Set("long", strings.Repeat("x", maxHeaderValue+1))
	e.Set("umlaut", "é\"%\x00")
	e.Set("half", strings.Repeat("h", maxHeaderValue-1))
	for value, want := range map[string]string{
		"Contoso":                   "Contoso",
		"{{legalentity}}":           "usmf",
		"{{ legalentity }}":         "usmf",
		"{{type}}/{{legalentity}}":  "Order.Placed/usmf",
		"company={{legalentity}};1": "company=usmf;1",
		"{{subject}}":               "a%20b%0D%0AX-Evil:%201",
		"{{umlaut}}":                "%C3%A9%22%25%00",
		"{{time}}":                  "2026-11-01T10:00:00Z",
		"{{id}} {{source}} {{datacontenttype}} {{dataschema}} {{specversion}}": "1 /d365/fno/prod application/json urn:x 1.0",
		"x{{unknown}}y":    "xy",
		"{{unknown}}":      "",
		"{{unknown}} a":    "a",
		"{{long}}":         "",
		"{{half}}":         strings.Repeat("h", maxHeaderValue-1),
		"{{half}}{{half}}": "",
		"$${type} {type}":  "$${type} {type}",
	} {
		for _, format := range Formats {
			got := &captured{}
			s := sender(t, got.serve, Config{Format: format, Headers: map[string]string{"x-own": value}}, Options{Keys: []Key{newerKey}})
			if a := s.Send(t.Context(), e); a.Outcome != deliver.Delivered {
				t.Fatalf("%s: %+v", value, a)
			}
			if values := got.header.Values("X-Own"); strings.Join(values, "|") != want || (want == "") != (values == nil) || got.header.Get("X-Evil") != "" {
				t.Errorf("%s, %.40s: got %.100q, want %.100q", format, value, values, want)
			}
		}
	}
}

// What one event has does not stay for the next, and what is the same for all is
// there in batches too.
func TestOwnHeadersAreEachTheirOwn(t *testing.T) {
	got := &captured{}
	s := sender(t, got.serve, Config{Headers: map[string]string{"X-Subject": "{{subject}}", "Authorization": "Bearer x"}}, Options{})
	for _, subject := range []string{"a", "", "b"} {
		s.Send(t.Context(), &event.Event{ID: "1", Source: "s", Type: "t", Subject: subject})
		if h := got.header; h.Get("X-Subject") != subject || h.Get("Authorization") != "Bearer x" {
			t.Errorf("%v", h)
		}
	}
	s.SendBatch(t.Context(), []*event.Event{{ID: "1", Source: "s", Type: "t", Subject: "c"}})
	if h := got.header; h.Get("X-Subject") != "" || h.Get("Authorization") != "Bearer x" {
		t.Errorf("%v", h)
	}
}

// However long the attributes, a request keeps a head that servers take.
func TestOwnHeadersHaveRoom(t *testing.T) {
	headers := map[string]string{"X-Fixed": strings.Repeat("f", 3000)}
	for i := range maxHeaders - 1 {
		headers[fmt.Sprintf("X-%02d", i)] = "{{subject}}"
	}
	for _, format := range Formats {
		got := &captured{}
		s := sender(t, got.serve, Config{Format: format, Headers: headers}, Options{})
		e := &event.Event{ID: "1", Source: "s", Type: "t", Subject: strings.Repeat("s", 4000), Data: []byte("{}"), DataJSON: true}
		e.Set("more", strings.Repeat("m", 5000))
		if a := s.Send(t.Context(), e); a.Outcome != deliver.Delivered {
			t.Fatalf("%+v", a)
		}
		own, all := 0, 0
		for name, values := range got.header {
			all += len(name) + len(values[0])
			if strings.HasPrefix(name, "X-") {
				own += len(name) + len(values[0])
			}
		}
		if own > maxHeadersSize || all > maxHeader || got.header.Get("X-00") == "" {
			t.Errorf("%s: own headers have %d bytes, all %d: %v", format, own, all, slices.Sorted(maps.Keys(got.header)))
		}
	}
}

func TestHeadersRefused(t *testing.T) {
	many := map[string]string{}
	for i := range maxHeaders + 1 {
		many[fmt.Sprint("X-", i)] = "v"
	}
	for want, headers := range map[string]map[string]string{
		"x.headers: want at most 20, got 21":                                               many,
		`x.headers: "X Y" is no name of a header`:                                          {"X Y": "canary"},
		`x.headers: "" is no name of a header`:                                             {"": "canary"},
		`x.headers: "X:" is no name of a header`:                                           {"X:": "canary"},
		`x.headers: "X\r\nEvil" is no name of a header`:                                    {"X\r\nEvil": "canary"},
		`x.headers: "Ü" is no name of a header`:                                            {"Ü": "canary"},
		"x.headers.content-TYPE: gridfan sets it itself":                                   {"content-TYPE": "canary"},
		"x.headers.host: gridfan sets it itself":                                           {"host": "canary"},
		"x.headers.Transfer-Encoding: it is between two neighbours":                        {"Transfer-Encoding": "canary"},
		"x.headers.TE: it is between two neighbours":                                       {"TE": "canary"},
		"x.headers.Proxy-Authorization: it is between two neighbours":                      {"Proxy-Authorization": "canary"},
		"x.headers.ce-id: headers that begin with ce- are those of the event's format":     {"ce-id": "canary"},
		"x.headers.Webhook-Id: headers that begin with webhook- are those of":              {"Webhook-Id": "canary"},
		"x.headers.AEG-x: headers that begin with aeg- are those of":                       {"AEG-x": "canary"},
		"x.headers.x-a: is the same header as X-A":                                         {"X-A": "canary", "x-a": "canary"},
		"x.headers.X-A: empty":                                                             {"X-A": ""},
		"x.headers.X-A: a blank at its beginning or end":                                   {"X-A": " canary"},
		"x.headers.X-A: want printable ASCII":                                              {"X-A": "canary\r\nX-Evil: 1"},
		"x.headers.X-B: want printable ASCII":                                              {"X-B": "canarÿ"},
		"x.headers.X-A: {{ without }}":                                                     {"X-A": "canary{{type"},
		"x.headers.X-A: }} without {{":                                                     {"X-A": "canary}}"},
		"x.headers.X-A: between {{ and }} want the name of an attribute":                   {"X-A": "{{legalEntity}}"},
		"x.headers.X-B: between {{ and }} want the name of an attribute":                   {"X-B": "{{}}"},
		"x.headers.X-C: between {{ and }} want the name of an attribute":                   {"X-C": "{{data}}"},
		"x.headers.X-A: want at most 4096 bytes, got 4097":                                 {"X-A": strings.Repeat("a", 4097)},
		"x.headers: want at most 8192 bytes in all, got 8199":                              {"X-A": strings.Repeat("a", 4096), "X-B": strings.Repeat("a", 4093), "XX": "aa"},
		"x.headers.X-D: between {{ and }} want the name of an attribute, which has lower-": {"X-D": "{{event.type}}"},
	} {
		c := Config{URL: "https://h/", Headers: headers}
		if err := c.Validate("x"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("want %s: got %v", want, err)
		}
	}
	c := Config{URL: "https://h/", Headers: map[string]string{"X-A": "1", "Authorization": "Bearer x", "X_b.c": "{{type}}", "Cookie": "a=b"}}
	if err := c.Validate("x"); err != nil {
		t.Error(err)
	}
}

// None is the same as an empty lot, also after it was stored.
func TestNoHeaders(t *testing.T) {
	c := Config{URL: "https://h/", Headers: map[string]string{}}
	if err := c.Validate("x"); err != nil || c.Headers != nil {
		t.Errorf("%v, %v", c.Headers, err)
	}
}

func TestHeadersAreRedacted(t *testing.T) {
	c := Config{URL: "https://h/", Headers: map[string]string{
		"X-Pure": "{{type}}/{{legalentity}}", "X-Key": "canary", "X-Mixed": "Bearer canary {{id}}", "X-Broken": "{{canary",
	}}
	want := map[string]string{"X-Pure": "{{type}}/{{legalentity}}", "X-Key": "<redacted>", "X-Mixed": "<redacted>", "X-Broken": "<redacted>"}
	if d := cmp.Diff(want, c.Redacted().Headers); d != "" {
		t.Error(d)
	}
	if c.Headers["X-Key"] != "canary" {
		t.Error("what is shown changed what is used")
	}
}

// A receiver may quote the request that it complains about.
func TestHeadersAreHidden(t *testing.T) {
	s := sender(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "bad key "+r.Header.Get("X-Key")+" and "+strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")+" for "+r.Header.Get("X-Type"))
	}, Config{Headers: map[string]string{"X-Key": "canary-1", "Authorization": "Bearer canary-2", "X-Type": "{{type}}"}}, Options{})
	a := s.Send(t.Context(), &event.Event{ID: "1", Source: "s", Type: "Order"})
	if want := "HTTP 401: bad key <redacted> and <redacted> for Order"; a.Reason != want {
		t.Errorf("got %q, want %q", a.Reason, want)
	}
}
