package credentials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// issuer plays a token server without sockets.
type issuer struct {
	takes time.Duration
	life  time.Duration
	err   error
	same  bool // always the same token
	asked []time.Time
}

func (i *issuer) fetch(ctx context.Context) (string, time.Time, error) {
	i.asked = append(i.asked, time.Now())
	select {
	case <-time.After(i.takes):
	case <-ctx.Done():
		return "", time.Time{}, &Error{Reason: "no token: too slow"}
	}
	if i.err != nil {
		return "", time.Time{}, i.err
	}
	n := len(i.asked)
	if i.same {
		n = 1
	}
	return fmt.Sprintf("canary-%d", n), time.Now().Add(i.life), nil
}

// within runs a test of a source on a clock of its own, and looks into its log.
func within(t *testing.T, i *issuer, test func(t *testing.T, s *source)) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newSource(i.fetch, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		test(t, s)
		s.stop()
		synctest.Wait()
		if strings.Contains(log.String(), "canary") {
			t.Errorf("the log shows a token:\n%s", &log)
		}
	})
}

func want(t *testing.T, s *source, value string) *Token {
	t.Helper()
	got, err := s.get(t.Context())
	if err != nil {
		t.Fatalf("got %v, want %s", err, value)
	}
	if got.value != value || got.header[0] != "Bearer "+value {
		t.Fatalf("got %s (%s), want %s", got.value, got.header, value)
	}
	return got
}

func wantNone(t *testing.T, s *source) *Error {
	t.Helper()
	got, err := s.get(t.Context())
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, %v, want an *Error", got, err)
	}
	return e
}

// A thousand attempts that find no token wait for one request.
func TestOneRequestForAll(t *testing.T) {
	i := &issuer{takes: 3 * time.Second, life: time.Hour}
	within(t, i, func(t *testing.T, s *source) {
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if got, err := s.get(t.Context()); err != nil || got.value != "canary-1" {
					t.Errorf("got %v, %v", got, err)
				}
			})
		}
		all.Wait()
		if len(i.asked) != 1 {
			t.Errorf("%d requests", len(i.asked))
		}
	})
}

// A token is replaced before it runs out, and nobody waits for it.
func TestRefreshBeforeTheEnd(t *testing.T) {
	i := &issuer{takes: 2 * time.Second, life: time.Hour}
	within(t, i, func(t *testing.T, s *source) {
		want(t, s, "canary-1")
		time.Sleep(41 * time.Minute) // sleep: on a clock of the bubble's own
		want(t, s, "canary-1")
		if len(i.asked) != 1 {
			t.Error("asked too early")
		}
		time.Sleep(8 * time.Minute) // sleep: the same; 49 minutes in all, eight tenths are 48
		start := time.Now()
		want(t, s, "canary-1")
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited %v for a refresh", waited)
		}
		time.Sleep(3 * time.Second) // sleep: the same
		want(t, s, "canary-2")
	})
}

// While the token server is down the old token is used to its end, and the server is
// asked seldom.
func TestRefreshFails(t *testing.T) {
	for _, tt := range []struct {
		name     string
		refused  bool
		min, max int // requests in the last half hour of the token
	}{
		{"down", false, 10, 40},
		{"says no", true, 3, 12},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := &issuer{life: time.Hour}
			within(t, i, func(t *testing.T, s *source) {
				want(t, s, "canary-1")
				i.err = &Error{Reason: "no token: down", refused: tt.refused}
				start := time.Now()
				for time.Since(start) < time.Hour-early-time.Second {
					want(t, s, "canary-1")
					time.Sleep(100 * time.Millisecond) // sleep: on a clock of the bubble's own
				}
				if n := len(i.asked) - 1; n < tt.min || n > tt.max {
					t.Errorf("%d requests, want %d to %d", n, tt.min, tt.max)
				}
				time.Sleep(2 * time.Second) // sleep: the same; its end is near
				e := wantNone(t, s)
				if e.Reason != "no token: down" || e.Wait <= 0 || e.Wait > maxRefusedWait*11/10 {
					t.Errorf("got %+v", e)
				}
				before := len(i.asked)
				for range 1000 {
					wantNone(t, s)
				}
				if len(i.asked) != before {
					t.Error("every attempt asks")
				}
				i.err = nil
				time.Sleep(maxRefusedWait * 11 / 10) // sleep: the same
				want(t, s, fmt.Sprintf("canary-%d", len(i.asked)+1))
			})
		})
	}
}

