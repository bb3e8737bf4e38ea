package config

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/keyvault"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/retention"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

var update = flag.Bool("update", false, "rewrite the wanted results in testdata")

const creds = "-----BEGIN NATS USER JWT-----\njwt\n------END NATS USER JWT------\n"

// fake is the environment of all tests here.
var fake = Lookup{
	Env: func(name string) (string, bool) {
		v, ok := map[string]string{
			"KEY":    "key-key-key-key-key",
			"SAS":    "c2FzLXNhcy1zYXMtc2FzLQ==",
			"HMAC":   "hmac-hmac-hmac-hmac",
			"WHSEC":  "whsec_d2hzZWMtd2hzZWMtd2hzZWMtd2hzZWM=",
			"SIGN":   "whsec_c2lnbmluZy1rZXktc2lnbmluZy1rZXkh",
			"SHA256": strings.Repeat("ab:", 31) + "ab",
			"NET":    "10.20.0.0/16",
			"PEM":    "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n",
			"TOKEN":  "token-token-token",
			"HOST":   "wms.example.com",
			"CODE":   "canary-code-in-url",
			"EIGHT":  "8",
			"EMPTY":  "",
			"WRONG":  "canary-wrong-value",
			"BUS":    "Endpoint=sb://b.example.com/;SharedAccessKeyName=n;SharedAccessKey=canary",
		}[name]
		return v, ok
	},
	File: func(path string) ([]byte, error) {
		v, ok := map[string]string{
			"/run/secrets/key":        "file-key-file-key\n",
			"/run/secrets/nats.creds": creds,
			"/run/secrets/short":      "short\r\n",
		}[path]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return []byte(v), nil
	},
	Vaults: vaults(map[string]string{
		"/secrets/fo-key/": "vault-key-vault-key", "/secrets/fo-key/0a1b2c": "old-key-old-key-old", "/secrets/short/": "short", "/secrets/empty/": "",
	}),
}

// vaults gives the secrets of the vault contoso, by path, as its REST API does, and
// knows no other vault. Package keyvault's own tests have the rest.
func vaults(secrets map[string]string) *keyvault.Store {
	return keyvault.NewStore(keyvault.Options{Credential: anybody{}, Transport: contoso(secrets)})
}

func contoso(secrets map[string]string) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != "contoso.vault.azure.net" {
			return nil, &net.DNSError{Err: "no such host", Name: r.URL.Host, IsNotFound: true}
		}
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", "application/json")
		value, ok := secrets[r.URL.Path]
		switch {
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/7fd0bc6a", resource="https://vault.azure.net"`)
			w.WriteHeader(http.StatusUnauthorized)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.WriteString(`{"error":{"code":"SecretNotFound","message":"canary"}}`)
		default:
			_ = json.NewEncoder(w).Encode(map[string]string{"value": value})
		}
		resp := w.Result()
		resp.Request = r
		return resp, nil
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type anybody struct{}

func (anybody) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// TestGolden reads the cases of testdata/*.txtar: name.yaml is the input and
// name.want what Parse says about it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out := &txtar.Archive{Comment: archive.Comment}
		wants := map[string]string{}
		for _, f := range archive.Files {
			wants[f.Name] = string(f.Data)
		}
		for _, f := range archive.Files {
			name, ok := strings.CutSuffix(f.Name, ".yaml")
			if !ok {
				continue
			}
			got := outcome(Parse("gridfan.yaml", f.Data, fake))
			out.Files = append(out.Files, f, txtar.File{Name: name + ".want", Data: []byte(got)})
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar")+"/"+name, func(t *testing.T) {
				if strings.Contains(got, "canary") {
					t.Errorf("a secret shows:\n%s", got)
				}
				if !*update {
					if diff := cmp.Diff(wants[name+".want"], got); diff != "" {
						t.Errorf("-want +got:\n%s", diff)
					}
				}
			})
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(out), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func outcome(c *Config, err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	var s strings.Builder
	s.WriteString("ok\n")
	for _, w := range c.Warnings {
		s.WriteString("warning: " + w.String() + "\n")
	}
	return s.String()
}

