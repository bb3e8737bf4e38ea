package cli

import (
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// console writes lines, and on a terminal keeps a line at the bottom that tells
// how things stand. It is safe for concurrent use.
type console struct {
	mu       sync.Mutex // guards all below
	out, err io.Writer
	width    func() int // nil: no bottom line
	bottom   string
	shown    bool
	failed   error
}

// open begins to keep a bottom line. The terminal is in raw mode from here on.
func (c *console) open(width func() int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.width = width
}

// close takes the bottom line away. It can be called again.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.erase()
	c.width = nil
}

// print writes whole lines of results.
func (c *console) print(lines string) { c.write(c.out, lines) }

// say writes whole lines about how things go.
func (c *console) say(lines string) { c.write(c.err, lines) }

func (c *console) write(w io.Writer, lines string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.width != nil {
		c.erase()
		lines = strings.ReplaceAll(lines, "\n", "\r\n")
	}
	c.put(w, lines)
	c.draw()
}

// set changes the bottom line.
func (c *console) set(bottom string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown && bottom == c.bottom {
		return
	}
	c.bottom = bottom
	c.erase()
	c.draw()
}

// problem is the first error of writing results, as of a pipe that was closed.
func (c *console) problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

func (c *console) put(w io.Writer, s string) {
	if _, err := io.WriteString(w, s); err != nil && w == c.out && c.failed == nil {
		c.failed = err
	}
}

func (c *console) erase() {
	if c.shown {
		c.put(c.out, "\r\x1b[K")
		c.shown = false
	}
}

func (c *console) draw() {
	if c.width == nil || c.bottom == "" {
		return
	}
	width := c.width()
	if width == 0 {
		width = 80
	}
	// A line that wraps could not be taken away again.
	c.put(c.out, "\x1b[2m"+cut(c.bottom, max(width, 20)-1)+"\x1b[0m")
	c.shown = true
}

// cut shortens s to at most n characters.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
