package odata_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
)

func TestDefaults(t *testing.T) {
	c := odata.Config{
		Kind: event.KindDataverse, Table: "Opportunity",
		Target: request.Target{URL: "https://org.crm.dynamics.com/", Auth: &credentials.Auth{ManagedIdentity: &credentials.ManagedIdentity{}}},
	}
	if err := c.Validate("p"); err != nil {
		t.Fatal(err)
	}
	got := []string{c.URL, c.Table, c.Entity, c.Key[0], string(c.Cursor), c.ModifiedColumn, c.CreatedColumn, c.Auth.ManagedIdentity.Scope, fmt.Sprint(c.PageSize, c.Overlap, *c.Annotations, c.MaxPage)}
	want := []string{"https://org.crm.dynamics.com/api/data/v9.2", "opportunity", "opportunities", "opportunityid", "changeTracking", "modifiedon", "createdon", "https://org.crm.dynamics.com", "1000 5m0s false 67108864"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	again := c
	if err := again.Validate("p"); err != nil || cmp.Diff(c, again) != "" {
		t.Errorf("a second time: %v %s", err, cmp.Diff(c, again))
	}
	auth := &credentials.Auth{OAuth2: &credentials.OAuth2{TokenURL: "https://login/t", ClientID: "c", ClientSecret: canary}}
	f := odata.Config{
		Kind: event.KindFnO, Entity: "SalesOrderHeadersV2", Key: []string{"dataAreaId", "SalesOrderNumber"}, ModifiedColumn: "SysModifiedDateTime",
		Target: request.Target{URL: "https://env.operations.dynamics.com", Auth: auth},
	}
	if err := f.Validate("p"); err != nil {
		t.Fatal(err)
	}
	if f.URL != "https://env.operations.dynamics.com/data" || f.Cursor != odata.Modified || !*f.CrossCompany || f.Auth.OAuth2.Scope != "https://env.operations.dynamics.com/.default" {
		t.Errorf("got %+v", f)
	}
	if auth.OAuth2.Scope != "" {
		t.Error("credentials that others share were changed")
	}
	if text := fmt.Sprintf("%+v %+v", f.Redacted().Auth.OAuth2, f.Identity()); strings.Contains(text, "canary") {
		t.Error(text)
	}
	for table, want := range map[string]string{"account": "accounts", "new_box": "new_boxes", "activity": "activities", "new_key": "new_keys", "new_class": "new_classes"} {
		c := odata.Config{Kind: event.KindDataverse, Table: table, Target: request.Target{URL: "https://h"}}
		if err := c.Validate("p"); err != nil || c.Entity != want {
			t.Errorf("%s: %s, %v", table, c.Entity, err)
		}
	}
}

func TestValidate(t *testing.T) {
	dataverse := func(change func(*odata.Config)) odata.Config {
		c := odata.Config{Kind: event.KindDataverse, Table: "account", Target: request.Target{URL: "https://h"}}
		change(&c)
		return c
	}
	fno := func(change func(*odata.Config)) odata.Config {
		c := odata.Config{Kind: event.KindFnO, Entity: "E", Key: []string{"k"}, ModifiedColumn: "m", Target: request.Target{URL: "https://h"}}
		change(&c)
		return c
	}
	yes := true
	for _, tt := range []struct {
		cfg  odata.Config
		want string // beginning of a line; empty: valid
	}{
		{dataverse(func(*odata.Config) {}), ""},
		{fno(func(*odata.Config) {}), ""},
		{odata.Config{Kind: event.KindCustom}, "p: OData is for sources of kind dataverse and fno, this one's is custom"},
		{dataverse(func(c *odata.Config) { c.URL = "" }), "p.url: missing"},
		{dataverse(func(c *odata.Config) { c.URL = "ftp://h" }), "p.url: want https://host/path"},
		{dataverse(func(c *odata.Config) { c.URL = "https://u:canary@h" }), "p.url: a user and password"},
		{dataverse(func(c *odata.Config) { c.URL = "https://h/api?key=canary" }), "p.url: a ?query"},
		{dataverse(func(c *odata.Config) { c.URL = "https://h/#x" }), "p.url: a #fragment"},
		{dataverse(func(c *odata.Config) {
			c.URL, c.Auth = "http://h", &credentials.Auth{Bearer: &credentials.Bearer{Token: canary}}
		}), "p.url: want https: the credentials"},
		{dataverse(func(c *odata.Config) { c.Auth = &credentials.Auth{} }), "p.auth: want exactly one"},
		{dataverse(func(c *odata.Config) { c.TLS = &credentials.TLS{} }), "p.tls: it says nothing"},
		{dataverse(func(c *odata.Config) { c.MaxPage = 1 }), "p.maxPage: want 64KiB to 1GiB"},
		{dataverse(func(c *odata.Config) { c.Table = "" }), "p.table: missing"},
		{dataverse(func(c *odata.Config) { c.Table = "a b" }), "p.table: want a logical name"},
		{dataverse(func(c *odata.Config) { c.Entity = "accounts(1)" }), "p.entity: want a name"},
		{dataverse(func(c *odata.Config) { c.Cursor = "newest" }), `p.cursor: want changeTracking, version or modified, got "newest"`},
		{dataverse(func(c *odata.Config) { c.Filter = "a eq 1" }), "p.filter: Dataverse takes none beside change tracking"},
		{dataverse(func(c *odata.Config) { c.Filter, c.Cursor = "a eq 1", odata.Version }), ""},
		{dataverse(func(c *odata.Config) { c.Filter, c.Cursor = "a eq\n1", odata.Version }), "p.filter: it has a control character"},
		{dataverse(func(c *odata.Config) { c.Filter, c.Cursor = strings.Repeat("a", 5000), odata.Version }), "p.filter: want at most 4096"},
		{dataverse(func(c *odata.Config) { c.ModifiedColumn, c.Cursor = odata.NoColumn, odata.Modified }), "p.modified: cursor modified needs the column"},
		{dataverse(func(c *odata.Config) { c.ModifiedColumn, c.CreatedColumn = odata.NoColumn, odata.NoColumn }), ""},
		{dataverse(func(c *odata.Config) { c.Key = []string{"a", "b"} }), "p.key: want one column"},
		{dataverse(func(c *odata.Config) { c.NumberColumn = "x" }), "p.number: only F&O"},
		{dataverse(func(c *odata.Config) { c.CrossCompany = &yes }), "p.crossCompany: only F&O"},
		{dataverse(func(c *odata.Config) { c.Select = []string{"name", "na me"} }), "p.select[1]: want the name of a column"},
		{dataverse(func(c *odata.Config) { c.Select = []string{"name", "name"} }), "p.select[1]: name stands twice"},
		{dataverse(func(c *odata.Config) { c.Select = make([]string, 2000) }), "p.select: want at most 1024"},
		{dataverse(func(c *odata.Config) { c.PageSize = 5001 }), "p.pageSize: want 1 to 5000"},
		{dataverse(func(c *odata.Config) { c.PageSize = -1 }), "p.pageSize: want 1 to 5000"},
		{dataverse(func(c *odata.Config) { c.Overlap = time.Millisecond }), "p.overlap: want 1s to 24h"},
		{fno(func(c *odata.Config) { c.PageSize = 10000 }), ""},
		{fno(func(c *odata.Config) { c.PageSize = 10001 }), "p.pageSize: want 1 to 10000"},
		{fno(func(c *odata.Config) { c.Entity = "" }), "p.entity: missing"},
		{fno(func(c *odata.Config) { c.Key = nil }), "p.key: missing"},
		{fno(func(c *odata.Config) { c.ModifiedColumn = "" }), "p.modified: missing"},
		{fno(func(c *odata.Config) { c.ModifiedColumn = "none" }), "p.modified: missing"},
		{fno(func(c *odata.Config) { c.Cursor = odata.ChangeTracking }), "p.cursor: /data has no other than modified"},
		{fno(func(c *odata.Config) { c.Table = "t" }), "p.table: F&O has entities"},
		{fno(func(c *odata.Config) { c.Annotations = &yes }), "p.annotations: F&O has none"},
		{fno(func(c *odata.Config) { c.NumberColumn = "Rec Id" }), "p.number: want the name of a column"},
	} {
		err := tt.cfg.Validate("p")
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", tt.cfg, err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) && !strings.Contains(err.Error(), "\n"+tt.want)):
			t.Errorf("got %v, want %s", err, tt.want)
		case err != nil && strings.Contains(err.Error(), "canary"):
			t.Errorf("it shows a secret: %v", err)
		}
	}
}

