package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

const (
	authUsage = "how gridfan shows who it is, one setting each time, as in oauth2.clientID=gridfan, bearer.token=@FILE; none ends it; see docs/credentials.md"
	tlsUsage  = "files of client certificate and authorities, as gridfan sees them: cert=FILE, key=FILE, ca=FILE, serverName=NAME; none ends it"
)

// setAuth puts settings such as oauth2.clientID=x into a definition, and says which
// of its keys they are. Those of the way there is are kept; another takes its place.
func setAuth(d *registry.Definition, given []string) (keys []string, err error) {
	const path = "deliver.webhook.auth"
	if slices.Equal(given, []string{"none"}) {
		hook(d).Auth = nil
		return []string{path}, nil
	}
	kind, _, _ := strings.Cut(given[0], ".")
	tree := map[string]any{}
	if a := hook(d).Auth; a != nil && a.Kind() == kind {
		if tree, err = treeOf(a); err != nil {
			return nil, err
		}
	}
	for _, item := range given {
		steps, value, err := assignment(item)
		if err != nil {
			return nil, err
		}
		if len(steps) < 2 || len(steps) > 3 {
			return nil, fmt.Errorf("want KIND.SETTING=VALUE, as in basic.username=gridfan, got %s=…", strings.Join(steps, "."))
		}
		if steps[0] != kind {
			return nil, fmt.Errorf("want one kind, got %s and %s", kind, steps[0])
		}
		put(tree, steps, value)
		keys = append(keys, path+"."+strings.Join(steps, "."))
	}
	a := &credentials.Auth{}
	if err := strict(tree, a); err != nil {
		return nil, err
	}
	hook(d).Auth = a
	return keys, nil
}

// setTLS does the same for certificates.
func setTLS(d *registry.Definition, given []string) (keys []string, err error) {
	const path = "deliver.webhook.tls"
	if slices.Equal(given, []string{"none"}) {
		hook(d).TLS = nil
		return []string{path}, nil
	}
	tree := map[string]any{}
	if t := hook(d).TLS; t != nil {
		if tree, err = treeOf(t); err != nil {
			return nil, err
		}
	}
	for _, item := range given {
		steps, value, err := assignment(item)
		if err != nil {
			return nil, err
		}
		put(tree, steps, value)
		keys = append(keys, path+"."+strings.Join(steps, "."))
	}
	t := &credentials.TLS{}
	if err := strict(tree, t); err != nil {
		return nil, err
	}
	hook(d).TLS = t
	return keys, nil
}

// assignment takes a setting apart. A value @FILE is what the file holds, so that a
// secret stands neither in the shell's history nor in the list of processes. The
// value is in no error.
func assignment(item string) (steps []string, value string, err error) {
	name, value, ok := strings.Cut(item, "=")
	if !ok || name == "" {
		return nil, "", errors.New("want SETTING=VALUE, or none")
	}
	if rest, literal := strings.CutPrefix(value, "@@"); literal {
		value = "@" + rest
	} else if file, isFile := strings.CutPrefix(value, "@"); isFile {
		if value, err = readSecret(file); err != nil {
			return nil, "", fmt.Errorf("%s: %w", name, err)
		}
	}
	// A parameter's name may have dots.
	return strings.SplitN(name, ".", 3), value, nil
}

// maxSecretFile is ample for any token.
const maxSecretFile = 64 << 10

func readSecret(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxSecretFile:
		return "", fmt.Errorf("%s: larger than %d bytes", file, maxSecretFile)
	case len(b) == 0:
		return "", fmt.Errorf("%s is empty", file)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}

func treeOf(v any) (map[string]any, error) {
	b, err := json.Marshal(v)
	tree := map[string]any{}
	if err == nil {
		err = json.Unmarshal(b, &tree)
	}
	return tree, err
}

// put sets a value in a tree, or takes it out when it is empty.
func put(tree map[string]any, steps []string, value string) {
	for _, step := range steps[:len(steps)-1] {
		below, ok := tree[step].(map[string]any)
		if !ok {
			below = map[string]any{}
			tree[step] = below
		}
		tree = below
	}
	last := steps[len(steps)-1]
	if tree[last] = value; value == "" {
		delete(tree, last)
	}
}

// strict makes a value of a tree that has nothing else. Its errors show no value.
func strict(tree map[string]any, to any) error {
	b, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err = dec.Decode(to)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is no setting that has a value; see docs/credentials.md", wrong.Field)
	}
	if err != nil {
		return fmt.Errorf("%s; see docs/credentials.md", strings.Replace(strings.TrimPrefix(err.Error(), "json: "), "unknown field", "no such setting:", 1))
	}
	return nil
}

// shownAuth tells how gridfan shows a subscriber who it is.
func shownAuth(h *webhook.Config) string {
	a := h.Auth.Redacted()
	switch {
	case a == nil:
		return "none"
	case a.OAuth2 != nil:
		o := a.OAuth2
		s := fmt.Sprintf("oauth2, client %s at %s", o.ClientID, o.TokenURL)
		if o.Scope != "" {
			s += ", scope " + o.Scope
		}
		if o.Cert != "" {
			s += ", certificate " + o.Cert
		}
		return s
	case a.ManagedIdentity != nil:
		if a.ManagedIdentity.ClientID == "" {
			return "managed identity of this machine, scope " + a.ManagedIdentity.Scope
		}
		return fmt.Sprintf("managed identity %s, scope %s", a.ManagedIdentity.ClientID, a.ManagedIdentity.Scope)
	case a.WorkloadIdentity != nil:
		return "workload identity of this pod, scope " + a.WorkloadIdentity.Scope
	case a.APIKey != nil && a.APIKey.Header != "":
		return "key in the header " + a.APIKey.Header
	case a.APIKey != nil:
		return "key in the query as " + a.APIKey.Query
	case a.Basic != nil:
		return "user " + a.Basic.Username + " with a password"
	}
	return "bearer token"
}

// shownTLS tells what certificates are used.
func shownTLS(t *credentials.TLS) string {
	var words []string
	for _, w := range [][2]string{{"certificate", t.Cert}, {"authorities", t.CA}, {"name", t.ServerName}} {
		if w[1] != "" {
			words = append(words, w[0]+" "+w[1])
		}
	}
	return strings.Join(words, ", ")
}
