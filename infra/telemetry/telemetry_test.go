package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/infra/telemetry"
)

func TestNewLogger(t *testing.T) {
	for format, want := range map[string]string{"text": "msg=hello", "JSON": `"msg":"hello"`} {
		var buf bytes.Buffer
		log, err := telemetry.NewLogger(&buf, format, "warn")
		if err != nil {
			t.Fatal(err)
		}
		log.Info("quiet")
		log.Warn("hello")
		if s := buf.String(); !strings.Contains(s, want) || strings.Contains(s, "quiet") {
			t.Errorf("%s: got %q", format, s)
		}
	}
	if _, err := telemetry.NewLogger(nil, "xml", "info"); err == nil || !strings.Contains(err.Error(), "text or json") {
		t.Errorf("got %v", err)
	}
	if _, err := telemetry.NewLogger(nil, "text", "loud"); err == nil || !strings.Contains(err.Error(), "debug, info") {
		t.Errorf("got %v", err)
	}
}

// TestHTTPLog has net/http itself tell of a handler's panic.
func TestHTTPLog(t *testing.T) {
	var buf bytes.Buffer
	log, err := telemetry.NewLogger(&buf, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(errors.New("a bug")) }))
	s.Config.ErrorLog = telemetry.HTTPLog(log)
	s.Start()
	if resp, err := s.Client().Get(s.URL); err == nil {
		resp.Body.Close()
		t.Errorf("answered %d", resp.StatusCode)
	}
	s.Close() // waits for the handler, and so for its line
	var r struct{ Level, Msg, Stack string }
	if err := json.Unmarshal(buf.Bytes(), &r); err != nil {
		t.Fatalf("%v: %q", err, buf.String())
	}
	if r.Level != "ERROR" || !strings.HasSuffix(r.Msg, ": a bug") || !strings.Contains(r.Stack, "TestHTTPLog") {
		t.Errorf("got %+v", r)
	}
	buf.Reset()
	telemetry.HTTPLog(log).Printf("http: TLS handshake error from 192.0.2.1:5: EOF")
	if buf.Len() > 0 {
		t.Errorf("strangers write %q", buf.String())
	}
	loud, err := telemetry.NewLogger(&buf, "json", slog.LevelDebug.String())
	if err != nil {
		t.Fatal(err)
	}
	telemetry.HTTPLog(loud).Printf("http: TLS handshake error from 192.0.2.1:5: EOF")
	if !strings.Contains(buf.String(), "TLS handshake error") {
		t.Errorf("got %q", buf.String())
	}
}

func TestRegistryGathers(t *testing.T) {
	families, err := telemetry.NewRegistry("v1").Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "gridfan_build_info" {
			return
		}
	}
	t.Error("no gridfan_build_info")
}
