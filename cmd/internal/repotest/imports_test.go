package repotest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// row forbids imports. Patterns are import paths; "./" stands for our module,
// and a pattern that ends in "..." takes in what is below.
type row struct {
	from       []string // packages it is about
	exceptFrom []string // but not these
	to         []string // what they do not import
	exceptTo   []string // but for these
	tests      bool     // their tests do not either
	why        string
}

// table is the direction of dependencies:
//
//	schemas, infra  <-  router, subscribers  <-  cmd
var table = []row{
	{
		from: []string{"./schemas/...", "./infra/..."},
		to:   []string{"./router/...", "./subscribers/...", "./cmd/..."}, tests: true,
		why: "schemas and infra are the bottom: router, subscribers and cmd stand on them",
	},
	{
		from: []string{"./schemas/..."}, to: []string{"./infra/..."}, tests: true,
		why: "schemas say what an event is, wherever it is kept; they know no infrastructure",
	},
	{
		from: []string{"./infra/..."}, to: []string{"./schemas/..."}, tests: true,
		why: "infra moves and keeps bytes; what is in them is the router's and the subscribers' business",
	},
	{
		from: []string{"./router/..."}, to: []string{"./subscribers/...", "./cmd/..."}, tests: true,
		why: "router and subscribers meet only in the stream, so that each can run without the other",
	},
	{
		from: []string{"./subscribers/..."}, to: []string{"./router/...", "./cmd/..."}, tests: true,
		why: "subscribers and router meet only in the stream, so that each can run without the other",
	},
	{
		from: []string{"./schemas/..."}, exceptFrom: []string{"./schemas/businessevent", "./schemas/dataverse", "./schemas/cloudevents", "./schemas/custom", "./schemas/record"},
		to: []string{"./schemas/..."}, exceptTo: []string{"./schemas/event", "./schemas/rawjson", "./schemas/schematest"}, tests: true,
		why: "wire formats know the event, not each other",
	},
	{
		from: []string{"./schemas/businessevent", "./schemas/dataverse", "./schemas/cloudevents"},
		to:   []string{"./schemas/..."}, exceptTo: []string{"./schemas/event", "./schemas/rawjson", "./schemas/eventgrid", "./schemas/schematest"}, tests: true,
		why: "these also travel by Event Grid, in its envelope or with its handshake, and by no other road",
	},
	{
		from: []string{"./schemas/custom"},
		to:   []string{"./schemas/..."}, exceptTo: []string{"./schemas/event", "./schemas/rawjson", "./schemas/jq", "./schemas/schematest"}, tests: true,
		why: "what has no schema is taken apart by expressions, which jq evaluates",
	},
	{
		from: []string{"./schemas/record"},
		to:   []string{"./schemas/..."}, exceptTo: []string{"./schemas/event", "./schemas/rawjson", "./schemas/dataverse", "./schemas/schematest"}, tests: true,
		why: "a row of Dataverse that was read has the shape of its pushed twin; rows of others have no twin",
	},
	{
		from: []string{"./schemas/jq"}, to: []string{"./schemas/..."}, exceptTo: []string{"./schemas/event"}, tests: true,
		why: "jq evaluates expressions, whoever wants what they give; it says what is wrong as the event's faults",
	},
	{
		from: []string{"./schemas/event"}, to: []string{"./schemas/..."}, exceptTo: []string{"./schemas/rawjson"}, tests: true,
		why: "the event does not know what it was made from",
	},
	{
		from: []string{"./schemas/rawjson"}, to: []string{"./..."}, tests: true,
		why: "rawjson reads JSON, whatever it is about",
	},
	{
		from: []string{"./router/..."}, exceptFrom: []string{"./router/publish", "./router/complete", "./router/poll/request", "./router/poll/odata/...", "./router/poll/delta", "./router/poll/sqlrows"},
		to: []string{"./router/..."}, exceptTo: []string{"./router/publish", "./router/auth", "./router/auth/authtest", "./router/normalise"}, tests: true,
		why: "ways in share nothing but publish, the one way to the stream, auth, who may use them, and normalise, what a body means",
	},
	{
		from: []string{"./router/complete"}, to: []string{"./router/..."}, exceptTo: []string{"./router/publish", "./router/poll"}, tests: true,
		why: "what completes events stands before publish, and reads rows in poll's words and within its budgets; who reads them it does not know",
	},
	{
		from: []string{"./router/normalise"}, to: []string{"./router/...", "./infra/..."}, tests: true,
		why: "what a body means does not depend on the way by which it came",
	},
	{
		from: []string{"./router/poll/request", "./router/poll/odata/...", "./router/poll/delta"},
		to:   []string{"./router/..."}, exceptTo: []string{"./router/poll", "./router/poll/request", "./router/poll/odata/odatatest"}, tests: true,
		why: "who reads a source knows what the loop wants of it and how to ask over HTTP, and no other way in",
	},
	{
		from: []string{"./router/poll/sqlrows"}, to: []string{"./router/..."}, exceptTo: []string{"./router/poll"}, tests: true,
		why: "a Fetcher knows what poll wants of it, and neither another source nor where rows go",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./router/poll/sqlrows"},
		to: []string{"database/sql/...", "github.com/jackc/...", "github.com/microsoft/go-mssqldb/..."}, tests: true,
		why: "databases are asked in one place, where queries are bounded and nothing secret gets into an error",
	},
	{
		from: []string{"./router/auth"}, to: []string{"./router/..."}, tests: true,
		why: "auth decides on requests and knows nothing of what is in them",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./router/auth", "./router/ingress"},
		to: []string{"github.com/lestrrat-go/jwx/..."}, tests: true,
		why: "tokens are verified in one place; the ingress's tests issue some",
	},
	{
		from: []string{"./router/publish"}, to: []string{"./router/..."}, exceptTo: []string{"./router/dedup"}, tests: true,
		why: "publish serves every way in and knows none",
	},
	{
		from: []string{"./router/dedup"}, to: []string{"./router/...", "./schemas/...", "./infra/..."}, tests: true,
		why: "dedup remembers fingerprints, whatever they are of",
	},
	{
		from: []string{"./subscribers/..."}, exceptFrom: []string{"./subscribers/registry", "./subscribers/retention", "./subscribers/deadletters", "./subscribers/books", "./subscribers/trace"},
		to: []string{"./subscribers/..."}, exceptTo: []string{"./subscribers/deliver", "./subscribers/reply"},
		why: "a Sender is one way out: it knows deliver, credentials to show, what answers mean, and no other Sender; only registry knows them all",
	},
	{
		from: []string{"./infra/credentials"}, to: []string{"./subscribers/...", "./infra/broker/..."}, tests: true,
		why: "credentials show who gridfan is, whatever is sent with them",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./infra/credentials"},
		to: []string{"github.com/Azure/azure-sdk-for-go/sdk/azidentity/...", "golang.org/x/oauth2/...", "github.com/golang-jwt/jwt/..."}, tests: true,
		why: "tokens to show are got in one place, where they are cached, bounded and kept out of logs",
	},
	{
		from: []string{"./subscribers/deliver"}, to: []string{"./subscribers/..."}, tests: true,
		why: "deliver works with any Sender and knows none",
	},
	{
		from: []string{"./subscribers/reply"},
		to:   []string{"./subscribers/...", "./infra/...", "github.com/Azure/..."}, exceptTo: []string{"./subscribers/deliver", "./infra/credentials", "./infra/egress", "./infra/retryafter", "./infra/secret"}, tests: true,
		why: "what an answer means does not depend on whose client has asked",
	},
	{
		from: []string{"./subscribers/registry"},
		to:   []string{"./subscribers/..."}, exceptTo: []string{"./subscribers/deliver", "./subscribers/webhook", "./subscribers/pull", "./subscribers/eventgrid", "./subscribers/servicebus", "./subscribers/native", "./subscribers/filter", "./subscribers/transform"}, tests: true,
		why: "registry makes workers of definitions; add a new Sender here when definitions can name it",
	},
	{
		from: []string{"./subscribers/filter", "./subscribers/transform"},
		to:   []string{"./subscribers/...", "./infra/...", "github.com/nats-io/..."}, tests: true,
		why: "what an expression makes of an event depends on the event alone",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./subscribers/filter"},
		to: []string{"cel.dev/cel-go/..."}, tests: true,
		why: "CEL runs only within the limits of subscribers/filter",
	},
	{
		from: []string{"./subscribers/retention"},
		to:   []string{"./subscribers/..."}, exceptTo: []string{"./subscribers/deliver", "./subscribers/registry"},
		why: "retention asks the registry who has got what, however it is delivered",
	},
	{
		from: []string{"./subscribers/deadletters"},
		to:   []string{"./subscribers/..."}, exceptTo: []string{"./subscribers/deliver", "./subscribers/registry"},
		why: "dead letters go back to a subscriber's lane, however it is delivered from there",
	},
	{
		from: []string{"./subscribers/books"},
		to:   []string{"./subscribers/..."}, exceptTo: []string{"./subscribers/deliver", "./subscribers/registry"},
		why: "the books read what deliver has recorded for those that the registry names; nobody who is in them may have a say",
	},
	{
		from: []string{"./subscribers/trace"},
		to:   []string{"./subscribers/..."}, exceptTo: []string{"./subscribers/deliver", "./subscribers/registry"},
		why: "trace reads the same streams as the books, and asks the registry who wanted an event",
	},
	{
		from: []string{"./subscribers/deliver", "./subscribers/registry", "./subscribers/retention", "./subscribers/webhook", "./subscribers/eventgrid", "./subscribers/servicebus", "./subscribers/reply"},
		to:   []string{"./subscribers/books", "./subscribers/trace"}, tests: true,
		why: "delivery goes on whether somebody counts it or not",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./subscribers/deliver"},
		to: []string{"github.com/sony/gobreaker/..."}, tests: true,
		why: "whether a subscriber may be tried is decided in one place",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./router/ingress"},
		to: []string{"github.com/gorilla/mux"}, tests: true,
		why: "routes are the ingress's; a handful of admin paths need no more than net/http",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./infra/broker/...", "./cmd/internal/deploy"},
		to: []string{"github.com/nats-io/nats-server/..."}, tests: true,
		why: "only infra/broker knows that the broker can run inside us; others connect to it, tests through brokertest, and those of a cluster's configuration run the server as the nodes do",
	},
	{
		from: []string{"./schemas/..."},
		to:   []string{"net", "net/http", "os", "os/...", "syscall", "github.com/nats-io/..."},
		why:  "schemas do no I/O: bytes in, events out, the same every time",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./schemas/jq"},
		to: []string{"github.com/itchyny/gojq/..."}, tests: true,
		why: "jq expressions run only inside the sandbox of schemas/jq",
	},
	{
		from: []string{"./..."}, exceptFrom: []string{"./cmd/internal/image"},
		to: []string{"oras.land/...", "github.com/opencontainers/..."}, tests: true,
		why: "the image is made beside the program; nothing of registries is compiled into it",
	},
	{
		from: []string{"./bicep"},
		to:   []string{"./...", "github.com/nats-io/..."}, exceptTo: []string{"./infra/broker/brokertest"}, tests: true,
		why: "templates are no part of the program: their tests run the built one, as Azure does, and a certificate is all they need of a broker",
	},
	{
		from: []string{"./..."}, to: []string{"github.com/stretchr/..."}, tests: true,
		why: "tests use testing and go-cmp",
	},
}

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// violations lists the imports that rows forbid.
func violations(rows []row, pkgs []pkg) []string {
	var found []string
	for _, p := range pkgs {
		for _, r := range rows {
			from := local(p.ImportPath)
			if !matches(r.from, from) || matches(r.exceptFrom, from) {
				continue
			}
			check := func(kind string, imports []string) {
				for _, to := range slices.Compact(slices.Sorted(slices.Values(imports))) {
					// An external test imports its own package.
					if to = local(to); to != from && matches(r.to, to) && !matches(r.exceptTo, to) {
						found = append(found, fmt.Sprintf("%s %s %s: %s", from, kind, to, r.why))
					}
				}
			}
			check("imports", p.Imports)
			if r.tests {
				check("imports in its tests", slices.Concat(p.TestImports, p.XTestImports))
			}
		}
	}
	return found
}

