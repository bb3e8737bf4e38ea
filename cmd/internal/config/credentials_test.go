package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
)

// credentialed has each key of deliver.webhook.auth and tls.
const credentialed = `
sources: { prod: { kind: fno, push: { auth: none } } }
subscribers:
  secret:
    subjects: events.>
    deliver:
      webhook:
        url: https://h/
        auth:
          oauth2:
            tokenURL: "https://login.example.com/token?p=${env:CODE}"
            clientID: gridfan
            clientSecret: "${env:KEY}"
            secretIn: body
            scope: read write
            audience: https://h/
            params: { resource: "${env:HOST}", tenant: contoso }
            ca: /etc/gridfan/ca.pem
        tls: { cert: /etc/gridfan/client.pem, key: client.key, ca: "${env:HOST}.pem", serverName: inner.example.com }
  certificate:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { oauth2: { tokenURL: "http://127.0.0.1:1/t", clientID: g, cert: c.pem, key: k.pem, algorithm: PS256 } } } }
  assertion:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { oauth2: { tokenURL: https://h/t, clientID: g, assertion: "${file:/run/secrets/key}" } } } }
  managed:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555, scope: api://wms } } } }
  workload:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: contoso.com, scope: api://wms } } } }
  header:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { apiKey: { header: X-Key, value: "${env:KEY}" } } } }
  query:
    subjects: events.>
    deliver: { webhook: { url: "https://u:p@h/", auth: { apiKey: { query: code, value: "${env:KEY}" } } } }
  basic:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { basic: { username: gridfan, password: "${env:KEY}" } } } }
  bearer:
    subjects: events.>
    deliver: { webhook: { url: https://h/, auth: { bearer: { token: "${env:KEY}" } } } }
`

func TestCredentials(t *testing.T) {
	const guid, key = "11111111-2222-3333-4444-555555555555", "key-key-key-key-key"
	c, err := Parse("gridfan.yaml", []byte(credentialed), fake)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Error(c.Warnings)
	}
	want := map[string]*credentials.Auth{
		"secret": {OAuth2: &credentials.OAuth2{
			TokenURL: "https://login.example.com/token?p=canary-code-in-url", ClientID: "gridfan", ClientSecret: key, SecretIn: credentials.InBody,
			Scope: "read write", Audience: "https://h/", Params: map[string]credentials.Secret{"resource": "wms.example.com", "tenant": "contoso"},
			CA: "/etc/gridfan/ca.pem",
		}},
		"certificate": {OAuth2: &credentials.OAuth2{TokenURL: "http://127.0.0.1:1/t", ClientID: "g", Cert: "c.pem", Key: "k.pem", Algorithm: "PS256"}},
		"assertion":   {OAuth2: &credentials.OAuth2{TokenURL: "https://h/t", ClientID: "g", Assertion: "file-key-file-key"}},
		"managed":     {ManagedIdentity: &credentials.ManagedIdentity{ClientID: guid, Scope: "api://wms"}},
		"workload":    {WorkloadIdentity: &credentials.WorkloadIdentity{ClientID: guid, Tenant: "contoso.com", Scope: "api://wms"}},
		"header":      {APIKey: &credentials.APIKey{Header: "X-Key", Value: key}},
		"query":       {APIKey: &credentials.APIKey{Query: "code", Value: key}},
		"basic":       {Basic: &credentials.Basic{Username: "gridfan", Password: key}},
		"bearer":      {Bearer: &credentials.Bearer{Token: key}},
	}
	got := map[string]*credentials.Auth{}
	for _, s := range c.Subscribers {
		got[s.Name] = s.Deliver.Webhook.Auth
		if s.Name == "secret" {
			wantTLS := &credentials.TLS{Cert: "/etc/gridfan/client.pem", Key: "client.key", CA: "wms.example.com.pem", ServerName: "inner.example.com"}
			if diff := cmp.Diff(wantTLS, s.Deliver.Webhook.TLS); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
