package config

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
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
	Following

	one     sync.Mutex // held while the file is read and taken over; guards sources
	sources Sources    // that are at work

	mu     sync.Mutex // guards all below
	state  State
	seen   map[string]stamp // the files that were read, as they were then
	tried  time.Time
	loaded *Config // that was read last without mistakes
}

// Following is what a Live begins with.
type Following struct {
	// File is where Load has a configuration from; both are empty for none.
	File string
	Load func() (*Config, error)
	// Started has been taken over, and Sections are its digests.
	Started  *Config
	Sections map[string]string
	// Take makes sources those at work, when they can be. With an error nothing has
	// changed.
	Take     func(context.Context, Sources) error
	Registry *registry.Registry
	// Declares: the subscribers and endpoints of the file are taken over here.
	// Otherwise another process does, and the file is only compared.
	Declares bool
	Report   func(what, about string, attrs map[string]any)
	Log      *slog.Logger
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
	// Kept are secrets that could not be read again, and why; they are as before.
	Kept []string `json:"kept,omitempty"`
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
// start, and of the sources. They tell nothing of secrets: a change of these alone shows in
// Config.References, within one process.
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
		"listen": c.Listen, "broker": []any{b, c.ClientsTLS, c.Spool}, "storage": []any{c.Broker.MaxBytes, c.Retention, c.Dedup}, sectionSources: []any{c.Sources, polled, received, completed}, "egress": c.Egress, "shutdown": c.Shutdown,
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
func NewLive(f Following) *Live {
	l := &Live{Following: f, loaded: f.Started, sources: f.Started.From()}
	l.state = State{File: f.File, Loaded: time.Now().UTC(), Sections: f.Sections}
	l.tried = time.Now()
	l.look(f.Started.Files)
	return l
}

// Run takes the file over whenever it changes, or a file or secret that it refers to,
// and at every signal, until ctx ends.
func (l *Live) Run(ctx context.Context, reload <-chan os.Signal) {
	if l.Load == nil {
		return
	}
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	vaults := time.NewTimer(l.nextRefresh())
	defer vaults.Stop()
	for {
		refresh := false
		select {
		case <-ctx.Done():
			return
		case <-reload:
			l.Log.Info("reading the configuration file again, as the signal asks", "file", l.File)
		case <-vaults.C:
			vaults.Reset(l.nextRefresh())
			if refresh = l.asksVaults(); !refresh {
				continue
			}
		case <-t.C:
			if !l.changed() {
				continue
			}
		}
		ctx, cancel := context.WithTimeout(ctx, liveTimeout)
		_, _ = l.reload(ctx, false, refresh) // it reports what is wrong
		cancel()
	}
}

// refreshSpread keeps replicas that were started together from asking together.
const refreshSpread = 0.2

// nextRefresh is when the vaults are asked next.
func (l *Live) nextRefresh() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	every := l.loaded.Secrets.Refresh
	if every <= 0 {
		every = defaultRefresh
	}
	return time.Duration(float64(every) * (1 - refreshSpread/2 + refreshSpread*rand.Float64()))
}

// asksVaults says whether there is a secret in a vault to ask for.
func (l *Live) asksVaults() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.loaded.References, func(r Reference) bool { return strings.HasPrefix(r.Text, "${keyvault:") })
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
	return l.reload(ctx, dryRun, false)
}

