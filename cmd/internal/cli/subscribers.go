package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func newSubscribe(env Env) *cobra.Command {
	var d registry.Definition
	var start string
	var asJSON bool
	c := &cobra.Command{
		Use:   "subscribe NAME --subject PATTERN {--url URL | --endpoint ENDPOINT | --pull | --nats | --event-grid URL | …}",
		Short: "Add a subscriber to a running gridfan",
		Long: `subscribe adds a downstream system: every event whose subject matches one of
the patterns is posted to the URL from now on, on every replica, without a
restart. With --pull its receivers fetch the events instead, by the stock clients of
Event Grid namespaces, or curl. The same call once more changes nothing.

The URL may lead to the Internet. Private and loopback addresses need the leave of
egress.allow in gridfan's configuration; gridfan dev gives it.

With --nats nothing is posted: the system takes its events by itself, with any NATS
client, from a durable consumer of its own (docs/native-nats.md).

A pattern is a NATS subject: * stands for one token, > for the rest.
  events.fno.*.usmf.>                          all business events of company usmf
  events.fno.prod.*.PurchaseOrderConfirmed     one event, all companies
  events.eventgrid.files.>                     everything of one source
  events.>                                     everything`,
		Example: `  gridfan subscribe warehouse --subject 'events.fno.*.usmf.>' --url https://wms.example.com/events
  gridfan subscribe finance --subject 'events.fno.>' --filter 'event.data.?InvoiceAmount.orValue(0) > 1000' --transform '{invoice: .InvoiceId}' --url https://fin.example.com/
  gridfan subscribe audit --subject 'events.>' --url http://127.0.0.1:9000/ --format cloudevents-binary --start beginning
  gridfan subscribe late --subject 'events.>' --url http://127.0.0.1:9000/ --start 2026-11-01T00:00:00Z
  gridfan subscribe orders --subject 'events.fno.>' --endpoint wms --path /orders
  gridfan subscribe erp --subject 'events.fno.>' --url https://erp.example.com/in --auth oauth2.tokenURL=https://login.example.com/token --auth oauth2.clientID=gridfan --auth oauth2.clientSecret=@/run/secrets/erp
  gridfan subscribe nightly --subject 'events.fno.>' --pull --lock 5m
  gridfan subscribe mes --subject 'events.fno.>' --nats --ack-wait 1m
  gridfan subscribe grid --subject 'events.fno.>' --event-grid https://orders.westeurope-1.eventgrid.azure.net/api/events --identity managed`,
		Args: exactly("NAME"),
	}
	client := adminFlags(c, env)
	apply := definitionFlags(c)
	c.Flags().StringVar(&start, "start", string(registry.Now), "where it begins: now, beginning (everything still stored), a time such as 2026-11-01T00:00:00Z, or the sequence of an event")
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON")
	_ = c.MarkFlagRequired("subject") // it fails only for an unknown flag
	c.MarkFlagsOneRequired(append([]string{"url", "endpoint", "pull", "nats"}, azureWays...)...)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		d.Name = args[0]
		d.Start = registry.Start(start)
		if _, err := apply(&d); err != nil {
			return err
		}
		if err := d.Validate(); err != nil {
			return err
		}
		s, err := client().Subscribe(cmd.Context(), d)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		from := "every matching event accepted from now on"
		switch {
		case d.Start == registry.Beginning:
			from = "every matching event still stored and from now on"
		case d.Start != registry.Now:
			from = fmt.Sprintf("every matching event from %d on, and from now on", s.Epochs[0].From)
		}
		if s.Note != "" {
			fmt.Fprintln(env.Out, "Note: "+s.Note)
		}
		writeKey(env.Out, s)
		if s.Connect != nil {
			fmt.Fprintf(env.Out, "%s gets %s\n  subjects  %s\n", d.Name, from, strings.Join(d.Subjects, ", "))
			writeConnect(env.Out, s)
			_, err = fmt.Fprintf(env.Out, "See how it is doing:  gridfan subscribers show %s\n", d.Name)
			return failed(err)
		}
		gets := "gets"
		rows := append([][2]string{{"subjects", strings.Join(d.Subjects, ", ")}}, where(d)...)
		if d.Deliver.Pull != nil {
			gets = "can fetch"
			rows = append(rows, [2]string{"receive", howToFetch(d.Name)})
		}
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "%s %s %s\n", d.Name, gets, from)
		for _, row := range rows {
			fmt.Fprintf(w, "  %s\t%s\n", row[0], row[1])
		}
		fmt.Fprintf(w, "See how it is doing:  gridfan subscribers show %s\n", d.Name)
		return failed(w.Flush())
	}
	return c
}

