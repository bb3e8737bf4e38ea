package deliver

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Cause is how often attempts ended in one way.
type Cause struct {
	Reason string `json:"reason"` // short: "HTTP 503"
	Count  int    `json:"count"`
}

// tally counts by reason.
type tally struct {
	n  int
	by []Cause
}

// maxCauses is how many reasons a tally tells apart. More of them are no help
// to anybody, and some may differ in a port each time.
const (
	maxCauses   = 8
	otherCauses = "others"
)

func (t *tally) add(reason string) { t.addN(reason, 1) }

func (t *tally) addN(reason string, n int) {
	t.n += n
	i := slices.IndexFunc(t.by, func(c Cause) bool { return c.Reason == reason })
	if i < 0 && len(t.by) >= maxCauses-1 {
		reason = otherCauses
		i = slices.IndexFunc(t.by, func(c Cause) bool { return c.Reason == reason })
	}
	if i < 0 {
		t.by = append(t.by, Cause{Reason: reason})
		i = len(t.by) - 1
	}
	t.by[i].Count += n
}

// causes gives a copy, the most frequent first.
func (t *tally) causes() []Cause {
	c := slices.Clone(t.by)
	slices.SortStableFunc(c, func(a, b Cause) int { return cmp.Compare(b.Count, a.Count) })
	return c
}

// shortReason is the part of an attempt's reason that is the same for the next
// such attempt: without the answer's text and without what took how long.
func shortReason(a Attempt) string {
	r := a.Reason
	if a.Status != 0 {
		r, _, _ = strings.Cut(r, ": ")
	}
	r, _, _ = strings.Cut(r, " after ")
	const longest = 64
	if len(r) > longest {
		cut := longest
		for cut > 0 && !utf8.RuneStart(r[cut]) {
			cut--
		}
		r = r[:cut] + "…"
	}
	switch {
	case r != "":
		return r
	case a.Fault != "":
		return string(a.Fault)
	}
	return "unknown reason"
}

// window counts the attempts of the last span, by the time they ended.
type window struct {
	began   time.Time
	each    time.Duration
	at      int64 // the newest bucket, counted from began
	buckets [windowBuckets]bucket
}

// windowBuckets: what is counted covers between nine tenths of the span and all
// of it.
const windowBuckets = 10

type bucket struct {
	ok     int
	failed tally
}

func (w *window) reset(now time.Time, span time.Duration) {
	*w = window{began: now, each: max(1, span/windowBuckets)}
}

// add counts an attempt that has just ended: well, if there is no reason.
func (w *window) add(now time.Time, reason string) {
	at := int64(now.Sub(w.began) / w.each)
	for w.at = max(w.at, at-windowBuckets); w.at < at; {
		w.at++
		w.buckets[w.at%windowBuckets] = bucket{}
	}
	b := &w.buckets[w.at%windowBuckets]
	if reason == "" {
		b.ok++
	} else {
		b.failed.add(reason)
	}
}

// sum is of the window up to the last add.
func (w *window) sum() (all, failed int) {
	for i := range w.buckets {
		all += w.buckets[i].ok + w.buckets[i].failed.n
		failed += w.buckets[i].failed.n
	}
	return all, failed
}

func (w *window) causes() tally {
	var t tally
	for i := range w.buckets {
		for _, c := range w.buckets[i].failed.by {
			t.addN(c.Reason, c.Count)
		}
	}
	return t
}
