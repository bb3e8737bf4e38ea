package secret_test

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/infra/secret"
)

func TestVeil(t *testing.T) {
	const key = "canary/key+&=="
	v := secret.NewVeil(key, "abc").And("canary-token")
	for _, form := range []string{key, url.QueryEscape(key), url.PathEscape(key), strings.TrimRight(key, "="), base64.StdEncoding.EncodeToString([]byte(key)), "canary-token"} {
		if got := v.Printable("you sent "+form+" to us", 100); strings.Contains(got, "canary") || strings.Contains(got, form) {
			t.Errorf("%s: %q", form, got)
		}
	}
	// What is too short to be one stays, and so does what follows a secret.
	if got := v.Printable("abc canary-token", 100); got != "abc <redacted>" {
		t.Errorf("got %q", got)
	}
	for in, want := range map[string]string{
		" two\r\n\tlines  ": "two lines", "\x1b[31mred\u202e": "�[31mred�", "bad\xff": "bad�", strings.Repeat("é", 60): strings.Repeat("é", 50),
	} {
		if got := v.Printable(in, 100); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	var none *secret.Veil
	if got := none.And(key).Printable("a "+key, 100); got != "a <redacted>" {
		t.Errorf("got %q", got)
	}
}
