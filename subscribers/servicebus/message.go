package servicebus

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/gridfan/gridfan/schemas/event"
)

const (
	// maxID is the longest id of a message and of a session
	// (learn.microsoft.com, service-bus-quotas; read 2026-11).
	maxID = 128

	// maxProperties is how many bytes of attributes are repeated as properties: the
	// service takes 64 KB of properties, 32 KB each (as above).
	maxProperties = 16 << 10

	// propertyPrefix is that of CloudEvents' AMQP binding (1.0.2, §3.1.2).
	propertyPrefix = "cloudEvents:"

	// overhead is what the sections and fields of a message need, amply.
	overhead = 256
)

// contentType is that of CloudEvents' structured mode.
var contentType = event.MediaStructured + "; charset=utf-8"

// message makes e's message: the event as JSON, and its attributes once more as
// properties, for filters. size is at least how many bytes it has on the wire.
func (s *Sender) message(e *event.Event) (m *azservicebus.Message, size int) {
	m = &azservicebus.Message{
		Body:        e.JSON(),
		ContentType: &contentType,
		MessageID:   new(messageID(e)),
	}
	size = overhead + len(m.Body) + len(contentType) + len(*m.MessageID)
	if s.session == ByPartition {
		m.SessionID = new(sessionID(e))
		size += len(*m.SessionID)
	}
	if len(e.Type) <= maxID {
		m.Subject = &e.Type
		size += len(e.Type)
	}
	properties, n := map[string]any{}, 0
	set := func(name, value string) {
		if value != "" {
			properties[propertyPrefix+name] = value
			n += len(propertyPrefix) + len(name) + len(value) + 10
		}
	}
	set("specversion", event.SpecVersion)
	set("id", e.ID)
	set("source", e.Source)
	set("type", e.Type)
	set("subject", e.Subject)
	if !e.Time.IsZero() {
		set("time", event.FormatTime(e.Time))
	}
	set("dataschema", e.DataSchema)
	for _, x := range e.Extensions {
		set(x.Name, x.Value)
		switch x.Type {
		case event.Integer:
			if v, err := strconv.ParseInt(x.Value, 10, 64); err == nil {
				properties[propertyPrefix+x.Name] = v
			}
		case event.Boolean:
			properties[propertyPrefix+x.Name] = x.Value == "true"
		}
	}
	if n <= maxProperties {
		m.ApplicationProperties = properties
		size += n
	}
	return m, size
}

// messageID is the identity of an event, the same for every attempt, so that a queue
// that detects duplicates drops what it has. It is a digest, because source and id
// together identify an event, whatever is in them, and are often longer than what an
// id may have.
func messageID(e *event.Event) string {
	sum := sha256.Sum256([]byte(strconv.Itoa(len(e.Source)) + " " + e.Source + e.ID))
	return hex.EncodeToString(sum[:])
}

// sessionID is the session that keeps the order of a partition key. An event without
// one has no order to keep, and a session of its own.
func sessionID(e *event.Event) string {
	key := e.Get(event.ExtPartitionKey)
	switch {
	case key == "":
		return messageID(e)
	case len(key) > maxID:
		sum := sha256.Sum256([]byte(key))
		return "sha256-" + hex.EncodeToString(sum[:])
	}
	return key
}
