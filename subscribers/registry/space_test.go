package registry

import (
	"math"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// stream is what the server would say of a stream of known sizes.
type stream struct {
	sizes []int64 // from sequence 1 on
	first uint64
}

func (s *stream) add(n int, size int64) {
	for range n {
		s.sizes = append(s.sizes, size)
	}
}

func (s *stream) state() jetstream.StreamState {
	st := jetstream.StreamState{FirstSeq: s.first, LastSeq: uint64(len(s.sizes)), Bytes: uint64(s.from(s.first))}
	st.Msgs = st.LastSeq + 1 - s.first
	return st
}

func (s *stream) from(sequence uint64) int64 {
	sum := int64(0)
	for _, n := range s.sizes[sequence-1:] {
		sum += n
	}
	return sum
}

// TestProfile follows a stream whose events grow a hundredfold and which is
// trimmed meanwhile: the estimates stay near what is there.
func TestProfile(t *testing.T) {
	var p profile
	created, now := time.Unix(1, 0), time.Unix(1000, 0)
	s := &stream{first: 1}
	look := func() Space {
		now = now.Add(time.Second)
		st := s.state()
		return Space{First: st.FirstSeq, Last: st.LastSeq, Bytes: int64(st.Bytes), curve: p.observe(created, st, now)}
	}
	near := func(what string, got, want, within int64) {
		t.Helper()
		if math.Abs(float64(got-want)) > float64(within) {
			t.Errorf("%s: %d, want %d within %d", what, got, want, within)
		}
	}
	look() // an empty stream
	for range 100 {
		s.add(100, 100)
		look()
	}
	for range 100 {
		s.add(10, 10_000)
		look()
	}
	space := look()
	near("the large ones", space.From(10_001), s.from(10_001), 0)
	near("some of the small ones", space.From(9_950), s.from(9_950), 5_000)
	past := space.Past(5_000_000)
	near("what has to go for 5 MB to stay", s.from(past+1), 5_000_000, 20_000)
	if s.from(past+1) > 5_000_000+10_000 {
		t.Errorf("%d bytes stay", s.from(past+1))
	}
	if got := space.Past(1 << 40); got != 0 {
		t.Errorf("nothing has to go, not %d", got)
	}
	if got := space.Known(now.Add(-10 * time.Second)); got < 10_000 || got > uint64(len(s.sizes))-80 {
		t.Errorf("known ten seconds ago: %d", got)
	}

	// Trimmed twice while events go on coming, and looked at a thousand times.
	for i := range 1000 {
		s.add(2, 1_000)
		if i == 300 || i == 600 {
			s.first += 4_000
		}
		space = look()
	}
	if n := len(space.curve); n > maxPoints {
		t.Errorf("%d points", n)
	}
	near("after trimming", space.From(10_001), s.from(10_001), s.from(10_001)/20)
	near("all of it", space.From(space.First), space.Bytes, 1)

	// Made again.
	s = &stream{first: 1}
	s.add(10, 50)
	created = time.Unix(2, 0)
	near("made again", look().From(6), 250, 1)
}
