package dataverse_test

import (
	"bytes"
	"flag"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

func TestGolden(t *testing.T) {
	schematest.Run(t, event.KindDataverse, dataverse.Parse, *update, os.WriteFile)
}

func scalar(v []byte) string {
	if s, ok := rawjson.Text(v); ok {
		return s
	}
	return string(v)
}

// entityNames are the names that members of rows and references get.
var entityNames = map[string]string{
	"LogicalName": "table", "Id": "id", "Name": "name", "Attributes": "columns", "FormattedValues": "formatted",
	"KeyAttributes": "keyAttributes", "RowVersion": "rowVersion", "EntityState": "entityState", "RelatedEntities": "relatedEntities",
}

// flatten gives the leaves of a context as they must be found in data but for
// the places of the context's own members: dictionaries are objects, types and
// wrappers are gone. It shares no code with the package.
func flatten(t *testing.T, path string, v []byte) []schematest.Leaf {
	t.Helper()
	var all []schematest.Leaf
	switch v[0] {
	case '{':
		members := schematest.Members(t, v)
		typ, _, _ := strings.Cut(scalar(rawjson.Find(members, "__type")), ":")
		switch typ {
		case "OptionSetValue", "Money":
			return flatten(t, path, rawjson.Find(members, "Value"))
		case "Guid", "DateTime":
			return flatten(t, path, rawjson.Find(members, "__value"))
		case "EntityCollection":
			rest := map[string]string{"TotalRecordCount": "-1", "MinActiveRowVersion": "-1", "MoreRecords": "false", "TotalRecordCountLimitExceeded": "false", "PagingCookie": "null"}
			for _, m := range members {
				if want, ok := rest[m.Name]; ok && scalar(m.Value) != want {
					t.Errorf("%s/%s: got %s, want %s", path, m.Name, m.Value, want)
				}
			}
			return flatten(t, path, rawjson.Find(members, "Entities"))
		}
		entity := rawjson.Find(members, "LogicalName") != nil
		for _, m := range members {
			name := m.Name
			if entity && entityNames[name] != "" {
				name = entityNames[name]
			}
			if name == "__type" || entity && name != "name" && rawjson.IsNull(m.Value) {
				continue
			}
			all = append(all, flatten(t, path+"/"+name, m.Value)...)
		}
		return all
	case '[':
		for _, e := range schematest.Elements(t, v) {
			if e[0] == '{' {
				members := schematest.Members(t, e)
				if k := rawjson.Find(members, "key"); k != nil {
					all = append(all, flatten(t, path+"/"+scalar(k), rawjson.Find(members, "value"))...)
					continue
				}
			}
			all = append(all, flatten(t, path+"/-", e)...)
		}
		return all
	}
	l := schematest.Leaf{Path: path, Text: scalar(v)}
	if m := regexp.MustCompile(`^/Date\((-?\d+)([+-]\d\d)?(\d\d)?\)/$`).FindStringSubmatch(l.Text); m != nil {
		ms, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "/OperationCreatedOn") && m[2] != "" {
			hours, _ := strconv.ParseInt(m[2], 10, 64)
			ms += hours * 3600_000
		}
		l.Text = time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
	}
	return []schematest.Leaf{l}
}

// places are where data has the members of a context and, with parents in
// front, those of its parents. The first that matches counts.
var places = []struct {
	from *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`^((?:/ParentContext)*)/InputParameters/Target/(columns|formatted)/`), "$1/$2/"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/InputParameters/Target/`), "$1/target/"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/InputParameters/`), "$1/inputParameters/"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/OutputParameters/`), "$1/outputParameters/"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/PreEntityImages/`), "$1/preImages/"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/PostEntityImages/`), "$1/postImages/"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/MessageName$`), "$1/message"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/PrimaryEntityName$`), "$1/table"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/PrimaryEntityId$`), "$1/id"},
	{regexp.MustCompile(`^((?:/ParentContext)*)/ParentContext$`), ""}, // null
	{regexp.MustCompile(`^((?:/ParentContext)*)/`), "$1/context/"},
}

// TestNothingDropped finds every leaf of every golden context in data, at its
// place and with its text, and nothing else; and every leaf of an envelope in
// some attribute. The only exceptions are those the package comment lists.
func TestNothingDropped(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			elems := schematest.Elements(t, g.Body)
			for i, r := range dataverse.Parse(schematest.Source, g.Header, g.Body) {
				if !bytes.Equal(r.Raw, elems[i]) {
					t.Error("Raw is not the element")
				}
				if r.Event == nil {
					t.Error(r.Fault)
					continue
				}
				envelope, bare := schematest.Split(t, elems[i])
				want := map[string]string{}
				for _, l := range flatten(t, "", bare) {
					for _, p := range places {
						if !p.from.MatchString(l.Path) {
							continue
						}
						if to := p.from.ReplaceAllString(l.Path, p.to); p.to != "" {
							want[strings.ReplaceAll(to, "/ParentContext", "/parent")] = l.Text
						}
						break
					}
				}
				for path, text := range want {
					// What Target says again, and the id that only it says.
					switch context, inTarget := strings.CutSuffix(path, "/target/id"); {
					case inTarget:
						delete(want, path)
						if id := want[context+"/id"]; strings.Trim(id, "0-") == "" {
							want[context+"/id"] = text
						} else if id != text {
							t.Errorf("%s is %s, and the record's id %s", path, text, id)
						}
					case strings.HasSuffix(path, "/target/table"), strings.HasSuffix(path, "/target/name") && text == "null":
						delete(want, path)
					}
				}
				got := map[string]string{}
				for _, l := range schematest.LeavesAndNulls(t, "", r.Event.Data) {
					if !strings.HasSuffix(l.Path, "/changed/-") {
						got[l.Path] = l.Text
					}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("data (-want +got):\n%s", d)
				}
				schematest.Kept(t, envelope, schematest.Attributes(t, r.Event), func(schematest.Leaf) bool { return false })
			}
		})
	}
}
