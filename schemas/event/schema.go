package event

import _ "embed" // for Schema

// Schema is the JSON Schema of an event as it is delivered, and SchemaID names
// it. A change that breaks its readers gets a new version beside it.
//
//go:embed event.v1.schema.json
var Schema []byte

// SchemaID is the $id of Schema.
const SchemaID = "urn:gridfan:schema:event:v1"
