package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// listenFlags are the flags of listen.
type listenFlags struct {
	admin.Listen
	forward, format, timeout string
	concurrency, count       int
	resend                   uint64
	bodies, asJSON           bool
}

func newListen(env Env) *cobra.Command {
	var o listenFlags
	c := &cobra.Command{
		Use:   "listen [--subject PATTERN]… [--forward URL]",
		Short: "Show events as they come, and forward them to a program on this machine",
		Long: `listen reads along with a running gridfan, here or elsewhere, and shows every
event as a line. With --forward it posts each to a URL, in order and exactly as a
subscriber would get it, and shows the answer: 200 (23ms). An answer that a
subscriber would be sent the event again for is yellow, one that would make a dead
letter of it is red. Nothing is tried again here; the key r does that.

It is no subscriber: nothing is kept for it, nothing of it is in the books, and
nobody notices it. When the connection is lost it goes on where it was, with all
that is still stored.

Keys, on a terminal:
  r         send the selected event again (the last one, if none is selected)
  up, down  select among the last nine; 1 to 9 select too, 1 is the last
  p         print the selected event
  space     pause; events wait in the store
  q         quit, as Ctrl-C
Elsewhere, the number at the beginning of a line does it:
  gridfan listen --resend 1043 --forward localhost:3000/events
sends that one event, and exits with 1 unless it is taken.

A URL without a scheme is http, and one that is only a port is on this machine.
For a certificate of your own authority set SSL_CERT_FILE.`,
		Example: `  gridfan listen --forward localhost:3000/events
  gridfan listen --subject 'events.fno.*.usmf.>' --from 1h --print
  gridfan listen --json --from beginning --count 100 | jq .event.data`,
		Args: cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().StringArrayVar(&o.Subjects, "subject", nil, "subject pattern; may be given several times (default every event)")
	c.Flags().StringVar(&o.Filter, "filter", "", "CEL expression over the event, as that of a subscriber")
	c.Flags().StringVar(&o.From, "from", "now", "where to begin: now, beginning, a time ago (1h), a time, or the number of an event")
	c.Flags().StringVar(&o.forward, "forward", "", "http or https URL to post every event to")
	c.Flags().StringVar(&o.format, "format", string(webhook.Structured), formatUsage)
	c.Flags().IntVar(&o.concurrency, "concurrency", 1, "posts at once; more than 1 gives up the order")
	c.Flags().StringVar(&o.timeout, "timeout", "30s", "deadline of one post")
	c.Flags().IntVar(&o.count, "count", 0, "end after so many events, with 1 unless all were taken (default: go on)")
	c.Flags().Uint64Var(&o.resend, "resend", 0, "send this one event and exit, with 1 unless it is taken")
	c.Flags().BoolVar(&o.bodies, "print", false, "print every event too")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print a JSON object a line")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := newListener(env, client(), o)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("resend") {
			return failed(l.again(cmd.Context(), o.resend))
		}
		return failed(l.run(cmd.Context()))
	}
	return c
}

// listener is one run of gridfan listen.
type listener struct {
	env     Env
	flags   listenFlags
	client  *admin.Client
	to      string         // where events are forwarded, without its secrets
	sender  deliver.Sender // nil: they are only shown
	timeout time.Duration
	console console
	work    chan *heard

	leaving sync.Mutex // guards back
	back    func()     // makes the terminal what it was; nil if it is

	mu       sync.Mutex // guards all below
	sums     sums
	next     uint64   // the first event that was not taken over
	width    int      // of the column of subjects
	recent   []*heard // the newest first
	selected *heard   // nil: the newest
	paused   chan struct{}
}

type sums struct{ events, failed, unanswered, resent int }

// heard is an event on its way through the listener.
type heard struct {
	admin.Heard
	event  *event.Event // nil if there is a problem
	result string       // of its last attempt; guarded by listener.mu
}

