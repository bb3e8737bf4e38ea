//go:build unix

package app_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// BenchmarkIntake measures how fast events are accepted, each on disk before its
// sender is answered, side by side with what the machine can do without
// gridfan: in turns, because machines are noisy, and of each the median. The
// senders are another process on the same cores.
func BenchmarkIntake(b *testing.B) {
	const rounds, span = 5, 2 * time.Second
	for b.Loop() {
		dir := b.TempDir()
		g := start(b, sources, "subscribers:\n"+subscriber("paused", "http://127.0.0.1:1/", ""))
		if _, err := g.admin.SetPaused(b.Context(), "paused", true); err != nil {
			b.Fatal(err)
		}
		url := "http://" + g.app.PublicAddr() + "/ingress/eg"
		raw := rawHTTP(b)
		always := brokertest.InProcess(b, filepath.Join(dir, "always"), true)

		var v medians
		for range rounds {
			disk := appends(b, dir, span/2)
			v.add("fdatasync/s", disk)

			bare := posting{URL: raw, Connections: 256, PerPost: 1, For: span}.post(b)
			v.add("raw-http/s", rate(bare))
			before := cpu(b)
			single := posting{URL: url, Connections: 256, PerPost: 1, For: span}.post(b)
			v.add("single/s", rate(single))
			v.add("single-p99-ms", ms(single.P99))
			v.add("single-cpu-µs/event", perEvent(cpu(b)-before, single.N))
			v.add("single/target", rate(single)/min(4*disk, .35*rate(bare)))

			atomic := atomicBatches(b, always, span)
			v.add("atomic-1000/s", atomic)
			before = cpu(b)
			hundred := posting{URL: url, Connections: 16, PerPost: 100, For: span}.post(b)
			v.add("hundred/s", rate(hundred))
			v.add("hundred-cpu-µs/event", perEvent(cpu(b)-before, hundred.N))
			v.add("hundred/atomic", rate(hundred)/atomic)

			synced := syncedPublish(b, always, 200)
			idle := idlePost(b, g, 200)
			v.add("synced-publish-p50-ms", ms(synced))
			v.add("idle-p50-ms", ms(idle))
			v.add("idle/synced", idle.Seconds()/synced.Seconds())
		}
		v.report(b)
		g.stop()
	}
}

// BenchmarkIntakeCPU compares what an accepted event costs with what it costs to
// split the same body, publish its parts and wait, on a store that is not
// synced. Run it with -cpuprofile to see where it goes.
func BenchmarkIntakeCPU(b *testing.B) {
	const rounds, span = 5, 2 * time.Second
	for b.Loop() {
		dir := memory(b)
		g := &gridfan{t: b, dir: filepath.Join(dir, "gridfan"), log: slog.New(slog.DiscardHandler)}
		b.Cleanup(g.stop)
		g.run(sources, "subscribers:\n"+subscriber("paused", "http://127.0.0.1:1/", ""))
		if _, err := g.admin.SetPaused(b.Context(), "paused", true); err != nil {
			b.Fatal(err)
		}
		url := "http://" + g.app.PublicAddr() + "/ingress/eg"
		nc := brokertest.InProcess(b, filepath.Join(dir, "bare"), false)
		var v medians
		for range rounds {
			bare := bareLoop(b, nc, span)
			v.add("bare-cpu-µs/event", bare)
			before := cpu(b)
			r := posting{URL: url, Connections: 8, PerPost: 100, For: span}.post(b)
			cost := perEvent(cpu(b)-before, r.N)
			v.add("accepted-cpu-µs/event", cost)
			v.add("cpu-ratio", cost/bare)
		}
		v.report(b)
		g.stop()
	}
}

// medians gathers figures by name, in the order they come.
type medians struct {
	names []string
	of    map[string][]float64
}

func (m *medians) add(name string, v float64) {
	if m.of == nil {
		m.of = map[string][]float64{}
	}
	if m.of[name] == nil {
		m.names = append(m.names, name)
	}
	m.of[name] = append(m.of[name], v)
}

func (m *medians) report(b *testing.B) {
	for _, n := range m.names {
		b.ReportMetric(median(m.of[n]), n)
	}
}

func rate(p posted) float64                     { return float64(p.N) / p.Took.Seconds() }
func ms(d time.Duration) float64                { return d.Seconds() * 1e3 }
func perEvent(cpu time.Duration, n int) float64 { return cpu.Seconds() * 1e6 / float64(n) }

