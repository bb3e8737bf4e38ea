package poll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// taken is what a page had.
type taken struct {
	rows    int // all
	changes int // of them, such as say how fast changes come
}

// batch is how many events are published together: few enough for a slow cluster
// within the time that Publish has.
const batch = 1024

// store is what a page becomes.
type store struct {
	results []event.Result
	blocks  [][]byte
	entries int64
	added   int64 // of entries, of rows that are known to be new
}

// remember adds a row to the blocks.
func (w *store) remember(key string, version uint64) {
	n := len(w.blocks)
	if n == 0 || len(w.blocks[n-1]) >= blockSize {
		w.blocks = append(w.blocks, nil)
		n++
	}
	w.blocks[n-1] = appendEntry(w.blocks[n-1], key, version)
	w.entries++
}

// take stores what a page has, and then moves the checkpoint: first events, then what
// is known, then the cursor, each on disk before the next. Whatever fails, the same
// page may be taken again.
func (s *source) take(ctx context.Context, p *Page) (taken, error) {
	got := taken{rows: len(p.Rows) + len(p.Rejected)}
	before := s.cp
	listing := p.Listing || p.Listed
	compare := false
	switch s.cp.Phase {
	case phaseBaseline:
		if !listing {
			// The source does not list its rows: what it gives are changes.
			s.cp.Phase, s.cp.Since = phaseChanges, time.Now().UTC()
		}
	case phaseChanges, phaseResync, phaseUnconfirmed:
		switch {
		case listing && !s.cp.Known.Full:
			compare = true
		case s.cp.Phase != phaseChanges:
			s.cp.Phase, s.cp.Since, s.list = phaseChanges, time.Now().UTC(), nil
		}
	}
	var listed int64
	if compare && s.list == nil {
		x, err := loadIndex(ctx, s.keeper, s.key, s.cp.Known.From, s.cp.Known.Stored)
		if err != nil {
			s.cp = before
			return got, err
		}
		s.list = &allRows{index: x, since: time.Now().UTC()}
	}
	if compare {
		listed = s.list.index.all
	}
	fail := func(err error) (taken, error) {
		s.cp = before
		if s.list != nil {
			s.list.index.all = listed
		}
		return got, err
	}

	silent := s.cp.Phase == phaseBaseline && s.cp.Mode != Publish
	var w store
	unchanged, remembered := int64(0), int64(0)
	for i := range p.Rows {
		r := &p.Rows[i]
		if r.Modified.After(s.cp.Newest) {
			s.cp.Newest = r.Modified.UTC()
		}
		if fault := checkRow(r); fault != nil {
			if silent {
				remembered++
			} else {
				w.results = append(w.results, event.Result{Fault: fault, Raw: r.Data})
			}
			continue
		}
		key, version := fingerprintOf(r)
		switch {
		case silent:
			remembered++
		case compare:
			if s.list.index.list(key, version, r.Deleted) {
				unchanged++
				continue
			}
		case s.cp.Phase == phaseChanges:
			again, err := s.again(ctx, r, key, version)
			if err != nil {
				return fail(err)
			}
			if again {
				unchanged++
				continue
			}
		}
		if !silent {
			res := s.Event(*r)
			if res.Raw == nil {
				res.Raw = r.Data
			}
			w.results = append(w.results, res)
		}
		if !s.cp.Known.Full {
			w.remember(r.Key, version)
			if s.cp.Phase == phaseBaseline && !r.Deleted {
				w.added++
			}
		}
	}
	for _, r := range p.Rejected {
		if silent {
			remembered++
			continue
		}
		w.results = append(w.results, event.Result{Fault: event.Faultf(event.FaultInvalid, "%s", r.Reason), Raw: r.Raw})
	}

	drift := s.columns.look(&s.cp, p)
	if s.cp.Phase == phaseChanges && !compare {
		got.changes = got.rows - int(unchanged)
	}
	if p.Bound.After(s.cp.Bound) {
		s.cp.Bound = p.Bound.UTC()
	}
	moved := string(s.cp.Cursor) != string(p.Next)
	var vanished int64
	suspicious := compare && p.Listed && s.list.index.suspicious() && !s.confirmed()
	switch {
	case suspicious:
		x := s.list.index
		s.cp.Phase, s.cp.Missing, s.cp.Confirmed = phaseUnconfirmed, x.missing(), false
		s.cp.Known.Live = x.live
		moved = false
	case compare && p.Listed:
		s.cp.Cursor = p.Next
		vanished = s.list.index.missing()
	case compare:
		moved = false // it moves with the last page
	default:
		s.cp.Cursor = p.Next
	}
	if listing {
		s.cp.Rows += int64(len(p.Rows))
		s.cp.Pages++
	}

	if err := s.publish(ctx, w.results); err != nil {
		return fail(err)
	}
	if vanished > 0 {
		if err := s.vanish(ctx, &w); err != nil {
			return fail(err)
		}
	}
	if err := s.remember(ctx, &w); err != nil {
		return fail(err)
	}
	ended := p.Listed && !suspicious
	if ended {
		if compare {
			x := s.list.index
			s.cp.Known.Live = max(0, x.all)
		}
		if silent {
			s.cp.Silent = time.Now().UTC()
		}
		s.cp.Phase, s.cp.Mode, s.cp.Since = phaseChanges, "", time.Now().UTC()
		s.cp.Reason, s.cp.Missing, s.cp.Confirmed = "", 0, false
	}
	// A cursor that has moved over nothing may be saved later: asked with the old
	// one the source gives nothing again.
	s.unsaved = s.unsaved || moved
	if w.entries > 0 || len(w.results) > 0 || s.cp.Phase != before.Phase || drift != nil || s.unsaved && time.Since(s.savedAt) > saveEvery {
		if err := s.save(ctx); err != nil {
			return fail(err)
		}
	}
	// From here on the page is taken.
	switch {
	case compare && !p.Listed:
		s.list.cursor = p.Next
		s.list.pages++
	case compare:
		s.list = nil
	}
	if s.cp.Phase == phaseChanges && before.Phase == phaseChanges && !listing {
		for i := range p.Rows {
			key, version := fingerprintOf(&p.Rows[i])
			s.seen.put(key, version)
		}
	}
	s.update(func(st *Status) {
		st.Rows += int64(got.rows)
		st.Unchanged += unchanged
		st.Remembered += remembered
	})
	if drift != nil {
		s.tellOf("source.schema-changed", drift)
	}
	switch {
	case s.cp.Phase == before.Phase:
	case suspicious:
		s.tellOf("source.unconfirmed", map[string]any{"missing": s.cp.Missing, "known": s.cp.Known.Live})
	case ended:
		s.looks = 0
		s.tellOf("source.read", map[string]any{"was": string(before.Phase), "rows": s.cp.Rows, "deleted": vanished})
	}
	if ended {
		s.cp.Rows, s.cp.Pages = 0, 0
	}
	return got, nil
}