func local(path string) string {
	if rest, ok := strings.CutPrefix(path, module); ok && (rest == "" || rest[0] == '/') {
		return "." + rest
	}
	return path
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		dir, ok := strings.CutSuffix(p, "/...")
		return path == p || ok && (path == dir || strings.HasPrefix(path, dir+"/"))
	})
}

func TestImports(t *testing.T) {
	// -e: a package that does not compile has imports all the same.
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Log(string(e.Stderr))
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.ImportPath == module+"/schemas/event" }) {
		t.Fatalf("go list names %d packages, but not schemas/event: is this the right folder?", len(pkgs))
	}
	for _, v := range violations(table, pkgs) {
		t.Error(v)
	}
}

// TestTable shows that the checker finds what it should: for every row there
// is a package that breaks it.
func TestTable(t *testing.T) {
	concrete := func(pattern string) string {
		p := strings.Replace(pattern, "./", module+"/", 1)
		return strings.Replace(p, "/...", "/thing", 1)
	}
	for i, r := range table {
		for _, to := range r.to {
			p := pkg{ImportPath: concrete(r.from[0]), Imports: []string{concrete(to) + map[bool]string{true: "2"}[strings.HasSuffix(to, "...")]}}
			if got := violations(table[i:i+1], []pkg{p}); len(got) != 1 || !strings.Contains(got[0], r.why) {
				t.Errorf("row %d (%s): %+v passes", i, r.why, p)
			}
			p.XTestImports, p.Imports = p.Imports, nil
			if got := violations(table[i:i+1], []pkg{p}); (len(got) == 1) != r.tests {
				t.Errorf("row %d (%s), tests of %+v: got %v", i, r.why, p, got)
			}
		}
	}

	in := func(path string, imports ...string) pkg {
		p := pkg{ImportPath: concrete(path)}
		for _, s := range imports {
			p.Imports = append(p.Imports, concrete(s))
		}
		return p
	}
	tests := []struct {
		p    pkg
		want []string // beginnings
	}{
		{in("./schemas/eventgrid", "fmt", "net/url", "./schemas/event", "./schemas/rawjson"), nil},
		{in("./schemas/eventgrid", "./schemas/businessevent"), []string{"./schemas/eventgrid imports ./schemas/businessevent: wire formats"}},
		{in("./schemas/businessevent", "./schemas/eventgrid"), nil},
		{in("./schemas/event", "net/http", "os"), []string{"./schemas/event imports net/http: schemas do no I/O", "./schemas/event imports os: schemas do no I/O"}},
		{in("./router/ingress", "github.com/gorilla/mux", "./router/publish", "./infra/broker", "./schemas/event"), nil},
		{in("./router/ingress", "./subscribers/deliver"), []string{"./router/ingress imports ./subscribers/deliver: router and subscribers meet"}},
		{in("./subscribers/webhook", "./subscribers/deliver", "./infra/secret"), nil},
		{in("./subscribers/eventgrid", "./subscribers/deliver", "./subscribers/reply", "./infra/credentials"), nil},
		{in("./subscribers/webhook", "./subscribers/registry"), []string{"./subscribers/webhook imports ./subscribers/registry: a Sender is one way out"}},
		{in("./subscribers/registry", "./subscribers/deliver", "./subscribers/webhook", "./infra/broker"), nil},
		{in("./subscribers/deliver", "github.com/sony/gobreaker/v2"), nil},
		{in("./cmd/internal/app", "github.com/sony/gobreaker/v2"), []string{"./cmd/internal/app imports github.com/sony/gobreaker/v2: whether"}},
		{in("./infra/broker/brokertest", "github.com/nats-io/nats-server/v2/server"), nil},
		{in("./cmd/gridfan", "./router/ingress", "./subscribers/registry", "./schemas/event", "./infra/broker"), nil},
		{pkg{ImportPath: module + "/subscribers/webhook", TestImports: []string{module + "/subscribers/sendertest"}, XTestImports: []string{module + "/subscribers/webhook"}}, nil},
	}
	for _, tt := range tests {
		got := violations(table, []pkg{tt.p})
		for i := range got {
			if i < len(tt.want) && strings.HasPrefix(got[i], tt.want[i]) {
				got[i] = tt.want[i]
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.p, d)
		}
	}
}
