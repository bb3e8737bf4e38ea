// Package retryafter reads the Retry-After header of answers.
package retryafter

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Parse reads both forms of the header (RFC 9110 §10.2.3): how long after now the
// sender may come again. It is 0 for what is neither form or lies in the past, and
// never negative; whoever uses it caps it.
func Parse(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value != "" && strings.Trim(value, "0123456789") == "" {
		const most = int64(math.MaxInt64 / time.Second)
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n > most {
			n = most
		}
		return time.Duration(n) * time.Second
	}
	t, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return max(t.Sub(now), 0)
}
