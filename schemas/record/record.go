// Package record makes events of rows that were read from a source: by polling it,
// or by looking at it again.
package record

import (
	"encoding/json"
	"time"
)

// Row is one row in the version in which it was read.
type Row struct {
	// Key names the row among those of its table, in a spelling that is always the
	// same for it.
	Key string
	// Deleted says that the row is gone. Of a deleted row nothing but Key need be
	// known.
	Deleted bool
	// Version tells this version of the row from others. Empty: its content does.
	Version string
	// Ordered says that Version is a whole number in decimal that grows with each
	// change of a row.
	Ordered bool
	// ByContent says that Version only tells changes apart, because a reading of all
	// rows does not have it: whether a row is what it was, its content tells.
	ByContent bool
	// Created and Modified are when; zero for unknown.
	Created, Modified time.Time
	// Data is the row as the source sent it, a JSON object. Nil for a deleted row
	// of which nothing more is known.
	Data json.RawMessage
}
