package deliver

import (
	"hash/fnv"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// gate lets the events of a subscriber that wants order pass in that order. Its
// events stand in lines: all in one for strict order, one for each partition key
// otherwise; an event without a key stands in none. Only the first of a line may
// be sent. Whoever stands behind one that waits on the retry lane is put there
// too, so that a key in trouble holds up no other key, and is brought back when
// it is first.
//
// The gate knows every event of its lines that this process holds and that is on
// the retry lane; what is there can be listed after a restart, in no time,
// because subjects tell sequence and line. What it can't know are events that
// the broker has handed out and that are not here: the lane counts deliveries
// and closes the gate while one is missing.
//
// It does no I/O: its methods say what is to be done.
type gate struct {
	mu    sync.Mutex // guards all below
	lines map[string]*line
	// shut is how many reasons there are to let nobody pass.
	shut int
	// away are events that were given back and have not come again. Nothing
	// behind them may pass: their line is not looked up, because they come at
	// once.
	away map[uint64]bool
	// room is how many may stand behind others in this process's hands.
	room, standing int
}

type line struct {
	name    string
	entries []entry // by sequence
}

type entry struct {
	sequence uint64
	at       spot
	d        *delivery // nil unless standing or running
}

// spot is where an event of a line is.
type spot int

const (
	standing spot = iota // in hand, and may be sent when it is first
	running              // in hand, and in a slot or being settled
	waiting              // on the retry lane, where it comes from by itself
	behind               // on the retry lane, until it is brought
)

// todo is what is to be done after something has changed.
type todo struct {
	send []*delivery // may pass
	put  []*delivery // to be put behind others on the retry lane
	// bring are events of one line that are to be brought back from there.
	bring []uint64
	line  string
}

// bringMost is how many events of a line are brought back at once: each takes a
// write, and they share the sync.
const bringMost = 32

func newGate(room int) *gate {
	return &gate{lines: map[string]*line{}, away: map[uint64]bool{}, room: room}
}

// strictLine is the one line of strict order. No hash of a key has that form.
const strictLine = "all-"

// lineOf gives the line of an event, empty for none. It is a hash: two keys that
// share one are kept in order with each other, which does no harm.
func lineOf(o Ordering, h nats.Header) string {
	switch o {
	case Strict:
		return strictLine
	case ByKey:
		if key := h["ce-partitionkey"]; len(key) > 0 && key[0] != "" {
			hash := fnv.New64a()
			_, _ = hash.Write([]byte(key[0])) // it never fails
			return strconv.FormatUint(hash.Sum64(), 36)
		}
	}
	return ""
}

func (l *line) find(sequence uint64) (i int, ok bool) {
	if n := len(l.entries); n == 0 || l.entries[n-1].sequence < sequence {
		return n, false // most come in order
	}
	return sort.Find(len(l.entries), func(i int) int {
		switch s := l.entries[i].sequence; {
		case sequence < s:
			return -1
		case sequence > s:
			return 1
		}
		return 0
	})
}

// known adds an event that was found on the retry lane.
func (g *gate) known(name string, sequence uint64, at spot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[name]
	if l == nil {
		l = g.line(strings.Clone(name)) // it is part of a subject, which can go
	}
	i, ok := l.find(sequence)
	if !ok {
		l.entries = slices.Insert(l.entries, i, entry{sequence: sequence})
	}
	// Found behind and due: somebody died between bringing it and deleting it.
	if !ok || at == waiting {
		l.entries[i].at = at
	}
}

func (g *gate) line(name string) *line {
	l := g.lines[name]
	if l == nil {
		l = &line{name: name}
		g.lines[name] = l
	}
	return l
}

// take notes that d is in this process's hands. It does not pass yet. true means
// that it was the last that was away, so that others may pass.
func (g *gate) take(d *delivery) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d.hop() == 0 {
		last = g.here(d.origin.sequence)
	}
	if d.line == "" {
		return last
	}
	l := g.line(d.line)
	i, ok := l.find(d.origin.sequence)
	if !ok {
		l.entries = slices.Insert(l.entries, i, entry{})
	}
	l.entries[i] = entry{d.origin.sequence, running, d}
	return last
}

// here notes that an event is not away, and says whether it was the last one.
// The caller holds mu.
func (g *gate) here(sequence uint64) (last bool) {
	if !g.away[sequence] {
		return false
	}
	delete(g.away, sequence)
	return len(g.away) == 0
}

