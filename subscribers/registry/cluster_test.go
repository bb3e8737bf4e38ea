package registry_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// On a cluster a subscriber can be deleted while the nodes still agree on who leads
// its cursors: nobody answers the deletion of one that has no leader yet.
func TestDeleteWhileCursorsAreMade(t *testing.T) {
	c := brokertest.NewCluster(t)
	g := openRig(t, c.Connect())
	other := openRig(t, c.Connect())
	for i := range 12 {
		name := fmt.Sprint("brief", i)
		if _, err := g.r.Add(t.Context(), definition(name, "events.>")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 20 * time.Millisecond) // sleep: at each moment of the making
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		began := time.Now()
		_, err := other.r.Delete(ctx, name, true)
		cancel()
		if err != nil {
			t.Errorf("deleted %d ms after it was added: %v after %v", 20*i, err, time.Since(began))
		}
	}
	// Whichever was first, the making or the deletion, nothing stays.
	for _, stream := range []string{broker.StreamEvents, broker.StreamRetry} {
		waitFor(t, "no cursors on "+stream, func() bool {
			s, err := g.broker.JetStream().Stream(t.Context(), stream)
			if err != nil {
				return false
			}
			names := s.ConsumerNames(t.Context())
			n := 0
			for range names.Name() {
				n++
			}
			return names.Err() == nil && n == 0
		})
	}
}
