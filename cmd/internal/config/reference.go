package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// resolve replaces the references in s. It returns how many there were, and
// records a problem for each that cannot be resolved.
func (d *decoder) resolve(v *value, s string) (resolved string, references int, ok bool) {
	var b strings.Builder
	ok = true
	bad := func(format string, args ...any) {
		ok = false
		d.problem(v.at, v.path, format, args...)
	}
	for s != "" {
		before, rest, found := strings.Cut(s, "${")
		if !found {
			b.WriteString(s)
			break
		}
		if literal, escaped := strings.CutSuffix(before, "$"); escaped {
			b.WriteString(literal + "${")
			s = rest
			continue
		}
		b.WriteString(before)
		body, after, closed := strings.Cut(rest, "}")
		if !closed {
			// What follows may be a secret: it is not repeated.
			bad("a reference (${) is not closed with }; write $${ for a literal ${")
			break
		}
		s = after
		references++
		scheme, name, _ := strings.Cut(body, ":")
		var value string
		switch {
		case scheme == "keyvault":
			bad("%s", laterReference)
			continue
		case scheme == "env" && name != "" && strings.Trim(name, nameLetters+".") == "":
			set := false
			if value, set = d.lookup.Env(name); !set {
				bad("${env:%s}: this environment variable is not set", name)
				continue
			}
		case scheme == "file" && (strings.HasPrefix(name, "/") || filepath.IsAbs(name)):
			content, err := d.lookup.File(name)
			d.files = append(d.files, name)
			if err != nil {
				if e, isPath := errors.AsType[*fs.PathError](err); isPath {
					err = e.Err // the path is named already
				}
				bad("${file:%s}: %v", name, err)
				continue
			}
			// Editors and echo end a file with a newline that belongs to no key.
			value = strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
		case scheme == "file":
			bad("a ${file:…} reference needs an absolute path, as in ${file:/run/secrets/key}")
			continue
		default:
			bad("a reference is ${env:NAME} or ${file:/path}; write $${ for a literal ${")
			continue
		}
		if value == "" {
			bad("${%s} is empty", body)
			continue
		}
		d.hidden = append(d.hidden, hidden{value, fmt.Sprintf("${%s}", body)})
		b.WriteString(value)
	}
	return b.String(), references, ok
}

// hidden is what came out of a reference. Operators put secrets where we expect
// none, so problems show the reference instead.
type hidden struct{ value, reference string }

// minHidden keeps "push" or "8" readable: no secret is that short.
const minHidden = 6

func (d *decoder) hide(message string) string {
	for _, h := range d.hidden {
		if len(h.value) < minHidden {
			continue
		}
		quoted := fmt.Sprintf("%q", h.value)
		message = strings.ReplaceAll(message, quoted[1:len(quoted)-1], h.reference)
		message = strings.ReplaceAll(message, h.value, h.reference)
	}
	return message
}