// saveEvery is how old the checkpoint of a source may become in which nothing
// happens. Saving each empty poll of a thousand sources would cost the disk more than
// all else here.
const saveEvery = 30 * time.Second

// confirmed says whether an operator has agreed to about so many missing rows.
func (s *source) confirmed() bool {
	return s.cp.Confirmed && s.list.index.missing() <= s.cp.Missing+s.cp.Missing/5+5
}

func checkRow(r *record.Row) *event.Fault {
	switch {
	case r.Key == "":
		return event.Faultf(event.FaultMissing, "the row has no key; name its key columns in poll")
	case len(r.Key) > mostKey:
		return event.Faultf(event.FaultInvalid, "the row's key is %d bytes long, at most %d can be kept", len(r.Key), mostKey)
	}
	return nil
}

// publish stores events, and counts what became of them.
func (s *source) publish(ctx context.Context, results []event.Result) error {
	for len(results) > 0 {
		n := min(len(results), batch)
		statuses, err := s.parts.Publish(ctx, s.origin(), results[:n])
		if errors.Is(err, publish.ErrTooLarge) && shorten(results[:n]) {
			statuses, err = s.parts.Publish(ctx, s.origin(), results[:n])
		}
		if err != nil {
			return err
		}
		s.update(func(st *Status) {
			for _, status := range statuses {
				switch status {
				case publish.Published:
					st.Published++
				case publish.Duplicate:
					st.Duplicate++
				case publish.Quarantined:
					st.Quarantined++
				case publish.Completing:
					st.Completing++
				}
			}
		})
		results = results[n:]
	}
	return nil
}