// everything has each accepted key once, external after embedded because these
// exclude each other.
const everything = `
listen:
  public:
    addr: ":9000"
    tls: { cert: /etc/gridfan/tls.crt, key: tls.key, clientCA: "${env:HOST}.pem" }
    trustedProxies: [ "${env:NET}", 192.0.2.7, "2001:db8::/32" ]
  admin: { addr: "0.0.0.0:9001", token: "${env:TOKEN}" }
broker:
  embedded: { dir: /var/lib/gridfan, listen: none }
  durability: barrier
storage: { maxBytes: 2GB, replay: 12h, onFull: shed, dedup: { horizon: 48h, memory: 1GiB } }
sources:
  prod:
    kind: fno
    environment: contoso-prod
    pattern: push
    rationale: A truck waits for it.
    push:
      auth:
        anyOf:
          - key: "${env:KEY}"
          - key: "${file:/run/secrets/key}"
          - sas: { keys: [ "${env:SAS}" ], resource: https://events.example.com/ingress/prod }
          - sas: { keys: "${env:SAS}" }
          - entra:
              tenant: 11111111-2222-3333-4444-555555555555
              audience: [ api://gridfan, 66666666-7777-8888-9999-000000000000 ]
              roles: Events.Send
              callers: [ eventgrid, any ]
              authority: https://login.microsoftonline.us
          - entra: { tenant: 11111111-2222-3333-4444-555555555555, audience: api://gridfan }
        allow: [ 10.0.0.0/8, "2001:db8::1" ]
      origins: [ "*" ]
      subscriptions: [ fo-events ]
      validation: url
    businessKeys:
      CustomerChanged: CustomerAccount
      "Odd: name. [0]": [ dataAreaId, InvoiceId ]
    limits: { body: 1MiB, rate: 6000/m, concurrency: 16 }
  files:
    kind: eventgrid
    push: { auth: none }
  lab:
    kind: cloudevents
    push: { auth: { none: true, allow: [ 127.0.0.1 ] } }
    limits: { rate: 9000/h }
  power:
    kind: dataverse
    push: { auth: { anyOf: [ { mtls: { cn: power, dns: [ a.example.com, b.example.com ], uri: "spiffe://x/y", sha256: "${env:SHA256}" } } ] } }
    limits: { rate: 200/s }
  shop:
    kind: custom
    push:
      auth:
        anyOf:
          - hmac: { preset: github, secrets: "${env:HMAC}" }
          - hmac: { preset: standard-webhooks, secrets: [ "${env:WHSEC}" ], tolerance: 2m }
          - hmac: { secrets: [ "${env:HMAC}", "${file:/run/secrets/key}" ], header: X-Signature, algorithm: sha512, encoding: base64, prefix: "v0=" }
    mapping:
      each: .orders[]
      id: .orderId
      type: '"order." + .status'
      time: .changed | todate
      scope: .shop
      subject: |
        .customer.no // .email
      name: '"${env:KEY} $${"'
      partitionKey: .customer.no
      legalEntity: .company
      action: if .new then "created" else "updated" end
      extensions: { region: .region, tier: '."odd name"' }
subscribers:
  warehouse:
    subjects: [ events.fno.*.usmf.>, events.eventgrid.> ]
    filter: event.legalentity != "${env:HOST}"
    transform: '{"${env:HOST}": .a, b: $event.id}'
    deliver: { webhook: { url: "https://${env:HOST}/in?code=${env:CODE}&literal=$${x}", format: cloudevents } }
    start: beginning
    drain: true
    ordering: key
    limits:
      concurrency: 3
      timeout: 1m30s
      rate: 6000/m
      batch: { events: 100, bytes: 256KiB, linger: 200ms }
      backlog: { age: 7d, bytes: 1GiB }
    retry:
      schedule: [ 1s, 1d ]
      maxAge: 3d
      maxRetryAfter: 10m
      faults: { throttled: { schedule: [ 1m, 5m ] }, tls: { giveUp: true }, access: { schedule: [ 1h ], giveUp: false } }
    breaker: { failures: 7, ratio: 0.25, window: 1m, openFor: 1s, maxOpenFor: 1h, probes: 3, rampUp: none }
  audit:
    subjects: events.>
    deliver: { webhook: { url: http://localhost/ } }
    limits: { concurrency: "${env:EIGHT}" }
  orders:
    subjects: events.>
    deliver: { webhook: { endpoint: wms, path: /orders, sign: { overlap: 12h } } }
  signed:
    subjects: events.>
    deliver: { webhook: { url: http://localhost/, sign: { keys: [ "${env:SIGN}" ] } } }
  grid:
    subjects: events.>
    deliver:
      webhook:
        url: http://localhost/
        format: eventgrid
        headers: { X-Company: "{{legalentity}}", x-key: "${env:CODE}" }
        handshake: { origin: events.example.com }
        sign: { algorithm: ed25519 }
  original:
    subjects: events.>
    deliver: { webhook: { url: http://localhost/, format: original, handshake: true, sign: ed25519 } }
  fetched:
    subjects: events.>
    deliver:
      pull:
        lockDuration: 2m
        maxDeliveryCount: 4
        keys: [ "${env:SIGN}" ]
        entra:
          tenant: 00000000-0000-0000-0000-000000000001
          audience: https://eventgrid.azure.net
          roles: [ Reader ]
          callers: [ 00000000-0000-0000-0000-000000000002 ]
          authority: https://login.microsoftonline.us
  fetchedtoo: { subjects: events.>, deliver: { pull: true } }
  fetchedlong: { subjects: events.>, deliver: { pull: { overlap: 2h } } }
endpoints: { wms: { url: "https://${env:HOST}/in?code=${env:CODE}" } }
egress:
  allow: [ "${env:NET}", wms.corp.example, "*.lab.example" ]
  proxy: "http://gridfan:${env:CODE}@proxy.corp.example:3128"
  noProxy: [ corp.example, 10.0.0.0/8 ]
  proxyResolves: true
`

const external = `
broker:
  url: nats://a:4222,nats://b:4222
  credentials: ${file:/run/secrets/nats.creds}
  replicas: 3
  durability: sync-always
  monitoring: [ http://a:8222, http://b:8222 ]
  spool: { dir: /var/spool/gridfan, maxBytes: 2GiB }
sources: { prod: { kind: fno, push: { auth: none } } }
`

const encrypted = `
broker:
  url: tls://a:4222
  user: gridfan
  password: ${env:KEY}
  tls: { ca: /etc/gridfan/nats-ca.pem, cert: /etc/gridfan/tls.crt, key: /etc/gridfan/tls.key }
sources: { prod: { kind: fno, push: { auth: none } } }
`

// clients has a subscriber whose own NATS client takes its events.
const clients = `
broker:
  embedded:
    listen: none
    clients:
      listen: 0.0.0.0:4223
      url: tls://events.example.com:4223
      tls: { cert: /run/secrets/nats.crt, key: /run/secrets/nats.key }
sources: { prod: { kind: fno, push: { auth: none } } }
subscribers:
  erp:
    subjects: events.fno.>
    deliver: { nats: { keys: UAZ54254KHQ5WUVT6OUFBHWRWFMBS3I5CNCSA3MTJF3VKD63VZQC73ON, ackWait: 5m, maxDeliver: 3, maxAckPending: 100 } }
    limits: { backlog: { age: 7d } }
  plain:
    subjects: events.>
    deliver: { nats: { overlap: 1h } }
`

