package poll

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// table is a source: rows by key, the log of their changes, and how it is asked.
type table struct {
	mu       sync.Mutex // guards all below
	name     string
	rows     map[string]version
	log      []string // keys, in the order of changes
	pageSize int
	oldest   int // cursors before this place in the log are forgotten
	columns  []string
	lists    bool // every poll is a reading of all rows

	// answer may give an error instead of a page, or nil.
	answer func(n int) error
	// hold keeps a request until it returns.
	hold     func(context.Context)
	requests []time.Time
	asking   int
	together int // most requests at once
}

type version struct {
	n        int
	modified time.Time
}

func newTable(name string, n int) *table {
	t := &table{name: name, rows: map[string]version{}, pageSize: 50}
	for i := range n {
		t.write(fmt.Sprintf("k%05d", i))
	}
	return t
}

func (t *table) write(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = append(t.log, key)
	t.rows[key] = version{len(t.log), time.Now()}
}

func (t *table) remove(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = append(t.log, key)
	delete(t.rows, key)
}

// forget makes all cursors that there are worthless.
func (t *table) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.oldest = len(t.log) + 1
	t.log = append(t.log, "")
}

func (t *table) asked() []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.requests)
}

// place is the table's cursor.
type place struct {
	List  bool   `json:"list,omitempty"`
	After string `json:"after,omitempty"`
	From  int    `json:"from"`
}

func (t *table) Close() {}

func (t *table) Fetch(ctx context.Context, cursor json.RawMessage) (*Page, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests = append(t.requests, time.Now())
	t.asking++
	defer func() { t.asking-- }()
	t.together = max(t.together, t.asking)
	if t.hold != nil {
		t.mu.Unlock()
		t.hold(ctx)
		t.mu.Lock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if t.answer != nil {
		if err := t.answer(len(t.requests)); err != nil {
			return nil, err
		}
	}
	at := place{List: true, From: len(t.log)}
	if cursor != nil {
		at = place{}
		if err := json.Unmarshal(cursor, &at); err != nil {
			return nil, ErrCursor
		}
		if at.From < t.oldest {
			return nil, ErrExpired
		}
	}
	if t.lists && !at.List {
		at = place{List: true, From: len(t.log)}
	}
	p := &Page{Columns: t.columns, Bound: time.Now()}
	if at.List {
		p.Listing = true
		keys := slices.Sorted(maps.Keys(t.rows))
		i, _ := slices.BinarySearch(keys, at.After+"\x00")
		for _, key := range keys[i:min(len(keys), i+t.pageSize)] {
			p.Rows = append(p.Rows, t.row(key))
			at.After = key
		}
		if p.More = i+t.pageSize < len(keys); !p.More {
			p.Listed, at = true, place{From: at.From}
		}
	} else {
		end := min(len(t.log), at.From+t.pageSize)
		for _, key := range t.log[at.From:end] {
			if key != "" {
				p.Rows = append(p.Rows, t.row(key))
			}
		}
		p.More = end < len(t.log)
		at.From = end
	}
	p.Next, _ = json.Marshal(at)
	return p, nil
}

func (t *table) row(key string) record.Row {
	v, ok := t.rows[key]
	if !ok {
		return record.Row{Key: key, Deleted: true}
	}
	data, _ := json.Marshal(map[string]any{"key": key, "n": v.n})
	return record.Row{Key: key, Version: fmt.Sprint(v.n), Modified: v.modified, Data: data}
}

// source makes the table one to be polled.
func (t *table) source(change func(*Config)) Source {
	c := Config{Name: t.name, Kind: "custom", Every: Every{Min: time.Second, Max: time.Second}, Budget: 1000}
	if change != nil {
		change(&c)
	}
	if err := c.Validate("sources." + t.name + ".poll"); err != nil {
		panic(err) // panic: a mistake of the test itself
	}
	return Source{Config: c, Open: func(context.Context) (Fetcher, error) { return t, nil }, Event: eventOf}
}

func eventOf(r record.Row) event.Result {
	e := &event.Event{ID: r.Key + "@" + r.Version, Source: "/test", Type: "row", Subject: r.Key, Data: r.Data, DataJSON: true}
	name := "Changed"
	if r.Deleted {
		e.ID, e.Data, name = r.Key+"@deleted", nil, "Deleted"
	}
	return event.Result{Event: e, Scope: "t", Name: name, Key: e.ID, Digest: event.Digest(e.Type, e.Subject, e.Data, e.DataJSON)}
}

// inbox is a Publish that takes events, or gives err. It knows events again as dedup
// does.
type inbox struct {
	mu     sync.Mutex // guards all below
	err    error
	events []string
	seen   map[string]bool
	at     map[string]time.Time
}

func (in *inbox) Publish(_ context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil {
		return nil, in.err
	}
	if o.Via != "poll" || o.Accepted.IsZero() {
		return nil, fmt.Errorf("origin %+v", o)
	}
	if in.seen == nil {
		in.seen, in.at = map[string]bool{}, map[string]time.Time{}
	}
	out := make([]publish.Status, len(results))
	for i, r := range results {
		switch {
		case r.Fault != nil:
			out[i] = publish.Quarantined
			in.events = append(in.events, "fault "+r.Fault.Error())
		case in.seen[r.Event.ID]:
			out[i] = publish.Duplicate
		default:
			out[i] = publish.Published
			in.seen[r.Event.ID] = true
			in.at[r.Event.ID] = time.Now()
			in.events = append(in.events, r.Event.ID)
		}
	}
	return out, nil
}

// take gives what has come since the last time, sorted.
func (in *inbox) take() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	all := slices.Sorted(slices.Values(in.events))
	in.events = nil
	return all
}