// What is kept of a row that is larger than the broker takes at all.
const (
	tooLong = 1 << 20
	headOf  = 64 << 10
)

// shorten makes faults of results that no stream takes, not even the quarantine, and
// keeps their beginning: without that the source would stand still for ever before
// one row. It says whether there were any.
func shorten(results []event.Result) bool {
	found := false
	for i := range results {
		r := &results[i]
		if len(r.Raw) <= tooLong {
			continue
		}
		r.Event, r.Control, found = nil, nil, true
		r.Fault = event.Faultf(event.FaultTooLarge, "the row has %d bytes, more than the broker stores; its first %d are kept here. Read fewer columns", len(r.Raw), headOf)
		r.Raw = slices.Clone(r.Raw[:headOf])
	}
	return found
}

// vanish publishes that rows are deleted which were known and are not listed.
func (s *source) vanish(ctx context.Context, w *store) error {
	x := s.list.index
	var pending []event.Result
	send := func() error {
		err := s.publish(ctx, pending)
		pending = pending[:0]
		return err
	}
	gone := map[uint64]bool{}
	err := s.keeper.recall(ctx, s.key, s.cp.Known.From, func(_ uint64, block []byte) error {
		err := entries(block, func(key []byte, _ uint64) {
			f := fingerprint('k', key)
			if gone[f] || !x.unlisted(f) {
				return
			}
			gone[f] = true
			row := record.Row{Key: string(key), Deleted: true}
			res := s.Event(row)
			if res.Raw == nil {
				res.Raw, _ = json.Marshal(row.Key) // a string always is JSON
			}
			pending = append(pending, res)
			w.remember(row.Key, 0)
		})
		if err == nil && len(pending) >= batch {
			err = send()
		}
		return err
	})
	if err != nil {
		return err
	}
	return send()
}

// remember makes what a page says of rows durable.
func (s *source) remember(ctx context.Context, w *store) error {
	k := &s.cp.Known
	for _, block := range w.blocks {
		sequence, err := s.keeper.remember(ctx, s.key, block, s.lastBlock)
		if errors.Is(err, errNoRoom) {
			s.forgetAll("the stream of known rows is full: raise storage.maxBytes")
			return nil
		}
		if err != nil {
			return err
		}
		s.lastBlock = sequence
	}
	k.Stored += w.entries
	if k.Live += w.added; k.Live > mostKnown {
		s.forgetAll(fmt.Sprintf("it has more than %d rows", mostKnown))
	}
	return nil
}

// forgetAll gives up on knowing the source's rows, because they are too many.
func (s *source) forgetAll(why string) {
	s.cp.Known = known{Full: true, From: s.lastBlock + 1}
	s.tellOf("source.unknown", map[string]any{
		"reason": why, "means": "if the source forgets the cursor, its rows cannot be compared, and deletions that only show by absence are not seen",
	})
}

// tidy writes what is known anew when most of it is out of date.
func (s *source) tidy(ctx context.Context) error {
	k := s.cp.Known
	var err error
	if !k.Full && s.list == nil && k.Stored > 2*k.Live+fewStale {
		err = s.compact(ctx)
	}
	if from := s.cp.Known.From; err == nil && from > s.purged && !s.unsaved {
		if err = s.keeper.forget(ctx, s.key, from); err == nil {
			s.lastBlock, err = s.keeper.last(ctx, s.key)
			s.purged = from
		}
	}
	if errors.Is(err, errFenced) {
		return err
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("what is known of a source's rows was not tidied up, trying again", "error", err)
	}
	return nil
}

