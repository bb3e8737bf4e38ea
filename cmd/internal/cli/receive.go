package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// writeReceived tells how sources are received from brokers, in a line each.
func writeReceived(w io.Writer, sources []admin.SourceStatus, now time.Time) {
	for _, src := range sources {
		if r := src.Receive; r != nil {
			fmt.Fprintf(w, "%s is received from %s: %s\n", src.Name, r.From, receivingWords(*r, now))
		}
	}
}

// receivingWords says what the matter is, if anything.
func receivingWords(r receive.Status, now time.Time) string {
	s := fmt.Sprintf("%s for %s", r.State, deliver.Roughly(now.Sub(r.Since)))
	if r.State == receive.Holding {
		s += ", " + plural(int(r.Held), "message") + " here"
	}
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	if r.Next != nil {
		s += "; again in " + deliver.Roughly(max(0, r.Next.Sub(now)))
	}
	return s
}
