//go:build unix

package app_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/cli"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// BenchmarkWaitingRetries shows what retries cost that wait for an hour, beside a
// gridfan that has delivered the same events: live traffic to other subscribers,
// in turns with the other one; looking at it; memory; and a start. Then it shows
// how exactly half as many come due within twenty seconds.
func BenchmarkWaitingRetries(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint("retries=", n), func(b *testing.B) {
			for b.Loop() {
				r := startReceivers(b)
				without := startWaiting(b, r, "/take", n)
				with := startWaiting(b, r, "/refuse", n)
				with.report("fill/s", float64(n)/with.filled.Seconds())
				live(b, r, without, with)
				look(b, without, with)
				if heap := with.heap() - without.heap(); heap > 0 {
					with.report("heap-B/retry", heap/float64(n))
				}
				starts(b, r, without, with)
				without.c.kill()
				with.c.kill()
				comeDue(b, r, n/2)
			}
		})
	}
}

// waiting is a gridfan of which one subscriber has got so many events, or
// refused them all so that they wait.
type waiting struct {
	b      *testing.B
	file   string
	c      *child
	api    *admin.Client
	filled time.Duration
}

const (
	liveSubscribers = 4
	// anHour is a subscriber that is up, as far as its breaker is concerned, and
	// whose retries are an hour away.
	anHour = ", retry: { schedule: [1h], faults: { refused: { schedule: [1h] } } }"
)