// What the token server asks for counts, within bounds.
func TestRetryAfterOfTheTokenServer(t *testing.T) {
	for asked, atMost := range map[time.Duration]time.Duration{2 * time.Minute: 2 * time.Minute, 24 * time.Hour: maxRefusedWait} {
		i := &issuer{err: &Error{Reason: "no token: later", Wait: asked}}
		within(t, i, func(t *testing.T, s *source) {
			wantNone(t, s)
			if e := wantNone(t, s); e.Wait != atMost {
				t.Errorf("asked for %v: waits %v, want %v", asked, e.Wait, atMost)
			}
		})
	}
}

// A subscriber that refuses a token gets another for the next attempt, and not one
// for every attempt.
func TestRefused(t *testing.T) {
	i := &issuer{life: time.Hour}
	within(t, i, func(t *testing.T, s *source) {
		first := want(t, s, "canary-1")
		if s.answered(first, 401) {
			t.Error("a token that was never accepted: it is the configuration")
		}
		want(t, s, "canary-1")
		s.answered(first, 200)
		if s.answered(first, 403) || s.answered(first, 500) || s.answered(first, 0) {
			t.Error("it is not the token")
		}
		want(t, s, "canary-1")
		// Many are under way with it when it is revoked.
		for range 100 {
			if !s.answered(first, 401) {
				t.Error("it was good before: the event is not to blame")
			}
		}
		second := want(t, s, "canary-2")
		for range 100 {
			if s.answered(second, 401) {
				t.Error("the new one is refused too: it is not the token")
			}
			want(t, s, "canary-2")
		}
		// Now and then it takes one: still no request for each.
		s.answered(second, 200)
		if s.answered(second, 401) {
			t.Error("dropped again at once")
		}
		want(t, s, "canary-2")
		time.Sleep(dropEvery + time.Second) // sleep: on a clock of the bubble's own
		if !s.answered(second, 401) {
			t.Error("not dropped after minutes")
		}
		third := want(t, s, "canary-3")
		// Rights that are granted later are in the next token only.
		time.Sleep(dropEvery + time.Second) // sleep: the same
		if s.answered(third, 403) {
			t.Error("it was never accepted")
		}
		want(t, s, "canary-4")
		if len(i.asked) != 4 {
			t.Errorf("%d requests, want 4", len(i.asked))
		}
	})
}

// A token that runs out on its way is no refusal of the event.
func TestExpiresInFlight(t *testing.T) {
	i := &issuer{life: time.Minute}
	within(t, i, func(t *testing.T, s *source) {
		got := want(t, s, "canary-1")
		time.Sleep(61 * time.Second) // sleep: on a clock of the bubble's own
		if !s.answered(got, 401) {
			t.Error("refused for good")
		}
		want(t, s, "canary-2")
	})
}

// A token that is dropped while no other can be had is better than none.
func TestDroppedWhileTheServerIsDown(t *testing.T) {
	i := &issuer{life: time.Hour}
	within(t, i, func(t *testing.T, s *source) {
		got := want(t, s, "canary-1")
		s.answered(got, 200)
		i.err = &Error{Reason: "no token: down"}
		if !s.answered(got, 401) {
			t.Fatal("not dropped")
		}
		got = want(t, s, "canary-1")
		s.answered(got, 401)
		s.answered(got, 200)
		want(t, s, "canary-1")
	})
}

