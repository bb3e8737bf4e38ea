package businessevent

import _ "embed" // for Schema

// Schema is the JSON Schema of the data of a business event, and SchemaID, its
// dataschema attribute, names it. A change that breaks its readers gets a new
// version beside it.
//
//go:embed businessevent.v1.schema.json
var Schema []byte

// SchemaID is the $id of Schema.
const SchemaID = "urn:gridfan:schema:fno-business-event:v1"