func newSubscribers(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "subscribers", Short: "List, show, change, test, pause, drain and delete subscribers", Aliases: []string{"subscriber"}},
		newList(env), newShow(env), newAsyncAPI(env), newUpdate(env), newTest(env), newPause(env, true), newDrain(env), newPause(env, false), newRotateKey(env), newProbe(env), newShed(env), newDelete(env))
}

func newList(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the subscribers",
		Long:    "list shows every subscriber with its subjects, its state and what it has not got.",
		Example: "  gridfan subscribers list --json",
		Args:    cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := client().Subscribers(cmd.Context())
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, list)
		}
		if len(list) == 0 {
			_, err := fmt.Fprintln(env.Out, "No subscribers yet. Add one:  gridfan subscribe NAME --subject 'events.>' --url URL")
			return failed(err)
		}
		return failed(writeSubscribers(env, list, time.Now()))
	}
	return c
}

func newShow(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show NAME", Short: "Show one subscriber",
		Long:    "show tells everything about one subscriber: what it wants, how it is served, how it is\ndoing, and what it has not got. Of several replicas, the one that is asked tells how it\nfinds the subscriber, and which others find it down; where order is kept, only one of\nthem serves it, and the others stand by.",
		Example: "  gridfan subscribers show warehouse",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := client().Subscriber(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		return failed(writeSubscriber(env.Out, *s, time.Now()))
	}
	return c
}

func newPause(env Env, paused bool) *cobra.Command {
	var asJSON bool
	verb, long := "resume", "resume lets a paused subscriber have its events again, those held back first. One that\nwas drained gets what comes from now on; what came in between is not its own."
	if paused {
		verb, long = "pause", "pause holds a subscriber's events back, on every replica and over restarts. Posts\nunder way end; nothing is lost."
	}
	c := &cobra.Command{
		Use: verb + " NAME", Short: strings.ToUpper(verb[:1]) + verb[1:] + " a subscriber", Long: long,
		Example: "  gridfan subscribers " + verb + " warehouse",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := client().SetPaused(cmd.Context(), args[0], paused)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		text := fmt.Sprintf("%s is resumed; %s to go\n", args[0], plural(s.Backlog.Pending+s.Backlog.Retry, "event"))
		if s.Note != "" {
			text += "Note: " + s.Note + "\n"
		}
		if paused {
			text = fmt.Sprintf("%s is paused; its events wait. Go on:  gridfan subscribers resume %s\n", args[0], args[0])
		}
		_, err = io.WriteString(env.Out, text)
		return failed(err)
	}
	return c
}

