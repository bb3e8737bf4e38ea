package rawjson

import (
	"encoding/binary"
	"math/bits"
)

// This file steps through JSON several times as fast as jsontext, for values
// that Elements has had validated. It believes nobody all the same: whatever
// it is not sure of ends in a position below zero, and then jsontext decides.
// So it may take less than jsontext, and never more (FuzzScan).
//
// Strings are not checked for UTF-8; callers do that once for all of them.
//
// All functions take the text and a position in it, and give the next one.

// maxDepth is far beyond real data, and little for the stack. What is deeper
// goes to jsontext, whose limit is 10,000.
const maxDepth = 512

// space gives the position of the next byte that is no white space.
func space(v []byte, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\n' || v[i] == '\r' || v[i] == '\t') {
		i++
	}
	return i
}

// enter goes from the bracket before i to the first item inside. item is false
// when there is none; next is then behind the closing bracket.
func enter(v []byte, i int, closing byte) (next int, item bool) {
	i = space(v, i)
	if i < len(v) && v[i] == closing {
		return i + 1, false
	}
	return i, true
}

// more goes from behind an item to the next one. item is false when there is
// none; next is then behind the closing bracket, or -1.
func more(v []byte, i int, closing byte) (next int, item bool) {
	i = space(v, i)
	switch {
	case i >= len(v):
	case v[i] == ',':
		return space(v, i+1), true
	case v[i] == closing:
		return i + 1, false
	}
	return -1, false
}

// memberName goes from a name to its value. end is behind the name's quote;
// plain says that nothing in the name is escaped.
func memberName(v []byte, i int) (end, value int, plain bool) {
	if i >= len(v) || v[i] != '"' {
		return -1, -1, false
	}
	end, plain = skipString(v, i)
	if end < 0 {
		return -1, -1, false
	}
	if i = space(v, end); i >= len(v) || v[i] != ':' {
		return -1, -1, false
	}
	return end, space(v, i+1), plain
}

// skip goes behind the value at i, which may be nested depth levels deep.
func skip(v []byte, i, depth int) int {
	if i >= len(v) {
		return -1
	}
	switch v[i] {
	case '"':
		end, _ := skipString(v, i)
		return end
	case '{':
		if depth == 0 {
			return -1
		}
		i, item := enter(v, i+1, '}')
		for item {
			_, value, _ := memberName(v, i)
			if value < 0 {
				return -1
			}
			if i = skip(v, value, depth-1); i < 0 {
				return -1
			}
			i, item = more(v, i, '}')
		}
		return i
	case '[':
		if depth == 0 {
			return -1
		}
		i, item := enter(v, i+1, ']')
		for item {
			if i = skip(v, i, depth-1); i < 0 {
				return -1
			}
			i, item = more(v, i, ']')
		}
		return i
	}
	return skipScalar(v, i)
}

// skipString goes behind the string whose opening quote is at i. plain says
// that nothing in it is escaped.
func skipString(v []byte, i int) (end int, plain bool) {
	plain = true
	for i++; ; {
		for ; i+8 <= len(v); i += 8 {
			if found := special(binary.LittleEndian.Uint64(v[i:])); found != 0 {
				i += bits.TrailingZeros64(found) / 8
				break
			}
		}
		for i < len(v) && v[i] >= ' ' && v[i] != '"' && v[i] != '\\' {
			i++
		}
		switch {
		case i >= len(v):
			return -1, false
		case v[i] == '"':
			return i + 1, plain
		case v[i] != '\\': // a control character
			return -1, false
		}
		plain = false
		if i = skipEscape(v, i); i < 0 {
			return -1, false
		}
	}
}

// special looks for the quotes, backslashes and control characters among eight
// bytes, and marks each by its highest bit. A borrow can set one wrongly, but
// only above a byte where it is right, and the lowest is all that counts.
func special(x uint64) uint64 {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	quote, backslash := x^(ones*'"'), x^(ones*'\\')
	return ((x-ones*' ')&^x | (quote-ones)&^quote | (backslash-ones)&^backslash) & high
}

// skipEscape goes behind the escape whose backslash is at i. Halves of
// surrogate pairs pass, as they do in jsontext's lenient mode.
func skipEscape(v []byte, i int) int {
	if i+1 >= len(v) {
		return -1
	}
	switch v[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if i+6 > len(v) {
			return -1
		}
		for _, c := range v[i+2 : i+6] {
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return -1
			}
		}
		return i + 6
	}
	return -1
}

// skipScalar goes behind the number or literal at i.
func skipScalar(v []byte, i int) int {
	literal := ""
	switch v[i] {
	case 't':
		literal = "true"
	case 'f':
		literal = "false"
	case 'n':
		literal = "null"
	default:
		return skipNumber(v, i)
	}
	end := i + len(literal)
	if end > len(v) || string(v[i:end]) != literal {
		return -1
	}
	return end
}

// skipNumber goes behind the number at i (RFC 8259 §6).
func skipNumber(v []byte, i int) int {
	if v[i] == '-' {
		i++
	}
	start := i
	if i = digits(v, i); i == start || v[start] == '0' && i > start+1 {
		return -1
	}
	if i < len(v) && v[i] == '.' {
		start = i + 1
		if i = digits(v, start); i == start {
			return -1
		}
	}
	if i < len(v) && (v[i] == 'e' || v[i] == 'E') {
		i++
		if i < len(v) && (v[i] == '+' || v[i] == '-') {
			i++
		}
		start = i
		if i = digits(v, i); i == start {
			return -1
		}
	}
	return i
}

func digits(v []byte, i int) int {
	for i < len(v) && v[i] >= '0' && v[i] <= '9' {
		i++
	}
	return i
}
