package amqptest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/go-amqp"
)

// HubOptions are how a Hub behaves.
type HubOptions struct {
	// Partitions is how many there are. 0 means 1.
	Partitions int
	// Groups are its consumer groups beside $Default.
	Groups []string
	// Geo says that the namespace is replicated to other regions: offsets are texts
	// that only it understands, and the numbers of before are refused.
	Geo bool
}

// Hub is an event hub: partitions whose events stay, whoever reads them, and links
// that read from a position on, of which the one with the highest epoch stays
// (learn.microsoft.com, event-hubs-features, event-hubs-event-processor-host; what
// the service says is from Azure/azure-event-hubs-go#181 and
// Azure/azure-sdk-for-java#26583, #32046 and #10215; read 2026-11).
type Hub struct {
	name string

	mu         sync.Mutex // guards all below
	opts       HubOptions
	created    time.Time
	partitions []*partition
	frozen     bool
	management *Error
	reads      []HubRead
	stolen     int
}

// HubRead is a link by which somebody read.
type HubRead struct {
	Partition string
	// Reader is the name that the receiver gave itself, Epoch 0 or its own.
	Reader string
	Epoch  int64
	// From is the filter.
	From string
	// Given counts the events.
	Given int
}

// partition is one of a Hub, whose lock guards it.
type partition struct {
	id      string
	events  []hubEvent // those that are still there
	next    int64      // sequence number of the next one
	readers []*link
}

type hubEvent struct {
	message  *amqp.Message
	sequence int64
	enqueued time.Time
}

// Hub adds an event hub.
func (s *Server) Hub(name string, opts HubOptions) *Hub {
	opts.Groups = append(opts.Groups, "$Default")
	h := &Hub{name: name, opts: opts}
	h.Recreate(max(opts.Partitions, 1))
	s.mu.Lock()
	s.hubs[name] = h
	s.mu.Unlock()
	return h
}

// Recreate puts an empty hub in the place of this one, as one that was deleted and
// made anew under its name.
func (h *Hub) Recreate(partitions int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.partitions {
		for _, l := range slices.Clone(p.readers) {
			p.end(l, Error{"amqp:not-found", "The messaging entity was deleted."})
		}
	}
	// The service's own has milliseconds.
	created := time.Now().UTC().Truncate(time.Millisecond)
	if !created.After(h.created) {
		created = h.created.Add(time.Millisecond)
	}
	h.partitions, h.created = nil, created
	h.grow(partitions)
}

// Grow adds partitions, until there are so many.
func (h *Hub) Grow(partitions int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grow(partitions)
}

func (h *Hub) grow(n int) {
	for i := len(h.partitions); i < n; i++ {
		h.partitions = append(h.partitions, &partition{id: strconv.Itoa(i)})
	}
}

// Replicate has the namespace replicated from now on.
func (h *Hub) Replicate() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opts.Geo = true
	for _, p := range h.partitions {
		for _, l := range slices.Clone(p.readers) {
			p.end(l, Error{"amqp:link:detach-forced", "The link is moved."})
		}
	}
}

// Put adds messages to a partition.
func (h *Hub) Put(partition int, messages ...*amqp.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.partitions[partition]
	for _, m := range messages {
		p.events = append(p.events, hubEvent{m, p.next, time.Now().UTC().Truncate(time.Millisecond)})
		p.next++
	}
	h.pump(p)
}

// Expire drops a partition's events before a sequence number, as the end of their
// retention does.
func (h *Hub) Expire(partition int, before int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.partitions[partition]
	p.events = slices.DeleteFunc(p.events, func(e hubEvent) bool { return e.sequence < before })
}

// Skip leaves sequence numbers out, as the compaction of a hub does.
func (h *Hub) Skip(partition int, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.partitions[partition].next += n
}

// Freeze keeps events back while it is on.
func (h *Hub) Freeze(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frozen = on
	for _, p := range h.partitions {
		h.pump(p)
	}
}

// RefuseManagement has questions about the hub refused; nil has them answered.
func (h *Hub) RefuseManagement(e *Error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.management = e
}

// Detach ends the links that read a partition.
func (h *Hub) Detach(partition int, e Error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.partitions[partition]
	for _, l := range slices.Clone(p.readers) {
		p.end(l, e)
	}
}

// Reads lists the links by which the hub was read, in the order in which they came.
func (h *Hub) Reads() []HubRead {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.reads)
}

// Last is the sequence number of a partition's newest event, -1 for none.
func (h *Hub) Last(partition int) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.partitions[partition].next - 1
}

// Readers counts the links by which a partition is read now.
func (h *Hub) Readers(partition int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.partitions[partition].readers)
}

