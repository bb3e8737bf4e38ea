package deliver

import "testing"

// RetriesMost lets workers that are started from now on until the test ends have
// fewer events on the retry lane.
func RetriesMost(t *testing.T, n int64) {
	before := retriesMost
	retriesMost = n
	t.Cleanup(func() { retriesMost = before })
}
