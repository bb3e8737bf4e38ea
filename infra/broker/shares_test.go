package broker_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// TestShares wants the shares to fit the streams as they are declared, and all
// limits together to fit the store.
func TestShares(t *testing.T) {
	const maxBytes = 64 << 20
	b := brokertest.OpenSmall(t, t.TempDir())
	limits := map[string]int64{}
	sum := int64(0)
	streams := b.JetStream().ListStreams(t.Context())
	for s := range streams.Info() {
		limits[s.Config.Name] = s.Config.MaxBytes
		if s.Config.Storage == jetstream.FileStorage {
			sum += max(0, s.Config.MaxBytes)
		}
	}
	if err := streams.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := b.DeadLetterShare(), limits[broker.StreamDeadLetters]/2; got != want {
		t.Errorf("a subscriber may have %d bytes of dead letters, half of the stream is %d", got, want)
	}
	if left := maxBytes - sum; b.RetryShare() <= 0 || 4*b.RetryShare() > left {
		t.Errorf("a subscriber may have %d bytes of retries, the other streams leave %d", b.RetryShare(), left)
	}
	if limits[broker.StreamRetry] > 0 {
		t.Errorf("RETRY has a limit of %d: the server would drop waiting retries", limits[broker.StreamRetry])
	}
}