// Somebody has repaired something.
func TestRetryNow(t *testing.T) {
	i := &issuer{life: time.Hour, err: &Error{Reason: "no token: wrong secret", refused: true}}
	within(t, i, func(t *testing.T, s *source) {
		wantNone(t, s)
		i.err = nil
		wantNone(t, s)
		s.retryNow()
		got := want(t, s, "canary-2")
		s.answered(got, 403) // without the role
		s.retryNow()
		got = want(t, s, "canary-3")
		s.answered(got, 200)
		s.retryNow()
		want(t, s, "canary-3")
	})
}

// Odd lives make neither a storm of requests nor a token that is used for ever.
func TestOddLives(t *testing.T) {
	for _, tt := range []struct {
		name     string
		life     time.Duration
		unknown  bool
		same     bool
		min, max int // requests in an hour
	}{
		{"dead", -time.Hour, false, false, 100, 3600 / 4},
		{"a second", time.Second, false, false, 100, 3600 / 4},
		{"unknown", 0, true, false, 10, 20},
		{"a year", 365 * 24 * time.Hour, false, false, 1, 1},
		{"kept by the server", 90 * time.Minute, false, true, 1, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := &issuer{life: tt.life, same: tt.same}
			synctest.Test(t, func(t *testing.T) {
				s := newSource(func(ctx context.Context) (string, time.Time, error) {
					v, expires, err := i.fetch(ctx)
					if tt.unknown {
						expires = time.Time{}
					}
					return v, expires, err
				}, slog.New(slog.DiscardHandler))
				for start := time.Now(); time.Since(start) < time.Hour; {
					if _, err := s.get(t.Context()); err != nil {
						t.Fatal(err)
					}
					time.Sleep(100 * time.Millisecond) // sleep: on a clock of the bubble's own
				}
				if n := len(i.asked); n < tt.min || n > tt.max {
					t.Errorf("%d requests, want %d to %d", n, tt.min, tt.max)
				}
				s.stop()
			})
		})
	}
	if got := newToken("x", time.Now().Add(365*24*time.Hour), time.Now()); time.Until(got.until) > maxLife {
		t.Errorf("used until %v", got.until)
	}
}

// A slow token server costs an attempt its own time and no more, and the request
// goes on for the others.
func TestSlowTokenServer(t *testing.T) {
	i := &issuer{takes: 8 * time.Second, life: time.Hour}
	within(t, i, func(t *testing.T, s *source) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := s.get(ctx); err == nil || time.Since(start) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		want(t, s, "canary-1")
		if len(i.asked) != 1 || time.Since(start) != 8*time.Second {
			t.Errorf("%d requests, %v", len(i.asked), time.Since(start))
		}
		i.takes = time.Hour
		time.Sleep(time.Hour) // sleep: on a clock of the bubble's own
		start = time.Now()
		if e := wantNone(t, s); e.Reason != "no token: too slow" || time.Since(start) != fetchTimeout {
			t.Errorf("got %+v after %v", e, time.Since(start))
		}
	})
}

// A library that panics costs a token and not the process.
func TestPanickingLibrary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newSource(func(context.Context) (string, time.Time, error) {
			var m any = "canary"
			return "", m.(time.Time), nil
		}, slog.New(slog.NewTextHandler(&log, nil)))
		if e := wantNone(t, s); !strings.Contains(e.Reason, "panic") || strings.Contains(e.Reason+log.String(), "canary") {
			t.Errorf("got %+v; %s", e, &log)
		}
		s.stop()
	})
}

// Stopping ends a request under way, and those who wait.
func TestStop(t *testing.T) {
	i := &issuer{takes: time.Hour}
	within(t, i, func(t *testing.T, s *source) {
		done := make(chan *Error)
		go func() {
			_, err := s.get(context.Background())
			e, _ := errors.AsType[*Error](err)
			done <- e
		}()
		synctest.Wait()
		start := time.Now()
		s.stop()
		if e := <-done; e == nil || time.Since(start) != 0 {
			t.Errorf("got %v after %v", e, time.Since(start))
		}
	})
}