func newListener(env Env, client *admin.Client, o listenFlags) (*listener, error) {
	for _, s := range o.Subjects {
		if err := registry.ValidSubject(s); err != nil {
			return nil, fmt.Errorf("--subject: %w", err)
		}
	}
	if _, err := admin.ParseFrom(o.From); err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	for _, f := range []struct {
		name   string
		n, min int
	}{{"concurrency", o.concurrency, 1}, {"count", o.count, 0}} {
		if f.n < f.min {
			return nil, fmt.Errorf("--%s: want at least %d, got %d", f.name, f.min, f.n)
		}
	}
	l := &listener{env: env, flags: o, client: client, work: make(chan *heard)}
	l.console.out, l.console.err = env.Out, env.Err
	var err error
	if l.timeout, err = deliver.ParseDuration(o.timeout); err != nil {
		return nil, fmt.Errorf("--timeout: %w", err)
	}
	if o.forward == "" {
		if o.resend > 0 {
			return nil, errors.New("--resend needs --forward: the URL to send it to")
		}
		return l, nil
	}
	hook := webhook.Config{URL: forwardURL(o.forward), Format: webhook.Format(o.format)}
	if err := hook.Validate("--forward"); err != nil {
		return nil, err
	}
	l.to = secret.URL(hook.URL)
	l.sender, err = webhook.New(hook, webhook.Options{Concurrency: o.concurrency + 1, Version: env.Version})
	return l, err
}

// forwardURL completes what people type for a program on their machine.
func forwardURL(s string) string {
	if strings.Contains(s, "://") {
		return s
	}
	host, _, _ := strings.Cut(s, "/")
	if strings.HasPrefix(host, ":") {
		s = "localhost" + s
	} else if host != "" && strings.Trim(host, "0123456789") == "" {
		s = "localhost:" + s
	}
	return "http://" + s
}

// errEnough ends listening after --count events.
var errEnough = errors.New("enough")

// run listens until ctx ends, the user or --count has enough, or it is of no use.
func (l *listener) run(ctx context.Context) error {
	// On every way out, also a panic's.
	defer l.leave()
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	resends := make(chan *heard, 8)
	var workers, resending sync.WaitGroup
	for range l.flags.concurrency {
		workers.Go(func() {
			defer l.guard()
			for h := range l.work {
				l.handle(ctx, h, false)
			}
		})
	}
	resending.Go(func() {
		defer l.guard()
		for {
			select {
			case h := <-resends:
				l.handle(ctx, h, true)
			case <-ctx.Done():
				return
			}
		}
	})
	err := l.follow(ctx, func() {
		if l.env.Terminal != nil && !l.flags.asJSON {
			l.keyboard(ctx, quit, resends)
		}
	})
	close(l.work)
	if errors.Is(err, errEnough) {
		err = nil // and attempts under way may end
	} else {
		quit()
	}
	workers.Wait()
	quit()
	resending.Wait()
	l.leave()
	if l.sender != nil {
		l.sender.Close()
	}
	if err = cmp.Or(err, l.console.problem()); err != nil {
		return err
	}
	return l.farewell()
}

// leave makes the terminal what it was, once it returns.
func (l *listener) leave() {
	l.leaving.Lock()
	defer l.leaving.Unlock()
	if l.back != nil {
		l.back()
		l.back = nil
	}
}

// guard lets nobody's panic leave a terminal behind that shows nothing typed.
func (l *listener) guard() {
	if r := recover(); r != nil {
		l.leave()
		panic(r) // panic: it goes on, only the terminal had to be mended first
	}
}

// firstWait and longestWait are the waits between tries to connect again.
const (
	firstWait   = 200 * time.Millisecond
	longestWait = 10 * time.Second
)

