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

// Live keeps a running gridfan at what its file declares: the sources, subscribers and
// endpoints of the file are taken over when it changes, and the rest of it is
// compared. A file with mistakes changes nothing.
type Live struct {
	LiveParts
	registry *registry.Registry
	report   func(what, about string, attrs map[string]any)
	log      *slog.Logger

	one     sync.Mutex // held while the file is read and taken over; guards sources
	sources Sources    // that are at work

	mu    sync.Mutex // guards all below
	state State
	seen  map[string]stamp // the files that were read, as they were then
	tried time.Time
}

// LiveParts are what Live takes a file over with.
type LiveParts struct {
	// File is where Load has it from; both are empty for a gridfan without one.
	File string
	Load func() (*Config, error)
	// Started is the configuration that has been taken over, and Sections its digests.
	Started  *Config
	Sections map[string]string
	// Take makes sources those at work, when they can be. With an error nothing has
	// changed.
	Take func(context.Context, Sources) error
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
	// Sections are digests of those that it was started with, and of the sources at
	// work; see Sections.
	Sections map[string]string `json:"sections"`
}

// Result is what a file changes.
type Result struct {
	Changes []registry.Change `json:"changes"`
	// NeedsRestart are the sections that differ and are not taken over.
	NeedsRestart []string `json:"needsRestart"`
	// NeedsFile are those that differ, and are taken over from gridfan's own file
	// alone.
	NeedsFile []string `json:"needsFile,omitempty"`
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

// sectionSources is the section that is taken over from gridfan's own file alone: who
// may use the API is not to say where gridfan goes with its credentials.
const sectionSources = "sources"

// Sections gives digests of the parts of a configuration that are only read at a
// start, and of the sources. They tell nothing of secrets, so a change of these alone is not seen.
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
	sections := map[string]string{}
	for name, parts := range map[string]any{
		"listen": c.Listen, "broker": []any{b, c.ClientsTLS, c.Spool}, "storage": []any{c.Broker.MaxBytes, c.Retention, c.Dedup}, sectionSources: []any{c.Sources, polled, received}, "egress": c.Egress,
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

// NewLive begins with a configuration that has been taken over.
func NewLive(p LiveParts, r *registry.Registry, report func(what, about string, attrs map[string]any), log *slog.Logger) *Live {
	l := &Live{LiveParts: p, registry: r, report: report, log: log, sources: p.Started.From()}
	l.state = State{File: p.File, Loaded: time.Now().UTC(), Sections: p.Sections}
	l.tried = time.Now()
	l.look(p.Started.Files)
	return l
}

// Run takes the file over whenever it changes, and at every signal, until ctx ends.
func (l *Live) Run(ctx context.Context, reload <-chan os.Signal) {
	if l.Load == nil {
		return
	}
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reload:
			l.log.Info("reading the configuration file again, as the signal asks", "file", l.File)
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
	if l.Load == nil {
		return Result{}, ErrNoFile
	}
	l.one.Lock()
	defer l.one.Unlock()
	l.mu.Lock()
	l.tried = time.Now()
	l.mu.Unlock()
	c, err := l.Load()
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
	from, sections := c.From(), c.Sections()
	changes := l.sources.Changes(from)
	if len(changes) > 0 && !dryRun {
		if err := l.Take(ctx, from); err != nil {
			bad := Errors{{File: l.File, Line: 1, Column: 1, Path: sectionSources, Message: err.Error()}}
			l.bad([]string{bad.Error()})
			return Result{}, bad
		}
		l.sources = from
	}
	sections[sectionSources] = l.State().Sections[sectionSources] // it is taken over
	res, err := l.apply(ctx, c.Endpoints, c.Subscribers, sections, dryRun, l.registry.Sync)
	res.Changes = append(changes, res.Changes...)
	if err != nil || dryRun {
		return res, err
	}
	for _, w := range c.Warnings {
		l.log.Warn(w.String())
	}
	l.mu.Lock()
	was := l.state
	l.state.Loaded, l.state.Problems, l.state.NeedsRestart = time.Now().UTC(), res.Problems, res.NeedsRestart
	l.state.Sections = maps.Clone(l.state.Sections)
	l.state.Sections[sectionSources] = c.Sections()[sectionSources]
	l.mu.Unlock()
	differences := 0
	for _, c := range res.Changes {
		if c.What != registry.Parked {
			differences++
		}
	}
	l.report("config.loaded", "file", map[string]any{"file": l.File, "changes": differences, "needsRestart": res.NeedsRestart})
	if len(res.NeedsRestart) > 0 && !slices.Equal(was.NeedsRestart, res.NeedsRestart) {
		l.log.Warn("the configuration file has changed in sections that are only read at a start", "file", l.File, "sections", res.NeedsRestart)
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
	l.report("config.rejected", "file", map[string]any{"file": l.File, "mistakes": len(problems)})
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
		if i := slices.Index(res.NeedsRestart, sectionSources); i >= 0 {
			res.NeedsRestart = slices.Delete(res.NeedsRestart, i, i+1)
			res.NeedsFile = []string{sectionSources}
		}
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
	for _, name := range append([]string{l.File}, files...) {
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
