package receive

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/nats-io/nuid"

	"github.com/gridfan/gridfan/infra/broker"
)

// hub sees to it that each partition of an event hub is read by one replica, and by
// all of them about as many. A replica says that it is there by a lease of its own,
// and reads a partition while it has the partition's. When a lease is lost, whoever
// takes it begins the next generation of the checkpoint, which is what shuts the one
// before out; see checkpoint.
type hub struct {
	source *source
	door   *hubDoor
	me     string // among the replicas

	// Tests are in a hurry. tick is the time between two looks at who reads what, ttl
	// how long a lease outlives its holder, refresh the time between two looks at the
	// hub; see hubWait and hubSilence for the others.
	tick, ttl, refresh, wait, silence time.Duration

	// Of run alone.
	shelf   *shelf
	client  *hubClient // for questions; nil: none
	asked   time.Time
	ids     []string // of the partitions there are; nil: not known yet
	initial []string // of those that there were when the source began
	here    *broker.Lease
	workers int

	mu    sync.Mutex // guards all below
	parts map[string]*partition
	view  map[string]PartitionStatus // of those that are read elsewhere, or nowhere
}

const (
	hubTick    = 2 * time.Second
	hubTTL     = 6 * time.Second
	hubRefresh = 10 * time.Second
)

// coordinator is the number of the worker that a hub itself is.
const coordinator = 0

func newHub(s *source, d *hubDoor) *hub {
	s.parts.Metrics.reads.WithLabelValues(s.Name)
	s.parts.Metrics.missed.WithLabelValues(s.Name)
	return &hub{
		source: s, door: d, me: broker.Instance() + "-" + strings.ToLower(nuid.Next()), parts: map[string]*partition{}, view: map[string]PartitionStatus{},
		tick: hubTick, ttl: hubTTL, refresh: hubRefresh, wait: hubWait, silence: hubSilence,
	}
}

// Names of leases.
func (h *hub) leases(what string) string {
	return place(h.source.Name, h.source.status.from) + "." + what
}
func (h *hub) presence(who string) string      { return h.leases("at." + who) }
func (h *hub) reading(partition string) string { return h.leases("p." + partition) }

// partition is one that this process reads.
type partition struct {
	hub     *hub
	id      string
	worker  int
	initial bool // it was there when the source began
	stop    context.CancelFunc
	done    chan struct{}
	lease   *broker.Lease

	bySequence bool // of the worker alone

	mu      sync.Mutex // guards all below
	kept    shelved    // the newest checkpoint that is known
	last    *int64     // the newest event's number
	largest int        // bytes of an event, as of the last ones
	stale   bool
}

