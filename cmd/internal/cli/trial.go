package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/samples"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// trial is what the command line asks for.
type trial struct {
	name      string
	subjects  []string
	filter    *string // nil: not given
	transform *string
	sample    string
	since     string
	last      int
	asJSON    bool
	client    *admin.Client
}

func newTest(env Env) *cobra.Command {
	var t trial
	var filterText, transformText string
	c := &cobra.Command{
		Use:   "test [NAME]",
		Short: "Try a filter or a transform on stored or sample events",
		Long: `test runs a filter (CEL) and a transform (jq) on events and tells what they would
do: how many events match, are filtered out, or fail. Nothing is delivered and
nothing is changed.

The events are those stored by a running gridfan, the newest 1000 or those since a
time; or with --sample, without any gridfan, samples by name, all samples of a kind
(fno, dataverse, eventgrid, cloudevents, custom), or a file with CloudEvents as
JSON, one or an array.

With NAME, what is not given is that subscriber's; and a filter that is given is
compared with the present one: which events of the past would it have taken more,
and which fewer?`,
		Example: `  gridfan subscribers test --filter 'event.data.PurchaseOrderAmount > 1000' --sample purchase-order-confirmed
  gridfan subscribers test --filter 'event.legalentity == "usmf"' --subject 'events.fno.>' --since 1h
  gridfan subscribers test warehouse --filter 'event.data.?Amount.orValue(0) > 500' --last 10000
  gridfan subscribers test --transform '{order: .PurchaseOrderId}' --sample order.json`,
		Args: cobra.MaximumNArgs(1),
	}
	client := adminFlags(c, env)
	c.Flags().StringArrayVar(&t.subjects, "subject", nil, "only events on this subject pattern; may be given several times (default: the subscriber's, or all)")
	c.Flags().StringVar(&filterText, "filter", "", "CEL expression")
	c.Flags().StringVar(&transformText, "transform", "", "jq program")
	c.Flags().StringVar(&t.sample, "sample", "", "sample events instead of stored ones: a name of gridfan trigger --list, a kind, or a file")
	c.Flags().StringVar(&t.since, "since", "", "stored events since a time ago (1h, 7d), or since a time (2026-11-02T10:00:00Z)")
	c.Flags().IntVar(&t.last, "last", 0, "at most so many stored events, up to 100000; without --since the newest (default 1000)")
	c.Flags().BoolVar(&t.asJSON, "json", false, "print the result as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			t.name = args[0]
		}
		if cmd.Flags().Changed("filter") {
			t.filter = &filterText
		}
		if cmd.Flags().Changed("transform") {
			t.transform = &transformText
		}
		t.client = client()
		return t.run(cmd, env)
	}
	return c
}

func (t *trial) run(cmd *cobra.Command, env Env) error {
	switch {
	case t.name == "" && t.filter == nil && t.transform == nil:
		return errors.New("what is to be tested? give --filter, --transform or the NAME of a subscriber")
	case t.sample != "" && (t.since != "" || t.last != 0):
		return errors.New("--sample takes no stored events: leave out --since and --last")
	case t.last < 0:
		return fmt.Errorf("--last: want at least 1, got %d", t.last)
	}
	for _, s := range t.subjects {
		if err := registry.ValidSubject(s); err != nil {
			return fmt.Errorf("--subject: %w", err)
		}
	}
	result, err := t.result(cmd)
	if err != nil {
		return err
	}
	if t.asJSON {
		return printJSON(env.Out, result)
	}
	return failed(t.write(env.Out, result, time.Now()))
}

func (t *trial) result(cmd *cobra.Command) (*admin.Trial, error) {
	if t.sample != "" {
		return t.onSamples(cmd)
	}
	req := admin.TrialRequest{Subscriber: t.name, Subjects: t.subjects, Filter: t.filter, Transform: t.transform, Last: t.last}
	if t.since != "" {
		at, err := sinceTime(t.since, time.Now())
		if err != nil {
			return nil, err
		}
		req.Since = &at
	}
	result, err := t.client.Try(cmd.Context(), req)
	return result, failed(err)
}

