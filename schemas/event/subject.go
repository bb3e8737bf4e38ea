package event

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SubjectPrefix is the first token of every event's subject.
const SubjectPrefix = "events"

// MaxSubject is the length of the longest subject, in bytes. NATS has no limit
// of its own below the control line (4 KiB by default), but a longer line than
// that cuts the connection for good.
const MaxSubject = 512

// Kinds of sources, the second token of a subject.
const (
	KindCloudEvents = "cloudevents"
	KindCustom      = "custom"
	KindDataverse   = "dataverse"
	KindEventGrid   = "eventgrid"
	KindFnO         = "fno"
)

// Subject builds events.<kind>.<source>.<scope>.<name…>. The dots of name
// separate tokens; everywhere else, and for every character that NATS forbids,
// percent-encoding stands in. Empty tokens are "-". The result is never longer
// than MaxSubject: long tokens keep their beginning and end in a hash.
func Subject(kind, source, scope, name string) string {
	var room [MaxSubject]byte
	b := append(room[:0], SubjectPrefix...)
	b = appendToken(b, kind)
	b = appendToken(b, source)
	b = appendToken(b, scope)
	for part := range strings.SplitSeq(name, ".") {
		b = appendToken(b, part)
	}
	if len(b) <= MaxSubject {
		return string(b)
	}
	return shortSubject(strings.Split(string(b), "."))
}

func appendToken(b []byte, s string) []byte { return append(append(b, '.'), Token(s)...) }

// shortSubject joins tokens that are together too long.
func shortSubject(tokens []string) string {
	for i, t := range tokens {
		tokens[i] = shorten(t, maxToken)
	}
	s := strings.Join(tokens, ".")
	if len(s) <= MaxSubject {
		return s
	}
	// Still too long: a name of very many tokens. Keep what fits in front.
	const fixed = 4
	rest := strings.Join(tokens[fixed:], ".")
	head := strings.Join(tokens[:fixed], ".") + "."
	return head + shorten(rest, MaxSubject-len(head))
}

// maxToken lets kind, source and scope (at most 64 each) and a name of a few
// tokens stay under MaxSubject.
const maxToken = 64

// shorten cuts s to at most n bytes, the last 17 of which are "~" and a hash
// of the whole. Names that a cut would make equal so stay apart.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	cut := n - 17
	// Don't leave half of a %XX or of a character.
	if i := strings.LastIndexByte(s[:cut], '%'); i >= 0 && i > cut-3 {
		cut = i
	}
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strings.TrimRight(s[:cut], ".") + "~" + hex.EncodeToString(sum[:8])
}

// Token makes s one token of a NATS subject: blanks, control characters, dots,
// wildcards and % are percent-encoded, and an empty s is "-".
func Token(s string) string {
	if s == "" {
		return "-"
	}
	if strings.IndexFunc(s, forbidden) < 0 {
		return s
	}
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i, r := range s {
		n := utf8.RuneLen(r)
		if r == utf8.RuneError {
			_, n = utf8.DecodeRuneInString(s[i:])
		}
		if !forbidden(r) {
			b.WriteString(s[i : i+n])
			continue
		}
		for _, c := range []byte(s[i : i+n]) {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

func forbidden(r rune) bool {
	switch r {
	case '.', '*', '>', '%', utf8.RuneError:
		return true
	}
	if r < utf8.RuneSelf {
		return r <= ' ' || r == 0x7f
	}
	return unicode.IsSpace(r) || !unicode.IsPrint(r)
}

// LastSegment gives the part of a resource id or URI after its last slash, in
// lower case: the scope of Event Grid events and CloudEvents.
func LastSegment(path string) string {
	path = strings.TrimRight(path, "/")
	return strings.ToLower(path[strings.LastIndexByte(path, '/')+1:])
}
