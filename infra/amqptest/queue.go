package amqptest

import (
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Azure/go-amqp"
)

// Settled is what a receiver did with a message in the end.
type Settled string

// What a receiver can do.
const (
	Completed    Settled = "completed"
	Abandoned    Settled = "abandoned"
	Released     Settled = "released"
	DeadLettered Settled = "dead-lettered"
)

// Settlement is one that a Queue was told of.
type Settlement struct {
	MessageID any
	As        Settled
	// Reason and Description are those of a dead letter.
	Reason, Description string
	// Lost says that the lock was no longer the receiver's, and was refused.
	Lost bool
}

// QueueOptions are how a Queue behaves.
type QueueOptions struct {
	// Lock is how long a message, or a session, is locked. 0 means 30 seconds.
	Lock time.Duration
	// MaxDeliveries is after how many a message goes to the dead-letter queue. 0
	// means 10, as the service does unless told otherwise.
	MaxDeliveries int
	// Sessions says that messages are received by session.
	Sessions bool
}

// Queue is a queue, or a subscription, that clients receive from with locks: a
// message is given out, locked, and comes back with a higher count unless it is
// settled in time. Its dead letters are in DeadLetters.
type Queue struct {
	// DeadLetters is the queue below $DeadLetterQueue. Nil for one that is one itself.
	DeadLetters *Queue

	name string
	opts QueueOptions

	mu       sync.Mutex // guards all below
	waiting  []*held    // by sequence
	locked   map[[16]byte]*held
	sessions map[string]*link // that have a receiver
	links    []*link
	settled  []Settlement
	sequence int64
	renewals int
	given    int
	frozen   bool
}

// held is a message in a Queue.
type held struct {
	message    *amqp.Message
	sequence   int64
	deliveries uint32
	tag        [16]byte
	until      time.Time
	link       *link
	session    string
}

// Queue adds a queue, or a subscription by its path, and its dead-letter queue.
func (s *Server) Queue(name string, opts QueueOptions) *Queue {
	if opts.Lock == 0 {
		opts.Lock = 30 * time.Second
	}
	if opts.MaxDeliveries == 0 {
		opts.MaxDeliveries = 10
	}
	make := func(name string, opts QueueOptions) *Queue {
		q := &Queue{name: name, opts: opts, locked: map[[16]byte]*held{}, sessions: map[string]*link{}}
		s.mu.Lock()
		s.queues[name] = q
		s.mu.Unlock()
		return q
	}
	q := make(name, opts)
	opts.Sessions, opts.MaxDeliveries = false, 1<<30
	q.DeadLetters = make(name+"/$DeadLetterQueue", opts)
	s.running.Go(func() { q.expire(s.over) })
	s.running.Go(func() { q.DeadLetters.expire(s.over) })
	return q
}

// queue gives the one of an address; nil if there is none.
func (s *Server) queue(address string) *Queue {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queues[address]
}

// Put adds messages.
func (q *Queue) Put(messages ...*amqp.Message) {
	q.mu.Lock()
	for _, m := range messages {
		q.sequence++
		h := &held{message: m, sequence: q.sequence}
		if m.Properties != nil && m.Properties.GroupID != nil {
			h.session = *m.Properties.GroupID
		}
		q.waiting = append(q.waiting, h)
	}
	q.mu.Unlock()
	q.pump()
}

// Len counts the messages that are waiting or locked.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) + len(q.locked)
}

// Messages lists those that are waiting.
func (q *Queue) Messages() []*amqp.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	var all []*amqp.Message
	for _, h := range q.waiting {
		all = append(all, h.message)
	}
	return all
}

// Deliveries is the highest count of one message that is still there.
func (q *Queue) Deliveries() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	most := uint32(0)
	for _, h := range q.waiting {
		most = max(most, h.deliveries)
	}
	for _, h := range q.locked {
		most = max(most, h.deliveries)
	}
	return int(most)
}

// Settlements lists what receivers did, in order.
func (q *Queue) Settlements() []Settlement {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.settled)
}

// Renewals counts the locks that were renewed.
func (q *Queue) Renewals() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.renewals
}

// Given counts the messages that were given out, each time again.
func (q *Queue) Given() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.given
}

// Lose makes every lock end now, as those of a service that fails over.
func (q *Queue) Lose() {
	q.mu.Lock()
	for _, h := range q.locked {
		q.back(h, true)
	}
	q.mu.Unlock()
	q.pump()
}

