package deliver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gridfan/gridfan/infra/broker"
)

// Board shows the breakers of a process to its replicas, and theirs to it,
// through a bucket of the broker. What is on it is advice: a subscriber that
// another replica has found down is believed down at its first failure here,
// and tried at once when the other one found it up again. Nothing waits for the
// board, and without it every replica finds out by itself.
//
// A nil Board is empty and stays so.
type Board struct {
	instance string // for people
	process  string // unlike any other's, also in one host or test
	broker   *broker.Broker
	js       jetstream.JetStream
	conn     *nats.Conn
	log      *slog.Logger
	cancel   context.CancelFunc
	stopped  chan struct{}
	kick     chan struct{} // holds one token when there is something to write

	mu   sync.Mutex // guards all below; the breakers' locks come before it
	mine map[string]*post
	seen map[string]map[string]*sighting // by subscriber and process
}

// View is how another replica sees a subscriber.
type View struct {
	// Instance is the replica's name, as in its reports.
	Instance string        `json:"instance"`
	Status   BreakerStatus `json:"status"`
}

// post is what this process shows of one subscriber.
type post struct {
	breaker *breaker
	status  BreakerStatus
	changed bool // since it was written
	written bool // there may be an entry
	gone    bool // no breaker any more
}

// sighting is what was read of another process.
type sighting struct {
	view View
	at   time.Time // when it was read
	// since is when it was first read that it finds what it finds.
	since time.Time
}

// An entry that is not renewed counts no more when the bucket forgets it
// (broker.BucketBreakers, 30 s). Three renewals fit in, so that one or two may
// be late.
const (
	boardRenew    = 10 * time.Second
	boardExpiry   = 30 * time.Second
	boardPatience = 2 * time.Second // for one request
)

// NewBoard joins the board. ctx bounds only that. The caller closes it, after
// the workers that show on it.
func NewBoard(ctx context.Context, b *broker.Broker, log *slog.Logger) (*Board, error) {
	nc, js, err := b.Connect("breakers")
	if err != nil {
		return nil, err
	}
	if _, err := js.KeyValue(ctx, broker.BucketBreakers); err != nil {
		nc.Close()
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketBreakers, err)
	}
	d := newBoard()
	d.broker, d.js, d.conn, d.log = b, js, nc, log
	running, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go d.run(running)
	return d, nil
}

func newBoard() *Board {
	return &Board{
		instance: broker.Instance(), process: nuid.Next(),
		stopped: make(chan struct{}), kick: make(chan struct{}, 1),
		mine: map[string]*post{}, seen: map[string]map[string]*sighting{},
	}
}

// Close leaves the board, and takes what this process shows off it if that can
// be done within two seconds; else it expires.
func (d *Board) Close() {
	if d == nil {
		return
	}
	d.cancel()
	<-d.stopped
	d.conn.Close()
}

// Views gives what the other replicas see of a subscriber, those only whose
// breaker is not closed, in the order of their names.
func (d *Board) Views(subscriber string) []View {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var views []View
	for _, s := range d.seen[subscriber] {
		if time.Since(s.at) < boardExpiry {
			views = append(views, s.view)
		}
	}
	slices.SortFunc(views, func(a, b View) int {
		return cmp.Or(strings.Compare(a.Instance, b.Instance), a.Status.Since.Compare(b.Status.Since))
	})
	return views
}

// sees says whether another replica has found the subscriber in a state, open
// standing for half open too, later than a time.
func (d *Board) sees(subscriber, state string, after time.Time) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.seen[subscriber] {
		if s.finds() == state && s.since.After(after) && time.Since(s.at) < boardExpiry {
			return true
		}
	}
	return false
}

// join makes b the one that shows for a subscriber.
func (d *Board) join(subscriber string, b *breaker) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := &post{breaker: b, status: BreakerStatus{State: BreakerClosed}}
	if before := d.mine[subscriber]; before != nil {
		// Of the worker before this one, whose state is not ours.
		p.written, p.changed = before.written, before.written
	}
	d.mine[subscriber] = p
}

// leave takes it off, unless another has taken its place.
func (d *Board) leave(subscriber string, b *breaker) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.mine[subscriber]; p != nil && p.breaker == b {
		p.gone, p.changed = true, true
		d.wake()
	}
}

// post shows how it is with b now. It does not block.
func (d *Board) post(subscriber string, b *breaker, s BreakerStatus) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.mine[subscriber]; p != nil && p.breaker == b {
		p.status, p.changed = s, true
		d.wake()
	}
}

func (d *Board) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// run writes and reads until ctx ends, and begins anew when that fails.
func (d *Board) run(ctx context.Context) {
	defer close(d.stopped)
	for wait := time.Duration(0); ; {
		began := time.Now()
		err := d.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > boardExpiry {
			wait = 0
		}
		wait = min(max(2*wait, 250*time.Millisecond), boardRenew)
		d.log.Debug("no view of the other replicas' breakers", "error", err, "again_in", wait)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

var errWatchEnded = errors.New("the watch has ended")

func (d *Board) serve(ctx context.Context) error {
	kv, made, err := d.open(ctx)
	if err != nil {
		return err
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return err
	}
	defer w.Stop()
	d.rewrite()
	renew := time.NewTicker(boardRenew)
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			d.takeOff(kv)
			return ctx.Err()
		case e, ok := <-w.Updates():
			if !ok {
				return errWatchEnded
			}
			if e != nil {
				d.read(e.Key(), e.Value(), e.Operation() == jetstream.KeyValuePut)
			}
		case <-d.kick:
			if err := d.write(ctx, kv, false); err != nil {
				return err
			}
		case <-renew.C:
			d.expire()
			if err := d.write(ctx, kv, true); err != nil {
				return err
			}
			// A watch survives a server's restart, but not that the bucket, which
			// is in memory, went with it.
			if _, now, err := d.open(ctx); err != nil || !now.Equal(made) {
				return errors.Join(errWatchEnded, err)
			}
		}
	}
}