func (s *source) compact(ctx context.Context) error {
	k := s.cp.Known
	x, err := loadIndex(ctx, s.keeper, s.key, k.From, k.Stored)
	if err != nil {
		return err
	}
	before := s.cp
	back := func(err error) error { s.cp = before; return err }
	s.cp.Known.Live, s.cp.Known.Stored = x.live, x.stored
	switch {
	case x.live > mostKnown:
		s.forgetAll(fmt.Sprintf("it has more than %d rows", mostKnown))
	case x.stored > 2*x.live+fewStale:
		// Whoever reads meanwhile, or after a crash, reads the old blocks and then
		// some of the new ones, which say the same.
		var w store
		from := uint64(0)
		put := func(all bool) error {
			for len(w.blocks) > 1 || all && len(w.blocks) > 0 {
				sequence, err := s.keeper.remember(ctx, s.key, w.blocks[0], s.lastBlock)
				if err != nil {
					return err
				}
				if s.lastBlock = sequence; from == 0 {
					from = sequence
				}
				w.blocks = w.blocks[1:]
			}
			return nil
		}
		// An entry is written at its last place, so that the order stays.
		err := s.keeper.recall(ctx, s.key, k.From, func(_ uint64, block []byte) error {
			if err := entries(block, func(key []byte, version uint64) {
				f := fingerprint('k', key)
				if version != 0 && x.unlisted(f) && x.same(f, version) {
					x.list(f, version, false)
					w.remember(string(key), version)
				}
			}); err != nil {
				return err
			}
			return put(false)
		})
		if err == nil {
			err = put(true)
		}
		if errors.Is(err, errNoRoom) {
			return nil // it stays as it is
		}
		if err != nil {
			return back(err)
		}
		if from == 0 {
			from = s.lastBlock + 1 // none is left
		}
		s.cp.Known.From, s.cp.Known.Stored = from, w.entries
	}
	if err := s.save(ctx); err != nil {
		return back(err)
	}
	return nil
}

// overlap recognises rows that come again because the source is asked for more than
// what is new: those of this poll and of the one before. Dedup would too, but only
// for its horizon; the last change of a quiet table comes again for months.
type overlap struct {
	now, before map[uint64]uint64 // version by key
	old         *index            // what is known, to tell what an earlier holder saw
	// exact: nothing is taken for read before, because an operator wants it again.
	exact bool
	begun bool
}

// Bounds of an overlap: half a megabyte a generation, and what is loaded at the first
// poll. Beyond them dedup decides.
const (
	mostOverlap = 1 << 16
	mostOld     = 1_000_000
	// sureDedup is what dedup knows for sure when it was not set lower than the
	// day that it has by default.
	sureDedup = 12 * time.Hour
)

// rotate begins a poll.
func (o *overlap) rotate() {
	o.before, o.now, o.old = o.now, nil, nil
	if o.begun {
		o.exact = false
	}
}

func (o *overlap) put(key, version uint64) {
	if o.now == nil {
		o.now = map[uint64]uint64{}
	}
	if len(o.now) < mostOverlap {
		o.now[key] = version
	}
	o.begun = true
}

// again says whether a row was read before in this version.
func (s *source) again(ctx context.Context, r *record.Row, key, version uint64) (bool, error) {
	o := &s.seen
	if was, ok := o.now[key]; ok {
		return was == version, nil
	}
	if was, ok := o.before[key]; ok {
		return was == version, nil
	}
	// What a silent baseline had was not published, so dedup does not know it.
	sure := time.Since(r.Modified) < sureDedup && time.Since(s.cp.Silent) > sureDedup
	if o.exact || o.begun && o.old == nil || s.cp.Known.Full || s.cp.Known.Live > mostOld || sure {
		return false, nil
	}
	if o.old == nil {
		x, err := loadIndex(ctx, s.keeper, s.key, s.cp.Known.From, s.cp.Known.Stored)
		if err != nil {
			return false, err
		}
		o.old = x
	}
	return !r.Deleted && o.old.same(key, version), nil
}
