package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// Key is a key that gridfan made for a subscriber: one that signs what is posted to
// it, or lets in who fetches its events, be it with its own NATS client. It prints
// without its secret.
type Key struct {
	// ID begins the SHA-256 of the key, so that both sides can say which they mean,
	// as webhook.Key.ID. Of a NATS client's it is the public nkey.
	ID string `json:"id"`
	// Secret is as webhook.Key.Reveal writes it; for receivers, base64 for URLs. The
	// seed of a NATS client's is not kept.
	Secret  string    `json:"secret,omitempty"`
	Created time.Time `json:"created"`
	// Expires is when it is no longer good; zero for the one in use.
	Expires time.Time `json:"expires,omitzero"`
}

// Format makes every verb of package fmt, and with it logs, hide the secret.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.ID+" "+secret.New(k.Secret).String()) }

// Public gives the public key of a pair, empty for a key that both sides have.
func (k Key) Public() string {
	key, err := webhook.ParseKey(k.Secret)
	if err != nil {
		return "" // it signs nothing
	}
	return key.Public()
}

// use is what keys are for.
type use string

const (
	signing    use = "signing"    // what is posted
	fetching   use = "fetching"   // events, by HTTP
	connecting use = "connecting" // a NATS client
)

// use tells what a key that is kept is for.
func (k Key) use() use {
	if k.Secret == "" {
		return connecting
	}
	if _, err := webhook.ParseKey(k.Secret); err == nil {
		return signing
	}
	return fetching
}

// use tells what the subscriber's keys are for, if it has some.
func (d Definition) use() use {
	switch {
	case d.Deliver.Pull != nil:
		return fetching
	case d.Native():
		return connecting
	}
	return signing
}

// Shown is what the receiver needs of a key that was just made: the public one of a
// pair, else the key.
func (k Key) Shown() string { return cmp.Or(k.Public(), k.Secret) }

// fits says whether the key is of the kind that d asks for.
func (k Key) fits(d Definition) bool {
	if d.use() != signing {
		return k.use() == d.use()
	}
	key, err := webhook.ParseKey(k.Secret)
	return err == nil && key.Algorithm() == d.algorithm()
}

// maxKeys bounds the signatures of a request, and what a receiver's key is compared with.
const maxKeys = 5

// Errors about keys that callers tell apart.
var (
	ErrNotSigned    = errors.New("its events are not signed")
	ErrKeysDeclared = errors.New("its keys, or who may fetch its events, are in its definition")
	ErrTooManyKeys  = fmt.Errorf("it has %d keys, which are all still good", maxKeys)
)

// ownKeys says whether gridfan makes the subscriber's keys.
func (d Definition) ownKeys() bool {
	if p := d.Deliver.Pull; p != nil {
		return p.OwnKeys()
	}
	w := d.Deliver.Webhook
	if d.Native() {
		return len(d.Deliver.Nats.Keys) == 0
	}
	return w != nil && w.Sign.On && len(w.Sign.Keys) == 0
}

func (d Definition) algorithm() webhook.Algorithm {
	return cmp.Or(d.Deliver.Webhook.Sign.Algorithm, webhook.HMAC)
}

// key makes e's keys fit its definition: expired ones go, and if there must be one
// and is not, it is made. One that signs otherwise than the definition asks for does
// so for the overlap, as at any change of keys; one of another way out goes at once.
func (e *Entry) key(now time.Time) {
	keys := slices.DeleteFunc(slices.Clone(e.Keys), func(k Key) bool {
		return !e.Definition.ownKeys() || k.expired(now) || k.use() != e.Definition.use()
	})
	if len(keys) == 0 {
		keys = nil
	}
	e.Keys = keys
	// Nobody would see a client's first key when a file declares its subscriber,
	// and its seed is not kept: it is made when somebody asks for it.
	if e.Definition.Native() && e.Origin == FromFile {
		return
	}
	if !e.Definition.ownKeys() || slices.ContainsFunc(keys, func(k Key) bool { return k.Expires.IsZero() && k.fits(e.Definition) }) {
		return
	}
	e.expireAll(now.Add(e.Definition.overlap()))
	if len(e.Keys) >= maxKeys {
		// A change of definition is not refused for that: the oldest goes.
		e.Keys = slices.Clone(e.Keys[:maxKeys-1])
	}
	e.addKey(now)
}

// overlap is how long a key is still good after the next one was made.
func (d Definition) overlap() time.Duration {
	switch to := d.Deliver; {
	case to.Pull != nil:
		return to.Pull.Overlap.Std()
	case to.Nats != nil:
		return to.Nats.Overlap.Std()
	}
	return d.Deliver.Webhook.Sign.Overlap.Std()
}