// Stolen counts the links that were ended for another one.
func (h *Hub) Stolen() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stolen
}

// partitionPath is the address of a partition for a consumer group.
var partitionPath = regexp.MustCompile(`^(.+)/ConsumerGroups/([^/]+)/Partitions/([^/]+)$`)

// startFilter is one of a receiver (azeventhubs v2.0.2, getStartExpression).
var startFilter = regexp.MustCompile(`^amqp\.annotation\.x-opt-(offset|sequence-number|enqueued-time) (>=?) '([^']*)'$`)

// read makes l a reader of the partition that it asks for, or says why not; found is
// false for what is no partition at all.
func (s *Server) read(l *link, f frame) (refused *Error, found bool) {
	at := partitionPath.FindStringSubmatch(l.address)
	if at == nil {
		return nil, false
	}
	s.mu.Lock()
	h := s.hubs[at[1]]
	s.mu.Unlock()
	if h == nil {
		return &Error{"amqp:not-found", "The messaging entity '" + at[1] + "' could not be found."}, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.partitions, func(p *partition) bool { return p.id == at[3] })
	switch {
	case !slices.Contains(h.opts.Groups, at[2]):
		return &Error{"amqp:not-found", "The messaging entity '" + l.address + "' could not be found."}, true
	case i < 0:
		return &Error{"com.microsoft:argument-out-of-range", fmt.Sprintf("The specified partition is invalid for an EventHub partition sender or receiver. It should be between 0 and %d.", len(h.partitions)-1)}, true
	}
	p := h.partitions[i]
	given := pairs(f.field(13))
	l.reader, l.epoch, l.group = text(given["com.microsoft:receiver-name"]), int64(number(given["com.microsoft:epoch"])), at[2]
	_, hasEpoch := given["com.microsoft:epoch"]
	from := ""
	if fields := inside(f.field(5)); len(fields) > 7 {
		_, v := undescribed(pairs(fields[7])["apache.org:selector-filter:string"])
		from = text(v)
	}
	if l.next, refused = h.position(p, from); refused != nil {
		return refused, true
	}
	for _, other := range slices.Clone(p.readers) {
		switch {
		case other.group != l.group:
		case !hasEpoch:
			return &Error{"amqp:link:stolen", fmt.Sprintf("At least one receiver for the endpoint is created with epoch of '%d', and so non-epoch receiver is not allowed. Either reconnect with a higher epoch, or make sure all epoch receivers are closed or disconnected.", other.epoch)}, true
		case other.epoch > l.epoch:
			return &Error{"amqp:link:stolen", fmt.Sprintf("Receiver '%s' with a higher epoch '%d' already exists. Receiver '%s' with epoch %d cannot be created. Make sure you are creating receiver with increasing epoch value to ensure connectivity, or ensure all old epoch receivers are closed or disconnected.", other.reader, other.epoch, l.reader, l.epoch)}, true
		default:
			h.stolen++
			p.end(other, Error{"amqp:link:stolen", fmt.Sprintf("New receiver '%s' with higher epoch of '%d' is created hence current receiver '%s' with epoch '%d' is getting disconnected. If you are recreating the receiver, make sure a higher epoch is used.", l.reader, l.epoch, other.reader, other.epoch)})
		}
	}
	l.hub, l.partition, l.number = h, p, len(h.reads)
	h.reads = append(h.reads, HubRead{Partition: p.id, Reader: l.reader, Epoch: l.epoch, From: from})
	return nil, true
}

// position is the sequence number of the first event that a filter lets through. The
// caller holds the lock.
func (h *Hub) position(p *partition, from string) (int64, *Error) {
	m := startFilter.FindStringSubmatch(from)
	if m == nil {
		return 0, &Error{"com.microsoft:argument-error", "The filter '" + from + "' is invalid."}
	}
	first := int64(1)
	if m[2] == ">=" {
		first = 0
	}
	last := p.next - 1
	n, err := strconv.ParseInt(m[3], 10, 64)
	switch {
	case m[1] == "offset" && m[3] == "-1":
		return 0, nil
	case m[1] == "offset" && m[3] == "@latest":
		return p.next, nil
	case m[1] == "offset" && h.opts.Geo && err == nil:
		return 0, &Error{"com.microsoft:georeplication:invalid-offset", "The supplied offset '" + m[3] + "' is not one of a replicated namespace."}
	case m[1] == "offset":
		n, err = strconv.ParseInt(strings.TrimPrefix(m[3], "geo:"), 10, 64)
		if n /= offsetStep; err != nil || n > last {
			return 0, &Error{"com.microsoft:argument-error", fmt.Sprintf("The supplied offset '%s' is invalid. The last offset in the system is '%s'", m[3], h.offset(last))}
		}
		return n + first, nil
	case err != nil:
		return 0, &Error{"com.microsoft:argument-error", "The value '" + m[3] + "' is invalid."}
	case m[1] == "sequence-number":
		if n > last {
			return 0, &Error{"com.microsoft:argument-error", fmt.Sprintf("The supplied sequence number '%d' is invalid. The last sequence number in the system is '%d'", n, last)}
		}
		return n + first, nil
	}
	for _, e := range p.events {
		if at := e.enqueued.UnixMilli(); at > n || at == n && first == 0 {
			return e.sequence, nil
		}
	}
	return p.next, nil
}

