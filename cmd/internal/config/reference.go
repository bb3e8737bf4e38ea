package config

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gridfan/gridfan/infra/keyvault"
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
		case scheme == "keyvault" && d.reading == nil:
			// What says how vaults are reached is read before.
			bad("a ${keyvault:…} reference does not work here; use ${env:NAME} or ${file:/path}")
			continue
		case scheme == "keyvault":
			ref, err := keyvault.ParseReference(name)
			if err != nil {
				// What stands there is not repeated: it may be the secret itself.
				bad("${keyvault:…}: %v", err)
				continue
			}
			if d.lookup.Offline {
				// Nobody knows what it is, so nothing is wrong with it.
				d.unread++
				d.trouble = append(d.trouble, v.path)
				ok = false
				continue
			}
			got, err := d.reading.Get(context.Background(), ref)
			if err != nil {
				bad("${%s}: %v", body, err)
				continue
			}
			if value = got.Text; got.Kept != nil {
				d.kept = append(d.kept, Problem{d.file, v.at.line, v.at.column, v.path, fmt.Sprintf("${%s} is as it was read before: %v", body, got.Kept)})
			}
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
			bad("a reference is ${env:NAME}, ${file:/path} or ${keyvault:vault/name}; write $${ for a literal ${")
			continue
		}
		if value == "" {
			bad("${%s} is empty", body)
			continue
		}
		d.hidden = append(d.hidden, hidden{value, fmt.Sprintf("${%s}", body)})
		if scheme != "env" { // which never changes
			d.references = append(d.references, Reference{v.path, fmt.Sprintf("${%s}", body), fingerprint(value)})
		}
		b.WriteString(value)
	}
	return b.String(), references, ok
}

// Reference is a place in the file whose value comes from elsewhere and can change.
type Reference struct {
	Path string // as in sources.prod.push.auth.anyOf[0].key
	Text string // as it stands there
	// print tells values apart within this process, and says nothing of them.
	print [sha256.Size]byte
}

var printKey = sync.OnceValue(func() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	return key
})

func fingerprint(value string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, printKey())
	h.Write([]byte(value))
	copy(sum[:], h.Sum(nil))
	return sum
}

// section is the part of the file that the reference is in.
func (r Reference) section() string {
	section, _, _ := strings.Cut(r.Path, ".")
	return section
}

// changed gives those of now whose value was another one before.
func changed(before, now []Reference) []Reference {
	was := map[[2]string]Reference{}
	for _, r := range before {
		was[[2]string{r.Path, r.Text}] = r
	}
	var differ []Reference
	for _, r := range now {
		if b, ok := was[[2]string{r.Path, r.Text}]; ok && b.print != r.print {
			differ = append(differ, r)
		}
	}
	return differ
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
