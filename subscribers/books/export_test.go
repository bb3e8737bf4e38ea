package books

import (
	"time"
)

// Believe makes a difference certain that has stood for d.
func (p Parts) Believe(d time.Duration) Parts {
	p.believe = d
	return p
}

// Crash ends the books as a kill does: nothing more is kept.
func (b *Books) Crash() {
	b.stop()
	b.done.Wait()
	b.conn.Close()
}
