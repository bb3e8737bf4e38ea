package sqlrows

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll"
)

func TestValues(t *testing.T) {
	for _, tt := range []struct {
		v    any
		as   form
		want string
		err  error
	}{
		{math.NaN(), asFloat, `"NaN"`, nil}, {math.Inf(1), asFloat, `"Infinity"`, nil}, {math.Inf(-1), asReal, `"-Infinity"`, nil}, {1e300, asFloat, "1e+300", nil},
		{"Infinity", asNumber, `"Infinity"`, nil}, {"1e+20", asNumber, "1e+20", nil}, {"01", asNumber, `"01"`, nil}, {"", asNumber, `""`, nil},
		{"maybe", asBool, `"maybe"`, nil}, {"AA\nBB", asBase64, `"AABB"`, nil},
		{`{"a":`, asJSON, `{"base64":"eyJhIjo="}`, errNotJSON}, {"\xff", asText, `{"base64":"/w=="}`, errNotUTF8}, {"\xff", asStamp, `{"base64":"/w=="}`, errNotUTF8},
		{"infinity", asZoned, `"infinity"`, nil}, {"0044-03-15 00:00:00 BC", asStamp, `"0044-03-15 00:00:00 BC"`, nil}, {"1850-01-01 00:00:00+00:53:28", asZoned, `"1850-01-01 00:00:00+00:53:28"`, nil},
		{time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC), asText, `"2026-01-02T03:04:05.0000006Z"`, nil},
	} {
		got, err := appendJSON([]byte("x"), tt.v, tt.as, time.UTC)
		if string(got) != "x"+tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%v: got %s, %v, want %s, %v", tt.v, got[1:], err, tt.want, tt.err)
		}
	}
	if got, err := appendJSON(nil, struct{}{}, asText, time.UTC); err == nil || string(got) != "null" {
		t.Errorf("got %s, %v", got, err)
	}
}

// Two keys never look alike.
func TestKeyOf(t *testing.T) {
	seen := map[string][]string{}
	for _, key := range [][]string{{"a", "b"}, {"a,b", ""}, {"a", ",b"}, {"a%2C", "b"}, {"a,", "b"}, {"a%", "2Cb"}, {"", "a,b"}, {"", ""}} {
		s := keyOf(key)
		if was, ok := seen[s]; ok {
			t.Errorf("%q and %q are both %q", was, key, s)
		}
		seen[s] = key
	}
	if keyOf([]string{"a,b%"}) != "a,b%" {
		t.Error("a key of one column is what it is")
	}
}

// Whatever a database sends, a row is JSON.
func FuzzValue(f *testing.F) {
	for _, s := range []string{"1", "NaN", "-0.5e3", "true", "a\"\\\n", "\xff", "{\"a\":[1]}", "2026-11-23 10:00:00.123456+00", "2026-11-23T10:00:00.1234567-07:00", "infinity"} {
		for as := range asZoned + 1 {
			f.Add(s, int(as))
		}
	}
	f.Fuzz(func(t *testing.T, s string, as int) {
		b, err := appendJSON([]byte(`{"v":`), s, form(as), time.UTC)
		if form(as) == asBase64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n") != "" {
			return // encode() makes nothing else
		}
		if b = append(b, '}'); !json.Valid(b) {
			t.Errorf("%q as %d is %s (%v)", s, as, b, err)
		}
	})
}

// A cursor of anybody is refused, or is one that can be written again.
func FuzzCursor(f *testing.F) {
	c := orders(Postgres, Transaction, "tx")
	c.DSN = secret.New(postgresDSN)
	if err := c.Validate("sql"); err != nil {
		f.Fatal(err)
	}
	fetcher, err := New(c, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(fetcher.Close)
	f.Add([]byte(`{"of":"` + fetcher.digest + `","lo":5,"after":["6","1"],"hi":9,"marks":[{"to":5,"at":1}]}`))
	f.Add([]byte(`{"of":"` + fetcher.digest + `","listing":true,"top":"2026-11-23T10:00:00"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := fetcher.state(raw)
		if err != nil {
			if !errors.Is(err, poll.ErrCursor) {
				t.Error(err)
			}
			return
		}
		if s == nil {
			return
		}
		s.seen(s.Lo+1, time.Now())
		s.bound()
		b, err := s.encode()
		if err != nil {
			return // too long
		}
		if _, err := fetcher.state(b); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	})
}

// Marks stay few, and tell the age of a bound all the same.
func TestMarks(t *testing.T) {
	var s state
	start := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for i := range 1000 {
		s.seen(uint64(100+i), start.Add(time.Duration(i)*time.Second))
		if len(s.Marks) > maxMarks {
			t.Fatalf("%d marks", len(s.Marks))
		}
	}
	if s.Lo = 99; !s.bound().IsZero() {
		t.Errorf("got %v", s.bound())
	}
	if s.Lo = 100; !s.bound().Equal(start) {
		t.Errorf("got %v", s.bound())
	}
	s.Lo = 600
	if age := start.Add(500 * time.Second).Sub(s.bound()); age < 0 || age > 150*time.Second {
		t.Errorf("%v off", age)
	}
	s.Lo = 2000
	if !s.bound().Equal(start.Add(999*time.Second)) || len(s.Marks) != 1 {
		t.Errorf("got %v of %v", s.bound(), s.Marks)
	}
}
