package retryafter_test

import (
	"math"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/retryafter"
)

func TestParse(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	const most = math.MaxInt64 / time.Second * time.Second
	for in, want := range map[string]time.Duration{
		"":                               0,
		"0":                              0,
		"120":                            2 * time.Minute,
		"007":                            7 * time.Second,
		"99999999999":                    most,
		"99999999999999999999999":        most,
		"-1":                             0,
		"+1":                             0,
		" 7 ":                            7 * time.Second,
		"1.5":                            0,
		"1s":                             0,
		"٣":                              0,
		"Mon, 23 Nov 2026 12:01:00 GMT":  time.Minute,
		"Monday, 23-Nov-26 12:01:00 GMT": time.Minute,
		"Mon Nov 23 12:01:00 2026":       time.Minute,
		"Mon, 23 Nov 2026 11:59:00 GMT":  0,
		"Fri, 31 Dec 9999 23:59:59 GMT":  math.MaxInt64,
		"2026-11-23T12:01:00Z":           0,
		"tomorrow":                       0,
	} {
		if got := retryafter.Parse(in, now); got != want {
			t.Errorf("%q: got %v, want %v", in, got, want)
		}
	}
}
