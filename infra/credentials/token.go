package credentials

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fetchTimeout bounds one token request with all its round trips. It is below
	// the default deadline of an attempt (30 s), which then can say why.
	fetchTimeout = 10 * time.Second

	// early is how long before its end a token is not sent any more: clocks
	// differ, and a request takes its time.
	early = 20 * time.Second

	// minUse is how long a token is used whatever its life is, so that a server
	// that issues dead ones is asked every few seconds and not for every event.
	minUse = 5 * time.Second

	// unknownLife is how long one is used that does not say how long it lives
	// (expires_in is only recommended, RFC 6749 §5.1); maxLife bounds a mistake.
	unknownLife = 5 * time.Minute
	maxLife     = 24 * time.Hour

	// dropEvery is how often a subscriber's refusals can make us ask for another
	// token before its time: it may refuse for reasons that no token changes.
	dropEvery = 5 * time.Minute
)

// The waits between failing requests: short where the token server is in trouble,
// long where it has said no, which goes on until somebody changes something.
const (
	troubleWait, maxTroubleWait = time.Second, time.Minute
	refusedWait, maxRefusedWait = 15 * time.Second, 5 * time.Minute
)

// NoToken begins the reason of every attempt that was not made for want of a token.
const NoToken = "no token"

// Error says why there are no credentials: words for an operator, no secrets.
type Error struct {
	Reason string
	// Wait is how long it is no use to ask again; 0 if nobody knows.
	Wait time.Duration

	refused bool // the token server has said no
}

func (e *Error) Error() string { return e.Reason }

// Token is a token in use.
type Token struct {
	value   string
	header  []string // of Authorization
	fetched time.Time
	refresh time.Time // from here on another is asked for
	until   time.Time // from here on it is not sent
	expires time.Time
	// accepted: a subscriber has taken a request with it.
	accepted atomic.Bool
}

// newToken spreads the refreshes of many: between seven and eight tenths of a life,
// so that a token server may be away for the rest of it.
func newToken(value string, expires, now time.Time) *Token {
	life := expires.Sub(now)
	switch {
	case expires.IsZero():
		life = unknownLife
	case life > maxLife:
		life = maxLife
	}
	t := &Token{value: value, header: []string{"Bearer " + value}, fetched: now, expires: now.Add(life)}
	t.until = now.Add(max(life-min(early, life/10), minUse))
	t.refresh = now.Add(max(time.Duration(float64(life)*(0.7+0.1*rand.Float64())), minUse))
	return t
}

// Hide takes the token out of what a subscriber answered.
func (t *Token) Hide(b []byte) []byte {
	for _, form := range []string{t.value, url.QueryEscape(t.value), url.PathEscape(t.value), html.EscapeString(t.value)} {
		b = bytes.ReplaceAll(b, []byte(form), []byte(hidden))
	}
	return b
}

// source keeps one token fresh. It is safe for concurrent use.
type source struct {
	// fetch asks for a token; its error is an *Error.
	fetch func(context.Context) (value string, expires time.Time, err error)
	log   *slog.Logger
	ctx   context.Context // ends with the source
	stop  context.CancelFunc

	current atomic.Pointer[Token]

	mu       sync.Mutex    // guards all below, and changes of current
	running  chan struct{} // closed when the request under way has ended; nil: none
	shelved  *Token        // dropped, but better than none
	err      *Error        // of the last request; nil: it went well
	failures int           // in a row
	next     time.Time     // no request before
	dropped  time.Time     // when one was last given up before its time
}

