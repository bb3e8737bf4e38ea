package admin

import (
	"net/http"
	"strings"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// schemas are the published JSON Schemas by their $id.
var schemas = []struct {
	id   string
	text []byte
}{
	{event.SchemaID, event.Schema},
	{businessevent.SchemaID, businessevent.Schema},
	{dataverse.SchemaID, dataverse.Schema},
	{record.SchemaID, record.Schema},
}

// SchemaList is the answer to GET /schemas/.
type SchemaList struct {
	Schemas []SchemaRef `json:"schemas"`
}

// SchemaRef tells where a schema is served.
type SchemaRef struct {
	ID   string `json:"id"` // as in the dataschema attribute
	Path string `json:"path"`
}

// schemaPath is where the schema with an id such as
// urn:gridfan:schema:dataverse-change:v1 is served.
func schemaPath(id string) string {
	return "/schemas/" + strings.ReplaceAll(strings.TrimPrefix(id, "urn:gridfan:schema:"), ":", ".") + ".json"
}

func schemaRoutes(api *routes) {
	list := SchemaList{}
	for _, s := range schemas {
		list.Schemas = append(list.Schemas, SchemaRef{s.id, schemaPath(s.id)})
		api.HandleFunc("GET "+schemaPath(s.id), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/schema+json")
			_, _ = w.Write(s.text) // the caller is gone if this fails
		})
	}
	api.Handle("GET /schemas/{$}", handle(func(http.ResponseWriter, *http.Request) (any, error) { return list, nil }))
}
