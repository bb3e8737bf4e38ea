package broker_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// put stores a small message on each of n subjects. Only some are acknowledged, but
// all come over one connection: an acknowledgement is for those before it too.
func put(t *testing.T, b *broker.Broker, n int, subject func(i int) string) {
	t.Helper()
	nc, js, err := b.Connect("test")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for i := range n {
		if i%1000 == 999 || i == n-1 {
			_, err = js.Publish(t.Context(), subject(i), []byte("x"))
		} else {
			err = nc.Publish(subject(i), []byte("x"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// However few or many are on the retry lane, everybody's are counted, also after
// something has come or gone, by another replica and after a restart.
func TestRetryCounts(t *testing.T) {
	for name, many := range map[string]int{"few": 20, "many": broker.ListMost} {
		t.Run(name, func(t *testing.T) {
			ctx, dir := t.Context(), t.TempDir()
			b := brokertest.Open(t, dir)
			waiting := func(name string) func(int) string {
				return func(i int) string { return broker.RetryWaiting(name, uint64(i)) }
			}
			put(t, b, many, waiting("a"))
			put(t, b, 7, waiting("ab"))
			put(t, b, 3, func(i int) string { return broker.RetryBehind("ab", uint64(i), "line") })
			put(t, b, 2, func(i int) string { return broker.RetryDueIn("ab", uint64(10+i), "line") })
			put(t, b, 5, func(int) string { return broker.RetryDue("ab") })
			put(t, b, 4, func(int) string { return broker.RetryDue("due") })
			names := []string{"a", "ab", "due", "nothing", "a"}
			want := map[string]broker.Retries{"a": {All: uint64(many)}, "ab": {All: 17, Behind: 3}, "due": {All: 4}, "nothing": {}}
			check := func(what string, b *broker.Broker, rest bool) {
				t.Helper()
				got, others, err := b.RetryCounts(ctx, names)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s (-want +got):\n%s", what, d)
				}
				if (others != 0) != rest {
					t.Errorf("%s: %d subjects belong to nobody, want some: %v", what, others, rest)
				}
				for name, n := range want {
					if events, _, err := b.CountRetries(ctx, name); err != nil || events != n.All {
						t.Errorf("%s: %s has %d, %v, want %d", what, name, events, err, n.All)
					}
				}
			}
			check("at first", b, false)
			check("again", b, false)

			s, err := b.JetStream().Stream(ctx, broker.StreamRetry)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Purge(ctx, jetstream.WithPurgeSubject(broker.RetryWaiting("ab", 3))); err != nil {
				t.Fatal(err)
			}
			want["ab"] = broker.Retries{All: 16, Behind: 3}
			check("one has gone", b, false)
			put(t, b, 1, func(int) string { return broker.RetryWaiting("nothing", 1) })
			want["nothing"] = broker.Retries{All: 1}
			check("one has come", b, false)
			// One goes and one comes: as many as before.
			if err := s.Purge(ctx, jetstream.WithPurgeSubject(broker.RetryWaiting("nothing", 1))); err != nil {
				t.Fatal(err)
			}
			put(t, b, 1, func(int) string { return broker.RetryWaiting("ab", 3) })
			want["ab"], want["nothing"] = broker.Retries{All: 17, Behind: 3}, broker.Retries{}
			check("one for another", b, false)
			put(t, b, 1, func(int) string { return broker.RetryWaiting("gone", 1) })
			check("somebody else's", b, true)
			names, want["gone"] = append(names, "gone"), broker.Retries{All: 1}
			check("who is asked for now", b, false)

			b.Close()
			b = brokertest.Open(t, dir)
			check("after a restart", b, false)
		})
	}
}

// Two replicas each count what the other one changes.
func TestRetryCountsOfReplicas(t *testing.T) {
	s := brokertest.NewServer(t)
	one, two := s.Connect(), s.Connect()
	for i := range 3 {
		for _, b := range []*broker.Broker{one, two} {
			put(t, b, 1, func(int) string { return broker.RetryWaiting("a", uint64(i)) })
			for _, b := range []*broker.Broker{one, two} {
				got, _, err := b.RetryCounts(t.Context(), []string{"a"})
				if err != nil || got["a"].All != uint64(i)+1 {
					t.Errorf("got %v, %v, want %d", got, err, i+1)
				}
			}
		}
	}
}

func TestCountsOfAStreamThatIsGone(t *testing.T) {
	b := brokertest.New(t)
	if err := b.JetStream().DeleteStream(t.Context(), broker.StreamRetry); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.RetryCounts(t.Context(), []string{"a"}); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("retries: %v", err)
	}
	if _, err := b.SubjectCounts(t.Context(), broker.StreamRetry, ">"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("subjects: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.CountSubjects(ctx, broker.StreamOps, ">"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// A page of the server's begins at an offset among the sorted subjects, and one
// behind the end tells how many there are.
func TestPagesOfTheServer(t *testing.T) {
	b := brokertest.New(t)
	const n, offset = 300, 120
	var all []string
	put(t, b, n, func(i int) string {
		all = append(all, broker.RetryWaiting("a", uint64(i)))
		return all[i]
	})
	put(t, b, 5, func(i int) string { return broker.RetryWaiting("b", uint64(i)) })
	slices.Sort(all)
	got, total, err := broker.SubjectsFrom(t.Context(), b, broker.StreamRetry, broker.RetryWaitingAll("a"), offset)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(all[offset:], slices.Sorted(maps.Keys(got))); d != "" || total != n {
		t.Errorf("of %d (-want +got):\n%s", total, d)
	}
	c, err := b.CountSubjects(t.Context(), broker.StreamRetry, broker.RetryWaitingAll("a"))
	if err != nil || c.Subjects != n || c.Messages != n+5 || c.Bytes < n {
		t.Errorf("counted %+v, %v", c, err)
	}
}

// What is there all the time is listed, however much comes and goes between pages.
func TestPagesMissNothing(t *testing.T) {
	const overlap, page, n = 100, 300, 1000
	name := func(i int) string { return fmt.Sprintf("s.%07d", i) }
	for what, change := range map[string]func(round int, have []string) []string{
		"nothing":          func(_ int, have []string) []string { return have },
		"the first few go": func(_ int, have []string) []string { return have[overlap/2:] },
		"more go than pages share": func(round int, have []string) []string {
			if round > 2 {
				return have
			}
			return have[2*overlap:]
		},
		"nearly all go": func(_ int, have []string) []string { return have[max(0, len(have)-5):] },
		"all go":        func(int, []string) []string { return nil },
		"more come":     func(round int, have []string) []string { return append([]string{fmt.Sprintf("r.%d", round)}, have...) },
		"the last go":   func(_ int, have []string) []string { return have[:len(have)-overlap/2] },
		"and one in two": func(round int, have []string) []string {
			return slices.DeleteFunc(have, func(s string) bool { return round == 1 && s[len(s)-1]%2 == 0 })
		},
	} {
		t.Run(what, func(t *testing.T) {
			var have []string
			for i := range n {
				have = append(have, name(i))
			}
			rounds := 0
			got, err := broker.ListSubjects(overlap, func(offset int) (map[string]uint64, int) {
				if rounds++; rounds > 1 {
					have = change(rounds-1, slices.Clone(have))
					slices.Sort(have)
				}
				subjects := map[string]uint64{}
				from := min(offset, len(have))
				for _, s := range have[from:min(from+page, len(have))] {
					subjects[s] = 1
				}
				return subjects, len(have)
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range have { // those that are left were there all the time, but for those that came
				if got[s] == 0 && s[0] == 's' {
					t.Fatalf("%s is missing among %d after %d pages", s, len(got), rounds)
				}
			}
		})
	}
}
