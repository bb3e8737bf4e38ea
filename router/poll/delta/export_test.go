package delta

import "time"

// SetNow gives f another clock.
func (f *Fetcher) SetNow(now func() time.Time) { f.now = now }
