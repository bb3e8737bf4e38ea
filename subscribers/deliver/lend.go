package deliver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// A subscriber that fetches its events is lent each of them for a time, and says
// what became of it. The lock is the event's retry: before the event is handed
// out, a copy is stored on the retry lane that comes due when the lock ends. So a
// lock outlives this process, holds no memory and no slot, counts its hand-outs on
// the disk, and ends by itself, on whatever replica. Whoever ends it before its
// time replaces that copy, on the condition that it is still the same, which only
// one of several can do; then it is settled like any other delivery.

// Headers of an event on the retry lane that is lent.
const (
	HeaderLock      = "Gridfan-Lock"       // its secret, in hex
	HeaderLockFrom  = "Gridfan-Lock-From"  // when it was handed out
	HeaderLockUntil = "Gridfan-Lock-Until" // when its holder loses it
	// HeaderLockEnd is how its holder has ended it. It is there while that is
	// being settled, and comes due if the process dies meanwhile.
	HeaderLockEnd = "Gridfan-Lock-End"
)

var lockHeaders = []string{HeaderLock, HeaderLockFrom, HeaderLockUntil, HeaderLockEnd}

// lockSlack is how long after a lock's end its event comes due: whoever ends it in
// the last moment is not overtaken, nor by the clocks of two machines.
const lockSlack = time.Second

// endAgain is when the end of a lock is worked on anew that a process began to
// settle and did not. It is within recallWindow, so that records tell whether it
// did.
const endAgain = 5 * time.Second

// Errors about locks that callers tell apart.
var (
	// ErrLockLost: it ran out, or it was ended before.
	ErrLockLost = errors.New("the lock has run out, or its event was settled before")
	// ErrLockToken: it is the token of no lock of this subscriber.
	ErrLockToken = errors.New("not a lock token of this subscriber")
	// ErrLockBusy: it could not be settled now. The same call may be repeated.
	ErrLockBusy = errors.New("it could not be stored now; send it again")
)

// A Lender is the Sender of a subscriber that fetches its events: it is not sent
// them but offers them to whoever asks. Its Send is never called.
type Lender interface {
	Sender
	// Serve is called once, before any Offer. The Lender tells w by Wanted whether
	// somebody asks, and by EndLock and Renew what became of the events.
	Serve(w *Worker)
	// Offer waits for somebody who wants e. It answers nil when ctx ends or nobody
	// asks any more; otherwise who asks is told through handed, once, by what lock
	// he holds the event, or with nil that he does not get it.
	Offer(ctx context.Context, e *event.Event) (handed func(*Lock))
	// Terms are for how long an event is lent, and how often at most.
	Terms() (lock time.Duration, most int)
}

// Lock is the right to settle an event.
type Lock struct {
	Token string
	// Sequence is the event's place among all events.
	Sequence uint64
	// Count is how often the event was handed out, this time included.
	Count int
	Until time.Time
}

// LockEnd is what the holder of a lock does with its event.
type LockEnd string

// The ends of a lock.
const (
	Acknowledge LockEnd = "acknowledge" // delivered
	Reject      LockEnd = "reject"      // a dead letter
	Release     LockEnd = "release"     // for somebody else, perhaps later
)

const (
	// lendAtOnce is how many events are on their way to receivers at once: a whole
	// receive call's, and some of the next. A lock itself holds nothing here.
	lendAtOnce = 128
	// lendWindow is how many are held ready while somebody asks. Few: they are
	// withheld from the receivers at other replicas.
	lendWindow = 64
)

// lendConfig is a configuration as a Lender needs it: what is about attempts on
// our initiative has no meaning, and there is nothing that a breaker could guard.
func lendConfig(c Config) Config {
	c.Ordering = Unordered
	c.Limits.Concurrency, c.Limits.Batch = lendAtOnce, Batch{}
	return c
}

