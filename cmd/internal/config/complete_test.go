package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/receive"
)

// completed has every key of completing events and of reading dead letters back, but
// for those that are told elsewhere.
const completed = `
sources:
  crm: { kind: dataverse, push: { auth: none }, complete: { url: "https://contoso.crm4.dynamics.com", within: 2m, budget: 5/s, timeout: 20s, auth: { oauth2: { tokenURL: "https://login.example.com/token", clientID: me, clientSecret: "${env:KEY}" } } } }
  hybrid: { kind: dataverse, push: { auth: none }, poll: { odata: { url: "https://contoso.crm4.dynamics.com", table: account, select: [ name ], auth: { managedIdentity: {} } }, budget: 2/s, timeout: 10s } }
  hybrid-later: { kind: dataverse, push: { auth: none }, complete: { within: 1h }, poll: { odata: { url: "https://contoso.crm4.dynamics.com", table: account } } }
  hybrid-else: { kind: dataverse, push: { auth: none }, complete: { url: "https://other.example.com/api/data/v9.1" }, poll: { odata: { url: "https://contoso.crm4.dynamics.com", table: account } } }
  hybrid-not: { kind: dataverse, push: { auth: none }, complete: false, poll: { odata: { url: "https://contoso.crm4.dynamics.com", table: account } } }
  bus: { kind: dataverse, complete: { url: "https://contoso.crm4.dynamics.com" }, receive: { serviceBus: { queue: crm, auth: { connectionString: "${env:BUS}" } } }, deadLetters: { blob: { container: dead, every: none, auth: { connectionString: "${env:STORAGE}" } } } }
  files: { kind: eventgrid, push: { auth: none }, deadLetters: { blob: { account: "https://contoso.blob.core.windows.net", container: dead, prefix: T/S/, every: 1m, keep: true, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  files-sas: { kind: eventgrid, push: { auth: none }, deadLetters: { blob: { account: "https://contoso.blob.core.windows.net", container: dead, auth: { sas: "${env:KEY}" } } } }
  files-wi: { kind: eventgrid, push: { auth: none }, deadLetters: { blob: { account: "https://contoso.blob.core.windows.net", container: dead, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  files-who: { kind: eventgrid, push: { auth: none }, deadLetters: { blob: { account: "https://contoso.blob.core.windows.net", container: dead, auth: { default: true } } } }
`