// What is asked for, as Dataverse and F&O are asked.
func TestRequests(t *testing.T) {
	var seen []string
	f, srv := accounts(t, odata.Version, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.RequestURI, r.Header.Get("Prefer"), r.Header.Get("OData-Version"), r.Header.Get("Accept"))
		fmt.Fprint(w, `{"value":[]}`)
	})
	if _, err := f.Fetch(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	get := func(cfg odata.Config) {
		cfg.URL = srv.URL
		if _, err := fetcher(t, newClock(), cfg).Fetch(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	get(odata.Config{Kind: event.KindDataverse, Table: "account", Cursor: odata.Modified, Select: []string{"name"}, Filter: "statecode eq 0 or name eq 'a+b'", PageSize: 7})
	get(odata.Config{Kind: event.KindFnO, Entity: "Orders", Key: []string{"dataAreaId", "Number"}, ModifiedColumn: "M", Select: []string{"Status"}, Filter: "Status eq Microsoft.Dynamics.DataEntities.Status'Open'"})
	want := []string{
		"/api/data/v9.2/accounts?$filter=versionnumber%20gt%200&$orderby=versionnumber%20asc", `odata.maxpagesize=1000,odata.include-annotations="*"`, "4.0", "application/json",
		"/api/data/v9.2/accounts?$select=name%2Caccountid%2Cmodifiedon%2Ccreatedon&$filter=statecode%20eq%200%20or%20name%20eq%20%27a%2Bb%27&$orderby=modifiedon%20asc%2Caccountid%20asc", `odata.maxpagesize=7,odata.include-annotations="*"`, "4.0", "application/json",
		"/data/Orders?$select=Status%2CdataAreaId%2CNumber%2CM&$filter=Status%20eq%20Microsoft.Dynamics.DataEntities.Status%27Open%27&$orderby=M%20asc%2CdataAreaId%20asc%2CNumber%20asc&$top=1000&cross-company=true", "", "4.0", "application/json",
	}
	if d := cmp.Diff(want, seen); d != "" {
		t.Error(d)
	}
}
