package broker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Store publishes m and returns when it is durable. It is for what settles
// deliveries, and may use what Room keeps back. With an error the message may
// be stored all the same: give it a Msg-Id and store it again.
func (b *Broker) Store(ctx context.Context, js jetstream.JetStream, m *nats.Msg) error {
	if err := b.room(4); err != nil {
		return err
	}
	return b.Change(ctx, func() error {
		_, err := js.PublishMsg(ctx, m)
		b.Suspect(err)
		return err
	})
}

// Change makes one change on the server, such as a key of a bucket or a stream,
// and returns when it is durable.
func (b *Broker) Change(ctx context.Context, change func() error) error {
	epoch := b.Epoch()
	if err := change(); err != nil {
		return err
	}
	return b.Durable(ctx, epoch, 0)
}

// JetStream's codes for a message that was not stored (nats-server v2.15.2,
// server/errors.json).
const (
	codeStoreFailed = 10077 // a limit of the stream, or its file could not be written
	codeServerFull  = 10023
)

// limitTexts are how the server words the limits of a stream (nats-server
// v2.15.2, server/store.go).
var limitTexts = map[string]bool{
	"maximum bytes exceeded":                true,
	"maximum messages exceeded":             true,
	"maximum messages per subject exceeded": true,
}

// IsFull says whether a publish failed because a limit is reached.
func IsFull(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, ErrDiskFull) || errors.As(err, &api) && (api.ErrorCode == codeServerFull || api.ErrorCode == codeStoreFailed)
}

// Suspect is told how every publish ended. A stream whose file could not be
// written takes nothing more until the server starts again, and the server does
// not say so by itself.
func (b *Broker) Suspect(err error) {
	var api *jetstream.APIError
	if b.node != nil && errors.As(err, &api) && api.ErrorCode == codeStoreFailed && !limitTexts[api.Description] {
		b.trouble(fmt.Errorf("a stream could not be written: %s", api.Description))
	}
}

// verify compares what the server found in its store with what was there.
func (b *Broker) verify(ctx context.Context) error {
	created, last, ok, err := readMark(b.node.dir)
	if err != nil || !ok {
		return err
	}
	folder := filepath.Join(b.node.dir, "jetstream", "$G", "streams", StreamEvents)
	remedy := fmt.Sprintf("Put the folder back from a backup; or accept the loss by deleting %s and start again",
		filepath.Join(b.node.dir, markName))
	s, err := b.js.Stream(ctx, StreamEvents)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("the store has lost its stream %s with %d events that senders were told are safe: %s is missing or unreadable. %s", StreamEvents, last, folder, remedy)
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", StreamEvents, err)
	}
	info := s.CachedInfo()
	if info.Created.Equal(created) && info.State.LastSeq < last {
		return fmt.Errorf("the store is shorter than it was: stream %s ends at event %d, but senders were told that all up to %d are safe; the last block in %s was cut off or damaged. %s",
			StreamEvents, info.State.LastSeq, last, filepath.Join(folder, "msgs"), remedy)
	}
	if n := info.State.NumDeleted; n > 0 {
		b.log.Error("events are missing in the middle of the stream: a block is damaged, or somebody deleted them", "stream", StreamEvents, "events", n, "folder", folder)
	}
	return nil
}
