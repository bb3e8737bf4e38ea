package telemetry_test

import (
	"bytes"
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