// offer lets d pass, now or later, or says that it is to be put behind others.
func (g *gate) offer(d *delivery) todo {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d.line == "" {
		return todo{send: []*delivery{d}}
	}
	l := g.lines[d.line]
	i, ok := l.find(d.origin.sequence)
	if !ok {
		return todo{}
	}
	l.entries[i].at = standing
	g.standing++
	if t := g.advance(l); len(t.send) > 0 {
		return t
	}
	// First comes one that waits, or there is no more room to stand.
	if first := l.entries[0].at; i > 0 && g.shut == 0 && (first == waiting || first == behind || g.standing > g.room) {
		g.pick(&l.entries[i])
		return todo{put: []*delivery{d}}
	}
	return todo{}
}

// pick takes a standing event out of the row of those who may pass.
func (g *gate) pick(e *entry) *delivery {
	e.at = running
	g.standing--
	return e.d
}

// advance lets the first of a line pass if it may. The caller holds mu.
func (g *gate) advance(l *line) todo {
	if len(l.entries) == 0 {
		delete(g.lines, l.name)
		return todo{}
	}
	if g.shut > 0 {
		return todo{}
	}
	switch first := &l.entries[0]; first.at {
	case standing:
		for sequence := range g.away {
			if sequence < first.sequence {
				return todo{}
			}
		}
		return todo{send: []*delivery{g.pick(first)}}
	case behind:
		t := todo{line: l.name}
		for i := range l.entries {
			if l.entries[i].at != behind || len(t.bring) == bringMost {
				break
			}
			l.entries[i].at = waiting // it comes
			t.bring = append(t.bring, l.entries[i].sequence)
		}
		return t
	}
	return todo{}
}

// retried notes that d has a place on the retry lane now.
func (g *gate) retried(d *delivery, at spot) todo {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[d.line]
	if l == nil {
		return todo{}
	}
	i, ok := l.find(d.origin.sequence)
	if !ok {
		return todo{}
	}
	l.entries[i].at, l.entries[i].d = at, nil
	return g.next(l)
}

// next lets the first of a line pass if it may. If it waits on the retry lane,
// perhaps for hours, those who stand behind it go there too. The caller holds mu.
func (g *gate) next(l *line) todo {
	t := g.advance(l)
	if g.shut > 0 || len(t.bring) > 0 || len(l.entries) == 0 || l.entries[0].at != waiting {
		return t
	}
	for i := range l.entries {
		if e := &l.entries[i]; e.at == standing {
			t.put = append(t.put, g.pick(e))
		}
	}
	return t
}

// ended notes that an event of a line is settled for good, or gone.
func (g *gate) ended(name string, sequence uint64) todo {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[name]
	if l == nil {
		return todo{}
	}
	i, ok := l.find(sequence)
	if !ok {
		return todo{}
	}
	if l.entries[i].at == standing {
		g.standing--
	}
	if i == 0 {
		l.entries[0] = entry{}
		l.entries = l.entries[1:]
	} else {
		l.entries = slices.Delete(l.entries, i, i+1)
	}
	return g.next(l)
}

// givenBack notes that d comes again.
func (g *gate) givenBack(d *delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fresh := d.hop() == 0
	if fresh {
		g.away[d.origin.sequence] = true
	}
	l := g.lines[d.line]
	if d.line == "" || l == nil {
		return
	}
	i, ok := l.find(d.origin.sequence)
	if !ok {
		return
	}
	if l.entries[i].at == standing {
		g.standing--
	}
	if fresh {
		l.entries = slices.Delete(l.entries, i, i+1)
		return
	}
	l.entries[i].at, l.entries[i].d = waiting, nil
}

// passed notes that an event that was given back needs no delivery any more. true
// means that it was the last that was away.
func (g *gate) passed(sequence uint64) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.here(sequence)
}

// close lets nobody pass until open has been called as often.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut++
}

// open takes one close back.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut--
}

// look lets all pass who may. It is for when something has changed that concerns
// all lines.
func (g *gate) look() (all []todo) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut > 0 {
		return nil
	}
	for _, l := range g.lines {
		if t := g.next(l); len(t.send)+len(t.put)+len(t.bring) > 0 {
			all = append(all, t)
		}
	}
	return all
}

// closed says whether nobody may pass.
func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut > 0
}

// leave takes all out that stand in line, so that they can be given back.
func (g *gate) leave() (all []*delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut++
	for _, l := range g.lines {
		for i := range l.entries {
			if e := &l.entries[i]; e.at == standing {
				all = append(all, g.pick(e))
			}
		}
	}
	return all
}
