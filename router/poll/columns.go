package poll

import (
	"slices"

	"github.com/gridfan/gridfan/schemas/record"
)

// columns notices that a source's columns change. A column that is absent may only
// have no value in a few rows, so it has vanished when it was in none of several
// pages; and each is told of twice at most, when it appears and when it vanishes.
type columns struct {
	absent map[string]int // pages in a row without it
}

const (
	// vanishAfter is how many pages with rows a column must be absent from.
	vanishAfter = 3
	// mostColumns bounds what is kept; a table has 1,024 in SQL Server.
	mostColumns     = 1024
	mostColumnBytes = 128
)

// look compares a page's columns with those seen, and keeps them in the checkpoint.
// It gives what to report, nil for nothing.
func (c *columns) look(cp *checkpoint, p *Page) map[string]any {
	if p.Columns == nil || !slices.ContainsFunc(p.Rows, func(r record.Row) bool { return !r.Deleted }) {
		return nil
	}
	first := cp.Columns == nil
	now := make(map[string]bool, len(p.Columns))
	seen, gone := slices.Clone(cp.Columns), slices.Clone(cp.Gone) // the checkpoint may be taken back
	var appeared, vanished []string
	for _, name := range p.Columns {
		if len(name) > mostColumnBytes {
			name = name[:mostColumnBytes]
		}
		now[name] = true
		delete(c.absent, name)
		if slices.Contains(gone, name) || len(seen)+len(gone) >= mostColumns {
			continue
		}
		if at, ok := slices.BinarySearch(seen, name); !ok {
			seen = slices.Insert(seen, at, name)
			appeared = append(appeared, name)
		}
	}
	for _, name := range seen {
		if now[name] {
			continue
		}
		if c.absent == nil {
			c.absent = map[string]int{}
		}
		if c.absent[name]++; c.absent[name] >= vanishAfter {
			vanished = append(vanished, name)
			delete(c.absent, name)
		}
	}
	gone = append(gone, vanished...)
	seen = slices.DeleteFunc(seen, func(name string) bool { return slices.Contains(vanished, name) })
	if len(appeared)+len(vanished) == 0 {
		return nil
	}
	cp.Columns, cp.Gone = seen, gone
	if first {
		return nil
	}
	report := map[string]any{}
	if len(appeared) > 0 {
		report["appeared"] = appeared
	}
	if len(vanished) > 0 {
		report["vanished"] = vanished
	}
	return report
}