// open finds the bucket, or makes it again after a restart of the server.
func (d *Board) open(ctx context.Context) (kv jetstream.KeyValue, made time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, boardPatience)
	defer cancel()
	kv, err = d.js.KeyValue(ctx, broker.BucketBreakers)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if err := d.broker.DeclareBuckets(ctx); err != nil {
			return nil, made, err
		}
		kv, err = d.js.KeyValue(ctx, broker.BucketBreakers)
	}
	if err != nil {
		return nil, made, err
	}
	s, err := kv.Status(ctx)
	if err != nil {
		return nil, made, err
	}
	if b, ok := s.(*jetstream.KeyValueBucketStatus); ok {
		made = b.StreamInfo().Created
	}
	return kv, made, nil
}

func (d *Board) key(subscriber string) string { return subscriber + "." + d.process }

// rewrite has everything written that a new bucket does not have.
func (d *Board) rewrite() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.mine {
		if p.status.State != BreakerClosed || p.written {
			p.changed = true
		}
	}
	d.wake()
}

// write brings the entries up to date. With renew it also writes anew those
// that would expire, and takes off those of breakers that have closed. (They
// were written once as closed, because an entry that is only deleted would not
// tell a recovery from a process that went away.)
func (d *Board) write(ctx context.Context, kv jetstream.KeyValue, renew bool) error {
	type entry struct {
		subscriber string
		post       *post
		status     BreakerStatus
		remove     bool
	}
	d.mu.Lock()
	var due []entry
	for name, p := range d.mine {
		closed := p.status.State == BreakerClosed
		switch {
		case p.gone && !p.written:
			delete(d.mine, name)
		case p.gone, renew && closed && p.written && !p.changed:
			due = append(due, entry{name, p, p.status, true})
		case p.changed && (p.written || !closed), renew && !closed:
			due = append(due, entry{name, p, p.status, false})
		}
	}
	d.mu.Unlock()
	for _, e := range due {
		d.mu.Lock()
		e.post.changed, e.post.written = false, true // it may be, even if we get no answer
		d.mu.Unlock()
		if err := d.writeOne(ctx, kv, e.subscriber, e.status, e.remove); err != nil {
			return err // all of it again, by rewrite
		}
		if e.remove {
			d.mu.Lock()
			e.post.written = false
			if e.post.gone && d.mine[e.subscriber] == e.post {
				delete(d.mine, e.subscriber)
			}
			d.mu.Unlock()
		}
	}
	return nil
}

func (d *Board) writeOne(ctx context.Context, kv jetstream.KeyValue, subscriber string, s BreakerStatus, remove bool) error {
	ctx, cancel := context.WithTimeout(ctx, boardPatience)
	defer cancel()
	if remove {
		return kv.Delete(ctx, d.key(subscriber))
	}
	body, err := json.Marshal(View{Instance: d.instance, Status: s})
	if err != nil {
		return err
	}
	_, err = kv.Put(ctx, d.key(subscriber), body)
	return err
}

// takeOff deletes what this process shows, when it goes away.
func (d *Board) takeOff(kv jetstream.KeyValue) {
	ctx, cancel := context.WithTimeout(context.Background(), boardPatience)
	defer cancel()
	d.mu.Lock()
	for _, p := range d.mine {
		p.gone = true
	}
	d.mu.Unlock()
	if err := d.write(ctx, kv, false); err != nil {
		d.log.Debug("the breakers shown to other replicas expire by themselves", "error", err)
	}
}

// read takes in an entry, or that there is none any more.
func (d *Board) read(key string, value []byte, there bool) {
	subscriber, process, _ := strings.Cut(key, ".")
	if process == d.process {
		return
	}
	if b := d.take(subscriber, process, value, there); b != nil {
		b.retryNow()
	}
}

// take returns the breaker here that is to probe, because another replica has
// found the subscriber up again.
func (d *Board) take(subscriber, process string, value []byte, there bool) *breaker {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &sighting{at: time.Now()}
	was := d.seen[subscriber][process]
	if was != nil && s.at.Sub(was.at) >= boardExpiry {
		was = nil
	}
	if !there || json.Unmarshal(value, &s.view) != nil || s.view.Status.State == "" {
		delete(d.seen[subscriber], process)
		return nil
	}
	if s.view.Status.State == BreakerClosed {
		delete(d.seen[subscriber], process)
	} else {
		if d.seen[subscriber] == nil {
			d.seen[subscriber] = map[string]*sighting{}
		}
		d.seen[subscriber][process] = s
	}
	if s.since = s.at; was != nil && was.finds() == s.finds() {
		s.since = was.since
	}
	mine := d.mine[subscriber]
	if mine == nil || was == nil || s.finds() != "" || was.finds() == "" {
		return nil
	}
	return mine.breaker
}

// finds is what is wrong with the subscriber: half open is still open; empty is
// nothing.
func (s *sighting) finds() string {
	switch state := s.view.Status.State; state {
	case BreakerClosed, BreakerRampingUp:
		return ""
	case BreakerHalfOpen:
		return BreakerOpen
	default:
		return state
	}
}

// expire forgets what was not renewed.
func (d *Board) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for subscriber, by := range d.seen {
		for process, s := range by {
			if time.Since(s.at) >= boardExpiry {
				delete(by, process)
			}
		}
		if len(by) == 0 {
			delete(d.seen, subscriber)
		}
	}
}