// sinceTime reads a span of time before now, or a time.
func sinceTime(s string, now time.Time) (time.Time, error) {
	if at, err := event.ParseTime(s); err == nil {
		return at, nil
	}
	d, err := deliver.ParseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since: %q is neither a span of time, as in 1h or 7d, nor a time, as in 2026-11-02T10:00:00Z", s)
	}
	return now.Add(-d), nil
}

// onSamples tries sample events in this process.
func (t *trial) onSamples(cmd *cobra.Command) (*admin.Trial, error) {
	events, subjects, err := sampleEvents(t.sample, time.Now())
	if err != nil {
		return nil, err
	}
	filterText, transformText, present, shadow := "", "", "", false
	var origin registry.Origin
	if t.name != "" {
		s, err := t.client.Subscriber(cmd.Context(), t.name)
		if err != nil {
			return nil, failed(err)
		}
		origin = s.Origin
		filterText, transformText, present = s.Definition.Filter, s.Definition.Transform, s.Definition.Filter
		if len(t.subjects) == 0 {
			t.subjects = s.Definition.Subjects
		}
	}
	if t.filter != nil {
		shadow = t.name != "" && *t.filter != present
		filterText = *t.filter
	}
	if t.transform != nil {
		transformText = *t.transform
	}
	if len(t.subjects) > 0 {
		subjects = t.subjects
	}
	trier, err := admin.NewTrier(subjects, filterText, transformText, shadow, present)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		if slices.ContainsFunc(subjects, func(pattern string) bool { return onSubject(pattern, e.Subject) }) {
			trier.Add(0, e.Subject, time.Now(), e.Event)
		}
	}
	result := trier.Result()
	result.From, result.Until, result.Complete, result.Origin = nil, nil, true, origin
	return result, nil
}

// onSubject says whether a pattern covers a subject: then only the pattern is
// left of the two.
func onSubject(pattern, subject string) bool {
	left := deliver.MinimiseSubjects([]string{pattern, subject})
	return len(left) == 1 && left[0] == pattern
}

// sampleEvents finds what --sample names, and the subjects it may be on.
func sampleEvents(name string, now time.Time) ([]samples.Stored, []string, error) {
	var chosen []samples.Sample
	if s, ok := samples.Find(name); ok {
		chosen = append(chosen, s)
	} else {
		for _, s := range samples.All() {
			if s.Kind == name {
				chosen = append(chosen, s)
			}
		}
	}
	if chosen == nil {
		events, err := fileEvents(name)
		return events, []string{"events.>"}, err
	}
	var all []samples.Stored
	for _, s := range chosen {
		events, err := s.Events("sample", now)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, events...)
	}
	if all == nil {
		return nil, nil, fmt.Errorf("--sample: %s is answered by gridfan itself and goes to no subscriber", name)
	}
	return all, []string{event.SubjectPrefix + "." + chosen[0].Kind + ".>"}, nil
}

// fileEvents reads CloudEvents from a file.
func fileEvents(path string) ([]samples.Stored, error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("--sample: no sample, kind or file %q; gridfan trigger --list shows the samples", path)
	}
	if err != nil {
		return nil, failed(err)
	}
	elems, _, err := rawjson.Elements(body)
	if err != nil {
		return nil, failed(fmt.Errorf("%s: %w", path, err))
	}
	var events []samples.Stored
	for i, raw := range elems {
		e, err := event.ParseJSON(raw)
		if err != nil {
			return nil, failed(fmt.Errorf("%s: event %d is no CloudEvent in JSON: %w", path, i+1, err))
		}
		subject := event.Subject(event.KindCloudEvents, "sample", event.LastSegment(e.Source), e.Type)
		events = append(events, samples.Stored{Subject: subject, Event: e})
	}
	return events, nil
}

