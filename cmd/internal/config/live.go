package config

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Live keeps a running gridfan at what its file declares: the subscribers and
// endpoints of the file are taken over when it changes, and the rest of it is
// compared. A file with mistakes changes nothing.
type Live struct {
	file     string // empty: there is none
	load     func() (*Config, error)
	registry *registry.Registry
	report   func(what, about string, attrs map[string]any)
	log      *slog.Logger

	one sync.Mutex // held while the file is read and taken over

	mu    sync.Mutex // guards all below
	state State
	seen  map[string]stamp // the files that were read, as they were then
	tried time.Time
}

// State is what a running gridfan knows of its configuration.
type State struct {
	// File is empty if it has none of its own.
	File string `json:"file,omitempty"`
	// Loaded is when it was last taken over.
	Loaded time.Time `json:"loaded"`
	// Problems keep the file as it is now from being taken over.
	Problems []string `json:"problems,omitempty"`
	// NeedsRestart are the sections that are not yet as in the file.
	NeedsRestart []string `json:"needsRestart,omitempty"`
	// Sections are digests of those that it was started with; see Sections.
	Sections map[string]string `json:"sections"`
}

// Result is what a file changes.
type Result struct {
	Changes []registry.Change `json:"changes"`
	// NeedsRestart are the sections that differ and are not taken over.
	NeedsRestart []string `json:"needsRestart"`
	// Problems are what could not be done; all the rest was.
	Problems []string `json:"problems,omitempty"`
}

// ErrNoFile means that a gridfan was started without a file.
var ErrNoFile = errors.New("it was started without a configuration file of its own")

type stamp struct {
	changed time.Time
	size    int64
}

// watchEvery is how often it is looked whether the file has changed, and
// retryEvery how often one with mistakes is read again: they may be in what it
// refers to.
const (
	watchEvery = 2 * time.Second
	retryEvery = 15 * time.Second
	// liveTimeout is ample for some thousand subscribers.
	liveTimeout = 5 * time.Minute
)

// Sections gives digests of the parts of a configuration that are only read at a
// start. They tell nothing of secrets, so a change of these alone is not seen.
func (c *Config) Sections() map[string]string {
	b := c.Broker
	b.URL, b.MaxBytes = secret.URL(b.URL), 0
	if c.Broker.URL == "" {
		b.URL = ""
	}
	polled := make([]Polled, len(c.Polled))
	for i, p := range c.Polled {
		polled[i] = p.redacted()
	}
	received := make([]receive.Source, len(c.Received))
	for i, r := range c.Received {
		received[i] = r.Redacted()
	}
	completed := make([]Completed, len(c.Completed))
	for i, s := range c.Completed {
		completed[i] = s.redacted()
	}
	sections := map[string]string{}
	for name, parts := range map[string]any{
		"listen": c.Listen, "broker": []any{b, c.ClientsTLS, c.Spool}, "storage": []any{c.Broker.MaxBytes, c.Retention, c.Dedup}, "sources": []any{c.Sources, polled, received, completed}, "egress": c.Egress,
	} {
		text, err := json.Marshal(parts)
		if err != nil {
			text = []byte(err.Error()) // not with the types here
		}
		sum := sha256.Sum256(text)
		sections[name] = hex.EncodeToString(sum[:8])
	}
	return sections
}

// Differing gives the sections that two have different, sorted.
func Differing(a, b map[string]string) []string {
	differ := []string{}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if a[name] != b[name] {
			differ = append(differ, name)
		}
	}
	return differ
}

// NewLive begins with a configuration that has been taken over. file is where load
// has it from; both are empty for one without.
func NewLive(file string, load func() (*Config, error), started *Config, sections map[string]string, r *registry.Registry, report func(what, about string, attrs map[string]any), log *slog.Logger) *Live {
	l := &Live{file: file, load: load, registry: r, report: report, log: log}
	l.state = State{File: file, Loaded: time.Now().UTC(), Sections: sections}
	l.tried = time.Now()
	l.look(started.Files)
	return l
}

// Run takes the file over whenever it changes, and at every signal, until ctx ends.
func (l *Live) Run(ctx context.Context, reload <-chan os.Signal) {
	if l.load == nil {
		return
	}
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reload:
			l.log.Info("reading the configuration file again, as the signal asks", "file", l.file)
		case <-t.C:
			if !l.changed() {
				continue
			}
		}
		ctx, cancel := context.WithTimeout(ctx, liveTimeout)
		_, _ = l.Reload(ctx, false) // it reports what is wrong
		cancel()
	}
}