// Wanted says whether somebody asks for events. While nobody does, none are
// fetched.
func (w *Worker) Wanted(wanted bool) {
	w.holding.Lock()
	defer w.holding.Unlock()
	w.idle = w.lender != nil && !wanted
	w.pause.set(w.held || w.idle)
}

// mark tells the tokens of one subscriber from those of others and of one of its
// name before.
func (w *Worker) mark() [4]byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %x", w.sub.Name, w.sub.Created.UnixMilli()))
	return [4]byte(sum[:4])
}

// token names a lock. Its secret is random, so it cannot be made up, and stands
// with the event on the retry lane, so any replica can look it up.
type token struct {
	mark     [4]byte
	sequence uint64
	hop      int
	secret   [16]byte
}

const tokenVersion = 1

// maxToken is more than the longest one.
const maxToken = 64

func (t token) String() string {
	b := append([]byte{tokenVersion}, t.mark[:]...)
	b = binary.AppendUvarint(b, t.sequence)
	b = binary.AppendUvarint(b, uint64(t.hop))
	return base64.RawURLEncoding.EncodeToString(append(b, t.secret[:]...))
}

func parseToken(s string) (t token, ok bool) {
	if len(s) > maxToken {
		return t, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 5+16+2 || b[0] != tokenVersion {
		return t, false
	}
	t.mark = [4]byte(b[1:5])
	b = b[5:]
	sequence, n := binary.Uvarint(b)
	if n <= 0 {
		return t, false
	}
	b = b[n:]
	hop, n := binary.Uvarint(b)
	if n <= 0 || hop > 1<<31 || len(b) != n+16 {
		return t, false
	}
	t.sequence, t.hop, t.secret = sequence, int(hop), [16]byte(b[n:])
	return t, t.String() == s
}

// lend hands an event to whoever asks next.
func (w *worker) lend(d *delivery) {
	if w.limiter.Wait(w.stopped) != nil {
		d.lane.giveBack(d)
		return
	}
	handed := w.lender.Offer(w.stopped, d.out)
	if handed == nil {
		d.lane.giveBack(d)
		return
	}
	for _, t := range d.tries { // the lock before this one
		w.lentFor(Failed, time.Duration(t.Millis)*time.Millisecond)
	}
	lasts, _ := w.lender.Terms()
	now := time.Now().UTC()
	l := &Lock{Sequence: d.origin.sequence, Count: d.attempts + 1, Until: now.Add(lasts)}
	t := token{mark: w.mark(), sequence: d.origin.sequence, hop: d.hop() + 1}
	_, _ = rand.Read(t.secret[:]) // it never fails
	l.Token = t.String()
	// Not before all is stored that the lock rests on, and not before the event is
	// in nobody's hands here: its holder may be quick.
	d.done = func(settled bool) {
		if !settled {
			l = nil
		}
		handed(l)
	}
	d.attempts++
	h := w.carry(d)
	h.Set(HeaderRounds, strconv.Itoa(d.origin.rounds+1))
	h.Set(HeaderLock, hex.EncodeToString(t.secret[:]))
	h.Set(HeaderLockFrom, now.Format(time.RFC3339Nano))
	h.Set(HeaderLockUntil, l.Until.Format(time.RFC3339Nano))
	// Another one each time: what a process stored that died before it said so is
	// replaced, its lock with it, which nobody got.
	h.Set(nats.MsgIdHdr, h.Get(nats.MsgIdHdr)+"-"+h.Get(HeaderLock))
	m := w.schedule(d.origin.sequence, h, d.body(), l.Until.Add(lockSlack))
	switch w.store(d, m) {
	case unstored:
		d.lane.giveBack(d)
		return
	case unwanted:
		d.done = func(bool) { handed(nil) }
		w.shed(d, Attempt{}, 0)
		return
	}
	w.retries.add(w.stopped, sizeOf(m))
	w.settle(d, Record{Outcome: RecordLocked, Time: now, Next: &l.Until})
}

// schedule makes the message of an event that waits on the retry lane.
func (w *worker) schedule(sequence uint64, h nats.Header, body []byte, at time.Time) *nats.Msg {
	h.Set("Nats-Schedule", "@at "+at.UTC().Format(time.RFC3339Nano))
	h.Set("Nats-Schedule-Target", broker.RetryDue(w.sub.Name))
	return &nats.Msg{Subject: broker.RetryWaiting(w.sub.Name, sequence), Header: h, Data: body}
}

// returned looks at an event that comes back from the retry lane: how did its lock
// end? It answers true for one that is settled by that.
func (w *worker) returned(d *delivery) bool {
	h := d.header()
	if h.Get(HeaderLock) == "" || d.broken != nil {
		return false
	}
	from, _ := time.Parse(time.RFC3339Nano, h.Get(HeaderLockFrom))
	until, _ := time.Parse(time.RFC3339Nano, h.Get(HeaderLockUntil))
	word, rest, _ := strings.Cut(h.Get(HeaderLockEnd), " ")
	end := LockEnd(word)
	delay, _ := time.ParseDuration(rest)
	for _, name := range lockHeaders {
		h.Del(name)
	}
	if end == "" {
		took := until.Sub(from)
		a := Attempt{Outcome: Failed, Fault: FaultTimeout, Reason: "its lock ran out"}
		if w.spent(d) {
			w.lentFor(a.Outcome, took)
			w.eventOf(d)
			w.deadLetter(d, causeExhausted, a, took)
			return true
		}
		d.tries = append(d.tries, Try{Time: until, Fault: a.Fault, Reason: a.Reason, Millis: took.Milliseconds()})
		return false
	}
	// A process died while it settled this. That it had not come to the record is
	// what the records say, or it would not be here; but those of other processes
	// may be newer than what was read.
	ctx, cancel := context.WithTimeout(w.stopped, 5*time.Second)
	defer cancel()
	if err := w.parts.Recorder.refresh(ctx); err != nil {
		w.log.Debug("records of other replicas not read", "error", err)
	}
	if p, ok := w.parts.Recorder.recall(w.sub.Name, d.origin.sequence, w.sub.Created); ok && p.passed(d.hop()) {
		d.lane.settled(d)
		w.ended(d)
		return true
	}
	w.eventOf(d)
	w.endLock(d, end, min(delay, MaxReleaseDelay), time.Since(from))
	return true
}

// eventOf reads the event of a message that is settled whatever is in it.
func (w *worker) eventOf(d *delivery) {
	var err error
	if d.event, err = d.decode(); err != nil {
		d.event = &event.Event{ID: d.get("ce-id")}
	}
	d.out = d.event
}

// spent says whether an event was handed out as often as it may be, since it was
// accepted or sent out anew.
func (w *worker) spent(d *delivery) bool {
	_, most := w.lender.Terms()
	return d.origin.rounds >= most
}

// lentFor counts the end of a lock as that of an attempt.
func (w *worker) lentFor(o Outcome, took time.Duration) {
	w.metrics.attempted(o, max(0, took))
}

// endLock settles an event as the holder of its lock wants it.
func (w *worker) endLock(d *delivery, end LockEnd, delay, took time.Duration) {
	switch end {
	case Acknowledge:
		w.lentFor(Delivered, took)
		w.delivered(d, Attempt{Outcome: Delivered}, took)
	case Reject:
		a := Attempt{Outcome: Rejected, Fault: FaultRefused, Reason: "rejected by its receiver"}
		w.lentFor(a.Outcome, took)
		w.deadLetter(d, causeRejected, a, took)
	default:
		a := Attempt{Outcome: Failed, Reason: "released by its receiver"}
		w.lentFor(a.Outcome, took)
		if w.spent(d) {
			w.deadLetter(d, causeExhausted, a, took)
			return
		}
		w.retry(d, plan{wait: delay, rounds: d.origin.rounds}, a, took, false)
	}
}

// MaxReleaseDelay bounds the delay of a release.
const MaxReleaseDelay = time.Hour

// EndLock ends a lock, and returns when what follows is on the disk. delay is of a
// release: how long nobody else gets the event. It returns ErrLockToken,
// ErrLockLost or ErrLockBusy, or why the broker does not take it.
func (w *Worker) EndLock(ctx context.Context, text string, end LockEnd, delay time.Duration) error {
	t, now, err := w.enter(text)
	if err != nil {
		return err
	}
	defer now.sending.Done()
	done, err := now.claim(ctx, t, end, delay)
	if err != nil {
		return err
	}
	select {
	case settled := <-done:
		if !settled {
			return ErrLockBusy
		}
		return nil
	case <-ctx.Done():
		return ErrLockBusy
	case <-now.gone.Done():
		return ErrLockBusy
	}
}

// Renew lets a lock last as long again from now on, under the same token, and
// returns when that is on the disk. Its errors are those of EndLock.
func (w *Worker) Renew(ctx context.Context, text string) error {
	t, now, err := w.enter(text)
	if err != nil {
		return err
	}
	defer now.sending.Done()
	if err := now.seize(ctx, t.sequence); err != nil {
		return err
	}
	defer now.hands.end(t.sequence)
	m, err := now.locked(ctx, t)
	if err != nil {
		return err
	}
	lasts, _ := w.lender.Terms()
	until := time.Now().UTC().Add(lasts)
	h := cleaned(m.Header)
	h.Set(HeaderLockUntil, until.Format(time.RFC3339Nano))
	return now.swap(ctx, m.Sequence, now.schedule(t.sequence, h, m.Data, until.Add(lockSlack)))
}

// enter reads a token and finds what serves now. The caller calls sending.Done,
// which a stop waits for.
func (w *Worker) enter(text string) (t token, now *worker, err error) {
	t, ok := parseToken(text)
	if !ok || t.mark != w.mark() {
		return t, nil, ErrLockToken
	}
	w.with(func(serving *worker) {
		if w.lender != nil && serving.stopped.Err() == nil {
			now = serving
			now.sending.Add(1)
		}
	})
	if now == nil {
		return t, nil, ErrLockBusy
	}
	return t, now, nil
}

// seize takes an event in hand. Whoever has it is done with it soon.
func (w *worker) seize(ctx context.Context, sequence uint64) error {
	for !w.hands.begin(sequence) {
		t := time.NewTimer(2 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ErrLockBusy
		case <-w.stopped.Done():
			t.Stop()
			return ErrLockBusy
		}
	}
	return nil
}

// locked looks a lock up.
func (w *worker) locked(ctx context.Context, t token) (*jetstream.RawStreamMsg, error) {
	s, err := w.retryStream(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.GetLastMsgForSubject(ctx, broker.RetryWaiting(w.sub.Name, t.sequence))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, ErrLockLost
	case err != nil:
		return nil, err
	}
	until, err := time.Parse(time.RFC3339Nano, m.Header.Get(HeaderLockUntil))
	if err != nil || m.Header.Get(HeaderLock) != hex.EncodeToString(t.secret[:]) || m.Header.Get(HeaderHop) != strconv.Itoa(t.hop) ||
		m.Header.Get(HeaderLockEnd) != "" || !time.Now().Before(until) {
		return nil, ErrLockLost
	}
	return m, nil
}

// retryStream gives a handle of RETRY, asked for once.
func (w *worker) retryStream(ctx context.Context) (jetstream.Stream, error) {
	w.lending.Lock()
	defer w.lending.Unlock()
	if w.retryLane == nil {
		s, err := w.js.Stream(ctx, broker.StreamRetry)
		if err != nil {
			return nil, err
		}
		w.retryLane = s
	}
	return w.retryLane, nil
}

// swap puts a message in the place of the one that a lock rests on, if that is
// still the one, and returns when it is on the disk.
func (w *worker) swap(ctx context.Context, instead uint64, m *nats.Msg) error {
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(instead, 10))
	return lockError(w.parts.Broker.Store(ctx, w.js, m))
}

