package auth_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
)

func secrets(list ...string) []secret.String {
	var s []secret.String
	for _, text := range list {
		s = append(s, secret.New(text))
	}
	return s
}

func TestValidate(t *testing.T) {
	good := func() *auth.Entra { return &auth.Entra{Tenant: tenant, Audiences: []string{audience}} }
	for _, c := range []struct {
		name string
		cfg  auth.Config
		want string
	}{
		{"nothing", auth.Config{}, `p: say who may send: anyOf: [ { key: "${env:…}" } ], or none`},
		{"none and a method", auth.Config{None: true, AnyOf: []auth.Method{{Key: secret.New(oldKey)}}}, "p: none and anyOf exclude each other"},
		{
			"empty and double methods",
			auth.Config{AnyOf: []auth.Method{{}, {Key: secret.New(oldKey), Entra: good()}}},
			"p.anyOf[0]: want exactly one of key, sas, entra, hmac, mtls\n" +
				"p.anyOf[1]: want exactly one of key, sas, entra, hmac, mtls",
		},
		{"short key", auth.Config{AnyOf: []auth.Method{{Key: secret.New("canary")}}}, "p.anyOf[0].key: want at least 16 characters"},
		{
			"SAS",
			auth.Config{AnyOf: []auth.Method{{SAS: &auth.SAS{Keys: secrets("canary!", "YWJj"), Resource: "https://h/p?canary=1"}}, {SAS: &auth.SAS{}}}},
			"p.anyOf[0].sas.keys[0]: want base64 of at least 16 bytes, as Event Grid's own topic keys are\n" +
				"p.anyOf[0].sas.keys[1]: want base64 of at least 16 bytes, as Event Grid's own topic keys are\n" +
				"p.anyOf[0].sas.resource: want the source's URL as senders have it: https://host/path, without a query\n" +
				"p.anyOf[1].sas.keys: missing; want at least one",
		},
		{
			"Entra",
			auth.Config{AnyOf: []auth.Method{
				{Entra: &auth.Entra{Tenant: "common", Roles: []string{""}, Callers: []string{"me"}, Authority: "http://login.example"}},
				{Entra: &auth.Entra{Tenant: tenant, Audiences: []string{" x"}, Callers: []string{"any"}, Authority: "https://u:canary@h/?x"}},
			}},
			"p.anyOf[0].entra.tenant: want the directory's ID, a GUID\n" +
				"p.anyOf[0].entra.audience: missing; want the app registration's client ID or its app ID URI\n" +
				"p.anyOf[0].entra.roles[0]: empty, or with space around it\n" +
				"p.anyOf[0].entra.callers[0]: want a client ID (a GUID), eventgrid or any\n" +
				"p.anyOf[0].entra.authority: want https: whoever can change the keys on their way can send\n" +
				"p.anyOf[1].entra.audience[0]: empty, or with space around it\n" +
				"p.anyOf[1].entra.callers: any needs roles: every app of the tenant gets a token for this audience\n" +
				"p.anyOf[1].entra.authority: want https://host, such as https://login.microsoftonline.com",
		},
		{
			"HMAC",
			auth.Config{AnyOf: []auth.Method{
				{HMAC: &auth.HMAC{}},
				{HMAC: &auth.HMAC{Preset: "gitlab", Secrets: secrets(oldKey)}},
				{HMAC: &auth.HMAC{Preset: "github", Secrets: secrets("canary"), Header: "X", Tolerance: time.Minute}},
				{HMAC: &auth.HMAC{Preset: "stripe", Secrets: secrets(oldKey), Tolerance: 48 * time.Hour}},
				{HMAC: &auth.HMAC{Preset: "standard-webhooks", Secrets: secrets("whsec_canary!")}},
				{HMAC: &auth.HMAC{Header: "X Y", Algorithm: "md5", Encoding: "octal", Secrets: secrets(oldKey)}},
			}},
			"p.anyOf[0].hmac.header: want the header that holds the signature, or a preset: github, stripe, standard-webhooks\n" +
				"p.anyOf[0].hmac.secrets: missing; want at least one\n" +
				"p.anyOf[1].hmac.preset: want github, stripe or standard-webhooks, got \"gitlab\"\n" +
				"p.anyOf[2].hmac: a preset says what header, algorithm, encoding and prefix are; leave them out\n" +
				"p.anyOf[2].hmac.secrets[0]: want at least 16 characters\n" +
				"p.anyOf[2].hmac.tolerance: this scheme has no timestamp; leave it out\n" +
				"p.anyOf[3].hmac.tolerance: want 10s to 1h0m0s\n" +
				"p.anyOf[4].hmac.secrets[0]: want base64 of at least 16 bytes, with or without whsec_ before it\n" +
				"p.anyOf[5].hmac.header: want the header that holds the signature, or a preset: github, stripe, standard-webhooks\n" +
				"p.anyOf[5].hmac.algorithm: want sha256 or sha512, got \"md5\"\n" +
				"p.anyOf[5].hmac.encoding: want hex or base64, got \"octal\"",
		},
		{
			"MTLS",
			auth.Config{AnyOf: []auth.Method{{MTLS: &auth.MTLS{}}, {MTLS: &auth.MTLS{CN: []string{""}, SHA256: []string{"abc"}}}}},
			"p.anyOf[0].mtls: say which certificates: cn, dns, uri or sha256\n" +
				"p.anyOf[1].mtls.cn[0]: empty, or with space around it\n" +
				"p.anyOf[1].mtls.sha256[0]: want 64 hex digits, with or without colons",
		},
		{
			"networks",
			auth.Config{None: true, Allow: []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/104"), netip.MustParsePrefix("10.0.0.5/8")}},
			"p.allow[0]: want a network such as 10.20.0.0/16 or 2001:db8::/32\n" +
				"p.allow[1]: write an IPv4 network as such: ::ffff:10.0.0.0/104 is compared with IPv4 addresses\n" +
				"p.allow[2]: 10.0.0.5/8 has bits beyond its length; want 10.0.0.0/8",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.cfg.Validate("p")
			if err == nil {
				t.Fatal("it passes")
			}
			if diff := cmp.Diff(strings.Split(c.want, "\n"), strings.Split(err.Error(), "\n")); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Error("a secret shows")
			}
			if _, err := auth.New(c.cfg, auth.Deps{}); err == nil {
				t.Error("New takes it")
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	cfg := auth.Config{AnyOf: []auth.Method{
		{Entra: &auth.Entra{Tenant: strings.ToUpper(tenant), Audiences: []string{audience}}},
		{HMAC: &auth.HMAC{Preset: auth.PresetStripe, Secrets: secrets(oldKey)}},
		{HMAC: &auth.HMAC{Header: "x-shopify-hmac-sha256", Secrets: secrets(oldKey)}},
		{MTLS: &auth.MTLS{SHA256: []string{strings.Repeat("AB:", 31) + "AB"}}},
	}}
	// New works on a copy: the configuration may be compared with a later one.
	must(t, cfg, auth.Deps{})
	if cfg.AnyOf[0].Entra.Authority != "" || cfg.AnyOf[3].MTLS.SHA256[0][0] != 'A' {
		t.Error("New changed the configuration")
	}
	if err := cfg.Validate("p"); err != nil {
		t.Fatal(err)
	}
	e, stripe, generic := cfg.AnyOf[0].Entra, cfg.AnyOf[1].HMAC, cfg.AnyOf[2].HMAC
	if e.Tenant != tenant || e.Authority != auth.PublicAuthority || !cmp.Equal(e.Callers, []string{auth.CallerEventGrid}) {
		t.Errorf("entra: got %+v", e)
	}
	if stripe.Tolerance != 5*time.Minute {
		t.Errorf("stripe: got %s", stripe.Tolerance)
	}
	if generic.Algorithm != "sha256" || generic.Encoding != "hex" || generic.Header != "X-Shopify-Hmac-Sha256" {
		t.Errorf("generic: got %+v", generic)
	}
	if got := cfg.AnyOf[3].MTLS.SHA256[0]; got != strings.Repeat("ab", 32) {
		t.Errorf("fingerprint: got %s", got)
	}
}
