package dedup

import "math/bits"

// window is how far beyond a gap sequences are kept in mind: a bit each, 128
// KiB. At 20,000 events a second that is the traffic of 50 seconds; what comes
// later has to be added again once the gap is filled.
const window = 1 << 20

// coverage says which sequences are in the index: all up to covered, and some
// of the window after it.
type coverage struct {
	covered uint64
	ahead   [window / 64]uint64 // sequence s is bit s%window

	// since is the time from which nothing is missing, for what was lost with
	// the log or skipped. What is not newer but comes after the sequence hole
	// shows that it is earlier.
	since uint32
	hole  uint64
}

// cover takes note of one sequence.
func (c *coverage) cover(sequence uint64) {
	if sequence <= c.covered || sequence-c.covered > window {
		return
	}
	c.ahead[sequence/64%uint64(len(c.ahead))] |= 1 << (sequence % 64)
	c.advance()
}

// advance moves covered over all that follows without a gap.
func (c *coverage) advance() {
	for {
		next := c.covered + 1
		word, bit := &c.ahead[next/64%uint64(len(c.ahead))], next%64
		run := bits.TrailingZeros64(^(*word >> bit))
		if run == 0 {
			return
		}
		*word &^= (1<<run - 1) << bit
		c.covered += uint64(run)
	}
}

// skip gives up all sequences up to through. The next one is missing, or it
// would be covered, so that what the index knows begins at now or at the
// earliest that is still to come.
func (c *coverage) skip(through uint64, now uint32) {
	if through <= c.covered {
		return
	}
	if through-c.covered >= window {
		clear(c.ahead[:])
	} else {
		for s := c.covered + 1; s <= through; {
			word, bit := &c.ahead[s/64%uint64(len(c.ahead))], s%64
			run := min(64-bit, through-s+1)
			*word &^= (1<<run - 1) << bit
			s += run
		}
	}
	c.covered = through
	c.since, c.hole = max(c.since, now), through
	c.advance()
}