func TestParseCompleted(t *testing.T) {
	lookup := fake
	lookup.Env = func(name string) (string, bool) {
		if name == "STORAGE" {
			return "DefaultEndpointsProtocol=https;AccountName=contoso;AccountKey=canary;EndpointSuffix=core.windows.net", true
		}
		return fake.Env(name)
	}
	c, err := Parse("gridfan.yaml", []byte(completed), lookup)
	if err != nil {
		t.Fatal(err)
	}
	type to struct {
		Source, URL, Table, Scope string
		Within, Timeout           time.Duration
		Budget                    float64
	}
	var got []to
	for _, s := range c.Completed {
		one := to{Source: s.Source, URL: s.URL, Within: s.Within, Timeout: s.Timeout, Budget: s.Budget}
		if s.Table != nil {
			one.Table = s.Table.Table
		}
		if a := s.Auth; a != nil && a.OAuth2 != nil {
			one.Scope = a.OAuth2.Scope
		} else if a != nil {
			one.Scope = a.ManagedIdentity.Scope
		}
		got = append(got, one)
	}
	const environment, api = "https://contoso.crm4.dynamics.com", "https://contoso.crm4.dynamics.com/api/data/v9.2"
	want := []to{
		{"bus", api, "", "", 5 * time.Minute, poll.DefaultTimeout, 1},
		{"crm", api, "", environment + "/.default", 2 * time.Minute, 20 * time.Second, 5},
		{"hybrid", api, "account", environment, 5 * time.Minute, 10 * time.Second, 2},
		{"hybrid-else", "https://other.example.com/api/data/v9.1", "", "", 5 * time.Minute, poll.DefaultTimeout, 1},
		{"hybrid-later", api, "account", "", time.Hour, poll.DefaultTimeout, 1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	// They share the budget of those that poll.
	if c.Completed[2].Identity() != c.Polled[0].Identity || c.Completed[1].Identity() == c.Polled[0].Identity {
		t.Errorf("identities %s, %s, %s", c.Completed[2].Identity(), c.Completed[1].Identity(), c.Polled[0].Identity)
	}
	var names []string
	for _, r := range c.Received {
		names = append(names, r.Name)
	}
	if d := cmp.Diff([]string{"bus", "files", "files-sas", "files-wi", "files-who"}, names); d != "" && len(names) != 5 {
		t.Errorf("-want +got:\n%s", d)
	}
	if b := c.Received[0]; b.From == nil || b.DeadLetters.Blob.Every != receive.Never {
		t.Errorf("%+v", b)
	}
	wantBlob := &receive.BlobContainer{
		Account: "https://contoso.blob.core.windows.net", Container: "dead", Prefix: "T/S/", Every: time.Minute, Keep: true,
		Auth: credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{ClientID: "11111111-2222-3333-4444-555555555555"}},
	}
	if d := cmp.Diff(wantBlob, c.Received[1].DeadLetters.Blob); d != "" || c.Received[1].From != nil {
		t.Errorf("-want +got:\n%s", d)
	}
	if len(c.Sources) != 9 || c.Count() != 10 {
		t.Errorf("%d are pushed, %d in all", len(c.Sources), c.Count())
	}
	other := func(from, to string) map[string]string {
		t.Helper()
		o, err := Parse("gridfan.yaml", []byte(strings.ReplaceAll(completed, from, to)), lookup)
		if err != nil {
			t.Fatal(err)
		}
		return o.Sections()
	}
	if other("within: 2m", "within: 3m")["sources"] == c.Sections()["sources"] || other("prefix: T/S/", "prefix: T/")["sources"] == c.Sections()["sources"] {
		t.Error("a change is not seen")
	}
	if other(`"${env:KEY}"`, `"another-secret"`)["sources"] != c.Sections()["sources"] {
		t.Error("a secret shows in the digests")
	}
}

func TestCompletedProblems(t *testing.T) {
	for _, tt := range []struct{ source, want string }{
		{`{ kind: fno, push: { auth: none }, complete: { url: "https://h" } }`, "sources.s.complete: only Dataverse cuts events short"},
		{`{ kind: dataverse, push: { auth: none }, complete: {} }`, "sources.s.complete.url: missing"},
		{`{ kind: dataverse, push: { auth: none }, complete: true }`, "sources.s.complete: want false, or a mapping"},
		{`{ kind: dataverse, push: { auth: none }, complete: { url: "https://h?x=1" } }`, "sources.s.complete.url: a ?query"},
		{`{ kind: dataverse, push: { auth: none }, complete: { url: "https://h", within: 2h } }`, "sources.s.complete.within: want 5s to 1h, got 2h0m0s"},
		{`{ kind: dataverse, push: { auth: none }, complete: { url: "https://h", budget: 5000/s } }`, "sources.s.complete.budget: want 1/h to 1000/s"},
		{`{ kind: dataverse, push: { auth: none }, complete: { url: "https://h", timeout: 2h } }`, "sources.s.complete.timeout: want 1s to 1h"},
		{`{ kind: dataverse, push: { auth: none }, complete: { url: "http://h.example.com", auth: { bearer: { token: "${env:KEY}" } } } }`, "sources.s.complete.url: want https"},
		{`{ kind: dataverse, complete: { url: "https://h" }, poll: { odata: { url: "https://h", table: account } } }`, "sources.s.complete: this is about what is pushed"},
		{`{ kind: dataverse, deadLetters: { blob: {} }, poll: { odata: { url: "https://h", table: account } } }`, "sources.s.deadLetters: this is about what is pushed"},
		{`{ kind: eventgrid, push: { auth: none }, deadLetters: {} }`, "sources.s.deadLetters: want blob"},
		{`{ kind: eventgrid, push: { auth: none }, deadLetters: { blob: { container: dead, auth: { managedIdentity: {} } } } }`, "sources.s.deadLetters.blob.account: missing"},
		{`{ kind: eventgrid, push: { auth: none }, deadLetters: { blob: { account: "https://h", container: dead, every: 3d, auth: { managedIdentity: {} } } } }`, "sources.s.deadLetters.blob.every: want 1s to 24h, or none"},
		{`{ kind: eventgrid, push: { auth: none }, deadLetters: { blob: { account: "https://h", container: D, auth: { managedIdentity: {} } } } }`, "sources.s.deadLetters.blob.container: a name is"},
	} {
		_, err := Parse("f", []byte("sources:\n  s: "+tt.source+"\n"), fake)
		if err == nil || !strings.Contains(err.Error(), ": "+tt.want) {
			t.Errorf("%s:\ngot %v\nwant %s", tt.source, err, tt.want)
		}
	}
}
