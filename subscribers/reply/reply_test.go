package reply

import (
	"testing"
	"time"
)

func TestRoundOff(t *testing.T) {
	for d, want := range map[time.Duration]string{
		30*time.Second + 417*time.Microsecond: "30s", 2512 * time.Millisecond: "2.5s", 50417 * time.Microsecond: "50ms",
	} {
		if got := roundOff(d); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
