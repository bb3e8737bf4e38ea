package broker

import (
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// Report tells what happened to gridfan itself: one log line for people, and
// one CloudEvent on the OPS stream for whoever subscribes to it. what is a
// stable word such as "breaker.opened", about names the subscriber or source.
// It does not block and nothing depends on it: when the stream can't be
// written, the log line remains.
func (b *Broker) Report(what, about string, attrs map[string]any) {
	args := []any{"about", about}
	for _, k := range sortedKeys(attrs) {
		args = append(args, k, attrs[k])
	}
	b.log.Info(what, args...)
	body, err := json.Marshal(attrs)
	if err != nil {
		b.log.Warn("report", "what", what, "error", err)
		return
	}
	_, err = b.js.PublishMsgAsync(&nats.Msg{
		Subject: Ops(Instance(), what+"."+about),
		Header: nats.Header{
			"ce-specversion": {"1.0"},
			"ce-id":          {nuid.Next()},
			"ce-source":      {"/gridfan/" + Instance()},
			"ce-type":        {"gridfan." + what},
			"ce-subject":     {about},
			"ce-time":        {time.Now().UTC().Format(time.RFC3339Nano)},
			"content-type":   {"application/json"},
		},
		Data: body,
	})
	if err != nil {
		b.log.Debug("report not published", "what", what, "error", err)
	}
}
