package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/infra/secret"
)

func TestNothingPrintsASecret(t *testing.T) {
	s := secret.New("hunter2")
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", s, "in", struct{ K secret.String }{s})
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", s, "in", struct{ K secret.String }{s})
	j, err := json.Marshal(map[string]any{"k": s})
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, struct{ K secret.String }{s}) + log.String() + string(j)
	if strings.Contains(out, "hunter2") || strings.Contains(out, "68756e74") {
		t.Errorf("the secret shows: %s", out)
	}
}

func TestEqual(t *testing.T) {
	if !secret.New("a").Equal("a") || secret.New("a").Equal("b") || secret.New("").Equal("") {
		t.Error("Equal is wrong")
	}
}

func TestURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:p@h:1/a%20b?code=x#f": "https://<redacted>@h:1/a%20b?<redacted>",
		"http://h/":                      "http://h/",
		"://":                            "<redacted>",
		"key=abc":                        "<redacted>",
	} {
		if got := secret.URL(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