// follow hands over events as they come, and connects again when the connection
// is lost. It calls began once it is there.
func (l *listener) follow(ctx context.Context, began func()) error {
	ask := l.flags.Listen
	there, count := false, 0
	lost := time.Time{}
	take := func(h admin.Heard) error {
		if !h.Heartbeat.IsZero() {
			switch {
			case !there:
				there = true
				l.console.say(l.greeting(h.Next))
				began()
			case lost.IsZero():
			case h.Stream != ask.Stream:
				l.console.say("it is back with another store; this begins with its first event\n")
			case ask.From != strconv.FormatUint(h.Next, 10):
				l.console.say(fmt.Sprintf("it is back; what came before event %d is no longer stored\n", h.Next))
			default:
				l.console.say(fmt.Sprintf("it is back after %s, and goes on with event %d\n", deliver.Roughly(time.Since(lost)), h.Next))
			}
			lost = time.Time{}
			ask.Stream = h.Stream
			ask.From = strconv.FormatUint(h.Next, 10)
			l.took(h.Next)
			return nil
		}
		it := &heard{Heard: h}
		if h.Problem == "" {
			var err error
			if it.event, err = event.ParseJSON(h.Event); err != nil {
				it.Problem = "not understood here: " + err.Error()
			}
		}
		if err := l.hand(ctx, it); err != nil {
			return err
		}
		ask.From = strconv.FormatUint(h.Sequence+1, 10)
		l.took(h.Sequence + 1)
		if count++; count == l.flags.count {
			return errEnough
		}
		return l.console.problem()
	}
	for wait := firstWait; ; {
		err := l.client.Listen(ctx, ask, take)
		var p *admin.Problem
		switch {
		case ctx.Err() != nil:
			return nil
		case !there, errors.Is(err, errEnough), l.console.problem() != nil,
			errors.As(err, &p) && p.Status < 500:
			return err
		case lost.IsZero():
			lost, wait = time.Now(), firstWait
			l.console.say(fmt.Sprintf("the connection is lost: %s; trying again, to go on with event %s\n", oneLine(err.Error()), ask.From))
		default:
			wait = min(2*wait, longestWait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *listener) greeting(next uint64) string {
	what := strings.Join(l.flags.Subjects, ", ")
	if what == "" {
		what = "every event"
	}
	s := fmt.Sprintf("listening at %s to %s, from number %d on", l.client.URL, what, next)
	if l.sender != nil {
		s += "; forwarding to " + l.to
	}
	return s + "\n"
}

// hand gives an event to a worker, when there is one free and no pause.
func (l *listener) hand(ctx context.Context, h *heard) error {
	for {
		l.mu.Lock()
		paused := l.paused
		l.mu.Unlock()
		if paused == nil {
			break
		}
		select {
		case <-paused:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case l.work <- h:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *listener) took(next uint64) {
	l.mu.Lock()
	l.next = next
	l.mu.Unlock()
}

// handle forwards an event, if it can be and is to be, and shows it.
func (l *listener) handle(ctx context.Context, h *heard, again bool) bool {
	if h.event == nil || l.sender == nil {
		return l.show(h, nil, 0, again)
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	begin := time.Now()
	a := l.sender.Send(ctx, h.event)
	return l.show(h, &a, time.Since(begin), again)
}

// line is what --json prints for an event.
type line struct {
	Sequence uint64    `json:"sequence"`
	Subject  string    `json:"subject"`
	Stored   time.Time `json:"stored"`
	ID       string    `json:"id,omitempty"`
	Type     string    `json:"type,omitempty"`
	Problem  string    `json:"problem,omitempty"`
	// Attempt is how forwarding went; nil without --forward.
	Attempt *attempt `json:"attempt,omitempty"`
	// Event is there with --print and without --forward.
	Event json.RawMessage `json:"event,omitempty"`
}

type attempt struct {
	Outcome deliver.Outcome `json:"outcome"`
	Status  int             `json:"status,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Millis  float64         `json:"millis"`
	// Again: it was sent before.
	Again bool `json:"again,omitempty"`
}

// maxRecent is how many events can be selected: one for each digit.
const maxRecent = 9

// show writes an event's line, and counts it. It says whether all is well.
func (l *listener) show(h *heard, a *deliver.Attempt, took time.Duration, again bool) bool {
	ok := h.event != nil && (a == nil || a.Outcome == deliver.Delivered)
	result, reason, paint := "", "", ""
	switch {
	case h.event == nil:
		result, paint = h.Problem, red
	case a == nil:
		result = h.event.Type
	default:
		result, reason, paint = inShort(*a, took)
	}
	id, wide := "-", 0
	if h.event != nil {
		id = h.event.ID
	}
	l.mu.Lock()
	switch {
	case again:
		l.sums.resent++
	case a != nil && a.Outcome == deliver.Aborted:
		l.sums.unanswered++
	case !ok:
		l.sums.failed++
	}
	if !again {
		l.sums.events++
		l.recent = slices.Insert(l.recent, 0, h)
		l.recent = l.recent[:min(len(l.recent), maxRecent)]
		if l.selected != nil && !slices.Contains(l.recent, l.selected) {
			l.selected = nil
		}
	}
	h.result = oneLine(result)
	// As wide as the longest so far, within reason.
	l.width = max(l.width, min(utf8.RuneCountInString(h.Subject), 62))
	wide = l.width
	l.mu.Unlock()

	if l.flags.asJSON {
		out := line{Sequence: h.Sequence, Subject: h.Subject, Stored: h.Stored, Problem: h.Problem}
		if h.event != nil {
			out.ID, out.Type = h.event.ID, h.event.Type
		}
		if a != nil {
			out.Attempt = &attempt{a.Outcome, a.Status, a.Reason, float64(took.Microseconds()) / 1000, again}
		}
		if a == nil || l.flags.bodies {
			out.Event = h.Event
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(out) // what was read from JSON: it cannot fail
		l.console.print(b.String())
		return ok
	}
	if again {
		reason = strings.TrimSpace("again  " + reason)
	}
	result = oneLine(result)
	if reason != "" {
		result = fmt.Sprintf("%-12s  ", result)
	}
	text := fmt.Sprintf("%s  %6d  %-*s  %-12s  %s%s\n", time.Now().Format(time.TimeOnly), h.Sequence,
		wide, oneLine(h.Subject), cut(oneLine(id), 12), l.paint(paint, result), oneLine(reason))
	if l.flags.bodies && !again {
		text += h.body()
	}
	l.console.print(text)
	l.console.set(l.bottom())
	return ok
}

// The colours of a result.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (l *listener) paint(color, s string) string {
	if color == "" || !l.env.color() {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// inShort says how an attempt went, why if not well, and in which colour.
func inShort(a deliver.Attempt, took time.Duration) (result, reason, color string) {
	status := "---" // no answer
	if a.Status != 0 {
		status = strconv.Itoa(a.Status)
	}
	switch a.Outcome {
	case deliver.Delivered:
		color = green
	case deliver.Rejected:
		color, reason = red, a.Reason
	case deliver.Aborted:
		color, reason = yellow, "given up before there was an answer"
	default:
		color, reason = yellow, a.Reason
	}
	// The status is there already.
	reason = strings.TrimPrefix(strings.TrimPrefix(reason, "HTTP "+status), ": ")
	return fmt.Sprintf("%s (%s)", status, latency(took)), reason, color
}

// latency rounds to what one reads at a glance.
func latency(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "<1ms"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

// body is the event as one reads it.
func (h *heard) body() string {
	var b bytes.Buffer
	if err := json.Indent(&b, h.Event, "    ", "  "); err != nil {
		return "    " + h.Problem + "\n"
	}
	return "    " + printable(b.Bytes()) + "\n"
}

// farewell sums up.
func (l *listener) farewell() error {
	l.mu.Lock()
	s, next := l.sums, l.next
	l.mu.Unlock()
	switch {
	case l.flags.count > 0 && s.failed > 0:
		return fmt.Errorf("%d of %s failed", s.failed, plural(s.events, "event"))
	case l.flags.count > 0 && s.events < l.flags.count:
		return fmt.Errorf("ended after %d of %s", s.events, plural(l.flags.count, "event"))
	case l.flags.count > 0:
		return nil
	}
	words := []string{plural(s.events, "event")}
	for _, w := range []struct {
		n    int
		what string
	}{{s.failed, "failed"}, {s.unanswered, "given up"}, {s.resent, "sent again"}} {
		if w.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", w.n, w.what))
		}
	}
	text := strings.Join(words, ", ") + "\n"
	if next > 0 {
		text += fmt.Sprintf("Go on where this ended:  gridfan listen --from %d\n", next)
	}
	l.console.say(text)
	return nil
}

// again sends one stored event.
func (l *listener) again(ctx context.Context, sequence uint64) error {
	h, err := l.client.Event(ctx, sequence)
	if err != nil {
		return err
	}
	it := &heard{Heard: *h}
	if h.Problem == "" {
		if it.event, err = event.ParseJSON(h.Event); err != nil {
			it.Problem = "not understood here: " + err.Error()
		}
	}
	ok := l.handle(ctx, it, false)
	l.sender.Close()
	if err := l.console.problem(); err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("event %d was not taken", sequence)
	}
	return nil
}

// keyboard lets keys work.
func (l *listener) keyboard(ctx context.Context, quit func(), resends chan<- *heard) {
	t := l.env.Terminal
	restore, err := t.Raw()
	if err != nil {
		l.console.say(fmt.Sprintf("no keys on this terminal: %v\n", err))
		return
	}
	l.console.open(t.Width)
	l.leaving.Lock()
	l.back = func() { restore(); l.console.close() }
	l.leaving.Unlock()
	// At once: a second signal ends the process without another word.
	context.AfterFunc(ctx, l.leave)
	l.console.set(l.bottom())
	// It ends with the process: a read of the keyboard can't be called off.
	go func() {
		defer l.guard()
		_ = readKeys(t.Keys, func(k key) bool { // without a keyboard there are no keys
			l.press(k, quit, resends)
			return ctx.Err() == nil
		})
	}()
}

// press does what a key says.
func (l *listener) press(k key, quit func(), resends chan<- *heard) {
	switch {
	case k == 'q', k == keyInterrupt:
		quit()
		return
	case k == '?':
		l.console.print(l.help())
	case k == keyEnter: // people do, to see what is new
		l.console.print("\n")
	case k == ' ':
		l.mu.Lock()
		if l.paused != nil {
			close(l.paused)
			l.paused = nil
		} else {
			l.paused = make(chan struct{})
		}
		l.mu.Unlock()
	case k == keyUp, k == keyDown, k >= '1' && k <= '9':
		l.choose(k)
	case k == 'p':
		if h := l.chosen(); h != nil {
			l.console.print(h.body())
		}
	case k == 'r':
		h := l.chosen()
		switch {
		case h == nil:
		case l.sender == nil:
			l.console.say("there is nowhere to send it: start with --forward URL\n")
		case h.event == nil:
			l.console.say("it is " + oneLine(h.Problem) + "\n")
		default:
			select {
			case resends <- h:
			default:
				l.console.say("the last ones are still being sent\n")
			}
		}
	}
	l.console.set(l.bottom())
}

// choose moves the selection: up to older events, as on the screen.
func (l *listener) choose(k key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.recent) == 0 {
		return
	}
	at := max(0, slices.Index(l.recent, l.selected))
	switch k {
	case keyUp:
		at++
	case keyDown:
		at--
	default:
		at = int(k - '1')
	}
	if at = min(max(at, 0), len(l.recent)-1); at == 0 {
		l.selected = nil // follow the newest
		return
	}
	l.selected = l.recent[at]
}

// chosen is the selected event, nil if there is none at all.
func (l *listener) chosen() *heard {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.selected == nil && len(l.recent) > 0 {
		return l.recent[0]
	}
	return l.selected
}

// bottom is the line at the bottom of the screen.
func (l *listener) bottom() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := "waiting for events"
	if len(l.recent) > 0 {
		s = l.entry(max(0, slices.Index(l.recent, l.selected)))
	}
	if l.paused != nil {
		s = "PAUSED, space goes on  " + s
	}
	return "? help   " + s
}

// entry is one of the recent events; l.mu is held.
func (l *listener) entry(at int) string {
	h := l.recent[at]
	return fmt.Sprintf("[%d] %d  %s  %s", at+1, h.Sequence, oneLine(h.Subject), h.result)
}

func (l *listener) help() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s strings.Builder
	s.WriteString("  r send again   p print   up, down, 1-9 select   space pause   q quit\n")
	for at, h := range l.recent {
		mark := " "
		if h == l.selected || l.selected == nil && at == 0 {
			mark = ">"
		}
		s.WriteString(mark + " " + l.entry(at) + "\n")
	}
	return s.String()
}
