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

// Texts are secrets that are struck out of foreign text. The zero value and nil know
// none.
type Texts struct {
	replacer *strings.Replacer
	more     *Texts
}

// And adds texts that are secret for a while.
func (s *Texts) And(texts ...string) *Texts {
	more := Hide(texts...)
	more.more = s
	return more
}

// Hide makes Texts of texts, in every form in which an answer may quote them.
func Hide(texts ...string) *Texts {
	found := map[string]bool{}
	for _, s := range texts {
		decoded, err := base64.StdEncoding.DecodeString(s)
		forms := []string{s, url.QueryEscape(s), url.PathEscape(s), html.EscapeString(s), strings.TrimRight(s, "="), base64.StdEncoding.EncodeToString([]byte(s))}
		if err == nil {
			forms = append(forms, string(decoded))
		}
		for _, form := range forms {
			if len(form) >= 4 { // something shorter would tear holes into every text
				found[form] = true
			}
		}
	}
	// The first that matches at a place wins: longer ones go first.
	forms := slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	if len(forms) == 0 {
		return &Texts{}
	}
	var pairs []string
	for _, form := range forms {
		pairs = append(pairs, form, redacted)
	}
	return &Texts{replacer: strings.NewReplacer(pairs...)}
}

// Printable makes foreign text fit for a log line: without secrets, valid UTF-8, no
// control or formatting characters, on one line, of at most n bytes.
func (s *Texts) Printable(text string, n int) string {
	for ; s != nil; s = s.more {
		if s.replacer != nil {
			text = s.replacer.Replace(text)
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
