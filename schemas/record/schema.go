package record

import _ "embed" // for Schema

// Schema is the JSON Schema of the data of rows that are not Dataverse's, and
// SchemaID, their dataschema attribute, names it. A change that breaks its readers
// gets a new version beside it.
//
//go:embed row.v1.schema.json
var Schema []byte

// SchemaID is the $id of Schema.
const SchemaID = "urn:gridfan:schema:row:v1"