func newProbe(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "probe NAME", Short: "Try a subscriber at once whose breaker is open",
		Long: `probe does not wait for the next probe of a subscriber that is down or refuses
everything: one event is sent now. If it is taken, the others follow by themselves.
A token for it that could not be had, or that it has not accepted, is asked for anew.`,
		Example: "  gridfan subscribers probe warehouse",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := client().Probe(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		text := args[0] + " takes events as it is; there is nothing to probe\n"
		switch {
		case s.Breaker != nil && s.Breaker.State == deliver.BreakerMisconfigured && strings.HasPrefix(s.Breaker.LastError, egress.RefusedPrefix):
			text = fmt.Sprintf("%s is tried with its next event. Until now:\n%s\n%s\nSee how it went:  gridfan subscribers show %s\n",
				args[0], s.Breaker.LastError, forbiddenFix(s.Breaker.LastError, s.Origin), args[0])
		case s.Breaker != nil && !s.Breaker.Flowing():
			text = fmt.Sprintf("%s is tried with its next event. See how it went:  gridfan subscribers show %s\n", args[0], args[0])
		}
		_, err = io.WriteString(env.Out, text)
		return failed(err)
	}
	return c
}

func newShed(env Env) *cobra.Command {
	var asJSON bool
	var limit int
	c := &cobra.Command{
		Use: "shed NAME", Short: "List the events that were dropped for a subscriber to make room",
		Long: `shed lists the events that a subscriber never got because the disk space was used
up and storage.onFull is shed: newest first, with their place in the stream. They
are gone; only their records are left.`,
		Example: "  gridfan subscribers shed warehouse --limit 1000 --json",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().IntVar(&limit, "limit", 100, "list at most so many")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 1 {
			return fmt.Errorf("--limit: want at least 1, got %d", limit)
		}
		s, err := client().Shed(cmd.Context(), args[0], limit)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		return failed(writeShed(env.Out, args[0], s, limit))
	}
	return c
}

func writeShed(out io.Writer, name string, s *admin.Shed, limit int) error {
	since := s.Since.Local().Format(time.DateTime)
	if len(s.Events) == 0 {
		if s.Complete {
			_, err := fmt.Fprintf(out, "No event of %s was shed since %s, where the records begin: each was delivered,\nis a dead letter, or waits. Events are shed only with storage.onFull: shed, when\nthe space is used up.\n", name, since)
			return err
		}
		_, err := fmt.Fprintf(out, "No event of %s was shed since %s; there was no time to read older records.\n", name, since)
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SHED AT\tSEQUENCE\tSUBJECT\tID")
	for _, e := range s.Events {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", e.Time.Local().Format(time.DateTime), e.Sequence, e.Subject, e.ID)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !s.Complete {
		more := "--limit shows more"
		if len(s.Events) < limit {
			more = "there was no time to read older records"
		}
		_, err := fmt.Fprintf(out, "\nSince %s; %s.\n", since, more)
		return err
	}
	return nil
}

func newDelete(env Env) *cobra.Command {
	var asJSON, discard bool
	c := &cobra.Command{
		Use: "delete NAME", Short: "Delete a subscriber",
		Long: `delete removes a subscriber from every replica. If there are events it has not
got, or dead letters, it refuses, unless --discard says that they may go.

A subscriber that the configuration file declares is removed from the file
first; that parks it, and then it can be deleted.`,
		Example: "  gridfan subscribers delete audit --discard",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print what was discarded as JSON")
	c.Flags().BoolVar(&discard, "discard", false, "discard what it has not got, and its dead letters")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := client().Delete(cmd.Context(), args[0], discard)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, d)
		}
		_, err = fmt.Fprintf(env.Out, "%s is deleted; discarded: %d pending, %d in retry, %s\n", args[0],
			d.Discarded.Pending, d.Discarded.Retry, plural(d.Discarded.DeadLetters, "dead letter"))
		return failed(err)
	}
	return c
}

// exactly wants one argument and names it when it is missing.
func exactly(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return fmt.Errorf("%q needs a %s", cmd.CommandPath(), what)
		case 1:
			return nil
		}
		return fmt.Errorf("%q takes one %s, got %d", cmd.CommandPath(), what, len(args))
	}
}

