package poll

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridfan/gridfan/schemas/record"
)

var update = flag.Bool("update", false, "write the table of schedules into docs/polling.md")

// policies are the schedules that the table compares.
var policies = []struct {
	name  string
	every Every
}{
	{"fixed 30s", Every{30 * time.Second, 30 * time.Second}},
	{"fixed 60s", Every{time.Minute, time.Minute}},
	{"5s to 120s", Every{5 * time.Second, 2 * time.Minute}},
	{"5s to 60s", Every{5 * time.Second, time.Minute}},
}

const day = 24 * time.Hour

// loads are days of changes, by when in the day.
var loads = []struct {
	name string
	make func(*rand.Rand) []time.Duration
}{
	{"office hours, 1,200 changes", func(r *rand.Rand) []time.Duration {
		return arrivals(r, func(hour float64) float64 {
			switch {
			case hour >= 12 && hour < 13:
				return 60.0 / 3600
			case hour >= 8 && hour < 18:
				return 123.0 / 3600
			}
			return 2.4 / 3600
		})
	}},
	{"8 bursts of 100", func(r *rand.Rand) (all []time.Duration) {
		for range 8 {
			at := time.Duration(r.Float64() * float64(day-time.Hour))
			for range 100 {
				all = append(all, at+time.Duration(r.Float64()*float64(5*time.Minute)))
			}
		}
		slices.Sort(all)
		return all
	}},
	{"quiet, 50 changes", func(r *rand.Rand) []time.Duration {
		return arrivals(r, func(float64) float64 { return 50 / day.Seconds() })
	}},
	{"steady, 0.5 a second", func(r *rand.Rand) []time.Duration {
		return arrivals(r, func(float64) float64 { return 0.5 })
	}},
}

// arrivals makes a day in which changes come by themselves, at a rate by the hour.
func arrivals(r *rand.Rand, rate func(hour float64) float64) (all []time.Duration) {
	const most = 0.5
	for t := 0.0; ; {
		t += r.ExpFloat64() / most
		if t >= day.Seconds() {
			return all
		}
		if r.Float64() < rate(t/3600)/most {
			all = append(all, time.Duration(t*float64(time.Second)))
		}
	}
}

// figures are what a schedule costs and gives.
type figures struct {
	requests, mean, p95 float64
	most                int // requests in any 5 minutes
}

// simulate polls for a day, or the beginning of one, on a virtual clock, with all of the program but the broker.
func simulate(t *testing.T, every Every, changes []time.Duration, span time.Duration) (f figures) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var asked []time.Time
		var delays []time.Duration
		src := newTable("a", 0).source(func(c *Config) { c.Every, c.Budget = every, DefaultBudget })
		src.Open = func(context.Context) (Fetcher, error) {
			return fetchFunc(func(c json.RawMessage) (*Page, error) {
				now := time.Now()
				asked = append(asked, now)
				if c == nil {
					return &Page{Next: json.RawMessage("0"), Listed: true}, nil
				}
				from, err := strconv.Atoi(string(c))
				if err != nil {
					return nil, err
				}
				p := &Page{}
				for ; from < len(changes) && !begun.Add(changes[from]).After(now); from++ {
					at := begun.Add(changes[from])
					delays = append(delays, now.Sub(at))
					p.Rows = append(p.Rows, record.Row{Key: fmt.Sprint(from), Version: "1", Modified: at})
				}
				p.Next = json.RawMessage(fmt.Sprint(from))
				return p, nil
			}), nil
		}
		p, _ := newPoller(t, newMemory(), &inbox{})
		p.Apply([]Source{src})
		step(span)
		p.Stop(context.Background())
		slices.Sort(delays)
		var sum time.Duration
		for _, d := range delays {
			sum += d
		}
		f.requests = float64(len(asked))
		f.mean = sum.Seconds() / float64(len(delays))
		f.p95 = delays[len(delays)*95/100].Seconds()
		f.most = most(asked, 5*time.Minute)
	})
	return f
}

// most is how many times there are in any span.
func most(times []time.Time, span time.Duration) (n int) {
	for i, j := 0, 0; j < len(times); j++ {
		for times[j].Sub(times[i]) >= span {
			i++
		}
		n = max(n, j-i+1)
	}
	return n
}