func newSource(fetch func(context.Context) (string, time.Time, error), log *slog.Logger) *source {
	s := &source{fetch: fetch, log: log}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// get gives a token that is valid, and has it refreshed in time. It waits only when
// there is none. The error is an *Error.
func (s *source) get(ctx context.Context) (*Token, error) {
	for {
		now := time.Now()
		if t := s.current.Load(); t != nil && now.Before(t.refresh) {
			return t, nil
		}
		s.mu.Lock()
		t := s.current.Load()
		if s.running == nil && (t == nil || !now.Before(t.refresh)) && !now.Before(s.next) && s.ctx.Err() == nil {
			s.begin()
		}
		running, err, wait := s.running, s.err, s.next.Sub(now)
		s.mu.Unlock()
		if t != nil && now.Before(t.until) {
			return t, nil
		}
		if running == nil {
			if err == nil {
				return nil, &Error{Reason: NoToken + ": gridfan is stopping"}
			}
			return nil, &Error{Reason: err.Reason, Wait: max(wait, 0)}
		}
		select {
		case <-running:
		case <-ctx.Done():
			return nil, &Error{Reason: NoToken + " in the time of the attempt"}
		}
	}
}

// begin makes one request for all who wait. The caller holds mu.
func (s *source) begin() {
	done := make(chan struct{})
	s.running = done
	go func() {
		ctx, cancel := context.WithTimeout(s.ctx, fetchTimeout)
		value, expires, err := s.guarded(ctx)
		cancel()
		s.mu.Lock()
		s.running = nil
		if err != nil {
			s.failed(err, time.Now())
		} else {
			s.got(newToken(value, expires, time.Now()))
		}
		s.mu.Unlock()
		close(done)
	}()
}

// guarded keeps a panic in somebody's library from ending the process.
func (s *source) guarded(ctx context.Context) (value string, expires time.Time, failure *Error) {
	defer func() {
		if r := recover(); r != nil {
			failure = &Error{Reason: NoToken + ": panic in the library that gets it"}
			s.log.Error("panic while getting a token", "type", fmt.Sprintf("%T", r))
		}
	}()
	value, expires, err := s.fetch(ctx)
	if err == nil {
		return value, expires, nil
	}
	failure, ok := err.(*Error)
	if !ok {
		failure = &Error{Reason: NoToken} // fetch has promised otherwise
	}
	return "", time.Time{}, failure
}

// got takes a new token into use. The caller holds mu.
func (s *source) got(t *Token) {
	if s.failures > 0 {
		s.log.Info("there are tokens again", "until", t.expires.UTC())
	}
	if was := s.current.Load(); was != nil && was.value == t.value {
		t.accepted.Store(was.accepted.Load()) // the token server keeps it for us
	}
	s.err, s.failures, s.next, s.shelved = nil, 0, time.Time{}, nil
	s.current.Store(t)
}

// failed sets when the next request may be made, and goes on with the old token as
// long as it lives. The caller holds mu.
func (s *source) failed(e *Error, now time.Time) {
	s.failures++
	wait, most := troubleWait, maxTroubleWait
	if e.refused {
		wait, most = refusedWait, maxRefusedWait
	}
	for i := 1; i < s.failures && wait < most; i++ {
		wait *= 2
	}
	wait = time.Duration(float64(min(wait, most)) * (0.9 + 0.2*rand.Float64()))
	s.err, s.next = e, now.Add(max(wait, min(e.Wait, maxRefusedWait)))
	if s.current.Load() == nil && s.shelved != nil && now.Before(s.shelved.until) {
		// What somebody refused may do for others, and the next answer may differ.
		t := &Token{value: s.shelved.value, header: s.shelved.header, fetched: now, refresh: now, until: s.shelved.until, expires: s.shelved.expires}
		s.current.Store(t)
	}
	s.shelved = nil
	level, attrs := slog.LevelDebug, []any{"reason", e.Reason, "again_in", s.next.Sub(now).Round(time.Second)}
	if s.failures == 1 {
		level = slog.LevelWarn
	}
	if t := s.current.Load(); t != nil && now.Before(t.until) {
		attrs = append(attrs, "old_token_until", t.until.UTC())
	}
	s.log.Log(context.Background(), level, "no new token", attrs...)
}

// answered learns from the status of an answer to a request with t. again says that
// it was refused although it once was good, and that the next one is another.
//
// A refused token is given up, so that the next attempt has a new one, in two cases:
// one that was accepted before, since it may have been revoked; and one that never
// was and is some minutes old, since a token says what rights there were when it was
// issued. Neither happens twice within dropEvery.
func (s *source) answered(t *Token, status int) (again bool) {
	if status >= 200 && status < 300 {
		if !t.accepted.Load() {
			t.accepted.Store(true)
		}
		return false
	}
	worked := t.accepted.Load()
	if status != 401 && (status != 403 || worked) {
		return false
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.current.Load() != t:
		return status == 401 && (worked || now.After(t.expires))
	case now.After(t.expires): // on its way
	case now.Sub(s.dropped) < dropEvery || !worked && now.Sub(t.fetched) < dropEvery:
		return false
	default:
		s.dropped = now
	}
	s.shelved = t
	s.current.Store(nil)
	s.log.Info("the subscriber refuses a token, asking for another", "status", status, "worked_before", worked)
	return status == 401 && (worked || now.After(t.expires))
}

// retryNow forgets how long to wait, and a token that nobody has accepted yet:
// somebody has repaired something.
func (s *source) retryNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.dropped = time.Time{}, time.Time{}
	if t := s.current.Load(); t != nil && !t.accepted.Load() {
		s.shelved = t
		s.current.Store(nil)
	}
}
