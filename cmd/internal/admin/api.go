// Package admin is the admin API: what the operator asks and orders. The same
// package holds its client, so that both sides share one set of types.
package admin

import (
	"strings"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Status is the answer to GET /api/v1/status.
type Status struct {
	Version  string `json:"version"`
	Instance string `json:"instance"`
	// Role is all, router or subscribers.
	Role    string    `json:"role"`
	Started time.Time `json:"started"`
	Healthy bool      `json:"healthy"`
	Problem string    `json:"problem,omitempty"`
	// Warnings are what to know although nothing is broken.
	Warnings []string `json:"warnings"`
	// Processes are all on an external broker that have said lately that they live,
	// this one among them.
	Processes   []broker.Process `json:"processes"`
	Config      config.State     `json:"config"`
	Broker      BrokerStatus     `json:"broker"`
	Sources     []SourceStatus   `json:"sources"`
	Subscribers []Subscriber     `json:"subscribers"`
}

// BrokerStatus tells what events are kept on.
type BrokerStatus struct {
	Embedded bool `json:"embedded"`
	// URL is where NATS clients connect; empty if nowhere.
	URL string `json:"url,omitempty"`
	// Durability says what an answer of 200 promises.
	Durability broker.Durability  `json:"durability"`
	Streams    []broker.StreamUse `json:"streams"`
	// Disk is the room under the embedded broker's store.
	Disk *broker.Space `json:"disk,omitempty"`
	// Spool takes events while an external broker is away; nil without one.
	Spool *publish.SpoolStatus `json:"spool,omitempty"`
	// Dedup is nil where no events are taken in.
	Dedup *Dedup `json:"dedup,omitempty"`
}

// Dedup is how far back events are recognised that come again.
type Dedup struct {
	IDs   int   `json:"ids"`
	Bytes int64 `json:"bytes"`
	// Since: every event published since then is recognised.
	Since time.Time `json:"since"`
	// Forgotten counts events that were forgotten early because the memory was
	// used up.
	Forgotten uint64 `json:"forgotten,omitempty"`
}

// Subscriber is a subscriber as people see it: no secrets.
type Subscriber struct {
	Definition registry.Definition `json:"definition"`
	Origin     registry.Origin     `json:"origin"`
	Created    time.Time           `json:"created"`
	// Keys are those that gridfan made, the newest first: to sign with, for receivers,
	// or to let its own NATS client in.
	Keys []SigningKey `json:"keys,omitempty"`
	// SigningKey is what the receiver needs of one that was just made. A key that
	// both sides have is shown this once; of a pair it is the public one.
	SigningKey string `json:"signingKey,omitempty"`
	// PublicKeys are those of its definition's own keys that are pairs.
	PublicKeys []string `json:"publicKeys,omitempty"`
	// AccessKey is one for receivers that was just made. It is shown this once.
	AccessKey string `json:"accessKey,omitempty"`
	// ClientSeed is that of a key that was just made, for its own NATS client. It
	// is shown this once and kept nowhere.
	ClientSeed string `json:"clientSeed,omitempty"`
	// Connect is what its own NATS client needs to know; nil for others.
	Connect *Connect `json:"connect,omitempty"`
	// Note says what is to know of one that was just added; empty otherwise.
	Note string `json:"note,omitempty"`
	// Epochs say which events it wanted when, the oldest first.
	Epochs []registry.Epoch `json:"epochs"`
	// State is one of those below, and Why the reason for being parked.
	State   string           `json:"state"`
	Why     string           `json:"why,omitempty"`
	Backlog registry.Backlog `json:"backlog"`
	// Held is the part of EVENTS that it makes us keep; nil when it has got
	// everything.
	Held *registry.Held `json:"held,omitempty"`
	// Breaker is how this process sees the subscriber; nil without a worker.
	Breaker *deliver.BreakerStatus `json:"breaker,omitempty"`
	// Serving says whether this replica delivers to it. Where order is kept only
	// one does, and the others stand by: their own breakers tell nothing then. nil
	// without a worker.
	Serving *bool `json:"serving,omitempty"`
	// Replicas are the other ones whose breaker for it is not closed, by name.
	Replicas []Replica `json:"replicas"`
}

// StandsBy says whether the replica that was asked leaves the subscriber to
// another one.
func (s *Subscriber) StandsBy() bool { return s.Serving != nil && !*s.Serving }

// Replica is how another replica sees a subscriber.
type Replica struct {
	Instance string `json:"instance"`
	// State is its breaker's, and Since when that closed or opened last, or was
	// found misconfigured.
	State string    `json:"state"`
	Since time.Time `json:"since"`
}

// Connect is how a subscriber's own NATS client gets its events.
type Connect struct {
	// URL is the server's; empty when it has no address for such clients.
	URL string `json:"url"`
	// Stream and Consumer name where the events are.
	Stream   string `json:"stream"`
	Consumer string `json:"consumer"`
	// InboxPrefix begins the subjects of answers; the client must be told.
	InboxPrefix string `json:"inboxPrefix"`
	// Publish and Subscribe are what the client may do. An external server must be
	// told by its operator.
	Publish   []string `json:"publish"`
	Subscribe []string `json:"subscribe"`
	// Managed: gridfan lets the client in by its keys. Otherwise the operator of
	// the server does.
	Managed bool `json:"managed"`
}

// SigningKey is a key that gridfan made, without its secret. The ID of one that lets
// a NATS client in is its public nkey.
type SigningKey struct {
	ID string `json:"id"`
	// PublicKey is what the receiver verifies with; empty for a key that both
	// sides have.
	PublicKey string    `json:"publicKey,omitempty"`
	Created   time.Time `json:"created"`
	// Expires is when it is no longer good; zero for the one in use.
	Expires time.Time `json:"expires,omitzero"`
}

// Undeclared is why a subscriber is parked that a file declared.
const Undeclared = "no longer in the file"

// The states of a subscriber.
const (
	Active = "active"
	Paused = "paused" // by an operator
	Parked = "parked" // see Why

	Draining = "draining" // gets what waits and nothing new
	Drained  = "drained"  // the same, and nothing waits any more
)

// Shed is the answer to GET /api/v1/subscribers/{name}/shed.
type Shed struct {
	// Events are the newest that were shed, newest first. None means that
	// nothing was dropped for this subscriber since then: every event was
	// delivered, is a dead letter, or waits.
	Events []ShedEvent `json:"events"`
	// Since is how far back was looked; Complete says that the records go no
	// further.
	Since    time.Time `json:"since"`
	Complete bool      `json:"complete"`
}

// ShedEvent is one event that was dropped for one subscriber to make room.
type ShedEvent struct {
	ID      string `json:"id"`
	Subject string `json:"subject"`
	// Sequence is its place in EVENTS.
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
}

// Deleted is the answer to DELETE /api/v1/subscribers/{name}.
type Deleted struct {
	Discarded registry.Backlog `json:"discarded"`
}

// Problem is every error's body (RFC 9457). Code is stable.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	// Errors lists each thing that is wrong with a definition.
	Errors []string `json:"errors,omitempty"`
	// ETag is that of what is there now, when the one that was sent is another.
	ETag string `json:"etag,omitempty"`
}

func (p *Problem) Error() string {
	var s strings.Builder
	s.WriteString(p.Detail)
	for _, e := range p.Errors {
		s.WriteString("\n  " + e)
	}
	return s.String()
}
