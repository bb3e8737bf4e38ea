package reply

import (
	"math"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
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
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: got %v, want %v", in, got, want)
		}
	}
}

func TestRoundOff(t *testing.T) {
	for d, want := range map[time.Duration]string{
		30*time.Second + 417*time.Microsecond: "30s", 2512 * time.Millisecond: "2.5s", 50417 * time.Microsecond: "50ms",
	} {
		if got := roundOff(d); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