// memory is a folder that needs no sync, where there is one.
func memory(b *testing.B) string {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return b.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "gridfan-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// rawHTTP serves what costs nothing.
func rawHTTP(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusOK)
	})}
	go func() { _ = s.Serve(l) }() // until it is closed
	b.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String() + "/"
}

// appends says how often a second the disk takes 1 KB for good.
func appends(b *testing.B, dir string, span time.Duration) float64 {
	f, err := os.Create(filepath.Join(dir, "appends"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1024)
	began, n := time.Now(), 0
	for ; time.Since(began) < span; n++ {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
		if err := fdatasync(f); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(began).Seconds()
}

// streamOn makes a stream as plain as can be.
func streamOn(b *testing.B, nc *nats.Conn, name string) jetstream.JetStream {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		b.Fatal(err)
	}
	_, err = js.CreateOrUpdateStream(b.Context(), jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".>"}, AllowAtomicPublish: true, Duplicates: 2 * time.Minute,
	})
	if err != nil {
		b.Fatal(err)
	}
	return js
}

// atomicBatches says how many messages a second JetStream stores in batches of
// 1,000 (ADR-50), the one way in which it syncs for many at once.
func atomicBatches(b *testing.B, nc *nats.Conn, span time.Duration) float64 {
	streamOn(b, nc, "atomic")
	body := make([]byte, 1024)
	began, n := time.Now(), 0
	for ; time.Since(began) < span; n += 1000 {
		id := nats.NewInbox()
		for i := 1; i <= 1000; i++ {
			m := &nats.Msg{Subject: "atomic.x", Data: body, Header: nats.Header{
				"Nats-Batch-Id": {id}, "Nats-Batch-Sequence": {strconv.Itoa(i)},
			}}
			switch i {
			case 1, 1000:
				if i == 1000 {
					m.Header["Nats-Batch-Commit"] = []string{"1"}
				}
				answer, err := nc.RequestMsg(m, patience)
				if err != nil || strings.Contains(string(answer.Data), "error") {
					b.Fatalf("batch: %v %s", err, answer.Data)
				}
			default:
				if err := nc.PublishMsg(m); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	return float64(n) / time.Since(began).Seconds()
}

// syncedPublish is the median time of one publish that is synced.
func syncedPublish(b *testing.B, nc *nats.Conn, n int) time.Duration {
	js := streamOn(b, nc, "synced")
	body := make([]byte, 1024)
	var took []float64
	for range n {
		began := time.Now()
		if _, err := js.Publish(b.Context(), "synced.x", body); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began).Seconds())
		time.Sleep(3 * time.Millisecond) // sleep: idle in between
	}
	return time.Duration(median(took) * 1e9)
}

// idlePost is the median time of one post when there is no other. It comes from
// this process, as the publish that it is compared with does.
func idlePost(b *testing.B, g *gridfan, n int) time.Duration {
	fill := template(1)
	var took []float64
	for range n {
		body := fill()
		began := time.Now()
		mustPost(b, g.app.PublicAddr(), "eg", body)
		took = append(took, time.Since(began).Seconds())
		time.Sleep(3 * time.Millisecond) // sleep: idle in between
	}
	return time.Duration(median(took) * 1e9)
}

// bareLoop is the CPU time of an event when its body is only split, published
// and waited for.
func bareLoop(b *testing.B, nc *nats.Conn, span time.Duration) float64 {
	js := streamOn(b, nc, "bare")
	before, began, n := cpu(b), time.Now(), 0
	var making time.Duration
	for time.Since(began) < span {
		c := cpu(b)
		body := batch(100) // the poster's work, not the loop's
		making += cpu(b) - c
		elements, _, err := rawjson.Elements(body)
		if err != nil {
			b.Fatal(err)
		}
		futures := make([]jetstream.PubAckFuture, len(elements))
		for i, e := range elements {
			f, err := js.PublishMsgAsync(&nats.Msg{
				Subject: "bare.x", Data: e, Header: nats.Header{nats.MsgIdHdr: {fmt.Sprint(began.UnixNano(), "-", n+i)}},
			}, jetstream.WithStallWait(patience))
			if err != nil {
				b.Fatal(err)
			}
			futures[i] = f
		}
		for _, f := range futures {
			select {
			case <-f.Ok():
			case err := <-f.Err():
				b.Fatal(err)
			}
		}
		n += len(elements)
	}
	return perEvent(cpu(b)-before-making, n)
}