// offsetStep is how far two offsets are apart: they count bytes.
const offsetStep = 120

func (h *Hub) offset(sequence int64) string {
	s := strconv.FormatInt(sequence*offsetStep, 10)
	if h.opts.Geo {
		return "geo:" + s
	}
	return s
}

// end takes a link down. The hub's lock is held.
func (p *partition) end(l *link, why Error) {
	p.readers = slices.DeleteFunc(p.readers, func(x *link) bool { return x == l })
	l.gone = true
	l.conn.write(frameAMQP, l.channel, codeDetach, []any{l.handle, true, condition(why)}, nil)
}

// join gives a link that was answered its events.
func (l *link) join() {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	if !l.gone {
		l.partition.readers = append(l.partition.readers, l)
		l.hub.pump(l.partition)
	}
}

// part forgets a link; ended says whether it was taken down before.
func (l *link) part() (ended bool) {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	ended, l.gone = l.gone, true
	l.partition.readers = slices.DeleteFunc(l.partition.readers, func(x *link) bool { return x == l })
	return ended
}

// allowed takes note of credit up to a count.
func (l *link) allowed(until uint32) {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	l.room = int(int32(until - l.count))
	l.hub.pump(l.partition)
}

// pump sends a partition's events to its readers. The caller holds the lock.
func (h *Hub) pump(p *partition) {
	if h.frozen {
		return
	}
	for _, l := range p.readers {
		i, _ := slices.BinarySearchFunc(p.events, l.next, func(e hubEvent, n int64) int { return int(e.sequence - n) })
		for ; l.room > 0 && i < len(p.events); i++ {
			e := p.events[i]
			m := *e.message
			m.Annotations = amqp.Annotations{
				"x-opt-sequence-number": e.sequence, "x-opt-offset": h.offset(e.sequence), "x-opt-enqueued-time": e.enqueued,
			}
			b, err := m.MarshalBinary()
			if err != nil {
				l.conn.tcp.Close()
				return
			}
			l.room--
			l.next = e.sequence + 1
			h.reads[l.number].Given++
			l.conn.send(l, strconv.AppendInt(nil, e.sequence, 10), b, true)
		}
	}
}

// describe answers a request of $management; status as in HTTP (azeventhubs v2.0.2,
// mgmt.go).
func (s *Server) describe(request *amqp.Message) (value any, status int32, text string) {
	name, _ := request.ApplicationProperties["name"].(string)
	s.mu.Lock()
	h := s.hubs[name]
	s.mu.Unlock()
	if h == nil {
		return nil, 404, "The messaging entity '" + name + "' could not be found."
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.management != nil && h.management.Condition == "amqp:unauthorized-access":
		return nil, 401, h.management.Description
	case h.management != nil:
		return nil, 503, h.management.Description
	case request.ApplicationProperties["operation"] != "READ":
		return nil, 501, "It is not known here."
	}
	if request.ApplicationProperties["type"] == "com.microsoft:eventhub" {
		ids := []string{}
		for _, p := range h.partitions {
			ids = append(ids, p.id)
		}
		factor := int32(1)
		if h.opts.Geo {
			factor = 2
		}
		return map[string]any{
			"name": name, "created_at": h.created, "partition_count": int32(len(ids)), "partition_ids": ids, "georeplication_factor": factor,
		}, 200, "OK"
	}
	for _, p := range h.partitions {
		if p.id != request.ApplicationProperties["partition"] {
			continue
		}
		first, offset, at := p.next, "-1", time.Unix(0, 0).UTC()
		if len(p.events) > 0 {
			last := p.events[len(p.events)-1]
			first, offset, at = p.events[0].sequence, h.offset(last.sequence), last.enqueued
		}
		return map[string]any{
			"name": name, "partition": p.id, "begin_sequence_number": first, "last_enqueued_sequence_number": p.next - 1,
			"last_enqueued_offset": offset, "last_enqueued_time_utc": at, "is_partition_empty": len(p.events) == 0,
		}, 200, "OK"
	}
	return nil, 404, "There is no such partition."
}
