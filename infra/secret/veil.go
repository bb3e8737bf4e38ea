package secret

import (
	"encoding/base64"
	"html"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Veil strikes secrets out of foreign text, such as an answer that quotes the request.
// The zero value and nil know no secret. It is safe for concurrent use.
type Veil struct {
	replacer *strings.Replacer
	more     *Veil
}

// leastHidden is the shortest text that is struck out: something shorter would tear
// holes into every text.
const leastHidden = 4

// NewVeil makes one for texts, in every form in which an answer may quote them.
func NewVeil(texts ...string) *Veil {
	found := map[string]bool{}
	for _, s := range texts {
		forms := []string{s, url.QueryEscape(s), url.PathEscape(s), html.EscapeString(s), strings.TrimRight(s, "="), base64.StdEncoding.EncodeToString([]byte(s))}
		if decoded, err := base64.StdEncoding.DecodeString(s); err == nil {
			forms = append(forms, string(decoded))
		}
		for _, form := range forms {
			if len(form) >= leastHidden {
				found[form] = true
			}
		}
	}
	if len(found) == 0 {
		return &Veil{}
	}
	// The first that matches at a place wins: longer ones go first.
	forms := slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	var pairs []string
	for _, form := range forms {
		pairs = append(pairs, form, redacted)
	}
	return &Veil{replacer: strings.NewReplacer(pairs...)}
}

// And gives a Veil for further texts besides, which are secret for a while.
func (v *Veil) And(texts ...string) *Veil {
	more := NewVeil(texts...)
	more.more = v
	return more
}

// Printable makes foreign text fit for a log line: without secrets, valid UTF-8, no
// control or formatting characters, on one line, of at most n bytes.
func (v *Veil) Printable(text string, n int) string {
	for ; v != nil; v = v.more {
		if v.replacer != nil {
			text = v.replacer.Replace(text)
		}
	}
	b := make([]byte, 0, min(len(text), n))
	for _, r := range text {
		if unicode.IsSpace(r) {
			if len(b) == 0 || b[len(b)-1] == ' ' {
				continue
			}
			r = ' '
		} else if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		if len(b)+utf8.RuneLen(r) > n {
			break
		}
		b = utf8.AppendRune(b, r)
	}
	return strings.TrimRight(string(b), " ")
}