func TestParse(t *testing.T) {
	defaults := deliver.Config{
		Ordering: deliver.Unordered,
		Limits:   deliver.Limits{Concurrency: 8, Timeout: deliver.Duration(30 * time.Second)},
		Retry:    deliver.Retry{Schedule: deliver.DefaultSchedule(), MaxRetryAfter: deliver.Duration(time.Hour)},
		Breaker: deliver.Breaker{
			Failures: 5, Ratio: 0.5, Window: deliver.Duration(30 * time.Second),
			OpenFor: deliver.Duration(10 * time.Second), MaxOpenFor: deliver.Duration(5 * time.Minute),
			Probes: 1, RampUp: deliver.Duration(30 * time.Second),
		},
	}
	origins := []string{ingress.DefaultOrigin}
	limits := func(rate float64) ingress.Limits {
		return ingress.Limits{Body: 4 << 20, Rate: rate, Concurrency: 256}
	}
	networks := func(list ...string) []netip.Prefix {
		var all []netip.Prefix
		for _, s := range list {
			all = append(all, netip.MustParsePrefix(s))
		}
		return all
	}
	tests := []struct {
		name, yaml string
		want       *Config
	}{
		{"everything", everything, &Config{
			Listen: Listen{
				Public:         ":9000",
				TLS:            &TLS{Cert: "/etc/gridfan/tls.crt", Key: "tls.key", ClientCA: "wms.example.com.pem"},
				TrustedProxies: networks("10.20.0.0/16", "192.0.2.7/32", "2001:db8::/32"),
				Admin:          "0.0.0.0:9001", AdminToken: secret.New("token-token-token"),
			},
			Broker: broker.Config{Dir: "/var/lib/gridfan", Listen: "none", Replicas: 1, Durability: broker.Barrier, MaxBytes: 2e9},
			Dedup:  publish.Dedup{Horizon: 48 * time.Hour, Memory: 1 << 30},

			Retention: retention.Config{Replay: deliver.Duration(12 * time.Hour), OnFull: retention.Shed},
			Sources: []ingress.Source{{
				Name: "files", Kind: "eventgrid", Environment: "files", Auth: auth.Config{None: true},
				Origins: origins, Validation: "answer", Limits: limits(0),
			}, {
				Name: "lab", Kind: "cloudevents", Environment: "lab",
				Auth:    auth.Config{None: true, Allow: networks("127.0.0.1/32")},
				Origins: origins, Validation: "answer", Limits: limits(2.5),
			}, {
				Name: "power", Kind: "dataverse", Environment: "power",
				Auth: auth.Config{AnyOf: []auth.Method{{MTLS: &auth.MTLS{
					CN: []string{"power"}, DNS: []string{"a.example.com", "b.example.com"}, URI: []string{"spiffe://x/y"},
					SHA256: []string{strings.Repeat("ab", 32)},
				}}}},
				Origins: origins, Validation: "answer", Limits: limits(200),
			}, {
				Name: "prod", Kind: "fno", Environment: "contoso-prod", Rationale: "A truck waits for it.",
				Auth: auth.Config{
					AnyOf: []auth.Method{
						{Key: secret.New("key-key-key-key-key")},
						{Key: secret.New("file-key-file-key")},
						{SAS: &auth.SAS{Keys: []secret.String{secret.New("c2FzLXNhcy1zYXMtc2FzLQ==")}, Resource: "https://events.example.com/ingress/prod"}},
						{SAS: &auth.SAS{Keys: []secret.String{secret.New("c2FzLXNhcy1zYXMtc2FzLQ==")}}},
						{Entra: &auth.Entra{
							Tenant:    "11111111-2222-3333-4444-555555555555",
							Audiences: []string{"api://gridfan", "66666666-7777-8888-9999-000000000000"},
							Roles:     []string{"Events.Send"}, Callers: []string{"eventgrid", "any"},
							Authority: "https://login.microsoftonline.us",
						}},
						{Entra: &auth.Entra{
							Tenant: "11111111-2222-3333-4444-555555555555", Audiences: []string{"api://gridfan"},
							Callers: []string{auth.CallerEventGrid}, Authority: auth.PublicAuthority,
						}},
					},
					Allow: networks("10.0.0.0/8", "2001:db8::1/128"),
				},
				Origins: []string{"*"}, Subscriptions: []string{"fo-events"}, Validation: "url",
				BusinessKeys: map[string][]string{
					"CustomerChanged": {"CustomerAccount"}, "Odd: name. [0]": {"dataAreaId", "InvoiceId"},
				},
				Limits: ingress.Limits{Body: 1 << 20, Rate: 100, Concurrency: 16},
			}, {
				Name: "shop", Kind: "custom", Environment: "shop",
				Auth: auth.Config{AnyOf: []auth.Method{
					{HMAC: &auth.HMAC{Preset: auth.PresetGitHub, Secrets: []secret.String{secret.New("hmac-hmac-hmac-hmac")}}},
					{HMAC: &auth.HMAC{
						Preset: auth.PresetStandardWebhooks, Tolerance: 2 * time.Minute,
						Secrets: []secret.String{secret.New("whsec_d2hzZWMtd2hzZWMtd2hzZWMtd2hzZWM=")},
					}},
					{HMAC: &auth.HMAC{
						Secrets: []secret.String{secret.New("hmac-hmac-hmac-hmac"), secret.New("file-key-file-key")},
						Header:  "X-Signature", Algorithm: "sha512", Encoding: "base64", Prefix: "v0=",
					}},
				}},
				Origins: origins, Validation: "answer", Limits: limits(0),
				Mapping: &custom.Mapping{
					Each: ".orders[]", ID: ".orderId", Type: `"order." + .status`, Time: ".changed | todate", Scope: ".shop",
					Subject: ".customer.no // .email\n", Name: `"${env:KEY} $${"`, PartitionKey: ".customer.no",
					LegalEntity: ".company", Action: `if .new then "created" else "updated" end`,
					Extensions: map[string]string{"region": ".region", "tier": `."odd name"`},
				},
			}},
			Subscribers: []registry.Definition{{
				Name: "audit", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "http://localhost/", Format: webhook.Structured}},
				Start:   registry.Now, Config: defaults,
			}, {
				Name: "fetched", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Pull: &pull.Config{
					LockDuration: deliver.Duration(2 * time.Minute), MaxDeliveryCount: 4,
					Keys: []string{"whsec_c2lnbmluZy1rZXktc2lnbmluZy1rZXkh"},
					Entra: &pull.Entra{
						Tenant: "00000000-0000-0000-0000-000000000001", Audience: []string{"https://eventgrid.azure.net"},
						Roles: []string{"Reader"}, Callers: []string{"00000000-0000-0000-0000-000000000002"}, Authority: "https://login.microsoftonline.us",
					},
				}},
				Start: registry.Now, Config: defaults,
			}, {
				Name: "fetchedlong", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Pull: &pull.Config{
					LockDuration: deliver.Duration(time.Minute), MaxDeliveryCount: 10, Overlap: deliver.Duration(2 * time.Hour),
				}},
				Start: registry.Now, Config: defaults,
			}, {
				Name: "fetchedtoo", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Pull: &pull.Config{
					LockDuration: deliver.Duration(time.Minute), MaxDeliveryCount: 10, Overlap: deliver.Duration(24 * time.Hour),
				}},
				Start: registry.Now, Config: defaults,
			}, {
				Name: "grid", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Webhook: &webhook.Config{
					URL: "http://localhost/", Format: webhook.EventGrid,
					Headers:   map[string]string{"X-Company": "{{legalentity}}", "x-key": "canary-code-in-url"},
					Handshake: webhook.Handshake{On: true, Origin: "events.example.com"},
					Sign:      webhook.Signing{On: true, Algorithm: webhook.Ed25519, Overlap: deliver.Duration(24 * time.Hour)},
				}},
				Start: registry.Now, Config: defaults,
			}, {
				Name: "orders", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Webhook: &webhook.Config{Endpoint: "wms", Path: "/orders", Format: webhook.Structured, Sign: webhook.Signing{On: true, Overlap: deliver.Duration(12 * time.Hour)}}},
				Start:   registry.Now, Config: defaults,
			}, {
				Name: "original", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Webhook: &webhook.Config{
					URL: "http://localhost/", Format: webhook.Original, Handshake: webhook.Handshake{On: true},
					Sign: webhook.Signing{On: true, Algorithm: webhook.Ed25519, Overlap: deliver.Duration(24 * time.Hour)},
				}},
				Start: registry.Now, Config: defaults,
			}, {
				Name: "signed", Subjects: []string{"events.>"},
				Deliver: registry.Deliver{Webhook: &webhook.Config{
					URL: "http://localhost/", Format: webhook.Structured,
					Sign: webhook.Signing{On: true, Keys: []string{"whsec_c2lnbmluZy1rZXktc2lnbmluZy1rZXkh"}},
				}},
				Start: registry.Now, Config: defaults,
			}, {
				Name: "warehouse", Subjects: []string{"events.fno.*.usmf.>", "events.eventgrid.>"},
				Filter: `event.legalentity != "${env:HOST}"`, Transform: `{"${env:HOST}": .a, b: $event.id}`,
				Deliver: registry.Deliver{Webhook: &webhook.Config{
					URL: "https://wms.example.com/in?code=canary-code-in-url&literal=${x}", Format: webhook.Structured,
				}},
				Start: registry.Beginning, Drain: true,
				Config: deliver.Config{
					Ordering: deliver.ByKey,
					Limits: deliver.Limits{
						Concurrency: 3, Timeout: deliver.Duration(90 * time.Second), Rate: 100,
						Batch:   deliver.Batch{Events: 100, Bytes: 256 << 10, Linger: deliver.Duration(200 * time.Millisecond)},
						Backlog: deliver.Backlog{Age: deliver.Duration(7 * 24 * time.Hour), Bytes: 1 << 30},
					},
					Retry: deliver.Retry{
						Schedule: []deliver.Duration{deliver.Duration(time.Second), deliver.Duration(24 * time.Hour)},
						MaxAge:   deliver.Duration(3 * 24 * time.Hour), MaxRetryAfter: deliver.Duration(10 * time.Minute),
						Faults: map[deliver.Fault]deliver.Rule{
							deliver.FaultThrottled: {Schedule: []deliver.Duration{deliver.Duration(time.Minute), deliver.Duration(5 * time.Minute)}},
							deliver.FaultTLS:       {GiveUp: true},
							deliver.FaultAccess:    {Schedule: []deliver.Duration{deliver.Duration(time.Hour)}},
						},
					},
					Breaker: deliver.Breaker{
						Failures: 7, Ratio: 0.25, Window: deliver.Duration(time.Minute),
						OpenFor: deliver.Duration(time.Second), MaxOpenFor: deliver.Duration(time.Hour),
						Probes: 3, RampUp: deliver.None,
					},
				},
			}},
			Endpoints: []registry.Endpoint{{Name: "wms", URL: "https://wms.example.com/in?code=canary-code-in-url"}},
			Egress: egress.Config{
				Allow: []string{"10.20.0.0/16", "wms.corp.example", "*.lab.example"},
				Proxy: secret.New("http://gridfan:canary-code-in-url@proxy.corp.example:3128"), NoProxy: []string{"corp.example", "10.0.0.0/8"}, ProxyResolves: true,
			},
			Files: []string{"/run/secrets/key"},
		}},
		{"external broker", external, &Config{
			Listen: Listen{Public: ":8080", Admin: "127.0.0.1:8081"},
			Broker: broker.Config{
				Dir: "./data", URL: "nats://a:4222,nats://b:4222", Credentials: secret.New(creds),
				Replicas: 3, MaxBytes: broker.DefaultMaxBytes,
				Durability: broker.SyncAlways, Monitoring: []string{"http://a:8222", "http://b:8222"},
			},
			Spool: &broker.SpoolConfig{Dir: "/var/spool/gridfan", MaxBytes: 2 << 30},
			Dedup: publish.Dedup{Horizon: 24 * time.Hour, Memory: 512 << 20},

			Retention: retention.Config{Replay: deliver.Duration(24 * time.Hour), OnFull: retention.Reject},
			Sources: []ingress.Source{{
				Name: "prod", Kind: "fno", Environment: "prod", Auth: auth.Config{None: true},
				Origins: origins, Validation: "answer", Limits: limits(0),
			}},
			Files: []string{"/run/secrets/nats.creds"},
		}},
		{"encrypted external broker", encrypted, &Config{
			Listen: Listen{Public: ":8080", Admin: "127.0.0.1:8081"},
			Broker: broker.Config{
				Dir: "./data", URL: "tls://a:4222", User: "gridfan", Password: secret.New("key-key-key-key-key"),
				TLS:      broker.TLSConfig{CA: "/etc/gridfan/nats-ca.pem", Cert: "/etc/gridfan/tls.crt", Key: "/etc/gridfan/tls.key"},
				Replicas: 1, MaxBytes: broker.DefaultMaxBytes,
			},
			Dedup:     publish.Dedup{Horizon: 24 * time.Hour, Memory: 512 << 20},
			Retention: retention.Config{Replay: deliver.Duration(24 * time.Hour), OnFull: retention.Reject},
			Sources: []ingress.Source{{
				Name: "prod", Kind: "fno", Environment: "prod", Auth: auth.Config{None: true},
				Origins: origins, Validation: "answer", Limits: limits(0),
			}},
		}},
		{"clients of their own", clients, &Config{
			Listen: Listen{Public: ":8080", Admin: "127.0.0.1:8081"},
			Broker: broker.Config{
				Dir: "./data", Listen: "none", Replicas: 1, MaxBytes: broker.DefaultMaxBytes,
				Clients: broker.ClientsConfig{Listen: "0.0.0.0:4223", URL: "tls://events.example.com:4223", Encrypted: true},
			},
			ClientsTLS: &TLS{Cert: "/run/secrets/nats.crt", Key: "/run/secrets/nats.key"},
			Dedup:      publish.Dedup{Horizon: 24 * time.Hour, Memory: 512 << 20},
			Retention:  retention.Config{Replay: deliver.Duration(24 * time.Hour), OnFull: retention.Reject},
			Sources: []ingress.Source{{
				Name: "prod", Kind: "fno", Environment: "prod", Auth: auth.Config{None: true},
				Origins: origins, Validation: "answer", Limits: limits(0),
			}},
			Subscribers: []registry.Definition{{
				Name: "erp", Subjects: []string{"events.fno.>"}, Start: registry.Now,
				Deliver: registry.Deliver{Nats: &native.Config{
					Keys: []string{"UAZ54254KHQ5WUVT6OUFBHWRWFMBS3I5CNCSA3MTJF3VKD63VZQC73ON"}, AckWait: deliver.Duration(5 * time.Minute), MaxDeliver: 3, MaxAckPending: 100,
				}},
				Config: func() deliver.Config {
					c := defaults
					c.Limits.Backlog.Age = deliver.Duration(7 * 24 * time.Hour)
					return c
				}(),
			}, {
				Name: "plain", Subjects: []string{"events.>"}, Start: registry.Now,
				Deliver: registry.Deliver{Nats: &native.Config{
					Overlap: deliver.Duration(time.Hour), AckWait: deliver.Duration(30 * time.Second), MaxDeliver: 10, MaxAckPending: 1000,
				}},
				Config: defaults,
			}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("gridfan.yaml", []byte(tt.yaml), fake)
			if err != nil {
				t.Fatal(err)
			}
			// What these are is in TestSecretStores and TestReferences.
			tt.want.Shutdown, tt.want.Secrets, tt.want.References = Shutdown{Grace: deliver.Duration(defaultGrace)}, Secrets{Refresh: defaultRefresh}, got.References
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(secret.String{}, netip.Prefix{}, Reference{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// shared are the keys of credentials and certificates that polled sources have in
// common with webhooks.
var shared = regexp.MustCompile(`^sources\.<name>\.(?:poll\.(?:odata|delta)|complete)\.((?:auth|tls)\..*)$`)

// polling has every key of sources that are polled.
const polling = `sources:
  crm:
    kind: dataverse
    environment: contoso
    pattern: hybrid
    rationale: Some steps are switched off at night.
    push: { auth: none }
    poll:
      odata:
        url: https://contoso.crm4.dynamics.com
        table: account
        entity: accounts
        cursor: version
        key: accountid
        modified: modifiedon
        created: createdon
        select: [ name, statecode ]
        filter: statecode eq 0
        pageSize: 500
        overlap: 2m
        annotations: false
        maxPage: 1MiB
        auth:
          oauth2: { tokenURL: "https://login.example/token", clientID: me, clientSecret: "${env:KEY}" }
        tls: { ca: /run/secrets/ca.pem }
      every: { min: 10s, max: 1m }
      tolerance: 1m
      windows: [ { start: "0 6 * * 1-5", for: 12h, zone: Europe/Berlin }, { start: "@daily" } ]
      retry: { max: 5m }
      timeout: 45s
      pages: 7
      budget: 30/m
      baseline: publish
  erp:
    kind: fno
    environment: contoso
    poll:
      odata:
        url: https://contoso.operations.dynamics.com
        entity: PurchaseOrderHeadersV2
        key: [ dataAreaId, PurchaseOrderNumber ]
        modified: SysModifiedDateTime
        number: RecId
        crossCompany: false
        auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } }
      every: 5m
  wms:
    kind: custom
    pattern: poll
    poll:
      sql:
        driver: sqlserver
        dsn: "sqlserver://wms.database.windows.net?database=wms"
        auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } }
        table: { schema: sales, name: Orders, key: [ Id ], columns: [ State ], filter: "State <> 'x'", created: CreatedAt, modified: ChangedAt, timezone: Europe/Berlin }
        cursor: { kind: timestamp, column: ChangedAt, overlap: 10m }
        pageSize: 100
        maxBytes: 1MiB
        timeout: 10s
  mes:
    kind: custom
    poll:
      sql:
        driver: sqlserver
        dsn: "sqlserver://mes.database.windows.net?database=mes"
        auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: 66666666-7777-8888-9999-000000000000 } }
        table: { name: Jobs, key: Id }
        cursor: { kind: changeTracking }
  lab:
    kind: custom
    poll:
      sql:
        driver: sqlserver
        dsn: "sqlserver://lab.database.windows.net?database=lab"
        auth: { default: true }
        table: { name: Runs, key: Id }
        cursor: { kind: rowversion, column: Version }
  tms:
    kind: custom
    poll:
      delta:
        url: https://tms.example/changes
        method: POST
        query: { v: "2" }
        headers: { X-Tenant: "${env:KEY}" }
        body: '{"after": "{cursor}"}'
        start: "0"
        items: .items[]
        cursor: .cursor
        next: .links.next
        resume: .links.delta
        more: .more
        key: [ .plant, .id ]
        version: .rev
        versionGrows: true
        modified: .changed
        created: .made
        deleted: .gone
        data: .row
        table: Shipment
        scope: eu
        scopeColumn: plant
        begins: true
        hold: 30s
        expired: [ 404 ]
        maxPage: 1MiB
        auth: { basic: { username: gridfan, password: "${env:KEY}" } }
  one:
    kind: custom
    poll: { delta: { url: "https://one.example", items: ".", key: .id, table: One } }
`

func TestPolledSources(t *testing.T) {
	c, err := Parse("gridfan.yaml", []byte(polling), fake)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Sources) != 1 || c.Sources[0].Name != "crm" || len(c.Polled) != 7 {
		t.Fatalf("%d sources are pushed and %d polled", len(c.Sources), len(c.Polled))
	}
	var got []string
	for _, p := range c.Polled {
		r := p.Reading()
		s := p.Shape()
		got = append(got, fmt.Sprintf("%s %s: %s %s of %s by %s every %s as %s; %s/%s", p.Name, p.Pattern, r.Way, r.Of, r.From, r.Cursor, r.Every(), p.Environment, s.Scope, s.Table))
	}
	want := []string{
		"crm hybrid: odata accounts of https://contoso.crm4.dynamics.com/api/data/v9.2 by version every 10s to 1m as contoso; /account",
		"erp poll: odata PurchaseOrderHeadersV2 of https://contoso.operations.dynamics.com/data by modified every 5m as contoso; /PurchaseOrderHeadersV2",
		"lab poll: sql dbo.Runs of sqlserver at lab.database.windows.net by rowversion by Version every 5s to 2m as lab; dbo/Runs",
		"mes poll: sql dbo.Jobs of sqlserver at mes.database.windows.net by changeTracking every 5s to 2m as mes; dbo/Jobs",
		"one poll: delta One of https://one.example by what the endpoint gives every 5s to 2m as one; /One",
		"tms poll: delta Shipment of https://tms.example/changes by what the endpoint gives every 5s to 2m as tms; eu/Shipment",
		"wms poll: sql sales.Orders of sqlserver at wms.database.windows.net by timestamp by ChangedAt every 5s to 2m as wms; sales/Orders",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	crm := c.Polled[0]
	wantSchedule := poll.Config{
		Name: "crm", Table: "account", Only: true, First: true, Kind: "dataverse", Environment: "contoso", Identity: crm.OData.Identity(),
		Every: poll.Every{Min: 10 * time.Second, Max: time.Minute}, Tolerance: time.Minute,
		RetryMax: 5 * time.Minute, Timeout: 45 * time.Second, Pages: 7, Budget: 0.5, Baseline: poll.Publish,
		Windows: []poll.Window{{Start: "0 6 * * 1-5", For: 12 * time.Hour, Zone: "Europe/Berlin"}, {Start: "@daily"}},
	}
	if d := cmp.Diff(wantSchedule, crm.Config, cmpopts.IgnoreUnexported(poll.Window{})); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if o := crm.OData; o.PageSize != 500 || o.Overlap != 2*time.Minute || o.MaxPage != 1<<20 || *o.Annotations || o.Filter != "statecode eq 0" ||
		o.Auth.OAuth2.ClientID != "me" || o.TLS.CA != "/run/secrets/ca.pem" || len(o.Select) != 2 {
		t.Errorf("%+v", o)
	}
	if o := c.Polled[1].OData; *o.CrossCompany || o.NumberColumn != "RecId" || o.Auth.ManagedIdentity.ClientID != "11111111-2222-3333-4444-555555555555" {
		t.Errorf("%+v", o)
	}
	if x := c.Polled[5].Delta; x.Method != "POST" || x.Query["v"] != "2" || x.Headers["X-Tenant"] != "key-key-key-key-key" || x.Start != "0" || x.Resume != ".links.delta" ||
		len(x.Key) != 2 || !x.VersionGrows || x.Data != ".row" || x.ScopeColumn != "plant" || !x.Begins || x.Hold != 30*time.Second || !slices.Equal(x.Expired, []int{404}) || x.Auth.Basic.Username != "gridfan" {
		t.Errorf("%+v", x)
	}
	if s := c.Polled[6].SQL; s.Cursor.Overlap != 10*time.Minute || s.Table.Filter != "State <> 'x'" || s.PageSize != 100 || s.MaxBytes != 1<<20 || s.Timeout != 10*time.Second {
		t.Errorf("%+v", s)
	}

	// The same keys stand in the elements of a list. What a table is called depends on
	// nothing but what is read.
	lists := regexp.MustCompile(`(?m)^    poll:\n((?:      .*\n)+)`).ReplaceAllStringFunc(polling, func(s string) string {
		return strings.Replace(s, "poll:\n      ", "poll:\n    - ", 1)
	})
	several, err := Parse("gridfan.yaml", []byte(lists+`  both:
    kind: custom
    poll:
      - delta: { url: "https://one.example", items: ".", key: .id, table: One }
        every: 5s
      - sql: { driver: sqlserver, dsn: "${env:DSN}", table: { schema: sales, name: Jobs, key: Id }, cursor: { kind: changeTracking } }
        budget: 5/s
`), Lookup{Env: func(name string) (string, bool) {
		if name == "DSN" {
			return "sqlserver://me:canary@mes.database.windows.net?database=mes", true
		}
		return fake.Env(name)
	}, File: fake.File})
	if err != nil {
		t.Fatal(err)
	}
	var tables []string
	for _, p := range several.Polled {
		tables = append(tables, p.Label()+" "+p.ID())
	}
	if d := cmp.Diff([]string{
		"both/One both/One", "both/sales.Jobs both/sales=2EJobs", "crm crm/account", "erp erp/PurchaseOrderHeadersV2", "lab lab/Runs", "mes mes/Jobs", "one one/One",
		"tms tms/Shipment", "wms wms/sales=2EOrders",
	}, tables); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for i, p := range several.Polled[2:] {
		if p.Version() != c.Polled[i].Version() {
			t.Errorf("%s: as the only one of a list it is another source", p.Name)
		}
	}
	if n := several.Count(); n != 8 {
		t.Errorf("%d sources", n)
	}

	// Where it leads to a change, that is seen; a secret is told by no digest.
	other := func(from, to string) *Config {
		t.Helper()
		o, err := Parse("gridfan.yaml", []byte(strings.ReplaceAll(polling, from, to)), fake)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := other("statecode eq 0", "statecode eq 1"); o.Sections()["sources"] == c.Sections()["sources"] || o.Polled[0].Version() == crm.Version() || o.Polled[1].Version() != c.Polled[1].Version() {
		t.Error("another filter is not seen, or seen where it is not")
	}
	if o := other(`"${env:KEY}"`, `"another secret"`); o.Sections()["sources"] != c.Sections()["sources"] || o.Polled[0].Version() == crm.Version() {
		t.Error("another secret shows in the digests, or is not seen")
	}
}

// TestTables keeps the tables of keys true: every accepted key is exercised
// above, and every refused one is refused.
func TestTables(t *testing.T) {
	var seen []string
	var walk func(v *value)
	walk = func(v *value) {
		seen = append(seen, v.pattern)
		for _, i := range v.items {
			walk(i)
		}
		for _, f := range v.fields {
			walk(f.value)
		}
	}
	for _, yaml := range []string{everything, external, encrypted, credentialed, inAzure, fromAzure, completed, clients, polling, stores, stores2} {
		walk((&decoder{lookup: fake}).parse([]byte(yaml)))
	}
	for _, key := range accepted {
		if m := shared.FindStringSubmatch(key); m != nil {
			key = "subscribers.<name>.deliver.webhook." + m[1]
		}
		if !slices.Contains(seen, key) {
			t.Errorf("%s is accepted but in no test", key)
		}
	}
	for key, sentence := range later {
		if leaf(key) || parent(key) {
			t.Errorf("%s is both accepted and refused", key)
		}
		if got := outcome(Parse("f", nest(key, "{ some: thing }"), fake)); !strings.Contains(got, ": "+sentence+"\n") {
			t.Errorf("%s: got\n%s", key, got)
		}
	}
}

// nest writes the flow form of one key with its value.
func nest(pattern, v string) []byte {
	s := v
	steps := strings.Split(strings.ReplaceAll(pattern, "<name>", "x"), ".")
	for _, step := range slices.Backward(steps) {
		if key, ok := strings.CutSuffix(step, "[]"); ok {
			s, step = "["+s+"]", key
		}
		s = "{ " + step + ": " + s + " }"
	}
	return []byte(s)
}

func TestOddInput(t *testing.T) {
	tests := []struct{ name, yaml, want string }{
		{"byte order mark", "\uFEFF" + external, "ok\n"},
		{"CRLF", strings.ReplaceAll(external, "\n", "\r\n"), "ok\n"},
		{"CRLF error", "sources:\r\n  prod:\r\n    kind: 5\r\n    push: {auth: none}\r\n",
			"f:3:11: sources.prod.kind: want a text, got a number; put it in quotes\n"},
		{"not UTF-8", "a: b\nc: \xff\n", "f:2:4: the file is not UTF-8 text; save it as UTF-8\n"},
		{"control character", "a: \x00\n", "f:1:4: control character U+0000; remove it\n"},
		{"deep flow", strings.Repeat("[", 100_000), "f:1:101: YAML syntax: nested deeper than 100 levels\n"},
		{"deep block", strings.Repeat("- ", 100_000), "f:1:201: YAML syntax: nested deeper than 100 levels\n"},
		{"too large", strings.Repeat("# \n", 500_000), "f:1:1: the file is larger than 1048576 bytes\n"},
		{"wide characters before", "{ ü: 1, \"é\": 2 }",
			"f:1:1: sources: want at least one source (examples/gridfan.yaml is a complete one)\n" +
				"f:1:3: unknown key; known here: listen, broker, shutdown, secrets, storage, sources, subscribers, endpoints, egress\n" +
				"f:1:9: unknown key; known here: listen, broker, shutdown, secrets, storage, sources, subscribers, endpoints, egress\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := outcome(Parse("f", []byte(tt.yaml), fake))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestNoLeak puts a canary in every place for a secret and breaks the file in
// every way we know.
func TestNoLeak(t *testing.T) {
	const canary = "canary7"
	env := func(v string) Lookup {
		l := fake
		l.Env = func(string) (string, bool) { return v, true }
		l.File = func(string) ([]byte, error) { return []byte(v), nil }
		return l
	}
	bodies := []string{
		canary, canary + "${env:X", canary + "${" + canary + "}", "$${" + canary + "}", "'" + canary, `"` + canary + `\q"`,
		"[" + canary + "]", "{" + canary + "}", "{ " + canary + ": 1 }", "{key:" + canary + "}", "{" + canary + ":1}",
		"http://u:" + canary + "@/", "nats://u:" + canary + "@h x:y", "https://h/?k=" + canary + "#f", "ftp://" + canary,
		"\n  - " + canary + "\n - x", "|\n  " + canary + "\n b", "%" + canary, "@" + canary, "!t " + canary, "&a " + canary, "*" + canary,
		canary + ": " + canary, "${keyvault:" + canary + "/x}", "${" + canary + ":x}", "\t" + canary,
		"${env:X}", "${file:/x}", "x${env:X}", "'${env:X}'",
	}
	shapes := []string{
		"listen: { admin: { token: %s } }", "listen:\n admin:\n  token: %s\n", "listen: { admin: { addr: %s } }",
		"broker:\n url: %s\n", "broker:\n credentials: %s\n", "broker:\n url: %s\n credentials: %s\n replicas: %s\n",
		"broker:\n url: nats://a\n user: '${env:X}'\n password: %s\n tls: { ca: '${env:X}', cert: '${env:X}' }\n",
		"sources:\n s:\n  kind: ${env:X}\n  push:\n   auth:\n    anyOf:\n    - key: %s\n", "sources:\n s:\n  push:\n   auth:\n    anyOf:\n    - %s\n",
		"sources:\n s:\n  push:\n   auth: {anyOf: [ %s ]}\n", "sources:\n s:\n  push:\n   auth: %s\n",
		"sources:\n s:\n  push:\n   auth:\n    anyOf:\n    - sas:\n       keys: %s\n    - sas: %s\n    - sas: { keys: [ %s ], resource: '${env:X}' }\n",
		"sources:\n s:\n  push:\n   auth:\n    anyOf:\n    - hmac:\n       secrets: %s\n    - hmac: %s\n    - hmac: { secrets: [ %s ] }\n",
		"sources:\n s:\n  push:\n   auth:\n    anyOf:\n    - hmac: { preset: standard-webhooks, secrets: %s }\n    - hmac: { preset: stripe, secrets: [ %s ], tolerance: '${env:X}' }\n",
		"sources:\n s:\n  push:\n   auth:\n    anyOf:\n    - hmac: { secrets: '${env:X}', preset: '${env:X}', header: '${env:X}', algorithm: '${env:X}', encoding: '${env:X}' }\n",
		"sources:\n s:\n  push:\n   auth:\n    anyOf:\n    - entra: { tenant: '${env:X}', audience: '${env:X}', callers: '${env:X}', authority: '${env:X}' }\n    - mtls: { sha256: '${env:X}', cn: '${env:X}' }\n    allow: [ '${env:X}' ]\n",
		"sources:\n s:\n  limits: { rate: '${env:X}', body: '${env:X}' }\n  push: { validation: '${env:X}', subscriptions: [ '${env:X}' ] }\n  businessKeys: { x: '${env:X}' }\n",
		"listen:\n public:\n  trustedProxies: [ '${env:X}' ]\n  tls:\n   cert: '${env:X}'\n   key: %s\n",
		"subscribers:\n s:\n  deliver:\n   webhook:\n    url: %s\n    format: ${env:X}\n", "subscribers:\n s:\n  deliver:\n   webhook:\n    url:%s\n    format: x\n",
		"subscribers:\n s:\n  deliver: { webhook: { url: %s } }\n  limits: { timeout: '${env:X}', concurrency: '${env:X}' }\n  start: '${env:X}'\n",
		"endpoints:\n s:\n  url: %s\n", "subscribers:\n s:\n  deliver: { webhook: { endpoint: '${env:X}', path: '${env:X}' } }\n",
		"subscribers:\n s:\n  deliver:\n   webhook:\n    sign: %s\n", "subscribers:\n s:\n  deliver:\n   webhook:\n    sign: { keys: [ %s ] }\n",
		"subscribers:\n s:\n  deliver:\n   webhook:\n    headers: { X-Key: %s }\n", "subscribers:\n s:\n  deliver:\n   webhook:\n    headers:\n     X-Key: 'x{{${env:X}'\n     Host: '${env:X}'\n     x-key: %s\n",
		"subscribers:\n s:\n  deliver:\n   webhook:\n    headers: [ %s ]\n",
		"subscribers:\n s:\n  deliver:\n   eventGrid:\n    endpoint: %s\n    auth: %s\n", "subscribers:\n s:\n  deliver:\n   eventGrid:\n    endpoint: https://t/\n    auth: { key: %s }\n",
		"subscribers:\n s:\n  deliver:\n   eventGridNamespace:\n    endpoint: '${env:X}'\n    topic: '${env:X}'\n    auth:\n     sas: %s\n     managedIdentity: %s\n",
		"subscribers:\n s:\n  deliver:\n   serviceBus:\n    namespace: '${env:X}'\n    queue: '${env:X}'\n    auth:\n     connectionString: %s\n", "subscribers:\n s:\n  deliver: { serviceBus: { queue: q, auth: %s } }\n",
	}
	for _, value := range []string{canary, "1" + canary, canary + "\n" + canary, "https://" + canary + "\x7f/", canary + `"` + canary} {
		for _, shape := range shapes {
			for _, body := range bodies {
				yaml := strings.ReplaceAll(shape, "%s", body)
				c, err := Parse("f", []byte(yaml), env(value))
				got := outcome(c, err)
				// The name of a file or vault is not its content.
				got = strings.ReplaceAll(got, "${keyvault:"+canary, "")
				got = strings.ReplaceAll(got, canary+".vault.azure.net", "")
				if strings.Contains(got, canary) {
					t.Errorf("a secret shows; file:\n%s\nproblems:\n%s", yaml, got)
				}
			}
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gridfan.yaml")
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GRIDFAN_TEST_HOST", "host.example.com")
	key := filepath.Join(dir, "key")
	write(key, "0123456789abcdef\n")
	write(path, `
sources: { s: { kind: eventgrid, push: { auth: { anyOf: [ { key: '${file:`+key+`}' } ] } } } }
subscribers: { x: { subjects: events.>, deliver: { webhook: { url: "https://${env:GRIDFAN_TEST_HOST}/" } } } }
`)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Sources[0].Auth.AnyOf[0].Key.Reveal(), "0123456789abcdef"; got != want {
		t.Errorf("got key %q, want %q", got, want)
	}
	if got, want := c.Subscribers[0].Deliver.Webhook.URL, "https://host.example.com/"; got != want {
		t.Errorf("got url %q, want %q", got, want)
	}

	write(path, "sources:\n  s: { kind: eventgrid }\n")
	_, err = Load(path)
	problems, ok := errors.AsType[Errors](err)
	want := Problem{path, 2, 3, "sources.s.push.auth", `say who may send: anyOf: [ { key: "${env:…}" } ], or none`}
	if !ok || len(problems) != 1 || problems[0] != want {
		t.Errorf("got %v, want %v", err, want)
	}

	write(path, strings.Repeat("#", maxFile+1))
	if _, err = Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v, want it refused as too large", err)
	}
}

// placeholders answers every reference with something that fits, so that
// examples can be loaded.
var placeholders = Lookup{
	Env: func(name string) (string, bool) {
		if strings.Contains(name, "SAS") {
			return "cGxhY2Vob2xkZXItcGxhY2Vob2xkZXI=", true
		}
		return "https://placeholder.example.com/", true
	},
	File: func(path string) ([]byte, error) {
		if strings.HasSuffix(path, ".creds") {
			return []byte(creds), nil
		}
		return []byte("placeholder-placeholder"), nil
	},
	Offline: true,
}

const root = "../../../"

func TestExample(t *testing.T) {
	text, err := os.ReadFile(root + "examples/gridfan.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := outcome(Parse("gridfan.yaml", text, placeholders)); got != "ok\n" {
		t.Errorf("got %s", got)
	}
}

var fence = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// TestDocs loads every complete file in the documentation, and looks for every
// key of the tables there.
func TestDocs(t *testing.T) {
	complete := 0
	for _, file := range []string{"docs/configuration.md", "docs/azure-delivery.md", "README.md"} {
		text, err := os.ReadFile(root + file)
		if errors.Is(err, fs.ErrNotExist) && file == "README.md" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		blocks := fence.FindAllStringSubmatch(string(text), -1)
		for i, b := range blocks {
			switch language, code := b[1], b[2]; {
			case language != "yaml":
			case strings.HasPrefix(code, "# gridfan.yaml\n"):
				complete++
				if got := outcome(Parse(file, []byte(code), placeholders)); got != "ok\n" {
					t.Errorf("%s:\n%s\ngot %s", file, code, got)
				}
			case strings.HasPrefix(code, "# mistakes.yaml\n") && i+1 < len(blocks):
				got := outcome(Parse("mistakes.yaml", []byte(code), fake))
				if diff := cmp.Diff(blocks[i+1][2], got); diff != "" {
					t.Errorf("%s: problems of the example, -documented +got:\n%s", file, diff)
				}
			}
		}
		if file != "docs/configuration.md" {
			continue
		}
		keys := slices.Clone(accepted)
		for key := range later {
			keys = append(keys, key)
		}
		for _, key := range keys {
			// How gridfan shows who it is to those it asks is told once.
			if m := shared.FindStringSubmatch(key); m != nil {
				key = "subscribers.<name>.deliver.webhook." + m[1]
			}
			if !strings.Contains(string(text), "`"+key+"`") {
				t.Errorf("%s does not mention `%s`", file, key)
			}
		}
	}
	if complete == 0 {
		t.Error("no complete example in the documentation")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte(external))
	f.Add([]byte(credentialed))
	if text, err := os.ReadFile(root + "examples/gridfan.yaml"); err == nil {
		f.Add(text)
	}
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, a := range archive.Files {
			f.Add(a.Data)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		start := time.Now()
		c, err := Parse("f", text, fake)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("took %v", d)
		}
		if err == nil {
			if c == nil || len(c.Sources) == 0 {
				t.Error("neither an error nor a source")
			}
			return
		}
		problems, ok := errors.AsType[Errors](err)
		if !ok || len(problems) == 0 || c != nil {
			t.Fatalf("got %T: %v", err, err)
		}
		for _, p := range problems {
			if p.Line < 1 || p.Column < 1 || p.Message == "" {
				t.Errorf("incomplete: %+v", p)
			}
		}
		if got := strings.Count(err.Error(), "\n") + 1; got != len(problems) {
			t.Errorf("%d lines for %d problems:\n%s", got, len(problems), err)
		}
	})
}