func (in *inbox) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.err = err
}

// memory keeps in memory, for tests on a clock that a broker does not have.
type memory struct {
	mu          sync.Mutex // guards all below
	checkpoints map[string][]byte
	revisions   map[string]uint64
	blocks      map[string][]block
	sequence    uint64
	leases      map[string]bool
	holds       map[string]heldUntil
	saves       int
	noRoom      bool
}

type block struct {
	sequence uint64
	data     []byte
}

func newMemory() *memory {
	return &memory{checkpoints: map[string][]byte{}, revisions: map[string]uint64{}, blocks: map[string][]block{}, holds: map[string]heldUntil{}, leases: map[string]bool{}}
}

type heldUntil struct {
	number uint64
	until  time.Time
}

type memoryLease struct {
	m      *memory
	source string
	ctx    context.Context
	end    context.CancelFunc
}

func (l *memoryLease) Context() context.Context { return l.ctx }
func (l *memoryLease) Note([]byte)              {}
func (l *memoryLease) Release() {
	l.end()
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.leases, l.source)
}

func (m *memory) lease(_ context.Context, source string, _ time.Duration) (held, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leases[source] {
		return nil, nil
	}
	m.leases[source] = true
	ctx, end := context.WithCancel(context.Background())
	return &memoryLease{m, source, ctx, end}, nil
}

func (m *memory) load(_ context.Context, source string) (c checkpoint, revision uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.revisions[source] > 0 {
		err = json.Unmarshal(m.checkpoints[source], &c)
	}
	return c, m.revisions[source], err
}

func (m *memory) save(_ context.Context, source string, c checkpoint, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.revisions[source] != revision {
		return 0, errFenced
	}
	b, err := json.Marshal(c)
	m.checkpoints[source] = b
	m.revisions[source]++
	m.saves++
	return m.revisions[source], err
}

func (m *memory) last(_ context.Context, source string) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if all := m.blocks[source]; len(all) > 0 {
		return all[len(all)-1].sequence, nil
	}
	return 0, nil
}

func (m *memory) remember(ctx context.Context, source string, data []byte, behind uint64) (uint64, error) {
	if last, _ := m.last(ctx, source); last != behind {
		return 0, errFenced
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.noRoom {
		return 0, errNoRoom
	}
	m.sequence++
	m.blocks[source] = append(m.blocks[source], block{m.sequence, slices.Clone(data)})
	return m.sequence, nil
}

func (m *memory) recall(_ context.Context, source string, from uint64, each func(uint64, []byte) error) error {
	m.mu.Lock()
	all := slices.Clone(m.blocks[source])
	m.mu.Unlock()
	for _, b := range all {
		if b.sequence >= from {
			if err := each(b.sequence, b.data); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) forget(_ context.Context, source string, before uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks[source] = slices.DeleteFunc(m.blocks[source], func(b block) bool { return b.sequence < before })
	return nil
}

func (m *memory) hold(_ context.Context, key string, d time.Duration) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sequence++
	m.holds[key] = heldUntil{m.sequence, time.Now().Add(d)}
	return m.sequence, nil
}

func (m *memory) heldFor(_ context.Context, key string) (time.Duration, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.holds[key]
	return max(0, time.Until(h.until)), h.number, nil
}

// reports are ops events.
type reports struct {
	mu  sync.Mutex // guards all
	all []string
}

func (r *reports) report(what, about string, attrs map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, what+" "+about)
}

func (r *reports) count(text string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.all {
		if s == text {
			n++
		}
	}
	return n
}

// newPoller makes one that keeps in memory.
func newPoller(t *testing.T, m *memory, in *inbox) (*Poller, *reports) {
	t.Helper()
	p := New(Parts{Publish: in.Publish})
	r := &reports{}
	p.keeper, p.report = m, r.report
	t.Cleanup(func() { p.Stop(context.Background()) })
	return p, r
}

func (p *Poller) only(t *testing.T) Status {
	t.Helper()
	all := p.here(time.Now())
	if len(all) != 1 {
		t.Fatalf("got %d sources", len(all))
	}
	return all[0]
}
