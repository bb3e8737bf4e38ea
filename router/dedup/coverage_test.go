package dedup

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCoverage(t *testing.T) {
	type call struct {
		skip bool
		n    uint64
	}
	c := func(ns ...uint64) []call {
		var list []call
		for _, n := range ns {
			list = append(list, call{n: n})
		}
		return list
	}
	s := func(n uint64) []call { return []call{{true, n}} }
	join := func(lists ...[]call) (all []call) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	span := func(from, to uint64) []call {
		var list []call
		for n := from; n <= to; n++ {
			list = append(list, call{n: n})
		}
		return list
	}
	tests := []struct {
		name  string
		calls []call
		want  uint64
	}{
		{"nothing", nil, 0},
		{"in order", c(1, 2, 3), 3},
		{"out of order", c(3, 1, 2), 3},
		{"gap", c(1, 3, 4), 1},
		{"gap filled", c(1, 3, 4, 2), 4},
		{"twice", c(1, 1, 2, 2, 1), 2},
		{"zero", c(0), 0},
		{"over words", join(span(2, 200), c(1)), 200},
		{"backwards over words", join(span(65, 130), span(2, 64), c(1)), 130},
		{"skip", join(c(5), s(3), c(4)), 5},
		{"skip onto what is there", join(c(4, 5), s(3)), 5},
		{"skip back", join(c(1, 2, 3), s(2)), 3},
		{"skip far", join(c(2), s(10*window), c(10*window+1)), 10*window + 1},
		{"skip as far as the window", join(c(2, window), s(window), c(window+1)), window + 1},
		{"skip leaves nothing behind", join(c(7, 8, 9), s(9), c(window+8, window+9), c(10)), 10},
		{"skip to the end", join(c(2), s(math.MaxUint64), c(1)), math.MaxUint64},
		{"last of the window", join(c(window), s(window-1)), window},
		{"beyond the window", join(c(window+1), s(window)), window},
		{"far beyond the window", join(c(math.MaxUint64), c(1)), 1},
		{"whole window", join(span(2, window+10), c(1)), window},
		{"whole window again", join(span(2, window+10), c(1), span(window+1, window+10)), window + 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var cov coverage
			for _, call := range tt.calls {
				if call.skip {
					cov.skip(call.n, 1)
				} else {
					cov.cover(call.n)
				}
			}
			if d := cmp.Diff(tt.want, cov.covered); d != "" {
				t.Errorf("covered (-want +got):\n%s", d)
			}
		})
	}
}

func TestCoverageModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var cov coverage
	seen := map[uint64]bool{}
	covered := uint64(0)
	for range 100_000 {
		if r.IntN(500) == 0 {
			through := covered + r.Uint64N(300)
			cov.skip(through, 1)
			covered = max(covered, through)
		} else {
			n := covered + r.Uint64N(200)
			cov.cover(n)
			seen[n] = true
		}
		for seen[covered+1] {
			covered++
		}
		if cov.covered != covered {
			t.Fatalf("covered is %d, want %d", cov.covered, covered)
		}
	}
}