// State tells how the file stands.
func (l *Live) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Reload reads the file and takes it over; with dryRun it only says what that
// would change. An error of type Errors is about the file.
func (l *Live) Reload(ctx context.Context, dryRun bool) (Result, error) {
	if l.load == nil {
		return Result{}, ErrNoFile
	}
	l.one.Lock()
	defer l.one.Unlock()
	l.mu.Lock()
	l.tried = time.Now()
	l.mu.Unlock()
	c, err := l.load()
	if err != nil {
		if !dryRun {
			l.look(l.files()) // as they are now: not again until they change
			l.bad(strings.Split(err.Error(), "\n"))
		}
		return Result{}, err
	}
	if !dryRun {
		l.look(c.Files)
	}
	res, err := l.apply(ctx, c.Endpoints, c.Subscribers, c.Sections(), dryRun, l.registry.Sync)
	if err != nil || dryRun {
		return res, err
	}
	for _, w := range c.Warnings {
		l.log.Warn(w.String())
	}
	l.mu.Lock()
	was := l.state
	l.state.Loaded, l.state.Problems, l.state.NeedsRestart = time.Now().UTC(), res.Problems, res.NeedsRestart
	l.mu.Unlock()
	differences := 0
	for _, c := range res.Changes {
		if c.What != registry.Parked {
			differences++
		}
	}
	l.report("config.loaded", "file", map[string]any{"file": l.file, "changes": differences, "needsRestart": res.NeedsRestart})
	if len(res.NeedsRestart) > 0 && !slices.Equal(was.NeedsRestart, res.NeedsRestart) {
		l.log.Warn("the configuration file has changed in sections that are only read at a start", "file", l.file, "sections", res.NeedsRestart)
	}
	for _, p := range res.Problems {
		l.log.Error("the configuration file is not taken over as a whole", "problem", p)
	}
	return res, nil
}

// bad keeps what is wrong with the file, and says so once.
func (l *Live) bad(problems []string) {
	l.mu.Lock()
	news := !slices.Equal(l.state.Problems, problems)
	l.state.Problems = problems
	l.mu.Unlock()
	if !news {
		return
	}
	for _, p := range problems {
		l.log.Error("the configuration file has a mistake, so nothing of it is taken over", "problem", p)
	}
	l.report("config.rejected", "file", map[string]any{"file": l.file, "mistakes": len(problems)})
}

// Apply makes the subscribers and endpoints that files declare those given, which
// are valid and came by API, or says what that would change. sections are digests
// of the rest.
func (l *Live) Apply(ctx context.Context, endpoints []registry.Endpoint, subscribers []registry.Definition, sections map[string]string, dryRun bool) (Result, error) {
	l.one.Lock()
	defer l.one.Unlock()
	return l.apply(ctx, endpoints, subscribers, sections, dryRun, l.registry.SyncSent)
}

func (l *Live) apply(
	ctx context.Context, endpoints []registry.Endpoint, subscribers []registry.Definition, sections map[string]string, dryRun bool,
	sync func(context.Context, []registry.Endpoint, []registry.Definition) error,
) (Result, error) {
	res := Result{NeedsRestart: []string{}}
	if sections != nil {
		res.NeedsRestart = Differing(l.State().Sections, sections)
	}
	var err error
	if res.Changes, err = l.registry.Plan(ctx, endpoints, subscribers); err != nil || dryRun {
		return res, err
	}
	err = sync(ctx, endpoints, subscribers)
	var refused *registry.RefusedError
	if errors.As(err, &refused) {
		for _, e := range refused.Errors {
			res.Problems = append(res.Problems, e.Error())
		}
		return res, nil
	}
	return res, err
}

// look notes how the files are now.
func (l *Live) look(files []string) {
	seen := map[string]stamp{}
	for _, name := range append([]string{l.file}, files...) {
		if name != "" {
			seen[name] = stampOf(name)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = seen
}

func (l *Live) files() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.seen))
}

func stampOf(name string) stamp {
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

// changed says whether it is time to read the file again.
func (l *Live) changed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.state.Problems) > 0 && time.Since(l.tried) >= retryEvery {
		return true
	}
	for name, was := range l.seen {
		if stampOf(name) != was {
			return true
		}
	}
	return false
}
