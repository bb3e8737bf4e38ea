package broker

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nuid"
)

// Process is a gridfan that shares an external broker with others.
type Process struct {
	// Instance is its host's name; several on one host have the same.
	Instance string `json:"instance"`
	// Role is what it does: all, router or subscribers.
	Role    string    `json:"role"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

const (
	presencePrefix = "process."
	// presenceTTL is how long a process that was killed is still told of. A living
	// one says four times in it that it lives.
	presenceTTL   = 20 * time.Second
	presenceRetry = 2 * time.Second
)

// Announce tells all processes on the broker of this one until stop is called. It
// does nothing for the embedded server, which nobody shares, and does not block.
func (b *Broker) Announce(p Process) (stop func()) {
	if b.Embedded() {
		return func() {}
	}
	note, _ := json.Marshal(p) // texts and a time: it cannot fail
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		key := presencePrefix + nuid.Next()
		for ctx.Err() == nil {
			l, err := b.tryLease(ctx, key, presenceTTL, note)
			if err != nil || l == nil {
				// The broker is away, or still knows of a lease that was lost.
				select {
				case <-ctx.Done():
				case <-time.After(presenceRetry):
				}
				continue
			}
			select {
			case <-ctx.Done():
			case <-l.Context().Done():
			}
			l.Release()
		}
	}()
	return func() { cancel(); <-done }
}

// Processes lists those that have said lately that they live, this one among them,
// by role and name.
func (b *Broker) Processes(ctx context.Context) ([]Process, error) {
	if b.Embedded() {
		return nil, nil
	}
	notes, err := b.LeaseNotes(ctx, presencePrefix+"*")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, n := range notes {
		p := Process{Instance: n.Holder}
		_ = json.Unmarshal(n.Note, &p) // one of a version that says it otherwise is there all the same
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Process) int {
		if c := strings.Compare(a.Role+" "+a.Instance, b.Role+" "+b.Instance); c != 0 {
			return c
		}
		return a.Started.Compare(b.Started)
	})
	return all, nil
}
