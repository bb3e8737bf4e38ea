package event

import (
	"errors"
	"strings"
	"time"
)

// zoneless layouts seen from Azure: some services leave the Z out although the
// time is UTC (azure-sdk-for-go azsystemevents v1.0.0, time_rfc3339.go;
// read 2026-11).
var timeLayouts = []string{
	time.RFC3339Nano,
	"2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999",
}

// ParseTime reads a time as Azure writes it: RFC 3339, with a blank for the T
// or without a zone, which then is UTC. The result is in UTC unless the text
// names another zone. Null dates (see IsNullTime) are returned as they are.
func ParseTime(s string) (time.Time, error) {
	s = strings.TrimSpace(s)
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, strings.ToUpper(s)); err == nil {
			if _, off := t.Zone(); off == 0 {
				t = t.UTC()
			}
			// Validate would refuse these, and so the event with them.
			if t.Year() < 1 || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
				break
			}
			return t, nil
		}
	}
	return time.Time{}, errors.New("not an RFC 3339 time")
}

// IsNullTime says whether t stands for "no time": the X++ null date
// 1900-01-01T00:00:00, which F&O also puts into Event Grid's eventTime, and
// .NET's 0001-01-01T00:00:00.
func IsNullTime(t time.Time) bool {
	return t.IsZero() || t.Equal(nullDate)
}

var nullDate = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)

// FormatTime writes t as the time attribute: RFC 3339 with as many digits of a
// second as it has.
func FormatTime(t time.Time) string { return t.Format(time.RFC3339Nano) }