// writeSubscribers prints the table that status and list share.
func writeSubscribers(env Env, list []admin.Subscriber, now time.Time) error {
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SUBSCRIBER\tPENDING\tRETRY\tDEAD\tHELD\tOLDEST\tDOING\tSUBJECTS")
	for _, s := range list {
		held, oldest := holding(s, now)
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", s.Definition.Name,
			s.Backlog.Pending, s.Backlog.Retry, s.Backlog.DeadLetters, held, oldest,
			doing(s, now), strings.Join(s.Definition.Subjects, " "))
	}
	return w.Flush()
}

// holding tells how much of EVENTS a subscriber makes us keep, and since when.
func holding(s admin.Subscriber, now time.Time) (held, oldest string) {
	if s.Held == nil {
		return "-", "-"
	}
	return size(uint64(s.Held.Bytes)), deliver.Roughly(now.Sub(s.Held.Since))
}

// doing tells in words how a subscriber is doing.
func doing(s admin.Subscriber, now time.Time) string {
	switch {
	case s.State == admin.Paused:
		return "paused"
	case s.State == admin.Parked:
		return "parked: " + s.Why
	case s.State == admin.Drained:
		return "drained"
	case s.State == admin.Draining && s.Connect != nil:
		return "draining, its own client takes events"
	case s.Connect != nil:
		return "its own client takes events"
	case s.Breaker == nil:
		return "starting"
	}
	words := breakerWords(*s.Breaker, s.Backlog, now)
	if s.StandsBy() {
		words = strings.TrimSuffix("stands by; "+elsewhere(s, now), "; ")
	}
	if s.Definition.Deliver.Pull != nil {
		words = "ready for its receivers"
	}
	if s.State == admin.Draining {
		words = "draining, " + words
	}
	return words
}

// elsewhere tells how the breakers of other replicas stand that are not closed.
func elsewhere(s admin.Subscriber, now time.Time) string {
	words := make([]string, len(s.Replicas))
	for i, r := range s.Replicas {
		words[i] = fmt.Sprintf("%s %s on %s", r.State, deliver.Roughly(now.Sub(r.Since)), r.Instance)
	}
	return strings.Join(words, ", ")
}