func (t *trial) write(out io.Writer, r *admin.Trial, now time.Time) error {
	of := t.scope(r, now)
	if r.Events == 0 {
		_, err := fmt.Fprintf(out, "No events on %s%s: nothing to try. See what there is:  gridfan status\n", strings.Join(r.Subjects, " "), of)
		return err
	}
	if s := r.Shadow; s != nil {
		fmt.Fprintf(out, "Of %s%s the present filter takes %d, this one %d: %d fewer, %d more\n", plural(r.Events, "event"), of, s.Present.Matched, taken(r), s.Fewer, s.More)
	} else {
		fmt.Fprintf(out, "Of %s%s: %d matched, %d filtered out, %d failed\n", plural(r.Events, "event"), of, r.Matched, r.Filtered, r.Failed)
	}
	if !r.Complete {
		fmt.Fprintf(out, "There are more: %s\n", r.Stopped)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(out, "Note: %s\n", n)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSUBJECT\tMATCHED\tFILTERED\tFAILED")
	for _, s := range r.BySubject {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\n", s.Subject, s.Matched, s.Filtered, s.Failed)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Failures) > 0 {
		fmt.Fprintln(out, "\nFailed events would become dead letters:")
		for _, f := range r.Failures {
			fmt.Fprintf(out, "  %d × %s: %s\n      as %s\n", f.Count, f.Stage, f.Reason, named(f.Sequence, f.Subject, f.ID))
		}
	}
	if s := r.Shadow; s != nil && len(s.Examples) > 0 {
		fmt.Fprintln(out, "\nWhere the two differ, the newest:")
		for _, d := range s.Examples {
			fmt.Fprintf(out, "  %s\n      %s by the present filter, %s by this one\n", named(d.Sequence, d.Subject, d.ID), d.Present, d.New)
		}
	}
	if x := r.Example; x != nil {
		fmt.Fprintf(out, "\nBefore:\n%s\nAfter:\n%s\n", indented(x.Before), indented(x.After))
	}
	_, err := fmt.Fprintf(out, "\nNothing was delivered.%s\n", t.next(r))
	return err
}

// taken counts what the filter lets pass, whatever the transform then does.
func taken(r *admin.Trial) int { return r.Shadow.Present.Matched + r.Shadow.More - r.Shadow.Fewer }

// scope tells which events were looked at.
func (t *trial) scope(r *admin.Trial, now time.Time) string {
	if t.sample != "" || r.From == nil {
		return ""
	}
	layout := time.DateTime
	if from := r.From.Local(); from.YearDay() == now.YearDay() && from.Year() == now.Year() {
		layout = time.TimeOnly
	}
	return " since " + r.From.Local().Format(layout)
}

func named(sequence uint64, subject, id string) string {
	if sequence == 0 {
		return fmt.Sprintf("event %s on %s", printable([]byte(id)), subject)
	}
	return fmt.Sprintf("event %d on %s (id %s)", sequence, subject, printable([]byte(id)))
}

func indented(raw []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, raw, "  ", "  ") != nil {
		return "  " + printable(raw)
	}
	return "  " + printable(b.Bytes())
}

// next says how to use what was tried.
func (t *trial) next(r *admin.Trial) string {
	var flags, keys []string
	for _, x := range []struct {
		name  string
		value *string
	}{{"filter", t.filter}, {"transform", t.transform}} {
		if x.value != nil {
			flags = append(flags, "--"+x.name+" "+quoted(*x.value))
			keys = append(keys, fmt.Sprintf("    %s: %s", x.name, yamlText(*x.value)))
		}
	}
	switch {
	case flags == nil:
		return fmt.Sprintf(" To try another filter:  gridfan subscribers test %s --filter EXPR", t.name)
	case t.name == "":
		return fmt.Sprintf(" To use it:\n  gridfan subscribe NAME --subject '%s' --url URL %s", strings.Join(r.Subjects, "' --subject '"), strings.Join(flags, " "))
	case r.Origin == registry.FromFile:
		return fmt.Sprintf(" To use it, write into the configuration file:\nsubscribers:\n  %s:\n%s", t.name, strings.Join(keys, "\n"))
	}
	return fmt.Sprintf(" To use it:\n  gridfan subscribers update %s %s", t.name, strings.Join(flags, " "))
}

// quoted is a text as a shell takes it.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// yamlText is a text as YAML takes it.
func yamlText(s string) string { return "'" + strings.ReplaceAll(oneLine(s), "'", "''") + "'" }
