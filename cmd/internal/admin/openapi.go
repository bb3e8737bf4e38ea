package admin

import (
	_ "embed"
	"net/http"
	"sync"

	"github.com/goccy/go-yaml"
)

// description is the API in OpenAPI 3.1.
//
//go:embed openapi.yaml
var description []byte

func descriptionRoutes(api *routes) {
	asJSON := sync.OnceValues(func() ([]byte, error) { return yaml.YAMLToJSON(description) })
	api.HandleFunc("GET /api/v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(description) // the caller is gone if this fails
	})
	api.HandleFunc("GET /api/v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		b, err := asJSON()
		if err != nil {
			writeProblem(w, asProblem(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(b) // the caller is gone if this fails
	})
}