// back puts a locked message in its place again. The caller holds the lock.
func (q *Queue) back(h *held, count bool) {
	delete(q.locked, h.tag)
	h.link = nil
	if !count {
		h.deliveries--
	}
	if int(h.deliveries) >= q.opts.MaxDeliveries {
		q.bury(h, "MaxDeliveryCountExceeded", "Message could not be consumed after so many delivery attempts.")
		return
	}
	i, _ := slices.BinarySearchFunc(q.waiting, h, func(a, b *held) int { return int(a.sequence - b.sequence) })
	q.waiting = slices.Insert(q.waiting, i, h)
}

// bury moves a message to the dead letters. The caller holds the lock.
func (q *Queue) bury(h *held, reason, description string) {
	m := h.message
	if m.ApplicationProperties == nil {
		m.ApplicationProperties = map[string]any{}
	}
	m.ApplicationProperties["DeadLetterReason"], m.ApplicationProperties["DeadLetterErrorDescription"] = reason, description
	go q.DeadLetters.Put(m)
}

// expire gives back what was locked for too long.
func (q *Queue) expire(over <-chan struct{}) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case now := <-tick.C:
			q.mu.Lock()
			for _, h := range q.locked {
				if now.After(h.until) {
					q.back(h, true)
				}
			}
			q.mu.Unlock()
			q.pump()
		}
	}
}

// Freeze keeps messages back while it is on.
func (q *Queue) Freeze(on bool) {
	q.mu.Lock()
	q.frozen = on
	q.mu.Unlock()
	q.pump()
}

// pump gives waiting messages to the links that have credit.
func (q *Queue) pump() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.frozen {
		return
	}
	for _, l := range q.links {
		for l.room > 0 {
			i := slices.IndexFunc(q.waiting, func(h *held) bool { return !q.opts.Sessions || h.session == l.session })
			if i < 0 {
				break
			}
			h := q.waiting[i]
			q.waiting = slices.Delete(q.waiting, i, i+1)
			_, _ = rand.Read(h.tag[:]) // it never fails
			h.deliveries++
			h.until, h.link = time.Now().Add(q.opts.Lock), l
			q.locked[h.tag] = h
			q.given++
			l.room--
			l.give(h)
		}
	}
}

// give sends a message over a link. The queue's lock is held, so that messages are in
// order.
func (l *link) give(h *held) {
	m := *h.message
	m.Header = &amqp.MessageHeader{DeliveryCount: h.deliveries - 1}
	m.Annotations = amqp.Annotations{
		"x-opt-sequence-number": h.sequence, "x-opt-enqueued-time": time.Now().UTC(), "x-opt-locked-until": h.until.UTC(),
	}
	b, err := m.MarshalBinary()
	if err != nil {
		l.conn.tcp.Close()
		return
	}
	var id any
	if m.Properties != nil {
		id = m.Properties.MessageID
	}
	l.sent[l.conn.send(l, h.tag[:], b, false)] = sent{h.tag, id}
}

// token is a lock's in the order of bytes in which requests have it, from the tag's,
// which is .NET's.
func token(tag [16]byte) amqp.UUID {
	for _, swap := range [][2]int{{0, 3}, {1, 2}, {4, 5}, {6, 7}} {
		tag[swap[0]], tag[swap[1]] = tag[swap[1]], tag[swap[0]]
	}
	return amqp.UUID(tag)
}

// next takes a session that has messages and no receiver, or the one that is asked
// for.
func (q *Queue) next(l *link, wanted string, any bool) (string, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !any {
		if q.sessions[wanted] != nil {
			return "", false
		}
		q.sessions[wanted] = l
		return wanted, true
	}
	for _, h := range q.waiting {
		if q.sessions[h.session] == nil {
			q.sessions[h.session] = l
			return h.session, true
		}
	}
	return "", false
}

// settle is told what a receiver wants to be done with a message, and says
// whether the lock was lost.
func (q *Queue) settle(l *link, id uint32, as Settled, reason, description string) (lost bool) {
	q.mu.Lock()
	defer func() { q.mu.Unlock(); q.pump() }()
	sent := l.sent[id]
	delete(l.sent, id)
	h := q.locked[sent.tag]
	s := Settlement{MessageID: sent.messageID, As: as, Reason: reason, Description: description}
	if h == nil || h.link != l {
		s.Lost = true
		q.settled = append(q.settled, s)
		return true
	}
	q.settled = append(q.settled, s)
	q.end(h, as, reason, description)
	return false
}