// TestSchedules holds the table of docs/polling.md to what schedules do, and the
// adaptive one to what it is for.
func TestSchedules(t *testing.T) {
	got := map[string]figures{}
	var b strings.Builder
	b.WriteString("| every |")
	for _, l := range loads {
		b.WriteString(" " + l.name + " |")
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", len(loads)+1) + "\n")
	for _, p := range policies {
		b.WriteString("| " + p.name + " |")
		for i, l := range loads {
			var sum figures
			seeds, span := 3.0, day
			if i == len(loads)-1 {
				seeds, span = 1, day/6 // seven thousand changes are enough
			}
			for seed := range uint64(seeds) {
				f := simulate(t, p.every, l.make(rand.New(rand.NewPCG(seed, 7))), span)
				sum.requests += f.requests / seeds * float64(day/span)
				sum.mean += f.mean / seeds
				sum.p95 += f.p95 / seeds
				sum.most = max(sum.most, f.most)
			}
			got[p.name+" "+l.name] = sum
			if budget := int(DefaultBudget*300) + burst; sum.most > budget {
				t.Errorf("%s, %s: %d requests in 5 minutes, the budget is %d", p.name, l.name, sum.most, budget)
			}
			fmt.Fprintf(&b, " %.0f / %.1f / %.1f |", sum.requests, sum.mean, sum.p95)
		}
		b.WriteString("\n")
	}
	office := loads[0].name
	fixed, adaptive := got["fixed 30s "+office], got["5s to 120s "+office]
	if adaptive.requests > 0.75*fixed.requests || adaptive.mean > fixed.mean {
		t.Errorf("office hours: adaptive %+v, fixed 30s %+v: want a quarter fewer requests at no more delay", adaptive, fixed)
	}
	t.Logf("requests / mean delay / p95 in seconds\n%s", b.String())

	const name = "../../docs/polling.md"
	doc, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	between := regexp.MustCompile(`(?s)(<!-- schedules -->\n).*?(<!-- /schedules -->)`)
	if *update {
		doc = between.ReplaceAll(doc, []byte("${1}"+b.String()+"${2}"))
		if err := os.WriteFile(name, doc, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Jitter makes each run a little different, delays of a few changes above all.
	cells := regexp.MustCompile(`([0-9]+) / ([0-9.]+) / ([0-9.]+)`)
	said, now := cells.FindAllStringSubmatch(string(between.Find(doc)), -1), cells.FindAllStringSubmatch(b.String(), -1)
	if len(said) != len(now) {
		t.Fatalf("docs/polling.md has %d results in its table of schedules, want %d: run with -update", len(said), len(now))
	}
	for i := range said {
		for part, slack := range []float64{1: 0.03, 2: 0.4, 3: 0.4} {
			if part == 0 {
				continue
			}
			x, errX := strconv.ParseFloat(said[i][part], 64)
			y, errY := strconv.ParseFloat(now[i][part], 64)
			if errX != nil || errY != nil || math.Abs(x-y) > slack*max(x, y) {
				t.Errorf("docs/polling.md says %s where it is %s now: run with -update", said[i][0], now[i][0])
			}
		}
	}
}

func TestNobodyAsksBeforeRetryAfterHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sources []Source
		var tables []*table
		var until time.Time
		var mu sync.Mutex // guards until and these
		n, early, refused := 0, 0, 0
		for i := range 20 {
			tab := newTable(fmt.Sprintf("t%02d", i), 0)
			tab.answer = func(int) error {
				mu.Lock()
				defer mu.Unlock()
				now := time.Now()
				if now.Before(until) {
					early++
				}
				if n++; n%50 == 0 { // one in fifty of all
					refused++
					after := time.Duration(n%7) * 10 * time.Second
					if u := now.Add(max(after, time.Second)); u.After(until) {
						until = u
					}
					return &Throttled{Status: 429, After: after, Reason: "too many requests"}
				}
				return nil
			}
			tables = append(tables, tab)
			sources = append(sources, tab.source(func(c *Config) { c.Identity, c.Budget = "one", 10 }))
		}
		// Another identity is not held back.
		other := newTable("other", 0)
		sources = append(sources, other.source(nil))
		p, _ := newPoller(t, newMemory(), &inbox{})
		p.Apply(sources)
		step(2 * time.Hour)
		all := p.here(time.Now())
		p.Stop(context.Background())
		if early > 0 || refused < 20 {
			t.Errorf("%d of %d requests came before a Retry-After had ended, after %d refusals", early, n, refused)
		}
		for _, tab := range tables {
			if len(tab.asked()) < 50 {
				t.Errorf("%s was asked %d times only", tab.name, len(tab.asked()))
			}
		}
		if n := len(other.asked()); n < 6000 {
			t.Errorf("the other identity asked %d times in two hours", n)
		}
		throttles, lost := int64(0), Seconds(0)
		for _, st := range all {
			throttles += st.Throttles
			lost += st.Lost
		}
		if throttles != int64(refused) || lost < 60 {
			t.Errorf("the status tells %d refusals and %.0f s lost", throttles, lost)
		}
	})
}

