package request

import (
	"hash/fnv"
	"net/http"

	"github.com/gridfan/gridfan/router/poll"
)

// Guard notices links that lead in a circle, however long it is, with the memory of
// one (Brent's algorithm), and page after page without rows. It is part of cursors.
type Guard struct {
	Seen  uint64 `json:"seen,omitempty"` // hash of a link of before
	Lap   int    `json:"lap,omitempty"`  // links since that
	Most  int    `json:"most,omitempty"` // after so many, it is replaced
	Empty int    `json:"empty,omitempty"`
}

// maxEmpty is how many pages without rows may follow each other: more than
// Dataverse skips over for a user who may see next to nothing.
const maxEmpty = 1000

// Follow records a link that is to be asked for next, after the one at from, which
// had so many rows. The error is a *poll.Fault.
func (g *Guard) Follow(from, link string, rows int) error {
	h := fnv.New64a()
	_, _ = h.Write([]byte(link)) // it never fails
	sum := h.Sum64()
	if link == from || g.Seen == sum && g.Most > 0 {
		return poll.Faultf(poll.Answer, 200, "the links to the next page lead in a circle")
	}
	if g.Lap++; g.Lap >= g.Most {
		g.Seen, g.Lap, g.Most = sum, 0, max(1, 2*g.Most)
	}
	if g.Empty++; rows > 0 {
		g.Empty = 0
	}
	if g.Empty >= maxEmpty {
		return poll.Faultf(poll.Answer, 200, "%d pages in a row have a link to the next page and no rows", g.Empty)
	}
	return nil
}

// Gone says whether an HTTP status may mean that a source does not know a link that it
// has given.
func Gone(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusNotFound || status == http.StatusGone
}
