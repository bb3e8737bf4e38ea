package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Mode is the way an acknowledged message comes to be on disk.
type Mode string

// The modes.
const (
	// Barrier: the server writes a message before it acks it, and one sync of
	// the file system, shared by all who wait, brings it to the disk.
	Barrier Mode = "barrier"
	// SyncAlways: the server syncs before it acks, in a cluster on a quorum.
	SyncAlways Mode = "sync-always"
	// Unknown: an external server that nobody has vouched for.
	Unknown Mode = "unknown"
)

// Durability is what an accepted event can rely on.
type Durability struct {
	Mode Mode `json:"mode"`
	// Detail says in words what that means here, and what to do about it.
	Detail string `json:"detail"`
	// Warning: the promise that an answered event survives a power cut is not
	// kept, or nobody knows.
	Warning bool `json:"warning,omitempty"`
}

// ErrReopened means that the store was opened again since something was
// written, so nobody knows whether it is there. Write it once more.
var ErrReopened = errors.New("the store was opened again meanwhile")

// chooseEmbedded decides how the server in this process makes messages durable,
// from what its store is on.
func (b *Broker) chooseEmbedded() error {
	s, reason, err := newSyncer(b.node.dir)
	if err != nil {
		return fmt.Errorf("broker.embedded.dir: %w", err)
	}
	defer func() {
		if b.durability.Mode != Unknown {
			b.transient(passing(b.node.dir))
		}
	}()
	switch {
	case b.cfg.Durability == Barrier && s == nil:
		return fmt.Errorf("broker.durability: barrier is not possible here: %s", reason)
	case b.cfg.Durability == SyncAlways && s != nil:
		s.close()
		s, reason = nil, "broker.durability asks for it"
	}
	if reason == inMemory {
		// Nothing to sync, so nothing to wait for.
		b.durability = Durability{Mode: Unknown, Warning: true, Detail: reason + ": events are lost with the machine; set " + b.dirKey() + " to a disk"}
		return nil
	}
	if s != nil {
		b.syncer = s
		b.durability = Durability{Mode: Barrier, Detail: "every event is on the disk before its sender is answered; one sync serves all that wait"}
		return nil
	}
	b.node.opts.SyncAlways = true
	b.durability = Durability{Mode: SyncAlways, Detail: "every event is on the disk before its sender is answered, each with a sync of its own: " + reason}
	return nil
}

// dirKey is where the configuration names the store's folder.
func (b *Broker) dirKey() string {
	if b.spool {
		return "broker.spool.dir"
	}
	return "broker.embedded.dir"
}

// transient adds to the durability that the disk itself does not last. found is how
// that was seen, empty if it was not.
func (b *Broker) transient(found string) {
	const lost = "what was accepted and not yet delivered is lost with it, so senders that do not repeat by themselves lose events"
	switch {
	case b.cfg.Ephemeral:
		b.durability.Detail = "the disk goes with this replica (broker.embedded.ephemeral): " + lost
	case found != "" && b.spool:
		b.durability.Detail = found + ": " + lost + "; set broker.spool.dir to a disk that lasts, or remove broker.spool: then senders are told to come back"
	case found != "":
		b.durability.Detail = found + ": " + lost + "; set broker.embedded.dir to a volume, or say that you know with broker.embedded.ephemeral: true"
	default:
		return
	}
	b.durability.Warning = true
}