func TestBudgetIsHalvedAndRegained(t *testing.T) {
	b := newBudget("x", 10)
	b.join(newPace(Every{time.Second, time.Second}))
	at := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	rate := func(now time.Time) float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return math.Round(b.rateAt(now)*1000) / 1000
	}
	until := b.throttled(at, at.Add(-time.Second), 10*time.Second)
	if d := until.Sub(at); d < 10*time.Second || d > 11*time.Second {
		t.Errorf("held for %s", d)
	}
	// Another one that was under way at that time does not halve it again.
	b.throttled(at.Add(time.Second), at.Add(-time.Second), 0)
	for after, want := range map[time.Duration]float64{
		0: 5, 4 * time.Minute: 5, 5 * time.Minute: 6, 10 * time.Minute: 7, 25 * time.Minute: 10, time.Hour: 10,
	} {
		if got := rate(at.Add(after)); got != want {
			t.Errorf("after %s: %g a second, want %g", after, got, want)
		}
	}
	for i := range 100 {
		b.throttled(at, at.Add(time.Duration(i)*time.Millisecond), 0)
	}
	if got := rate(at); got <= 0 || got > 1 {
		t.Errorf("after many: %g", got)
	}
	if until := b.throttled(at, at, 100*365*day); until.Sub(at) > mostHold+mostHold/10 {
		t.Errorf("held until %s", until)
	}
}

// Two processes that poll for one identity: when one is told to wait, neither asks before
// that has ended, and both ask less for a while. Together they have one budget.
func TestTwoProcessesShareOneBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tables = 8
		m := newMemory()
		var mu sync.Mutex // guards these
		var asked []time.Time
		var until time.Time
		early, refusals := 0, 0
		var sources []Source
		for i := range tables {
			tab := newTable(fmt.Sprint("t", i), 0)
			tab.answer = func(int) error {
				mu.Lock()
				defer mu.Unlock()
				now := time.Now()
				asked = append(asked, now)
				switch began := until.Add(-17 * time.Second); {
				case now.Before(until) && now.After(began):
					early++ // those of the very same moment are under way already
				case len(asked)%100 == 0:
					until = now.Add(17 * time.Second)
					refusals++
					return &Throttled{Status: 429, After: 17 * time.Second}
				}
				return nil
			}
			sources = append(sources, tab.source(func(c *Config) { c.Identity, c.Budget = "user", 4 }))
		}
		a, _ := newPoller(t, m, &inbox{})
		b, _ := newPoller(t, m, &inbox{})
		a.Apply(sources)
		b.Apply(sources)
		step(30 * time.Minute)
		here := func(p *Poller) (n int) {
			for _, st := range p.here(time.Now()) {
				if st.Here {
					n++
				}
			}
			return n
		}
		if n, o := here(a), here(b); n == 0 || o == 0 || n+o != tables {
			t.Fatalf("%d and %d of %d tables", n, o, tables)
		}
		mu.Lock()
		defer mu.Unlock()
		if early > 0 {
			t.Errorf("%d of %d requests before a Retry-After had ended", early, len(asked))
		}
		if refusals < 3 {
			t.Errorf("%d refusals show nothing", refusals)
		}
		// Never more than the budget of both, but for the burst that each may have.
		for i, at := range asked {
			n := 0
			for _, later := range asked[i:] {
				if later.Sub(at) < 10*time.Second {
					n++
				}
			}
			if n > 4*10+2*burst {
				t.Fatalf("%d requests within 10s", n)
			}
		}
	})
}

func TestManySourcesShareOneBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards these
		var asked []time.Time
		byName := map[string]int{}
		var sources []Source
		for i := range 300 {
			tab := newTable(fmt.Sprintf("t%03d", i), 0)
			tab.answer = func(int) error {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, time.Now())
				byName[tab.name]++
				return nil
			}
			// Ten of them are busy.
			if i < 10 {
				go func() {
					for range 2 * 3600 / 10 {
						time.Sleep(10 * time.Second) // sleep: on the virtual clock
						tab.write("k")
					}
				}()
			}
			sources = append(sources, tab.source(func(c *Config) {
				c.Identity, c.Budget, c.Every = "one", 1, Every{Min: 5 * time.Second, Max: 2 * time.Minute}
			}))
		}
		p, _ := newPoller(t, newMemory(), &inbox{})
		p.Apply(sources)
		step(2*time.Hour + time.Minute)
		st := p.here(time.Now())[299]
		p.Stop(context.Background())
		if n := most(asked, 5*time.Minute); n > 300+burst {
			t.Errorf("%d requests in 5 minutes, the budget is 300", n)
		}
		busy, quiet := 0.0, 0.0
		for name, n := range byName {
			if name < "t010" {
				busy += float64(n) / 10
			} else {
				quiet += float64(n) / 290
			}
		}
		if quiet < 10 || busy < 2*quiet {
			t.Errorf("a busy source got %.0f requests, a quiet one %.0f", busy, quiet)
		}
		if !strings.Contains(st.Why, "300 sources share") || st.Interval.Duration() < 2*time.Minute {
			t.Errorf("every %s: %s", st.Interval.Duration(), st.Why)
		}
	})
}

func TestThousandSourcesDoNotBeginTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards asked
		var asked []time.Time
		var sources []Source
		for i := range 1000 {
			tab := newTable(fmt.Sprintf("t%03d", i), 0)
			tab.answer = func(int) error {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, time.Now())
				return nil
			}
			sources = append(sources, tab.source(func(c *Config) { c.Every = Every{Min: time.Minute, Max: time.Minute} }))
		}
		p, _ := newPoller(t, newMemory(), &inbox{})
		p.Apply(sources)
		step(40 * time.Second)
		p.Stop(context.Background())
		if len(asked) != 1000 {
			t.Errorf("%d requests in the first 40 seconds", len(asked))
		}
		if n := most(asked, time.Second); n > 80 {
			t.Errorf("%d requests in one second", n)
		}
	})
}

func TestFailuresBackOff(t *testing.T) {
	for failures := 1; failures < 100; failures++ {
		limit := min(time.Minute, time.Second<<min(failures, 20))
		least, highest := time.Hour, time.Duration(0)
		for range 1000 {
			d := retryAfter(failures, time.Minute)
			least, highest = min(least, d), max(highest, d)
		}
		if least < time.Second || highest > limit || highest < limit*8/10 || least > time.Second+limit/10 {
			t.Fatalf("after %d failures between %s and %s, want 1s to %s", failures, least, highest, limit)
		}
	}
}

