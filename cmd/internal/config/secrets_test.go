package config

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/keyvault"
)

const stores = `
shutdown: { grace: 55s }
broker: { embedded: { dir: /data, ephemeral: true } }
secrets:
  keyvault:
    suffix: https://contoso.vault.azure.cn/
    refresh: 30s
    auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: contoso.example.com } }
sources: { prod: { kind: fno, push: { auth: none } } }
`

// stores2 has what excludes it.
const stores2 = `
secrets: { keyvault: { auth: { default: true, managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } }
`

func TestSecretStores(t *testing.T) {
	c, err := Parse("f", []byte(stores), fake)
	if err != nil {
		t.Fatal(err)
	}
	want := Secrets{
		KeyVault: keyvault.Config{Suffix: "vault.azure.cn", Auth: credentials.AzureAuth{
			WorkloadIdentity: &credentials.WorkloadIdentity{ClientID: "11111111-2222-3333-4444-555555555555", Tenant: "contoso.example.com"},
		}},
		Refresh: 30 * time.Second,
	}
	if d := cmp.Diff(want, c.Secrets); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if c.Shutdown.Grace.Std() != 55*time.Second || !c.Broker.Ephemeral {
		t.Errorf("got %v, %v", c.Shutdown, c.Broker.Ephemeral)
	}
	c, err = Parse("f", []byte("sources: { prod: { kind: fno, push: { auth: none } } }"), fake)
	if err != nil || c.Shutdown.Grace.Std() != defaultGrace || c.Secrets.Refresh != defaultRefresh {
		t.Errorf("got %+v, %v", c, err)
	}
}

const fromVault = `
listen: { admin: { token: "${keyvault:contoso/token}" } }
sources: { prod: { kind: fno, push: { auth: { anyOf: [ { key: "${keyvault:contoso/fo-key}" }, { sas: { keys: "${keyvault:nowhere/sas}" } } ] } } } }
subscribers: { s: { subjects: [ events.> ], deliver: { webhook: { url: "${keyvault:contoso/url}" } }, limits: { timeout: nonsense } } }
`

// Offline nobody is asked, what is not known is not judged, and the rest is.
func TestOffline(t *testing.T) {
	lookup := fake
	lookup.Offline = true
	lookup.Vaults = keyvault.NewStore(keyvault.Options{}) // it would be reached over the network
	_, err := Parse("f", []byte(fromVault), lookup)
	problems, _ := errors.AsType[Errors](err)
	if len(problems) != 1 || problems[0].Path != "subscribers.s.limits.timeout" {
		t.Errorf("got %v", err)
	}
	c, err := Parse("f", []byte(strings.ReplaceAll(fromVault, "nonsense", "5s")), lookup)
	if err != nil || c.Unread != 4 || len(c.References) > 0 {
		t.Fatalf("got %+v, %v", c, err)
	}
}

// A value that has changed is known by its place; nothing of it can be read off what is
// kept for that.
func TestReferences(t *testing.T) {
	secrets := map[string]string{"/secrets/token/": "token-token-token", "/secrets/fo-key/": "key-one-key-one-key", "/secrets/url/": "https://a.example.com/"}
	lookup := fake
	lookup.Vaults = vaults(secrets)
	text := []byte(strings.NewReplacer(", { sas: { keys: \"${keyvault:nowhere/sas}\" } }", "", "nonsense", "5s").Replace(fromVault))
	parse := func() *Config {
		t.Helper()
		c, err := Parse("f", text, lookup)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one := parse()
	if len(one.References) != 3 {
		t.Fatalf("got %+v", one.References)
	}
	if got := changed(one.References, parse().References); len(got) > 0 {
		t.Errorf("nothing has changed: %+v", got)
	}
	secrets["/secrets/url/"] = "https://b.example.com/"
	got := changed(one.References, parse().References)
	if len(got) != 1 || got[0].Path != "subscribers.s.deliver.webhook.url" || got[0].Text != "${keyvault:contoso/url}" || got[0].section() != "subscribers" {
		t.Errorf("got %+v", got)
	}
}
