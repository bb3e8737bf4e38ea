package deliver

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

// testGate drives a gate by sequences.
type testGate struct {
	*gate
	t  *testing.T
	ds map[uint64]*delivery
}

func (g *testGate) d(sequence uint64, hop int, line string) *delivery {
	d := &delivery{line: line, origin: origin{sequence: sequence, hop: hop}}
	g.ds[sequence] = d
	return d
}

// arrive takes and offers.
func (g *testGate) arrive(sequence uint64, hop int, line string) todo {
	d := g.d(sequence, hop, line)
	g.take(d)
	return g.offer(d)
}

func (g *testGate) want(what string, got todo, send, put, bring []uint64) {
	g.t.Helper()
	seqs := func(ds []*delivery) (s []uint64) {
		for _, d := range ds {
			s = append(s, d.origin.sequence)
		}
		return s
	}
	type did struct{ Send, Put, Bring []uint64 }
	if d := cmp.Diff(did{send, put, bring}, did{seqs(got.send), seqs(got.put), got.bring}); d != "" {
		g.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestGate(t *testing.T) {
	type s = []uint64
	start := func(t *testing.T) *testGate { return &testGate{newGate(2), t, map[uint64]*delivery{}} }
	t.Run("one of a line at a time, lines beside each other", func(t *testing.T) {
		g := start(t)
		g.want("first of a", g.arrive(1, 0, "a"), s{1}, nil, nil)
		g.want("second of a", g.arrive(2, 0, "a"), nil, nil, nil)
		g.want("first of b", g.arrive(3, 0, "b"), s{3}, nil, nil)
		g.want("no line", g.arrive(4, 0, ""), s{4}, nil, nil)
		g.want("a goes on", g.ended("a", 1), s{2}, nil, nil)
		g.want("a is empty", g.ended("a", 2), nil, nil, nil)
		if len(g.lines) != 1 {
			t.Errorf("%d lines are kept, want b alone", len(g.lines))
		}
	})
	t.Run("behind a retry", func(t *testing.T) {
		g := start(t)
		g.arrive(1, 0, "a")
		g.arrive(2, 0, "a")
		g.want("1 waits", g.retried(g.ds[1], waiting), nil, s{2}, nil)
		g.want("a later one", g.arrive(3, 0, "a"), nil, s{3}, nil)
		g.want("2 is put", g.retried(g.ds[2], behind), nil, nil, nil)
		g.want("1 is due", g.arrive(1, 1, "a"), s{1}, nil, nil)
		g.want("1 is delivered before 3 is put", g.ended("a", 1), nil, nil, s{2})
		g.want("2 comes", g.arrive(2, 1, "a"), s{2}, nil, nil)
		g.want("3 is put at last", g.retried(g.ds[3], behind), nil, nil, nil)
		g.want("2 is delivered", g.ended("a", 2), nil, nil, s{3})
	})
	t.Run("put when it has become the first", func(t *testing.T) {
		g := start(t)
		g.arrive(1, 0, "a")
		g.retried(g.ds[1], waiting)
		g.want("2", g.arrive(2, 0, "a"), nil, s{2}, nil)
		g.arrive(1, 1, "a")
		g.want("1 ends", g.ended("a", 1), nil, nil, nil) // 2 is on its way to the lane
		g.want("2 is put", g.retried(g.ds[2], behind), nil, nil, s{2})
	})
	t.Run("no room to stand", func(t *testing.T) {
		g := start(t)
		g.arrive(1, 0, "a")
		g.arrive(2, 0, "a")
		g.arrive(3, 0, "a")
		g.want("the third that stands", g.arrive(4, 0, "a"), nil, s{4}, nil)
		g.want("another line", g.arrive(5, 0, "b"), s{5}, nil, nil)
	})
	t.Run("closed", func(t *testing.T) {
		g := start(t)
		g.close()
		g.want("2", g.arrive(2, 0, "a"), nil, nil, nil)
		g.want("1 comes later", g.arrive(1, 0, "a"), nil, nil, nil)
		g.open()
		all := g.look()
		if len(all) != 1 {
			t.Fatalf("got %d things to do, want one", len(all))
		}
		g.want("the first passes", all[0], s{1}, nil, nil)
	})
	t.Run("given back", func(t *testing.T) {
		g := start(t)
		g.arrive(1, 0, "a")
		g.arrive(2, 0, "a")
		g.givenBack(g.ds[1])
		g.want("another line must wait too", g.arrive(3, 0, "b"), nil, nil, nil)
		d := g.d(1, 0, "a")
		if !g.take(d) {
			t.Error("1 was the last that was away")
		}
		g.want("1 again", g.offer(d), s{1}, nil, nil)
		all := g.look()
		if len(all) != 1 {
			t.Fatalf("got %d things to do, want one", len(all))
		}
		g.want("b goes on", all[0], s{3}, nil, nil)
	})
	t.Run("after a restart", func(t *testing.T) {
		g := start(t)
		g.close()
		g.known("a", 5, behind)
		g.known("a", 4, waiting)
		g.known("a", 6, behind)
		g.known("b", 7, behind)
		g.known("b", 7, waiting) // brought, and the old one not deleted
		g.open()
		if all := g.look(); len(all) != 0 {
			t.Errorf("got %+v, want nothing before 4 and 7 are due", all)
		}
		g.want("a fresh one", g.arrive(9, 0, "a"), nil, s{9}, nil)
		g.want("4 is due", g.arrive(4, 2, "a"), s{4}, nil, nil)
		g.want("4 ends", g.ended("a", 4), nil, nil, s{5, 6})
		g.want("6 comes first", g.arrive(6, 2, "a"), nil, s{6}, nil)
		g.want("5 comes", g.arrive(5, 2, "a"), s{5}, nil, nil)
		g.want("7 is due", g.arrive(7, 1, "b"), s{7}, nil, nil)
	})
	t.Run("given back on the retry lane", func(t *testing.T) {
		g := start(t)
		g.known("a", 1, waiting)
		g.arrive(1, 1, "a")
		g.givenBack(g.ds[1])
		g.want("a fresh one", g.arrive(2, 0, "a"), nil, s{2}, nil)
		g.want("1 again", g.arrive(1, 1, "a"), s{1}, nil, nil)
	})
}

// TestGateForgets wants a line to cost nothing once it is empty, however many
// keys there are.
func TestGateForgets(t *testing.T) {
	g := newGate(10)
	h := nats.Header{}
	for i := range 1_000_000 {
		h["ce-partitionkey"] = []string{string(rune('a'+i%26)) + string(rune(i))}
		d := &delivery{line: lineOf(ByKey, h), origin: origin{sequence: uint64(i)}}
		g.take(d)
		if got := g.offer(d); len(got.send) != 1 {
			t.Fatalf("event %d does not pass", i)
		}
		g.ended(d.line, uint64(i))
	}
	if len(g.lines) != 0 || g.standing != 0 {
		t.Errorf("%d lines and %d standing are left", len(g.lines), g.standing)
	}
}