// PartitionStatus is how one partition of an event hub is read.
type PartitionStatus struct {
	Partition string `json:"partition"`
	// Reader is the process that reads it, empty for none; Here says that it is this
	// one.
	Reader string `json:"reader,omitempty"`
	Here   bool   `json:"here"`
	// State is what its reader is doing, with Kind and Reason as in Status.
	State  State  `json:"state,omitempty"`
	Kind   Kind   `json:"kind,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Sequence is the number of the last event stored; nil: none yet. LastEnqueued is
	// that of the newest there is, and Lag how many lie between, where the reader
	// tells.
	Sequence     *int64 `json:"sequence,omitempty"`
	LastEnqueued *int64 `json:"lastEnqueued,omitempty"`
	Lag          *int64 `json:"lag,omitempty"`
	// Enqueued is when the last event stored came to the hub.
	Enqueued *time.Time `json:"enqueued,omitempty"`
	// Missed is how many events may have been gone before they could be read.
	Missed int64 `json:"missed,omitempty"`
	// Generation counts those who began to read it.
	Generation int64 `json:"generation,omitempty"`
}

// note is what a holder says by its lease.
type note struct {
	Replica string `json:"replica"`
	PartitionStatus
}

// run reads until ctx ends.
func (h *hub) run(ctx context.Context) {
	s := h.source
	defer h.leave()
	for failures := 0; ctx.Err() == nil; {
		err := h.round(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			pause(ctx, s.failed(coordinator, faultOf(err), failures))
			failures++
		default:
			failures = 0
			s.status.standby(coordinator)
			pause(ctx, time.Duration(float64(h.tick)*(0.75+rand.Float64()/2)))
		}
	}
}

// leave gives everything up.
func (h *hub) leave() {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.parts))
	h.mu.Unlock()
	for _, p := range all {
		p.stop()
	}
	for _, p := range all {
		<-p.done
		h.drop(p)
	}
	if h.here != nil {
		h.here.Release()
	}
	h.hangUp()
	h.source.status.stopped(coordinator)
}

func (h *hub) hangUp() {
	if h.client != nil {
		h.client.close()
		h.client = nil
	}
}

// round looks at the hub and at the other replicas, and takes and gives what is due.
func (h *hub) round(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if h.shelf == nil {
		var err error
		if h.shelf, err = openShelf(asking, h.source.parts.Broker, h.source.Name, h.source.status.from); err != nil {
			return unkept(err)
		}
	}
	if time.Since(h.asked) >= h.refresh {
		if err := h.look(ctx); err != nil {
			h.hangUp()
			if h.ids == nil {
				return err
			}
			// Who reads what goes on; readers find out by themselves.
			h.source.parts.Log.Debug("the event hub was not looked at", "source", h.source.Name, "error", err)
		}
		h.asked = time.Now()
	}
	if h.here == nil || h.here.Context().Err() != nil {
		l, err := h.source.parts.Broker.TryLease(asking, h.presence(h.me), h.ttl)
		if err != nil {
			return unkept(err)
		}
		h.here = l
	}
	notes, err := h.source.parts.Broker.LeaseNotes(asking, h.leases(">"))
	if err != nil {
		return unkept(err)
	}
	kept, err := h.shelf.all(asking)
	if err != nil {
		return unkept(err)
	}
	h.see(notes, kept)
	give, take := h.share(notes)
	for _, p := range give {
		p.stop()
	}
	for _, p := range give {
		<-p.done
		h.drop(p)
	}
	for _, id := range take {
		if err := h.take(ctx, id); err != nil {
			return unkept(err)
		}
	}
	return nil
}

// look asks the hub for its partitions and how far those are.
func (h *hub) look(ctx context.Context) error {
	if h.client == nil {
		var err error
		if h.client, err = h.door.dial(ctx); err != nil {
			return err
		}
	}
	whole, err := h.client.properties(ctx)
	if err != nil {
		return err
	}
	for _, id := range whole.PartitionIDs {
		if id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return &Fault{Kind: Answer, Reason: fmt.Sprintf("a partition is called %.40q", id)}
		}
	}
	ids := byNumber(slices.Clone(whole.PartitionIDs))
	r, err := h.shelf.begin(ctx, ids)
	if err != nil {
		return unkept(err)
	}
	h.ids, h.initial = ids, r.Partitions
	for _, p := range h.mine() {
		if !slices.Contains(ids, p.id) {
			continue
		}
		p.belongs(whole.CreatedOn)
		now, err := h.client.partition(ctx, p.id)
		if err != nil {
			return err
		}
		p.newest(now)
	}
	return nil
}

// mine are the partitions that are read here.
func (h *hub) mine() []*partition {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.parts))
}

// see takes note of how far partitions are, and tells others of those that are read
// here.
func (h *hub) see(notes map[string]broker.LeaseNote, kept map[string]shelved) {
	for _, p := range h.mine() {
		if c, ok := kept[p.id]; ok {
			p.moved(c.revision, c.checkpoint)
		}
		if b, err := json.Marshal(note{h.me, p.status()}); err == nil { // it always is JSON
			p.lease.Note(b)
		}
		p.measure()
	}
	view := map[string]PartitionStatus{}
	for _, id := range h.ids {
		st := PartitionStatus{Partition: id}
		if held, ok := notes[h.reading(id)]; ok {
			var n note
			if json.Unmarshal(held.Note, &n) == nil {
				st = n.PartitionStatus
			}
			st.Partition, st.Reader, st.Here = id, held.Holder, false
		}
		if c, ok := kept[id]; ok {
			st.keep(c.checkpoint)
		}
		view[id] = st
	}
	h.mu.Lock()
	h.view = view
	h.mu.Unlock()
}

// share says which partitions to give up and which to take.
func (h *hub) share(notes map[string]broker.LeaseNote) (give []*partition, take []string) {
	counts := map[string]int{h.me: 0}
	for key := range notes {
		if who, ok := strings.CutPrefix(key, h.presence("")); ok {
			counts[who] = 0
		}
	}
	mine := map[string]*partition{}
	for _, p := range h.mine() {
		select {
		case <-p.done: // its lease was lost
			h.drop(p)
			continue
		default:
		}
		if !slices.Contains(h.ids, p.id) {
			give = append(give, p)
			h.source.parts.Log.Warn("a partition is gone from the event hub", "source", h.source.Name, "partition", p.id)
			h.source.parts.Report("source.partition-gone", h.source.Name, map[string]any{"from": h.source.status.from, "partition": p.id})
			continue
		}
		mine[p.id] = p
		counts[h.me]++
	}
	var free []string
	unsaid := 0
	for _, id := range h.ids {
		held, taken := notes[h.reading(id)]
		if mine[id] != nil {
			continue
		}
		if !taken {
			free = append(free, id)
			continue
		}
		var n note
		if json.Unmarshal(held.Note, &n) != nil || n.Replica == "" {
			unsaid++
		} else if _, present := counts[n.Replica]; present && n.Replica != h.me {
			counts[n.Replica]++
		}
	}
	surplus, room := portion(counts, h.me, len(h.ids), len(free))
	if unsaid > 0 {
		surplus = 0 // somebody has just begun, and will say so
	}
	for _, id := range byNumber(slices.Collect(maps.Keys(mine))) {
		if surplus--; surplus >= 0 {
			give = append(give, mine[id])
		}
	}
	// Replicas that begin at the same time do not all ask for the same.
	rand.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	return give, free[:min(room, len(free))]
}

// portion says how many of its partitions a replica gives up, and how many of those
// that are free it takes. counts are the partitions of each replica that is there.
// All are to have the same number, or one more.
func portion(counts map[string]int, me string, partitions, free int) (give, take int) {
	have, each := counts[me], partitions/len(counts)
	least, owed := have, 0 // owed is what others have a right to before anybody has more
	for who, n := range counts {
		least = min(least, n)
		if who != me {
			owed += max(0, each-n)
		}
	}
	most := each
	if partitions%len(counts) > 0 {
		most++
	}
	switch {
	case have > most:
		return have - most, 0
	case have < each:
		return 0, each - have
	case free > owed && have < most:
		return 0, 1
	case free == 0 && have-least > 1:
		return 1, 0
	}
	return 0, 0
}

// take begins to read a partition, unless somebody else has it.
func (h *hub) take(ctx context.Context, id string) error {
	lease, err := h.source.parts.Broker.TryLease(ctx, h.reading(id), h.ttl)
	if lease == nil {
		return err
	}
	reading, stop := context.WithCancel(lease.Context())
	h.workers++
	p := &partition{
		hub: h, id: id, worker: h.workers, initial: slices.Contains(h.initial, id), stop: stop, done: make(chan struct{}), lease: lease, largest: 1,
	}
	if b, err := json.Marshal(note{h.me, p.status()}); err == nil { // it always is JSON
		lease.Note(b)
	}
	h.mu.Lock()
	h.parts[id] = p
	n := len(h.parts)
	h.mu.Unlock()
	h.source.parts.Metrics.reads.WithLabelValues(h.source.Name).Set(float64(n))
	h.source.parts.Log.Info("partition is read here", "source", h.source.Name, "partition", id)
	go func() {
		defer close(p.done)
		defer stop()
		h.source.work(reading, p.worker, p.open)
		lease.Release()
	}()
	return nil
}

// drop forgets a partition that is not read here any more.
func (h *hub) drop(p *partition) {
	h.mu.Lock()
	delete(h.parts, p.id)
	n := len(h.parts)
	h.mu.Unlock()
	h.source.status.forget(p.worker)
	m := h.source.parts.Metrics
	m.reads.WithLabelValues(h.source.Name).Set(float64(n))
	m.lag.DeleteLabelValues(h.source.Name, p.id)
	m.behind.DeleteLabelValues(h.source.Name, p.id)
	h.source.parts.Log.Info("partition is not read here any more", "source", h.source.Name, "partition", p.id)
}

// partitions tells how all are read, and how many events wait in those of which that
// is known.
func (h *hub) partitions() (all []PartitionStatus, lag *int64) {
	h.mu.Lock()
	view := maps.Clone(h.view)
	for id, p := range h.parts {
		view[id] = p.status()
	}
	h.mu.Unlock()
	for _, id := range byNumber(slices.Collect(maps.Keys(view))) {
		st := view[id]
		all = append(all, st)
		if st.Lag != nil {
			if lag == nil {
				lag = new(int64)
			}
			*lag += *st.Lag
		}
	}
	return all, lag
}

// keep takes over what a checkpoint says.
func (st *PartitionStatus) keep(c checkpoint) {
	st.Sequence, st.Missed, st.Generation, st.Enqueued = c.Sequence, c.Missed, c.Generation, nil
	if !c.Enqueued.IsZero() {
		st.Enqueued = &c.Enqueued
	}
	if st.LastEnqueued != nil {
		read := int64(-1)
		if c.Sequence != nil {
			read = *c.Sequence
		}
		// It was asked for some seconds ago.
		last := max(read, *st.LastEnqueued)
		lag := last - read
		st.LastEnqueued, st.Lag = &last, &lag
	}
}

func (p *partition) status() PartitionStatus {
	state, fault := p.hub.source.status.of(p.worker)
	p.mu.Lock()
	defer p.mu.Unlock()
	st := PartitionStatus{Partition: p.id, Reader: broker.Instance(), Here: true, State: state, LastEnqueued: p.last}
	if fault != nil {
		st.Kind, st.Reason = fault.Kind, fault.Reason
	}
	st.keep(p.kept.checkpoint)
	return st
}

// measure sets the partition's metrics.
func (p *partition) measure() {
	st, m := p.status(), p.hub.source.parts.Metrics
	if st.Lag == nil {
		return
	}
	m.lag.WithLabelValues(p.hub.source.Name, p.id).Set(float64(*st.Lag))
	behind := 0.0
	if *st.Lag > 0 && st.Enqueued != nil {
		behind = max(0, time.Since(*st.Enqueued).Seconds())
	}
	m.behind.WithLabelValues(p.hub.source.Name, p.id).Set(behind)
}

// moved takes note of a checkpoint, unless a newer one is known.
func (p *partition) moved(revision uint64, c checkpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if revision > p.kept.revision {
		p.kept = shelved{c, revision}
	}
}

// current says whether a link that was made at a revision is still the right one.
func (p *partition) current(revision uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept.revision <= revision && !p.stale
}

// belongs looks whether the partition is still one of the same hub. The client mends
// links by itself, and does not notice that another one is behind.
func (p *partition) belongs(created time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = p.kept.revision > 0 && !p.kept.Created.Equal(created)
}

// newest takes note of how far the partition is.
func (p *partition) newest(now azeventhubs.PartitionProperties) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := now.LastEnqueuedSequenceNumber
	p.last = &n
}

// waiting says whether there was something to be read when the hub was last looked at.
func (p *partition) waiting() (last int64, is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		return 0, false
	}
	return *p.last, p.kept.Sequence == nil && *p.last >= 0 && p.kept.From.IsZero() || p.kept.Sequence != nil && *p.kept.Sequence < *p.last
}

// lost tells people what may have been missed.
func (p *partition) lost(l *loss) {
	s := p.hub.source
	attrs := map[string]any{"from": s.status.from, "partition": p.id, "reason": l.reason}
	if l.missed >= 0 {
		attrs["missed"] = l.missed
		s.parts.Metrics.missed.WithLabelValues(s.Name).Add(float64(l.missed))
	}
	s.parts.Log.Error("events of an event hub may be missing", "source", s.Name, "partition", p.id, "reason", l.reason)
	s.parts.Report("source.position-lost", s.Name, attrs)
}

// ask is how many events to ask for at once: so many as the partition's share of
// maxHub holds.
func (p *partition) ask(batch int) int {
	n := max(1, len(p.hub.mine()))
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(1, min(batch, maxHub/n/p.largest))
}

// maxHub is what the events of all partitions of a source should take together.
const maxHub = 64 << 20

// fit takes note of how large events are.
func (p *partition) fit(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.largest = max(bytes, p.largest/2, 1)
}
