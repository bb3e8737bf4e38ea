package dataverse

import _ "embed" // for Schema

// Schema is the JSON Schema of the data of a Dataverse event, and SchemaID, its
// dataschema attribute, names it. A change that breaks its readers gets a new
// version beside it.
//
//go:embed change.v1.schema.json
var Schema []byte

// SchemaID is the $id of Schema.
const SchemaID = "urn:gridfan:schema:dataverse-change:v1"