func lockError(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return ErrLockLost
	}
	return err
}

// claim makes the end of a lock ours to settle, which one call can do and no other,
// on whatever replica, and begins to. done tells how it went.
func (w *worker) claim(ctx context.Context, t token, end LockEnd, delay time.Duration) (done <-chan bool, err error) {
	if err := w.seize(ctx, t.sequence); err != nil {
		return nil, err
	}
	began := false
	defer func() {
		if !began {
			w.hands.end(t.sequence)
		}
	}()
	was, err := w.locked(ctx, t)
	if err != nil {
		return nil, err
	}
	h := cleaned(was.Header)
	from, _ := time.Parse(time.RFC3339Nano, h.Get(HeaderLockFrom))
	l := lent{head: h, data: was.Data, on: was.Subject, w: w}
	d := &delivery{lane: w.lanes[1], epoch: w.parts.Broker.Epoch(), taken: time.Now()}
	if d.origin, err = retryOrigin(&l); err != nil {
		return nil, ErrLockLost
	}
	d.attempts = d.origin.attempts
	claim := maps.Clone(h)
	claim.Set(HeaderLockEnd, string(end)+" "+delay.String())
	for _, name := range lockHeaders {
		h.Del(name)
	}
	claim.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(was.Sequence, 10))
	body := was.Data
	if end == Acknowledge {
		body = nil // it is done with
	}
	// The record's sync covers it, or that of what is stored before the record.
	f, err := w.js.PublishMsgAsync(w.schedule(t.sequence, claim, body, time.Now().Add(endAgain)))
	if err != nil {
		return nil, err
	}
	select {
	case ack := <-f.Ok():
		l.at = ack.Sequence
	case err := <-f.Err():
		w.parts.Broker.Suspect(err)
		return nil, lockError(err)
	case <-ctx.Done():
		// Whether it arrived shows when it comes due.
		return nil, ErrLockBusy
	}
	began = true
	ended := make(chan bool, 1)
	d.message, d.handle = &l, &l
	d.done = func(settled bool) { ended <- settled }
	w.eventOf(d)
	w.sending.Go(func() { w.endLock(d, end, delay, time.Since(from)) })
	return ended, nil
}

