package cli

import (
	"bufio"
	"io"
)

// key is a key that was pressed: a character, or one of these.
type key rune

const (
	keyUp key = -1 - iota
	keyDown
	keyInterrupt // Ctrl-C, Ctrl-D or Ctrl-\, none of which is a signal in raw mode
	keyEnter
)

// readKeys calls press for every key until the input ends or press answers
// false. Sequences that mean nothing here are passed over.
func readKeys(in io.Reader, press func(key) bool) error {
	const (
		plain   = iota
		escaped // after ESC
		control // after ESC [ or ESC O: parameters, then one letter
	)
	runes := bufio.NewReader(in)
	for state := plain; ; {
		r, _, err := runes.ReadRune()
		if err != nil {
			return err
		}
		k := key(0)
		switch {
		case r == 0x1b:
			state = escaped
		case state == escaped && (r == '[' || r == 'O'):
			state = control
		case state == control && (r < '@' || r > '~'):
			// a parameter
		case state == control:
			state = plain
			k = map[rune]key{'A': keyUp, 'B': keyDown}[r]
		case state == escaped:
			state = plain // Alt and a key, or Esc and a key: neither means anything
		case r == 0x03, r == 0x04, r == 0x1c:
			k = keyInterrupt
		case r == '\r', r == '\n':
			k = keyEnter
		case r >= ' ' && r != 0x7f:
			k = key(r)
		}
		if k != 0 && !press(k) {
			return nil
		}
	}
}
