package dev

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// color is an escape sequence's number; 0 is none.
type color int

const (
	plain  color = 0
	bold   color = 1
	red    color = 31
	green  color = 32
	yellow color = 33
	blue   color = 34
)

// screen prints whole lines, from whichever goroutine they come.
type screen struct {
	color bool

	mu    sync.Mutex // guards all below
	out   io.Writer
	held  strings.Builder // lines that wait for a hold to end
	holds int
}

// event prints a line with the time.
func (s *screen) event(c color, text string) {
	s.write(s.stamp(c, text))
}

func (s *screen) stamp(c color, text string) string {
	return time.Now().Format(time.TimeOnly) + "  " + s.paint(c, text) + "\n"
}

// text prints lines as they are.
func (s *screen) text(lines ...string) {
	s.write(strings.Join(lines, "\n") + "\n")
}

func (s *screen) write(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds > 0 {
		s.held.WriteString(text)
		return
	}
	s.flush(text)
}

// flush writes; the caller holds mu.
func (s *screen) flush(text string) {
	_, _ = io.WriteString(s.out, text) // nobody is left to tell
}

// maxHold is below what one notices, and above what a post takes.
const maxHold = 300 * time.Millisecond

// hold makes other lines wait until release, for maxHold at most. An event is
// often delivered before its sender has the answer, and effects are hard to
// read above their causes. Release prints a line before those that waited,
// none if it is empty; it can be called once more, to be sure.
func (s *screen) hold() (release func(c color, text string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds++
	released := false
	end := func(line string) { // the caller holds mu
		if !released {
			released = true
			if s.holds--; s.holds == 0 {
				line += s.held.String()
				s.held.Reset()
			}
		}
		if line != "" {
			s.flush(line)
		}
	}
	timer := time.AfterFunc(maxHold, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		end("")
	})
	return func(c color, text string) {
		timer.Stop()
		line := ""
		if text != "" {
			line = s.stamp(c, text)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		end(line)
	}
}

func (s *screen) paint(c color, text string) string {
	if !s.color || c == plain {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", int(c), text)
}

// The columns of deliveries and of posts. The longest subject of the usual
// samples has 62 characters.
const (
	deliveryColumns = "%-8s ← %-62s  %d  %7s  %s"
	postColumns     = "→ POST %-14s  %-24s  %d  %s"
)

// short is enough of an id to tell events apart on a screen.
func short(id string) string {
	if r := []rune(id); len(r) > 8 {
		return string(r[:8])
	}
	return id
}

// roughly rounds a latency to what one reads at a glance.
func roughly(d time.Duration) string {
	switch d = max(0, d); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// seconds rounds a wait up, so that it never says 0s.
func seconds(d time.Duration) string {
	return fmt.Sprintf("%ds", max(1, int((d+time.Second-1)/time.Second)))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