// breakerWords is a breaker as one says it to a colleague.
func breakerWords(b deliver.BreakerStatus, backlog registry.Backlog, now time.Time) string {
	if b.Flowing() {
		return b.Words(now)
	}
	return fmt.Sprintf("%s, %d parked", b.Words(now), backlog.Pending+backlog.Retry)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func writeSubscriber(out io.Writer, s admin.Subscriber, now time.Time) error {
	d := s.Definition
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("name", "%s", d.Name)
	row("declared", "%s", map[registry.Origin]string{registry.FromFile: "in the configuration file", registry.FromAPI: "by API"}[s.Origin])
	row("subjects", "%s", strings.Join(d.Subjects, "  "))
	if d.Filter != "" {
		row("filter", "%s", oneLine(d.Filter))
	}
	if d.Transform != "" {
		row("transform", "%s", oneLine(d.Transform))
	}
	for _, r := range where(d) {
		row(r[0], "%s", r[1])
	}
	if h := d.Deliver.Webhook; h != nil {
		row("format", "%s", h.Format)
		for _, name := range slices.Sorted(maps.Keys(h.Headers)) {
			row("header", "%s: %s", name, h.Headers[name])
		}
		if h.Handshake.On {
			row("handshake", "%s", "before the first event")
		}
		row("signed", "%s", signing(s, now))
		for _, k := range s.Keys {
			if k.PublicKey != "" {
				row("public key", "%s", k.PublicKey)
			}
		}
		for _, k := range s.PublicKeys {
			row("public key", "%s", k)
		}
		if h.Auth != nil {
			row("auth", "%s", shownAuth(h))
		}
		if h.TLS != nil {
			row("tls", "%s", shownTLS(h.TLS))
		}
	}
	p := d.Deliver.Pull
	if p != nil {
		row("receive", "%s", howToFetch(d.Name))
		row("lets in", "%s", admission(s, now))
		row("lock", "%s, %s, then dead letter", p.LockDuration, plural(p.MaxDeliveryCount, "time"))
	}
	if n := d.Deliver.Nats; n != nil {
		row("server", "%s", cmp.Or(s.Connect.URL, "none: set broker.embedded.clients.listen"))
		row("consumer", "%s on %s, inbox prefix %s", s.Connect.Consumer, s.Connect.Stream, s.Connect.InboxPrefix)
		row("keys", "%s", clientKeys(s, now))
		row("ack wait", "%s", n.AckWait)
		row("handed out", "up to %s, then dead letter; up to %d events at once", times(n.MaxDeliver), n.MaxAckPending)
	}
	row("doing", "%s", doing(s, now))
	if ordered := d.Ordering != "" && d.Ordering != deliver.Unordered; ordered && s.Serving != nil {
		row("served", "%s", map[bool]string{true: "by this replica; any other one stands by", false: "by another replica; this one stands by"}[*s.Serving])
	}
	if other := elsewhere(s, now); other != "" && !s.StandsBy() {
		row("elsewhere", "%s", other)
	}
	row("pending", "%d", s.Backlog.Pending)
	row("retry", "%d", s.Backlog.Retry)
	row("dead letters", "%d", s.Backlog.DeadLetters)
	if held, oldest := holding(s, now); s.Held != nil {
		row("holds", "%s of EVENTS, its oldest undelivered event is %s old", held, oldest)
	}
	if d.Native() {
		row("backlog", "%s, then dead letter", backlogLimit(d.Limits.Backlog))
		row("since", "%s", s.Created.Local().Format(time.DateTime))
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(out)
		writeConnect(out, &s)
		if next := nextStep(s); next != "" {
			_, err := fmt.Fprintln(out, "\n"+next)
			return err
		}
		return nil
	}
	if p == nil {
		row("ordering", "%s", d.Ordering)
		row("concurrency", "%d", d.Limits.Concurrency)
	}
	if d.Limits.Rate > 0 {
		row("rate", "%s", d.Limits.Rate)
	}
	if b := d.Limits.Batch; b.Events > 0 {
		row("batch", "up to %d events or %s, after %s at the latest", b.Events, b.Bytes, b.Linger)
	}
	if p == nil {
		row("timeout", "%s", d.Limits.Timeout)
	}
	row("backlog", "%s, then dead letter", backlogLimit(d.Limits.Backlog))
	if p == nil {
		row("retry after", "%s, then dead letter", waits(d.Retry.Schedule))
	}
	if d.Retry.MaxAge > 0 {
		row("retry until", "%s after acceptance", d.Retry.MaxAge)
	}
	for _, f := range deliver.Faults {
		rule, ok := d.Retry.Faults[f]
		if !ok {
			continue
		}
		then := "dead letter"
		if !rule.GiveUp {
			then = waits(rule.Schedule) + ", then dead letter"
		}
		row("after "+string(f), "%s", then)
	}
	if p == nil {
		row("breaker", "opens after %d failures in a row or %g %% in %s, for %s growing to %s; closes after %s, ramp-up %s", d.Breaker.Failures,
			d.Breaker.Ratio*100, d.Breaker.Window, d.Breaker.OpenFor, d.Breaker.MaxOpenFor, plural(d.Breaker.Probes, "probe"), d.Breaker.RampUp)
	}
	row("since", "%s", s.Created.Local().Format(time.DateTime))
	if err := w.Flush(); err != nil {
		return err
	}
	if next := nextStep(s); next != "" {
		_, err := fmt.Fprintln(out, "\n"+next)
		return err
	}
	return nil
}

// oneLine keeps an expression in its row.
func oneLine(s string) string {
	return printable([]byte(strings.NewReplacer("\r\n", " ", "\n", " ", "\t", " ").Replace(strings.TrimSpace(s))))
}

// where tells in rows where events go.
func where(d registry.Definition) [][2]string {
	h := d.Redacted().Deliver.Webhook
	switch {
	case h == nil:
		return azureRows(d.Deliver)
	case h.Endpoint != "":
		return [][2]string{{"url", strings.TrimSpace("endpoint " + h.Endpoint + " " + h.Path)}}
	}
	return [][2]string{{"url", h.URL}}
}

func waits(schedule []deliver.Duration) string {
	words := make([]string, len(schedule))
	for i, wait := range schedule {
		words[i] = wait.String()
	}
	return strings.Join(words, " ")
}

func backlogLimit(b deliver.Backlog) string {
	limit := "half of EVENTS"
	if b.Bytes > 0 {
		limit = b.Bytes.String()
	}
	if b.Age > 0 {
		limit += " or " + b.Age.String()
	}
	return limit
}

// forbiddenFix says what to do about an address that gridfan's rules refuse.
func forbiddenFix(why string, o registry.Origin) string {
	other := "give it another URL (gridfan subscribers update --url, gridfan endpoints set)"
	if !strings.Contains(why, "egress.allow") {
		return "Nothing opens that address: " + other + "."
	}
	fix := "If it is meant, name it in egress.allow of the configuration file and restart gridfan"
	if o == registry.FromAPI {
		fix += ", or declare\nthe subscriber in that file"
	}
	return fix + "; otherwise " + other + "."
}

// nextStep says what to do about a subscriber that needs something.
func nextStep(s admin.Subscriber) string {
	name := s.Definition.Name
	down := s.Breaker != nil && !s.Breaker.Flowing() && !s.StandsBy()
	switch {
	case s.State == admin.Paused:
		return "Its events wait. Go on:  gridfan subscribers resume " + name
	case s.State == admin.Parked && s.Why != admin.Undeclared && s.Definition.Deliver.Webhook != nil:
		return "Its events wait until it is known where they go:  gridfan endpoints set " + s.Definition.Deliver.Webhook.Endpoint + " URL"
	case s.State == admin.Parked:
		return "Declare it in the configuration file again, or:  gridfan subscribers delete " + name
	case s.State == admin.Drained:
		return "It has everything and gets nothing new. Let it have events again:  gridfan subscribers resume " + name + "\nOr it is done with:  gridfan subscribers delete " + name
	case s.StandsBy() && len(s.Replicas) > 0:
		return "The replica that serves it knows why; ask that one:  gridfan subscribers show " + name + " --admin URL"
	case down && s.Breaker.State == deliver.BreakerMisconfigured && strings.HasPrefix(s.Breaker.LastError, egress.RefusedPrefix):
		return "Its events wait, because gridfan does not connect to its address:\n" + s.Breaker.LastError + "\n" + forbiddenFix(s.Breaker.LastError, s.Origin) + "\nThen try it at once:  gridfan subscribers probe " + name
	case down && s.Breaker.State == deliver.BreakerMisconfigured:
		return "Its endpoint refuses everything; events wait and go out by themselves once it does not.\nLook at the URL and the key: " + s.Breaker.LastError
	case down && strings.HasPrefix(s.Breaker.LastError, credentials.NoToken):
		return "gridfan has no token to show it: " + s.Breaker.LastError + "\nIts events wait and go out by themselves once there is one. To try at once:  gridfan subscribers probe " + name
	case down:
		return "Its endpoint does not take events; they wait and go out by themselves once it does.\nNothing is needed here: look at the endpoint."
	case s.Connect != nil && len(s.Keys) == 0 && len(s.Definition.Deliver.Nats.Keys) == 0:
		return "It has no key yet, so no client gets in. Make one:  gridfan subscribers rotate-key " + name
	case s.Backlog.DeadLetters > 0:
		return "Look at its dead letters:  gridfan deadletters list " + name
	}
	return ""
}
