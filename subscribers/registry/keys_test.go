package registry_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

func TestKeys(t *testing.T) {
	ctx := t.Context()
	b := brokertest.New(t)
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	r, err := registry.Open(ctx, b, logger)
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := deliver.NewRecorder(ctx, b, logger)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var signing []string // what the last sender signs with
	fleet, err := registry.StartFleet(ctx, r, deliver.Parts{
		Broker: b, Recorder: recorder, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: logger,
	}, func(d registry.Definition, _ bool) (deliver.Sender, error) {
		mu.Lock()
		defer mu.Unlock()
		signing = d.Deliver.Webhook.Sign.Keys
		_, err := d.Deliver.Webhook.Sign.Parse()
		return &sender{&rig{got: map[string][]string{}}, d.Name, ""}, err
	}, logger)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() { fleet.Stop(time.Second); recorder.Close() })
	defer stop()
	signsWith := func(want ...string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("requests have %d signatures", len(want)), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Equal(signing, want)
		})
	}

	d := definition("one", "events.>")
	d.Deliver.Webhook.Sign.On = true
	e, err := r.Add(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	first := *e.NewKey
	if len(e.Keys) != 1 || e.Keys[0] != first || first.ID == "" {
		t.Errorf("keys %v", e.Keys)
	}
	signsWith(first.Secret)
	if again, err := r.Add(ctx, d); err != nil || again.NewKey != nil {
		t.Errorf("shown again: %v, %v", again.NewKey, err)
	}
	if e, err = r.SetPaused(ctx, "one", true); err != nil || e.NewKey != nil || len(e.Keys) != 1 {
		t.Errorf("paused: %v, %v", e.Keys, err)
	}

	// Both sign for a while.
	if e, err = r.RotateKey(ctx, "one", -1); err != nil {
		t.Fatal(err)
	}
	next := *e.NewKey
	if lasts := time.Until(e.Keys[1].Expires); len(e.Keys) != 2 || !e.Keys[0].Expires.IsZero() || lasts < 23*time.Hour || lasts > 25*time.Hour {
		t.Errorf("keys %v, expiring in %s", e.Keys, lasts)
	}
	signsWith(next.Secret, first.Secret)
	if e, err = r.RotateKey(ctx, "one", 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	signsWith(e.NewKey.Secret, next.Secret, first.Secret)
	signsWith(e.NewKey.Secret)
	waitFor(t, "the old ones are gone from the bucket", func() bool {
		now, err := r.Get(ctx, "one")
		return err == nil && len(now.Keys) == 1
	})
	for range 4 {
		if _, err := r.RotateKey(ctx, "one", time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.RotateKey(ctx, "one", time.Hour); !errors.Is(err, registry.ErrTooManyKeys) {
		t.Errorf("got %v", err)
	}
	if e, err = r.RotateKey(ctx, "one", 0); err != nil || len(e.Keys) != 1 {
		t.Errorf("%v, %v", e.Keys, err)
	}
	signsWith(e.NewKey.Secret)

	// Keys of the definition, and none.
	own := webhook.NewKey(webhook.HMAC).Reveal()
	d.Deliver.Webhook.Sign = webhook.Signing{On: true, Keys: []string{own}}
	if e, _, err = r.Replace(ctx, d, 0); err != nil || len(e.Keys) != 0 || e.NewKey != nil {
		t.Errorf("%v, %v", e.Keys, err)
	}
	signsWith(own)
	if _, err := r.RotateKey(ctx, "one", 0); !errors.Is(err, registry.ErrKeysDeclared) {
		t.Errorf("got %v", err)
	}
	shown := e.Definition.Redacted()
	shown.Reveal(e.Definition)
	if !slices.Equal(shown.Deliver.Webhook.Sign.Keys, []string{own}) {
		t.Error("not revealed")
	}
	d.Deliver.Webhook.Sign = webhook.Signing{}
	if _, _, err = r.Replace(ctx, d, 0); err != nil {
		t.Fatal(err)
	}
	signsWith()
	if _, err := r.RotateKey(ctx, "one", 0); !errors.Is(err, registry.ErrNotSigned) {
		t.Errorf("got %v", err)
	}
	d.Deliver.Webhook.Sign = webhook.Signing{On: true}
	if e, _, err = r.Replace(ctx, d, 0); err != nil || e.NewKey == nil {
		t.Errorf("%v, %v", e.NewKey, err)
	}

	// From one kind to the other both sign for the overlap, and back.
	shared := e.NewKey.Secret
	d.Deliver.Webhook.Sign = webhook.Signing{On: true, Algorithm: webhook.Ed25519}
	if e, _, err = r.Replace(ctx, d, 0); err != nil || e.NewKey == nil {
		t.Fatalf("%v, %v", e.NewKey, err)
	}
	pair := *e.NewKey
	if lasts := time.Until(e.Keys[1].Expires); len(e.Keys) != 2 || lasts < 23*time.Hour || lasts > 25*time.Hour {
		t.Errorf("keys %v", e.Keys)
	}
	if !strings.HasPrefix(pair.Secret, "whsk_") || !strings.HasPrefix(pair.Public(), "whpk_") || pair.Shown() != pair.Public() || e.Keys[1].Shown() != shared {
		t.Errorf("a pair shows %s", pair.Shown())
	}
	signsWith(pair.Secret, shared)
	if e, err = r.RotateKey(ctx, "one", time.Hour); err != nil || !strings.HasPrefix(e.NewKey.Secret, "whsk_") {
		t.Fatalf("%v, %v", e.NewKey, err)
	}
	signsWith(e.NewKey.Secret, pair.Secret, shared)
	for i := range 5 {
		d.Deliver.Webhook.Sign.Algorithm = []webhook.Algorithm{webhook.HMAC, webhook.Ed25519}[i%2]
		if e, _, err = r.Replace(ctx, d, 0); err != nil || e.NewKey == nil || len(e.Keys) > 5 || !e.Keys[0].Expires.IsZero() || e.Keys[1].Expires.IsZero() {
			t.Fatalf("%v, %v, %v", e.NewKey, e.Keys, err)
		}
	}

	stop()
	for _, text := range []string{log.String(), fmt.Sprintf("%v %+v %s", first, e.Keys, e.NewKey), fmt.Sprintf("%+v", e)} {
		if strings.Contains(text, "whsec_") || strings.Contains(text, "whsk_") {
			t.Errorf("a key shows: %s", text)
		}
	}
}