// expireAll lets the keys there are be good no longer than until end.
func (e *Entry) expireAll(end time.Time) {
	e.Keys = slices.Clone(e.Keys)
	for i, k := range e.Keys {
		if k.Expires.IsZero() || k.Expires.After(end) {
			e.Keys[i].Expires = end.UTC()
		}
	}
}

func (k Key) expired(now time.Time) bool { return !k.Expires.IsZero() && !k.Expires.After(now) }

// addKey puts a new key before the others.
func (e *Entry) addKey(now time.Time) {
	k, err := newKey(e.Definition)
	if err != nil {
		return // there is no randomness; the next change tries again
	}
	k.Created = now.UTC()
	kept := k
	if e.Definition.Native() {
		kept.Secret = ""
	}
	e.Keys, e.NewKey = slices.Insert(slices.Clone(e.Keys), 0, kept), &k
}

// newKey makes a key such as d asks for.
func newKey(d Definition) (Key, error) {
	switch d.use() {
	case signing:
		made := webhook.NewKey(d.algorithm())
		return Key{ID: made.ID(), Secret: made.Reveal()}, nil
	case connecting:
		public, seed, err := broker.NewClientKey()
		return Key{ID: public, Secret: seed}, err
	}
	b := make([]byte, accessKey)
	_, _ = rand.Read(b) // it never fails
	sum := sha256.Sum256(b)
	// It may stand in a URL.
	return Key{ID: hex.EncodeToString(sum[:4]), Secret: base64.RawURLEncoding.EncodeToString(b)}, nil
}

// accessKey is how many random bytes a key for receivers has.
const accessKey = 32

// signed gives d with the keys that are good now.
func (e Entry) signed(d Definition, now time.Time) Definition {
	if d.Native() || !d.ownKeys() {
		return d
	}
	if d.Deliver.Pull != nil {
		p := *d.Deliver.Pull
		p.Keys = nil
		for _, k := range e.Keys {
			if !k.expired(now) {
				p.Keys = append(p.Keys, k.Secret)
			}
		}
		d.Deliver.Pull = &p
		return d
	}
	w := *d.Deliver.Webhook
	w.Sign.Overlap, w.Sign.Algorithm = 0, ""
	for _, k := range e.Keys {
		if !k.expired(now) {
			w.Sign.Keys = append(w.Sign.Keys, k.Secret)
		}
	}
	d.Deliver.Webhook = &w
	return d
}

// opens are the keys that let a subscriber's own client in, each until a time.
func (e Entry) opens() map[string]time.Time {
	keys := native.Keys(*e.Definition.Deliver.Nats)
	for _, k := range e.Keys {
		keys[k.ID] = k.Expires
	}
	return keys
}

// nextExpiry is when the next key stops signing; zero for none.
func (e Entry) nextExpiry() time.Time {
	var next time.Time
	for _, k := range e.Keys {
		if !k.Expires.IsZero() && (next.IsZero() || k.Expires.Before(next)) {
			next = k.Expires
		}
	}
	return next
}

func (k Key) equal(other Key) bool { return k.ID == other.ID && k.Expires.Equal(other.Expires) }

// RotateKey makes a new key for a subscriber, NewKey of the answer. The
// keys before it are still good for the overlap; a negative one means that of the
// definition.
func (r *Registry) RotateKey(ctx context.Context, name string, overlap time.Duration) (Entry, error) {
	e, err := r.update(ctx, name, func(e *Entry) error {
		w, to := e.Definition.Deliver.Webhook, e.Definition.Deliver
		switch {
		case to.Pull == nil && to.Nats == nil && (w == nil || !w.Sign.On):
			return fmt.Errorf("subscriber %q: %w", name, ErrNotSigned)
		case !e.Definition.ownKeys():
			return fmt.Errorf("subscriber %q: %w", name, ErrKeysDeclared)
		}
		now, lasts := time.Now(), overlap
		if lasts < 0 {
			lasts = e.Definition.overlap()
		}
		e.expireAll(now.Add(lasts))
		e.Keys = slices.DeleteFunc(e.Keys, func(k Key) bool { return k.expired(now) })
		if len(e.Keys) >= maxKeys {
			return fmt.Errorf("subscriber %q: %w", name, ErrTooManyKeys)
		}
		if e.addKey(now); e.NewKey == nil {
			return errors.New("no key could be made")
		}
		return nil
	})
	if err == nil {
		r.broker.Report("subscriber.key-rotated", name, map[string]any{"key": e.NewKey.ID, "valid": len(e.Keys)})
	}
	return e, err
}

// expireKeys takes the keys that sign no longer from the bucket.
func (r *Registry) expireKeys(ctx context.Context, name string) error {
	_, err := r.update(ctx, name, func(*Entry) error { return nil })
	return err
}