// reload is Reload by ourselves. With refresh the file is as it was, and only secrets
// may have changed.
func (l *Live) reload(ctx context.Context, dryRun, refresh bool) (Result, error) {
	if l.Load == nil {
		return Result{}, ErrNoFile
	}
	l.one.Lock()
	defer l.one.Unlock()
	l.mu.Lock()
	l.tried = time.Now()
	before := l.loaded
	l.mu.Unlock()
	c, err := l.Load()
	if err != nil {
		if !dryRun {
			l.look(l.files()) // as they are now: not again until they change
			l.bad(strings.Split(err.Error(), "\n"))
		}
		return Result{}, err
	}
	rotated := changed(before.References, c.References)
	if !dryRun {
		l.look(c.Files)
		l.hold(c)
		if refresh && len(rotated) == 0 && len(l.State().Problems) == 0 {
			return Result{}, nil
		}
	}
	sync := l.Registry.Sync
	if !l.Declares && !dryRun {
		sync = nil
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
	taken := sections[sectionSources]
	sections[sectionSources] = l.State().Sections[sectionSources] // they are taken over
	res, err := l.apply(ctx, c.Endpoints, c.Subscribers, sections, changed(l.Started.References, c.References), dryRun, sync)
	res.Changes = append(changes, res.Changes...)
	if err != nil || dryRun {
		return res, err
	}
	for _, w := range c.Warnings {
		l.Log.Warn(w.String())
	}
	for _, r := range rotated {
		l.Log.Info("a secret has changed", "reference", r.Text, "at", r.Path, "takes_effect", l.effect(r))
	}
	l.mu.Lock()
	was := l.state
	l.state.Loaded, l.state.Problems, l.state.NeedsRestart = time.Now().UTC(), res.Problems, res.NeedsRestart
	l.state.Sections = maps.Clone(l.state.Sections)
	l.state.Sections[sectionSources] = taken
	l.loaded = c
	l.mu.Unlock()
	differences := 0
	for _, c := range res.Changes {
		if c.What != registry.Parked {
			differences++
		}
	}
	l.Report("config.loaded", "file", map[string]any{"file": l.File, "changes": differences, "needsRestart": res.NeedsRestart})
	if len(res.NeedsRestart) > 0 && !slices.Equal(was.NeedsRestart, res.NeedsRestart) {
		l.Log.Warn("the configuration has changed in sections that are only read at a start", "file", l.File, "sections", res.NeedsRestart)
	}
	for _, p := range res.Problems {
		l.Log.Error("the configuration file is not taken over as a whole", "problem", p)
	}
	return res, nil
}

// followed are the sections that are taken over while gridfan runs.
var followed = []string{"subscribers", "endpoints", "secrets", sectionSources}

// effect says when a secret that has changed is used.
func (l *Live) effect(r Reference) string {
	switch {
	case !slices.Contains(followed, r.section()):
		return "at the next start"
	case !l.Declares && r.section() != sectionSources:
		return "now, in the processes that deliver"
	}
	return "now"
}

// hold notes which secrets could not be read again, and says so once.
func (l *Live) hold(c *Config) {
	var kept []string
	for _, k := range c.Kept {
		kept = append(kept, k.String())
	}
	l.mu.Lock()
	was := l.state.Kept
	l.state.Kept = kept
	l.mu.Unlock()
	switch {
	case len(kept) > 0 && len(was) == 0:
		for _, k := range kept {
			l.Log.Warn("a secret is not read again; the old value is kept", "problem", k)
		}
		l.Report("config.secrets-away", "file", map[string]any{"file": l.File, "secrets": len(kept)})
	case len(kept) == 0 && len(was) > 0:
		l.Log.Info("all secrets are read again", "file", l.File)
	}
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
		l.Log.Error("the configuration file has a mistake, so nothing of it is taken over", "problem", p)
	}
	l.Report("config.rejected", "file", map[string]any{"file": l.File, "mistakes": len(problems)})
}

// Apply makes the subscribers and endpoints that files declare those given, which
// are valid and came by API, or says what that would change. sections are digests
// of the rest.
func (l *Live) Apply(ctx context.Context, endpoints []registry.Endpoint, subscribers []registry.Definition, sections map[string]string, dryRun bool) (Result, error) {
	l.one.Lock()
	defer l.one.Unlock()
	return l.apply(ctx, endpoints, subscribers, sections, nil, dryRun, l.Registry.SyncSent)
}

func (l *Live) apply(
	ctx context.Context, endpoints []registry.Endpoint, subscribers []registry.Definition, sections map[string]string, rotated []Reference, dryRun bool,
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
	for _, r := range rotated {
		if name := r.section(); !slices.Contains(followed, name) && !slices.Contains(res.NeedsRestart, name) {
			res.NeedsRestart = append(res.NeedsRestart, name)
		}
	}
	slices.Sort(res.NeedsRestart)
	if sync == nil {
		return res, nil // another process does the rest
	}
	var err error
	if res.Changes, err = l.Registry.Plan(ctx, endpoints, subscribers); err != nil || dryRun {
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