// end ends a lock. The caller holds the queue's.
func (q *Queue) end(h *held, as Settled, reason, description string) {
	switch as {
	case Completed:
		delete(q.locked, h.tag)
	case Abandoned:
		q.back(h, true)
	case Released:
		q.back(h, false)
	case DeadLettered:
		delete(q.locked, h.tag)
		q.bury(h, reason, description)
	}
}

// leave forgets a link. What it had stays locked, as at the service, but for a
// session's, which come free with it.
func (q *Queue) leave(l *link) {
	q.mu.Lock()
	q.links = slices.DeleteFunc(q.links, func(x *link) bool { return x == l })
	if q.opts.Sessions && q.sessions[l.session] == l {
		delete(q.sessions, l.session)
		for _, h := range q.locked {
			if h.link == l {
				q.back(h, true)
			}
		}
	}
	q.mu.Unlock()
	q.pump()
}

// manage answers a request of $management; status as in HTTP.
func (q *Queue) manage(request *amqp.Message) (value any, status int32, text string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	body, _ := request.Value.(map[string]any)
	until := time.Now().Add(q.opts.Lock).UTC().Truncate(time.Millisecond)
	switch operation := request.ApplicationProperties["operation"]; operation {
	case "com.microsoft:renew-lock":
		tokens, _ := body["lock-tokens"].([]amqp.UUID)
		var expirations []time.Time
		for _, t := range tokens {
			i := 0
			for _, h := range q.locked {
				if token(h.tag) == t {
					h.until = until
					i++
				}
			}
			if i == 0 {
				return nil, 410, "The lock supplied is invalid. Either the lock expired, or the message has already been removed from the queue."
			}
			q.renewals++
			expirations = append(expirations, until)
		}
		return map[string]any{"expirations": expirations}, 200, "OK"
	case "com.microsoft:renew-session-lock":
		id, _ := body["session-id"].(string)
		l := q.sessions[id]
		if l == nil {
			return nil, 410, "The session lock has expired."
		}
		for _, h := range q.locked {
			if h.link == l {
				h.until = until
			}
		}
		q.renewals++
		return map[string]any{"expiration": until}, 200, "OK"
	case "com.microsoft:update-disposition":
		// Asked for when the link that a message came by is gone.
		tokens, _ := body["lock-tokens"].([]amqp.UUID)
		as, ok := map[any]Settled{"completed": Completed, "abandoned": Abandoned, "suspended": DeadLettered}[body["disposition-status"]]
		if !ok {
			return nil, 400, "There is no such disposition."
		}
		for _, t := range tokens {
			var h *held
			for _, o := range q.locked {
				if token(o.tag) == t {
					h = o
				}
			}
			if h == nil {
				q.settled = append(q.settled, Settlement{As: as, Lost: true})
				return nil, 410, "The lock supplied is invalid."
			}
			reason, _ := body["deadletter-reason"].(string)
			description, _ := body["deadletter-description"].(string)
			var id any
			if p := h.message.Properties; p != nil {
				id = p.MessageID
			}
			q.settled = append(q.settled, Settlement{MessageID: id, As: as, Reason: reason, Description: description})
			q.end(h, as, reason, description)
		}
		return nil, 200, "OK"
	case "com.microsoft:peek-message":
		from, _ := body["from-sequence-number"].(int64)
		count, _ := body["message-count"].(int32)
		var list []any
		for _, h := range q.waiting {
			if h.sequence < from || len(list) >= int(count) {
				continue
			}
			m := *h.message
			m.Annotations = amqp.Annotations{"x-opt-sequence-number": h.sequence, "x-opt-enqueued-time": time.Now().UTC()}
			b, err := m.MarshalBinary()
			if err != nil {
				return nil, 500, err.Error()
			}
			list = append(list, map[string]any{"message": b})
		}
		if len(list) == 0 {
			return nil, 204, "No messages"
		}
		return map[string]any{"messages": list}, 200, "OK"
	default:
		return nil, 501, fmt.Sprint(operation, " is not known here")
	}
}