// chooseExternal decides what an external server's acks are worth. An ordinary
// account cannot see how it syncs: the operator's word or the monitoring port
// can tell.
func (b *Broker) chooseExternal(ctx context.Context) error {
	const fix = "set sync_interval: always in the jetstream block of every server"
	stated := b.cfg.Durability == SyncAlways
	if len(b.cfg.Monitoring) == 0 {
		b.durability = Durability{Mode: Unknown, Warning: true,
			Detail: "an external broker that may lose answered events in a power cut; " + fix + ", then say so with broker.durability: sync-always"}
		if stated {
			b.durability = Durability{Mode: SyncAlways, Detail: "every event is on the disks of a quorum before its sender is answered, by broker.durability's word; broker.monitoring would verify it"}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, url := range b.cfg.Monitoring {
		always, err := syncsAlways(ctx, url)
		switch {
		case err != nil && stated:
			// It was not possible to look: the operator's word stands.
			b.durability = Durability{Mode: SyncAlways, Warning: true, Detail: "sync-always by broker.durability's word; it could not be verified: " + err.Error()}
			return nil
		case err != nil:
			b.durability = Durability{Mode: Unknown, Warning: true, Detail: "how the external broker syncs could not be read: " + err.Error()}
			return nil
		case !always && stated:
			return fmt.Errorf("broker.durability: sync-always is not true: the server at %s acks before it syncs; %s", url, fix)
		case !always:
			b.durability = Durability{Mode: Unknown, Warning: true, Detail: "the server at " + url + " acks before it syncs, so answered events may be lost in a power cut; " + fix}
			return nil
		}
	}
	b.durability = Durability{Mode: SyncAlways, Detail: "every event is on the disks of a quorum before its sender is answered; verified at " + strings.Join(b.cfg.Monitoring, ", ")}
	return nil
}

// syncsAlways asks a server's monitoring port (nats-server v2.15.2,
// server/monitor.go: Varz.JetStream.Config).
func syncsAlways(ctx context.Context, url string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/varz", nil)
	if err != nil {
		return false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("%s/varz: HTTP %d", url, resp.StatusCode)
	}
	var varz struct {
		JetStream struct {
			Config *struct {
				SyncAlways bool `json:"sync_always"`
			} `json:"config"`
		} `json:"jetstream"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 8<<20)).Decode(&varz); err != nil {
		return false, fmt.Errorf("%s/varz: %w", url, err)
	}
	if varz.JetStream.Config == nil {
		return false, fmt.Errorf("%s/varz: JetStream is not enabled there", url)
	}
	return varz.JetStream.Config.SyncAlways, nil
}

// Durability tells what an accepted event can rely on.
func (b *Broker) Durability() Durability { return b.durability }

// Epoch is to be taken before something is read or written, and given to
// Durable after.
func (b *Broker) Epoch() uint64 {
	if b.barrier == nil {
		return 0
	}
	return b.barrier.now()
}

// Durable returns when all that was acknowledged before the call is on disk.
// epoch is what Epoch gave before it was written; through is the highest
// sequence in EVENTS among it, 0 for none. It costs one sync of the disk,
// shared with everybody who waits, or nothing where acks mean as much already.
// With an error nothing is known, and it must be written again.
func (b *Broker) Durable(ctx context.Context, epoch, through uint64) error {
	if b.barrier != nil {
		return b.barrier.wait(ctx, epoch, through)
	}
	if b.mark != nil {
		b.mark.advance(through)
	}
	return nil
}

// A Write is under way from Begin to End. The syncs of others wait a moment for
// it, so that it can share one.
type Write struct {
	b     *Broker
	epoch uint64
	ended bool
}

// Begin says that the caller is about to write. The caller calls End.
func (b *Broker) Begin() *Write {
	w := &Write{b: b}
	if b.barrier != nil {
		w.epoch = b.barrier.begin()
	}
	return w
}

// Durable is Broker.Durable for what was written since Begin.
func (w *Write) Durable(ctx context.Context, through uint64) error {
	w.End()
	return w.b.Durable(ctx, w.epoch, through)
}

// End says that nothing more is written. It can be called again, but not by two
// at once.
func (w *Write) End() {
	if !w.ended && w.b.barrier != nil {
		w.b.barrier.leave()
	}
	w.ended = true
}

// DurableThrough is a sequence up to which EVENTS is known to be on disk. What
// comes after it may be gone after a power cut, and its sequence be given to
// another event: nobody may settle it yet.
func (b *Broker) DurableThrough() uint64 {
	if b.barrier == nil {
		return ^uint64(0)
	}
	return b.mark.durable()
}
