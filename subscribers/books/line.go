package books

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/gridfan/gridfan/subscribers/deliver"
)

// line is what the books need of one deliver.Record. Decoding the whole of each
// with encoding/json takes a microsecond a hundred bytes, which at thousands of
// deliveries a second is a good part of a core; so the few members are read
// where they stand, and whatever looks unusual is left to encoding/json.
type line struct {
	subscriber []byte
	outcome    []byte
	sequence   uint64
	hop        int
	attempts   int64 // made since the record before
	time       time.Time
}

// eachLine calls yield for each record of a block, and counts the lines that are
// none. The line's memory is the block's.
func eachLine(block []byte, yield func(line)) (unreadable int64) {
	for len(block) > 0 {
		text := block
		if end := bytes.IndexByte(block, '\n'); end >= 0 {
			text, block = block[:end], block[end+1:]
		} else {
			block = nil
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		l, ok := scanLine(text)
		if !ok {
			l, ok = decodeLine(text)
		}
		if !ok {
			unreadable++
			continue
		}
		yield(l)
	}
	return unreadable
}

// decodeLine reads a line whatever way it is written.
func decodeLine(text []byte) (l line, ok bool) {
	var r deliver.Record
	if err := json.Unmarshal(text, &r); err != nil || r.Subscriber == "" || r.Outcome == "" {
		return l, false
	}
	made := int64(len(r.Earlier))
	if lastCounts(r.Outcome, r.Status != 0 || r.Fault != "" || r.Millis != 0) {
		made++
	}
	return line{[]byte(r.Subscriber), []byte(r.Outcome), r.Sequence, r.Hop, made, r.Time}, true
}

// lastCounts says whether a record tells of an attempt besides the earlier ones.
func lastCounts(outcome string, answered bool) bool {
	switch outcome {
	case deliver.RecordDelivered, deliver.RecordRetry, deliver.RecordTried:
		return true
	case deliver.RecordDeadLetter, deliver.RecordShed:
		return answered // else it was given up without one
	}
	return false
}

// scanLine reads a line as encoding/json writes it.
func scanLine(v []byte) (l line, ok bool) {
	if len(v) < 2 || v[0] != '{' {
		return l, false
	}
	answered, earlier := false, int64(0)
	for i := 1; ; {
		if i >= len(v) || v[i] != '"' {
			return l, false
		}
		end := bytes.IndexByte(v[i+1:], '"')
		if end < 0 || i+end+2 >= len(v) || v[i+end+2] != ':' {
			return l, false
		}
		name := v[i+1 : i+1+end]
		i += end + 3
		next, plain := skipValue(v, i)
		if next < 0 {
			return l, false
		}
		value := v[i:next]
		switch string(name) {
		case "subscriber", "outcome", "time":
			if !plain || len(value) < 3 || value[0] != '"' {
				return l, false
			}
			text := value[1 : len(value)-1]
			if !utf8.Valid(text) {
				return l, false // encoding/json replaces what is not
			}
			switch name[0] {
			case 's':
				l.subscriber = text
			case 'o':
				l.outcome = text
			default:
				if l.time.UnmarshalText(text) != nil {
					return l, false
				}
			}
		case "seq":
			n, good := number(value)
			if !good {
				return l, false
			}
			l.sequence = n
		case "hop":
			n, err := strconv.Atoi(string(value))
			if err != nil {
				return l, false
			}
			l.hop = n
		case "status", "ms":
			answered = answered || string(value) != "0"
		case "fault":
			answered = true
		case "earlier":
			earlier = items(value)
		}
		if next >= len(v) {
			return l, false
		}
		if v[next] == '}' {
			break
		}
		if v[next] != ',' {
			return l, false
		}
		i = next + 1
	}
	if l.attempts = earlier; lastCounts(string(l.outcome), answered) {
		l.attempts++
	}
	return l, l.subscriber != nil && l.outcome != nil
}

func number(v []byte) (n uint64, ok bool) {
	if len(v) == 0 || len(v) > 19 {
		return 0, false
	}
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + uint64(c-'0')
	}
	return n, true
}

// skipValue goes behind the value at i, or gives -1. plain: nothing in it is
// escaped.
func skipValue(v []byte, i int) (next int, plain bool) {
	if i >= len(v) {
		return -1, false
	}
	switch v[i] {
	case '"':
		return skipText(v, i)
	case '{', '[':
		depth := 0
		for ; i < len(v); i++ {
			switch v[i] {
			case '"':
				end, _ := skipText(v, i)
				if end < 0 {
					return -1, false
				}
				i = end - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1, false
				}
			}
		}
		return -1, false
	}
	for ; i < len(v); i++ {
		if v[i] == ',' || v[i] == '}' {
			return i, true
		}
	}
	return -1, false
}

// skipText goes behind the string at i, or gives -1.
func skipText(v []byte, i int) (next int, plain bool) {
	plain = true
	for i++; i < len(v); {
		end := bytes.IndexByte(v[i:], '"')
		if end < 0 {
			return -1, false
		}
		if escape := bytes.IndexByte(v[i:i+end], '\\'); escape >= 0 {
			plain = false
			i += escape + 2
			continue
		}
		return i + end + 1, plain
	}
	return -1, false
}

// items counts the objects in a list of them.
func items(v []byte) (n int64) {
	depth := 0
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '"':
			end, _ := skipText(v, i)
			if end < 0 {
				return n
			}
			i = end - 1
		case '{':
			if depth++; depth == 1 {
				n++
			}
		case '}':
			depth--
		}
	}
	return n
}
