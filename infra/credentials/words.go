package credentials

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// Words make foreign text fit for logs and for people: without secrets, valid
// UTF-8, and on one line. The zero value knows no secrets. They are safe for
// concurrent use.
type Words struct{ hide *strings.Replacer }

// Hiding makes Words that strike out secrets, in every form in which an answer may
// quote them.
func Hiding(secrets ...string) Words { return Words{hider(secrets)} }

// Printable gives text in at most n bytes.
func (w Words) Printable(text string, n int) string { return printable(w.hide, text, n) }

// NoAnswer puts an error without an answer into few words, none of them a URL: that
// of a proxy may hold a password.
func (w Words) NoAnswer(err error) string { return transportWords(w.hide, err) }

// transportWords is Words.NoAnswer.
func transportWords(hide *strings.Replacer, err error) string {
	text := err.Error()
	dns, isDNS := errors.AsType[*net.DNSError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	_, isRecord := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case isDNS && dns.IsNotFound:
		return "no such host"
	case isDNS:
		return "name lookup failed"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "it cannot be reached"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without a whole answer"
	case isNet && timeout.Timeout():
		return "timed out"
	case isRecord:
		return "TLS: it speaks something else"
	}
	for _, prefix := range []string{"x509: ", "tls: "} {
		if _, rest, ok := strings.Cut(text, prefix); ok {
			return "TLS: " + printable(hide, rest, maxWords)
		}
	}
	if strings.Contains(text, "://") {
		return "the request could not be sent"
	}
	return printable(hide, text, maxWords)
}

// RetryAfter reads both forms of the header of that name (RFC 9110 §10.2.3); 0 for
// what is neither, or past.
func RetryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// printable is Words.Printable.
func printable(hide *strings.Replacer, text string, n int) string {
	if hide != nil {
		text = hide.Replace(text)
	}
	b := make([]byte, 0, min(n, len(text)))
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

// hider replaces secrets in every form in which an answer may quote them. Nil for
// none.
func hider(secrets []string) *strings.Replacer {
	var forms []string
	for _, s := range secrets {
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s), html.EscapeString(s), base64.StdEncoding.EncodeToString([]byte(s))} {
			// Something shorter is no secret, and would tear holes into every text.
			if len(form) >= 4 {
				forms = append(forms, form)
			}
		}
	}
	// The first that matches at a place wins: longer ones go first.
	slices.SortFunc(forms, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	forms = slices.Compact(forms)
	if forms == nil {
		return nil
	}
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range forms {
		pairs = append(pairs, form, string(hidden))
	}
	return strings.NewReplacer(pairs...)
}