// lent is the message of an event whose lock is being ended: a copy that nobody
// was given by the broker.
type lent struct {
	head nats.Header
	data []byte
	on   string
	at   uint64
	w    *worker
}

func (l *lent) header() nats.Header { return l.head }
func (l *lent) get(n string) string { return l.head.Get(n) }
func (l *lent) body() []byte        { return l.data }
func (l *lent) subject() string     { return l.on }
func (l *lent) sequence() uint64    { return l.at }
func (l *lent) serial() uint64      { return 0 }
func (l *lent) again() bool         { return false }
func (l *lent) hold() error         { return nil }

func (l *lent) decode() (*event.Event, error) { return event.Decode(l.head, l.data) }

// release leaves it where it is: it comes due.
func (l *lent) release() error { return nil }

// ack takes it away, unless something stands in its place already. It does not
// wait; should it be lost, the message comes due and is known.
func (l *lent) ack() error {
	go func() {
		ctx, cancel := context.WithTimeout(l.w.gone, endAgain)
		defer cancel()
		s, err := l.w.retryStream(ctx)
		if err == nil {
			err = s.DeleteMsg(ctx, l.at)
		}
		if err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) && l.w.gone.Err() == nil {
			l.w.log.Debug("the message of an ended lock stays until it is due", "error", err)
		}
	}()
	return nil
}
