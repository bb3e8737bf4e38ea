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
		// Not the synchronous call: that one waits out its time when the
		// connection breaks.
		f, err := js.PublishMsgAsync(m)
		if err != nil {
			return err
		}
		select {
		case <-f.Ok():
			return nil
		case err := <-f.Err():
			b.Suspect(err)
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// Change makes one change on the server, such as a key of a bucket or a stream,
// and returns when it is durable.
func (b *Broker) Change(ctx context.Context, change func() error) error {
	w := b.Begin()
	defer w.End()
	if err := change(); err != nil {
		return err
	}
	return w.Durable(ctx, 0)
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

// IsFenced says whether a write that names what came before it was refused because
// something else did. Whether that was another process's or this one's, whose answer
// was lost, does not matter: what is there is read anew.
func IsFenced(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) ||
		errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
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
	was, ok, err := readMark(b.node.dir)
	if err != nil || !ok {
		return err
	}
	folder := filepath.Join(b.node.dir, "jetstream", "$G", "streams", b.Main())
	remedy := fmt.Sprintf("Put the folder back from a backup; or accept the loss by deleting %s and start again",
		filepath.Join(b.node.dir, markName))
	s, err := b.js.Stream(ctx, b.Main())
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("the store has lost its stream %s with %d events that senders were told are safe: %s is missing or unreadable. %s", b.Main(), was.last, folder, remedy)
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", b.Main(), err)
	}
	info := s.CachedInfo()
	if was.last == 0 || !info.Created.Equal(was.created) {
		return nil
	}
	// The index may know where the stream ended although the block is gone:
	// ask for the event itself. Trimming never takes the last one.
	var opts []jetstream.GetMsgOpt
	if info.State.FirstSeq > was.last {
		opts = append(opts, jetstream.WithGetMsgSubject(">")) // that one or any after it
	}
	_, err = s.GetMsg(ctx, was.last, opts...)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && info.State.LastSeq < was.last:
		return fmt.Errorf("the store is shorter than it was: stream %s has lost event %d, but senders were told that all up to it are safe; the last block in %s was cut off or damaged. %s",
			b.Main(), was.last, filepath.Join(folder, "msgs"), remedy)
	case err != nil:
		return fmt.Errorf("stream %s, event %d: %w", b.Main(), was.last, err)
	}
	if n := uint64(info.State.NumDeleted); n > was.deleted {
		return fmt.Errorf("the store has gaps: stream %s lacks %d events that senders were told are safe; a block in %s is damaged. %s",
			b.Main(), n-was.deleted, filepath.Join(folder, "msgs"), remedy)
	}
	return nil
}