func startWaiting(b *testing.B, r *receivers, path string, n int) *waiting {
	b.Helper()
	w := &waiting{b: b}
	dir := b.TempDir()
	w.file = filepath.Join(dir, "gridfan.yaml")
	var parts strings.Builder
	fmt.Fprintf(&parts, "subscribers:\n  busy: { subjects: [ events.eventgrid.> ], deliver: { webhook: { url: \"http://%s%s\", format: cloudevents-binary } }, limits: { concurrency: 32 }%s }\n", r.addr, path, anHour)
	for i := range liveSubscribers {
		fmt.Fprintf(&parts, "  live-%d: { subjects: [ events.cloudevents.> ], deliver: { webhook: { url: \"http://%s/ok/live-%d\", format: cloudevents-binary } }, limits: { concurrency: 32 } }\n", i, r.addr, i)
	}
	config := configuration(filepath.Join(dir, "data"), "storage: { maxBytes: 32GiB }",
		"sources: { eg: { kind: eventgrid, push: { auth: none } }, ce: { kind: cloudevents, push: { auth: none } } }", parts.String())
	if err := os.WriteFile(w.file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	w.run()
	const connections, perPost = 4, 100
	began := time.Now()
	p := posting{
		URL: "http://" + w.c.addresses.Public + "/ingress/eg", Connections: connections, PerPost: perPost,
		For: time.Hour, Posts: n / connections / perPost,
	}
	if got := p.post(b); got.N != n {
		b.Fatalf("%d events were posted, want %d", got.N, n)
	}
	for {
		s, err := w.api.Books(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		busy := s.Subscribers[0]
		if path == "/take" && busy.Delivered == int64(n) || path == "/refuse" && busy.InRetry == int64(n) {
			if !s.Balanced {
				b.Fatalf("the books: %+v", busy)
			}
			break
		}
		time.Sleep(100 * time.Millisecond) // sleep: it takes as long as it takes
	}
	w.filled = time.Since(began)
	return w
}

// run starts it on what it has.
func (w *waiting) run() {
	w.c = startChild(w.b, childGridfan, w.file)
	w.api = &admin.Client{URL: "http://" + w.c.addresses.Admin}
}

func (w *waiting) spent() time.Duration { return spent(w.b, w.c.cmd.Process.Pid) }

func (w *waiting) report(unit string, v float64) { w.b.ReportMetric(v, unit) }

// heap is what was alive after the last garbage collection, as far as the program's
// own metrics tell: the next one comes when that has doubled.
func (w *waiting) heap() float64 {
	w.b.Helper()
	resp, err := http.Get("http://" + w.c.addresses.Admin + "/metrics")
	if err != nil {
		w.b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\ngo_memstats_next_gc_bytes ")
	value, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(value, 64)
	if err != nil {
		w.b.Fatal(err)
	}
	return v / 2
}

// live has both deliver the same load in turns.
func live(b *testing.B, r *receivers, without, with *waiting) {
	const events, rounds = 1500, 8
	round := func(w *waiting) (cost, rate, tail float64) {
		before, began := w.spent(), time.Now()
		postAll(b, w.c.addresses.Public, events, func(int) string { return "live" })
		f := awaitAll(r, liveSubscribers*events)
		return (w.spent() - before).Seconds() * 1e6 / float64(f.N), float64(f.N) / time.Since(began).Seconds(), f.P99.Seconds() * 1e3
	}
	round(without)
	round(with) // warm up
	var costs, rates, tails, moreCost, moreRate, moreTail []float64
	for range rounds {
		cost, rate, tail := round(without)
		costBeside, rateBeside, tailBeside := round(with)
		costs, rates, tails = append(costs, cost), append(rates, rate), append(tails, tail)
		moreCost, moreRate, moreTail = append(moreCost, costBeside/cost), append(moreRate, rateBeside/rate), append(moreTail, tailBeside/tail)
	}
	b.ReportMetric(median(costs), "cpu-µs/delivery")
	b.ReportMetric(median(rates), "delivered/s")
	b.ReportMetric(median(tails), "p99-ms")
	b.ReportMetric(median(moreCost), "cpu-ratio")
	b.ReportMetric(median(moreRate), "delivered/s-ratio")
	b.ReportMetric(median(moreTail), "p99-ratio")
}

// look has people look at both, while nothing changes and while retries come and
// go.
func look(b *testing.B, without, with *waiting) {
	const times = 5
	measure := func(w *waiting, unit string, moving bool, f func() error) {
		var took []float64
		before := w.spent()
		for range times {
			if moving { // one more retry
				mustPost(b, w.c.addresses.Public, "eg", batch(1))
			}
			began := time.Now()
			if err := f(); err != nil {
				b.Fatal(err)
			}
			took = append(took, ms(time.Since(began)))
		}
		b.ReportMetric(median(took), unit+"-ms")
		b.ReportMetric(ms(w.spent()-before)/times, unit+"-cpu-ms")
	}
	command := func(w *waiting, name string) func() error {
		return func() error {
			if code := cli.Main(b.Context(), []string{name, "--admin", "http://" + w.c.addresses.Admin}, cli.Env{Out: io.Discard, Err: os.Stderr, Getenv: os.Getenv}); code != 0 {
				return fmt.Errorf("gridfan %s exits with %d", name, code)
			}
			return nil
		}
	}
	status := func(w *waiting) func() error {
		return func() error {
			s, err := w.api.Status(b.Context())
			if err == nil && w == with && s.Subscribers[0].Backlog.Retry < 10_000 {
				err = fmt.Errorf("the backlog is %+v", s.Subscribers[0].Backlog)
			}
			return err
		}
	}
	books := func(w *waiting) func() error {
		return func() error { _, err := w.api.Books(b.Context()); return err }
	}
	measure(without, "none-status", false, status(without))
	measure(without, "none-books", false, books(without))
	measure(with, "status", false, status(with))
	measure(with, "books", false, books(with))
	measure(with, "moving-status", true, status(with))
	measure(with, "moving-books", true, books(with))
	measure(with, "cli-status", false, command(with, "status"))
	measure(with, "cli-books", false, command(with, "books"))
}

// starts stops and kills both and starts them again, until live traffic has come
// through.
func starts(b *testing.B, r *receivers, without, with *waiting) {
	for _, w := range []*waiting{without, with} {
		name := map[*waiting]string{without: "none-", with: ""}[w]
		for _, how := range []string{"stop", "kill"} {
			if how == "kill" {
				w.c.kill()
			} else {
				w.c.end()
			}
			began := time.Now()
			w.run()
			answers(b, w.c.addresses.Public)
			b.ReportMetric(ms(time.Since(began)), name+"start-after-"+how+"-ms")
			postAll(b, w.c.addresses.Public, 1, func(int) string { return "live" })
			r.await(liveSubscribers)
			b.ReportMetric(ms(time.Since(began)), name+"live-after-"+how+"-ms")
		}
		b.ReportMetric(resident(b, w.c.cmd.Process.Pid), name+"rss-MiB")
	}
}

// comeDue puts retries on the lane whose times are evenly spread, and tells how
// late they come.
func comeDue(b *testing.B, r *receivers, n int) {
	const spread = 20 * time.Second
	dir := b.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	config := configuration(filepath.Join(dir, "data"), sources, "subscribers:\n"+binary("late", "http://"+r.addr+"/ok/late", ""))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	c := startChild(b, childGridfan, file)
	first := time.Now().Add(10*time.Second + time.Duration(n)*200*time.Microsecond) // when all are stored
	onLane(b, c, n, func(i int) *nats.Msg {
		at := first.Add(spread * time.Duration(i) / time.Duration(n))
		sequence := uint64(1<<40 + i)
		m := retryOf("late", sequence, fmt.Sprintf("%d-%d", at.UnixNano(), i), "Order.Placed")
		m.Subject = broker.RetryWaiting("late", sequence)
		m.Header.Set("Nats-Schedule", "@at "+at.UTC().Format(time.RFC3339Nano))
		m.Header.Set("Nats-Schedule-Target", broker.RetryDue("late"))
		return m
	})
	if time.Now().After(first) {
		b.Fatal("the first came due before all were stored")
	}
	before := spent(b, c.cmd.Process.Pid)
	time.Sleep(time.Until(first)) // sleep: until they come due
	f := r.await(n)
	b.ReportMetric(ms(f.Least), "due-least-ms")
	b.ReportMetric(ms(f.P50), "due-p50-ms")
	b.ReportMetric(ms(f.P99), "due-p99-ms")
	b.ReportMetric(ms(f.Most), "due-most-ms")
	b.ReportMetric((spent(b, c.cmd.Process.Pid)-before).Seconds()*1e6/float64(n), "due-cpu-µs")
	c.kill()
}

// onLane stores messages on a gridfan's retry lane.
func onLane(b *testing.B, c *child, n int, message func(i int) *nats.Msg) {
	b.Helper()
	nc, err := nats.Connect(c.addresses.NATS)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		if _, err := js.PublishMsgAsync(message(i)); err != nil {
			b.Fatal(err)
		}
		if i%2000 == 1999 {
			<-js.PublishAsyncComplete()
		}
	}
	<-js.PublishAsyncComplete()
}

// retryOf is what a worker puts on the retry lane, but for its subject.
func retryOf(subscriber string, sequence uint64, id, kind string) *nats.Msg {
	return &nats.Msg{
		Data: fmt.Appendf(nil, `{"filler":%q}`, strings.Repeat("x", 700)),
		Header: nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {id}, "ce-source": {"/s"}, "ce-type": {kind}, "content-type": {"application/json"},
			deliver.HeaderSubscriber: {subscriber}, deliver.HeaderOriginSequence: {fmt.Sprint(sequence)}, deliver.HeaderOriginSubject: {"events.eventgrid.eg.shop.Order.Placed"},
			deliver.HeaderHop: {"1"}, deliver.HeaderRounds: {"1"}, deliver.HeaderAttempts: {"1"},
			nats.MsgIdHdr: {deliver.MsgID(subscriber, time.Unix(0, 0), sequence, 1)},
		},
	}
}

// BenchmarkManyKeys shows what events of many keys cost a subscriber that wants
// them in order of their keys. It is down, and each event has a key of its own: they
// stay in the stream. Or it refuses them for now, and as many as one subscriber may
// have wait on the retry lane, each of a key of its own, or all but one behind the
// first.
func BenchmarkManyKeys(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint("down=", n), func(b *testing.B) {
			for b.Loop() {
				k := startKeys(b, "http://127.0.0.1:1")
				before := resident(b, k.c.cmd.Process.Pid)
				const perPost = 1000
				for i := 0; i < n; i += perPost {
					var s strings.Builder
					for j := range perPost {
						fmt.Fprintf(&s, `,{"specversion":"1.0","id":%q,"source":"/shop","type":"t","subject":"orders/%d","data":1}`, stamped(), i+j)
					}
					a, err := send(k.c.addresses.Public, "ce", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, []byte("["+s.String()[1:]+"]"))
					if err != nil || a.status != http.StatusOK {
						b.Fatalf("HTTP %d %s, %v", a.status, a.body, err)
					}
				}
				pending, retry := k.backlog()
				if pending+retry != n || retry > 1000 {
					b.Fatalf("%d are in the stream and %d on the retry lane", pending, retry)
				}
				b.ReportMetric(float64(retry), "on-lane")
				b.ReportMetric(resident(b, k.c.cmd.Process.Pid)-before, "rss-MiB-more")
				k.c.end()
				k.run()
				answers(b, k.c.addresses.Public)
				b.ReportMetric(resident(b, k.c.cmd.Process.Pid), "rss-MiB-after-start")
				k.c.kill()
			}
		})
	}
	line := func(i int) string { return strconv.FormatUint(uint64(i)*0x9e3779b97f4a7c15, 36) } // as long as a hash
	for _, n := range []int{10_000, 250_000} {
		for name, subject := range map[string]func(i int) string{
			"own": func(i int) string { return broker.RetryWaitingIn("keys", uint64(i), line(i)) },
			"one": func(i int) string {
				if i == 0 {
					return broker.RetryWaitingIn("keys", 0, line(1))
				}
				return broker.RetryBehind("keys", uint64(i), line(1))
			},
		} {
			b.Run(fmt.Sprintf("waiting=%d/%s", n, name), func(b *testing.B) {
				for b.Loop() {
					r := startReceivers(b)
					k := startKeys(b, "http://"+r.addr+"/refuse")
					before := resident(b, k.c.cmd.Process.Pid)
					at := "@at " + time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano)
					onLane(b, k.c, n, func(i int) *nats.Msg {
						m := retryOf("keys", uint64(i), stamped(), "t")
						m.Subject = subject(i)
						if rest, waits := strings.CutPrefix(m.Subject, "gridfan.retry.waiting."); waits {
							m.Header.Set("Nats-Schedule", at)
							m.Header.Set("Nats-Schedule-Target", "gridfan.retry.due."+rest)
						}
						return m
					})
					k.c.end()
					began := time.Now()
					k.run()
					answers(b, k.c.addresses.Public)
					b.ReportMetric(ms(time.Since(began)), "start-ms")
					// Of no key, and due: it comes as soon as the subscriber is served.
					onLane(b, k.c, 1, func(int) *nats.Msg {
						m := retryOf("keys", 1<<40, stamped(), "Wanted")
						m.Subject = broker.RetryDue("keys")
						return m
					})
					r.await(1)
					b.ReportMetric(ms(time.Since(began)), "served-ms")
					b.ReportMetric((resident(b, k.c.cmd.Process.Pid)-before)*(1<<20)/float64(n), "rss-B/event")
					began = time.Now()
					k.backlog()
					b.ReportMetric(ms(time.Since(began)), "status-ms")
					waitFor(b, "all but the one that was due are on the retry lane", func() bool { _, retry := k.backlog(); return retry == n })
					k.c.kill()
				}
			})
		}
	}
}

// startKeys runs a gridfan with one subscriber that wants order by key.
func startKeys(b *testing.B, url string) *waiting {
	b.Helper()
	w := &waiting{b: b}
	dir := b.TempDir()
	w.file = filepath.Join(dir, "gridfan.yaml")
	config := configuration(filepath.Join(dir, "data"), "storage: { maxBytes: 32GiB }", "sources: { ce: { kind: cloudevents, push: { auth: none } } }",
		fmt.Sprintf("subscribers:\n  keys: { subjects: [ events.> ], ordering: key, deliver: { webhook: { url: %q, format: cloudevents-binary } }%s }\n", url, anHour))
	if err := os.WriteFile(w.file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	w.run()
	return w
}

// backlog is what the first subscriber has not got.
func (w *waiting) backlog() (pending, retry int) {
	w.b.Helper()
	s, err := w.api.Status(w.b.Context())
	if err != nil {
		w.b.Fatal(err)
	}
	return s.Subscribers[0].Backlog.Pending, s.Subscribers[0].Backlog.Retry
}
