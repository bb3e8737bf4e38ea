package registry

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// Space is how full EVENTS is at one moment, and where its bytes are.
type Space struct {
	First, Last uint64 // sequences; nothing is stored when Last < First
	Bytes       int64
	Limit       int64 // 0: none

	stream  jetstream.Stream
	created time.Time
	curve   []point
}

// point says that the events up to a sequence had a size together, counted from
// some event long ago, and that no later one was there at a time.
type point struct {
	sequence uint64
	at       time.Time
	size     float64
}

// profile estimates where in EVENTS its bytes are. The server tells the bytes of
// the whole stream only, so each look adds a point: between two looks of this
// process the sizes are as they are, before its start every event counts as the
// mean.
type profile struct {
	mu     sync.Mutex // guards curve
	curve  []point    // by sequence; the first one stands before the stream's first event
	first  uint64
	stream time.Time // when it was made
}

// maxPoints keeps a copy of the curve at 16 KB. When there are more, every
// second one goes, so that what is recent stays fine.
const maxPoints = 512

// observe adds what the stream says now and returns a copy of the curve.
func (p *profile) observe(created time.Time, state jetstream.StreamState, now time.Time) []point {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := state.FirstSeq - min(1, state.FirstSeq)
	total := float64(state.Bytes)
	n := len(p.curve)
	if n == 0 || !p.stream.Equal(created) || state.LastSeq < p.curve[n-1].sequence {
		p.stream, p.first = created, state.FirstSeq
		p.curve = []point{{sequence: before}, {sequence: max(before, state.LastSeq), at: now, size: total}}
		return slices.Clone(p.curve)
	}
	end := p.curve[n-1]
	if state.FirstSeq == p.first {
		end.size = max(end.size, p.curve[0].size+total)
	} else {
		// Something was trimmed, and perhaps something added at the same time:
		// what was added counts as the mean.
		p.first = state.FirstSeq
		if state.Msgs > 0 {
			end.size += float64(state.LastSeq-end.sequence) * total / float64(state.Msgs)
		}
		i := sort.Search(n, func(i int) bool { return p.curve[i].sequence > before })
		base := point{sequence: before, at: p.curve[max(0, i-1)].at, size: end.size - total}
		p.curve = append([]point{base}, p.curve[i:]...)
		for i := range p.curve {
			p.curve[i].size = max(p.curve[i].size, base.size)
		}
		n = len(p.curve)
	}
	end.sequence, end.at = state.LastSeq, now
	if n > 1 && p.curve[n-1].sequence == end.sequence {
		p.curve[n-1].size = end.size // the time stays: it was there then
	} else if end.sequence > p.curve[n-1].sequence {
		p.curve = append(p.curve, end)
	}
	if len(p.curve) > maxPoints {
		thin := p.curve[:1]
		for i := 1 + len(p.curve)%2; i < len(p.curve); i += 2 {
			thin = append(thin, p.curve[i])
		}
		p.curve = thin
	}
	return slices.Clone(p.curve)
}

// Space asks how full EVENTS is. It is one small request.
func (r *Registry) Space(ctx context.Context) (Space, error) {
	s, err := r.broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		return Space{}, err
	}
	info := s.CachedInfo()
	return Space{
		First: info.State.FirstSeq, Last: info.State.LastSeq,
		Bytes: int64(info.State.Bytes), Limit: max(0, info.Config.MaxBytes),
		stream: s, created: info.Created, curve: r.profile.observe(info.Created, info.State, time.Now()),
	}, nil
}

// Percent is how full it is, 0 without a limit.
func (s Space) Percent() float64 {
	if s.Limit <= 0 {
		return 0
	}
	return float64(s.Bytes) / float64(s.Limit) * 100
}

// sizeThrough interpolates the size of all events up to a sequence.
func (s Space) sizeThrough(sequence uint64) float64 {
	i := sort.Search(len(s.curve), func(i int) bool { return s.curve[i].sequence >= sequence })
	switch {
	case i == len(s.curve):
		return s.curve[i-1].size
	case i == 0 || s.curve[i].sequence == sequence:
		return s.curve[i].size
	}
	a, b := s.curve[i-1], s.curve[i]
	return a.size + (b.size-a.size)*float64(sequence-a.sequence)/float64(b.sequence-a.sequence)
}

// From estimates the bytes from an event on to the end.
func (s Space) From(sequence uint64) int64 {
	return int64(s.curve[len(s.curve)-1].size - s.sizeThrough(sequence-min(1, sequence)))
}

// Past gives the last event that has to go for at most bytes to remain; one
// before the first when nothing has to.
func (s Space) Past(bytes int64) uint64 {
	want := s.curve[len(s.curve)-1].size - float64(bytes)
	i := sort.Search(len(s.curve), func(i int) bool { return s.curve[i].size >= want })
	if i == 0 || i == len(s.curve) {
		return s.curve[min(i, len(s.curve)-1)].sequence
	}
	a, b := s.curve[i-1], s.curve[i]
	part := (want - a.size) / (b.size - a.size)
	return min(b.sequence, a.sequence+uint64(part*float64(b.sequence-a.sequence))+1)
}

// Known gives the last event that this process knows to have been there at a
// time.
func (s Space) Known(at time.Time) uint64 {
	known := s.curve[0].sequence
	for _, p := range s.curve {
		if p.at.After(at) {
			break
		}
		known = p.sequence
	}
	return known
}

// Before gives the last event that was stored before a time; one before the
// first when there is none. It takes a request for each halving of the stream.
func (s Space) Before(ctx context.Context, at time.Time) (uint64, error) {
	low, high := max(1, s.First), s.Last+1 // the first event not before at is in between
	for low < high {
		middle := low + (high-low)/2
		found, stored, ok, err := s.Next(ctx, middle, ">")
		switch {
		case err != nil:
			return 0, err
		case !ok || found >= high || !stored.Before(at):
			high = middle
		default:
			low = found + 1
		}
	}
	return low - 1, nil
}

// Next finds the first event from a sequence on whose subject matches.
func (s Space) Next(ctx context.Context, from uint64, subject string) (sequence uint64, stored time.Time, ok bool, err error) {
	m, err := s.stream.GetMsg(ctx, max(1, from), jetstream.WithGetMsgSubject(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, time.Time{}, false, nil
	}
	if err != nil {
		return 0, time.Time{}, false, err
	}
	return m.Sequence, m.Time, true, nil
}

// Trim deletes the events up to a sequence.
func (s Space) Trim(ctx context.Context, through uint64) error {
	return s.stream.Purge(ctx, jetstream.WithPurgeSequence(through+1))
}
