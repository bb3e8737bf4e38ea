//go:build unix

package app_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/dedup"
)

// BenchmarkBacklog shows what a long outage of a subscriber costs: how long a
// start takes with so many events stored and undelivered, the memory after it,
// and how fast the first ones are delivered then.
func BenchmarkBacklog(b *testing.B) {
	const drained = 20_000
	for _, n := range []int{drained, 1_000_000} {
		b.Run(fmt.Sprint("events=", n), func(b *testing.B) {
			for b.Loop() {
				r := startReceivers(b)
				dir := b.TempDir()
				file := filepath.Join(dir, "gridfan.yaml")
				config := configuration(filepath.Join(dir, "data"), sources, "subscribers:\n"+binary("late", "http://"+r.addr+"/ok/late", ""))
				if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
					b.Fatal(err)
				}
				c := startChild(b, childGridfan, file)
				api := &admin.Client{URL: "http://" + c.addresses.Admin}
				if _, err := api.SetPaused(b.Context(), "late", true); err != nil {
					b.Fatal(err)
				}
				const connections, perPost = 16, 100
				p := posting{
					URL: "http://" + c.addresses.Public + "/ingress/eg", Connections: connections, PerPost: perPost,
					For: time.Hour, Posts: n / connections / perPost,
				}
				if got := p.post(b); got.N < n-connections*perPost {
					b.Fatalf("only %d events were posted", got.N)
				}
				// At a start the broker reads what came within its window, and
				// a backlog does not come within two minutes.
				time.Sleep(broker.DedupWindow + 5*time.Second) // sleep: until that is over
				for _, how := range []string{"stop", "kill"} {
					if how == "kill" {
						c.kill()
					} else {
						c.end()
					}
					began := time.Now()
					c = startChild(b, childGridfan, file)
					answers(b, c.addresses.Public)
					b.ReportMetric(ms(time.Since(began)), "start-after-"+how+"-ms")
				}
				b.ReportMetric(resident(b, c.cmd.Process.Pid), "rss-MiB")
				api = &admin.Client{URL: "http://" + c.addresses.Admin}
				began := time.Now()
				if _, err := api.SetPaused(b.Context(), "late", false); err != nil {
					b.Fatal(err)
				}
				f := r.await(drained - connections*perPost)
				b.ReportMetric(float64(f.N)/time.Since(began).Seconds(), "drained/s")
				c.kill()
			}
		})
	}
}

// BenchmarkManyIDs shows what ten million events inside the dedup horizon cost: the
// memory of the index, and how long a start takes with it.
func BenchmarkManyIDs(b *testing.B) {
	const n = 10_000_000
	for b.Loop() {
		dir := b.TempDir()
		data, file := filepath.Join(dir, "data"), filepath.Join(dir, "gridfan.yaml")
		if err := os.WriteFile(file, []byte(configuration(data, sources)), 0o600); err != nil {
			b.Fatal(err)
		}
		c := startChild(b, childGridfan, file)
		mustPost(b, c.addresses.Public, "fo", businessEvent(stamped()))
		nc, err := nats.Connect(c.addresses.NATS)
		if err != nil {
			b.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			b.Fatal(err)
		}
		s, err := js.Stream(b.Context(), broker.StreamEvents)
		if err != nil {
			b.Fatal(err)
		}
		created := s.CachedInfo().Created
		nc.Close()
		c.end()

		// As if they had been published over the last hours and trimmed since.
		x, err := dedup.Open(dedup.Config{Dir: filepath.Join(data, "dedup")},
			dedup.Stream{ID: created.UTC().Format(time.RFC3339Nano), Last: 1}, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		for i := range n {
			x.Add(1, dedup.KeyOf(strconv.Itoa(i), "d"), began.Add(-time.Duration(i%80_000)*time.Second))
		}
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		c = startChild(b, childGridfan, file)
		answers(b, c.addresses.Public)
		b.ReportMetric(ms(time.Since(began)), "start-ms")
		st, err := (&admin.Client{URL: "http://" + c.addresses.Admin}).Status(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if st.Broker.Dedup.IDs < n*99/100 {
			b.Fatalf("only %d ids are known after the start", st.Broker.Dedup.IDs)
		}
		b.ReportMetric(float64(st.Broker.Dedup.Bytes)/float64(st.Broker.Dedup.IDs), "bytes/id")
		b.ReportMetric(resident(b, c.cmd.Process.Pid), "rss-MiB")
		c.kill()
	}
}

// resident is a process's memory in MiB; 0 where the system does not tell.
func resident(b *testing.B, pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.Atoi(kib)
	if err != nil {
		b.Fatal(err)
	}
	return float64(n) / 1024
}
