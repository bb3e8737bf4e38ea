package repotest

import (
	"bytes"
	"net/url"
	"os"
	"strings"
	"testing"
)

// private are texts that belong to whoever worked here and not to the project:
// places on a machine, the tools and sessions used. They are put together from
// parts because this file is searched too.
func private() []string {
	list := []string{
		"/wo" + "rk/",
		"shared/pay" + "loads",
		"../sha" + "red",
		"cla" + "ude",
		"anthro" + "pic",
		"helper ses" + "sion",
		"sub" + "agent",
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "GOPROXY"} {
		for part := range strings.FieldsFuncSeq(os.Getenv(name), func(r rune) bool { return r == ',' || r == '|' }) {
			list = append(list, proxyHosts(part)...)
		}
	}
	return list
}

// proxyHosts gives the host of a proxy's URL unless it is one that everybody
// knows.
func proxyHosts(raw string) []string {
	u, err := url.Parse(raw)
	if err != nil {
		return nil
	}
	switch host := strings.ToLower(u.Hostname()); host {
	case "", "localhost", "127.0.0.1", "::1", "proxy.golang.org", "goproxy.io", "goproxy.cn":
		return nil
	default:
		return []string{host}
	}
}

// leaks returns those of texts, all lower case, that stand in content.
func leaks(content []byte, texts []string) []string {
	var found []string
	content = bytes.ToLower(content)
	for _, text := range texts {
		if bytes.Contains(content, []byte(text)) {
			found = append(found, text)
		}
	}
	return found
}

func TestNothingPrivate(t *testing.T) {
	texts := private()
	for _, name := range files(t) {
		content, ok := read(t, name)
		if !ok {
			continue
		}
		if name == ".ci/run" {
			// CI has its checker of Bicep beside the repository, where there is one.
			content = bytes.ReplaceAll(content, []byte("../sha"+"red/bicepcheck"), nil)
		}
		for _, text := range leaks(append(content, name...), texts) {
			t.Errorf("%s holds %q: the repository stands on its own; name the public source instead", name, text)
		}
	}
}

func TestLeaks(t *testing.T) {
	texts := append(private(), proxyHosts("http://u:p@Cache.Internal:3128")...)
	for _, bad := range []string{"see /WO" + "RK/main", "by Cla" + "ude", "a Helper Ses" + "sion", "via cache.internal:3128"} {
		if len(leaks([]byte(bad), texts)) != 1 {
			t.Errorf("%q passes", bad)
		}
	}
	for _, good := range []string{".github/workflows/ci.yml", "shared durables", "https://proxy.golang.org"} {
		if found := leaks([]byte(good), texts); found != nil {
			t.Errorf("%q holds %q", good, found)
		}
	}
	if got := proxyHosts("https://proxy.golang.org"); got != nil {
		t.Errorf("got %v", got)
	}
}