func TestWindows(t *testing.T) {
	c := Config{Name: "a", Windows: []Window{
		{Start: "0 8 * * 1-5", For: 10 * time.Hour, Zone: "Europe/Berlin"},
		{Start: "30 2 * * *"},
	}}
	if err := c.Validate("p"); err != nil {
		t.Fatal(err)
	}
	utc := func(s string) time.Time {
		at, err := time.Parse("2006-01-02 15:04", s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	for at, want := range map[string]string{
		"2026-11-23 06:59": "2026-11-23 07:00", // Monday, winter time
		"2026-11-23 07:00": "2026-11-23 07:00",
		"2026-11-23 16:59": "2026-11-23 16:59",
		"2026-11-23 17:00": "2026-11-24 02:30",
		"2026-11-24 02:30": "2026-11-24 07:00", // one poll at 2:30, and that is now
		"2026-11-27 17:30": "2026-11-28 02:30", // Saturday
		"2026-07-20 05:59": "2026-07-20 06:00", // summer time
	} {
		if got := c.within(utc(at)); !got.Equal(utc(want)) {
			t.Errorf("%s: got %s, want %s", at, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		tab := newTable("a", 0) // the clock begins at midnight, a Saturday
		src := tab.source(func(c *Config) {
			c.Windows = []Window{{Start: "0 1 * * *", For: time.Hour}, {Start: "0 12 * * *"}}
			c.Every = Every{Min: time.Minute, Max: time.Minute}
		})
		p, _ := newPoller(t, newMemory(), &inbox{})
		p.Apply([]Source{src})
		step(30 * time.Minute)
		if st := p.only(t); st.State != Waiting || len(tab.asked()) != 0 {
			t.Errorf("%+v", st)
		}
		if err := p.PollNow(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		step(23*time.Hour + 29*time.Minute)
		var in, noon, other int
		for _, at := range tab.asked() {
			switch h := at.UTC().Hour(); {
			case h == 1:
				in++
			case h == 12 && at.Minute() == 0:
				noon++
			default:
				other++
			}
		}
		if in < 50 || in > 70 || noon != 1 || other != 1 { // other: PollNow's
			t.Errorf("%d in the first window, %d at noon, %d at other times", in, noon, other)
		}
	})
}

func TestConfigValidate(t *testing.T) {
	ok := func(c Config) Config { c.Name = "a"; return c }
	for _, tt := range []struct {
		c    Config
		want string // empty: valid
	}{
		{Config{}, "sources.a.poll: a polled source has no name"},
		{ok(Config{}), ""},
		{ok(Config{Every: Every{Min: 30 * time.Second, Max: 30 * time.Second}}), ""},
		{ok(Config{Every: Every{Min: 2 * time.Second, Max: time.Second}}), "sources.a.poll.every: min (2s) is more than max (1s)"},
		{ok(Config{Every: Every{Min: time.Millisecond}}), "sources.a.poll.every.min: want 100ms to 31d"},
		{ok(Config{Every: Every{Min: -1}}), "sources.a.poll.every.min: want 100ms to 31d"},
		{ok(Config{Every: Every{Max: 1000 * time.Hour}}), "sources.a.poll.every.max: want 100ms to 31d"},
		{ok(Config{Tolerance: 10 * time.Second}), ""},
		{ok(Config{Tolerance: -1}), "sources.a.poll.tolerance: want up to 31d"},
		{ok(Config{Tolerance: 10 * time.Second, Every: Every{Max: time.Minute}}), "sources.a.poll.every.max: polling every 1m0s misses a tolerance of 10s: want at most 10.526s"},
		{ok(Config{RetryMax: time.Millisecond}), "sources.a.poll.retry.max: want 1s to 24h"},
		{ok(Config{Timeout: 2 * time.Hour}), "sources.a.poll.timeout: want 1s to 1h"},
		{ok(Config{Pages: -1}), "sources.a.poll.pages: want 1 to 100000"},
		{ok(Config{Budget: -1}), "sources.a.poll.budget: want 1/h to 1000/s"},
		{ok(Config{Budget: math.NaN()}), "sources.a.poll.budget: want 1/h to 1000/s"},
		{ok(Config{Budget: math.Inf(1)}), "sources.a.poll.budget: want 1/h to 1000/s"},
		{ok(Config{Baseline: "loud"}), `sources.a.poll.baseline: want silent or publish, got "loud"`},
		{ok(Config{Baseline: Compare}), `sources.a.poll.baseline: want silent or publish`},
		{ok(Config{Windows: make([]Window, 51)}), "sources.a.poll.windows: want at most 50"},
		{ok(Config{Windows: []Window{{Start: "0 8 * * *", Zone: "Mars/Olympus"}}}), "sources.a.poll.windows[0].zone:"},
		{ok(Config{Windows: []Window{{Start: "0 8 * * *", For: -1}}}), "sources.a.poll.windows[0].for:"},
		{ok(Config{Windows: []Window{{Start: "61 8 * * *"}}}), "sources.a.poll.windows[0].start:"},
		{ok(Config{Windows: []Window{{Start: "TZ=0"}}}), "sources.a.poll.windows[0].start:"},
		{ok(Config{Windows: []Window{{Start: "@every 1s"}}}), "sources.a.poll.windows[0].start:"},
		{ok(Config{Windows: []Window{{Start: "0 0 30 2 *"}}}), `sources.a.poll.windows[0].start: "0 0 30 2 *" never comes`},
	} {
		err := tt.c.Validate("sources.a.poll")
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: got %v, want %s", tt.c, err, tt.want)
		}
	}
	c := ok(Config{Tolerance: 19 * time.Second})
	if err := c.Validate("p"); err != nil || c.Every.Max != 20*time.Second || c.Every.Min != 5*time.Second || c.Environment != "a" || c.Identity != "a" || c.Baseline != Silent {
		t.Errorf("%v, %+v", err, c)
	}
}

// FuzzWindow: no text for a window makes it panic, or wait for ever.
func FuzzWindow(f *testing.F) {
	for _, s := range []string{"0 8 * * 1-5", "@daily", "TZ=", "*/0 * * * *", "1-60/2147483647 * * * *", "? ? ? ? ?", "0 0 31 2 *"} {
		f.Add(s, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, start, zone string) {
		w := Window{Start: start, Zone: zone, For: time.Hour}
		if w.validate("w") == nil {
			now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
			if at := w.from(now); at.Before(now) {
				t.Errorf("from %s: %s", now, at)
			}
		}
	})
}
