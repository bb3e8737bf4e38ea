package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

func newJobs(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "jobs", Short: "List, show, stop and resume redrives and replays", Aliases: []string{"job"}},
		newJobList(env), newJobShow(env), newJobOrder(env, "stop"), newJobOrder(env, "resume"))
}

func newJobList(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the jobs, newest first",
		Long:    "list shows the redrives, drops and replays that run, and those that ended last.",
		Example: "  gridfan jobs list",
		Args:    cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		jobs, err := client().Jobs(cmd.Context())
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, jobs)
		}
		if len(jobs) == 0 {
			_, err := fmt.Fprintln(env.Out, "No jobs. They are started by gridfan deadletters redrive, gridfan deadletters drop and gridfan replay.")
			return failed(err)
		}
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "JOB\tKIND\tSUBSCRIBER\tSTATE\tDONE\tLOOKED AT\tSTARTED\tREMARK")
		for _, j := range jobs {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d of %d\t%s\t%s\n", j.ID, j.Kind, j.Subscriber, j.State, j.Done, j.Looked, j.Total,
				j.Created.Local().Format(time.DateTime), printable([]byte(j.Waiting+j.Error)))
		}
		if err := w.Flush(); err != nil {
			return failed(err)
		}
		_, err = fmt.Fprintln(env.Out, "\nSee one:  gridfan jobs show JOB")
		return failed(err)
	}
	return c
}

func newJobShow(env Env) *cobra.Command {
	var asJSON, follow bool
	c := &cobra.Command{
		Use: "show JOB", Short: "Show one job, or follow it",
		Long:    "show tells how far a job has come, and with --follow goes on telling until its end.",
		Example: "  gridfan jobs show 3 --follow",
		Args:    exactly("JOB"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&follow, "follow", false, "until its end")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		j, err := client().Job(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		if follow {
			return followJob(cmd.Context(), env, client(), j, asJSON)
		}
		if asJSON {
			return printJSON(env.Out, j)
		}
		return failed(writeJob(env.Out, *j))
	}
	return c
}

func newJobOrder(env Env, verb string) *cobra.Command {
	var asJSON bool
	long := "resume lets a job go on that was stopped or failed, from where it was."
	if verb == "stop" {
		long = "stop ends a job after the few messages it has begun with. What is done stays done, and\nit can be resumed. What is on the subscriber's retry lane is delivered all the same."
	}
	c := &cobra.Command{
		Use: verb + " JOB", Short: strings.ToUpper(verb[:1]) + verb[1:] + " a job", Long: long,
		Example: "  gridfan jobs " + verb + " 3",
		Args:    exactly("JOB"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print the job as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		order := client().ResumeJob
		if verb == "stop" {
			order = client().StopJob
		}
		j, err := order(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, j)
		}
		next := "Follow it:  gridfan jobs show --follow " + j.ID
		if verb == "stop" {
			next = "Go on with it:  gridfan jobs resume " + j.ID
		}
		_, err = fmt.Fprintf(env.Out, "Job %s is %s.\n%s\n", j.ID, j.State, next)
		return failed(err)
	}
	return c
}

func writeJob(out io.Writer, j deadletters.Job) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("job", "%s", j.ID)
	row("kind", "%s", j.Kind)
	row("subscriber", "%s", j.Subscriber)
	row("state", "%s", j.State)
	if j.Waiting != "" {
		row("waits", "%s", printable([]byte(j.Waiting)))
	}
	if j.Error != "" {
		row("error", "%s", printable([]byte(j.Error)))
	}
	row("looked at", "%d of %d", j.Looked, j.Total)
	row("done", "%d", j.Done)
	for _, why := range slices.Sorted(maps.Keys(j.Skipped)) {
		row("skipped", "%d: %s", j.Skipped[why], why)
	}
	if j.Failed > 0 {
		row("left alone", "%d that the filter cannot judge", j.Failed)
	}
	if j.Rate > 0 {
		row("rate", "%s", j.Rate)
	}
	row("started", "%s", j.Created.Local().Format(time.DateTime))
	if j.Ended != nil {
		row("ended", "%s", j.Ended.Local().Format(time.DateTime))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	next := ""
	switch j.State {
	case deadletters.Running:
		next = "Stop it:  gridfan jobs stop " + j.ID
	case deadletters.Stopped, deadletters.Failed:
		next = "Go on with it:  gridfan jobs resume " + j.ID
	}
	if next != "" {
		next = "\n" + next + "\n"
	}
	_, err := io.WriteString(out, next)
	return err
}

// How often a job is asked about, and how often a line is written where there
// is no screen.
const (
	askEvery  = 300 * time.Millisecond
	lineEvery = 5 * time.Second
)

// followJob tells how a job gets on until it ends. When ctx ends, the job goes
// on.
func followJob(ctx context.Context, env Env, client *admin.Client, j *deadletters.Job, asJSON bool) error {
	out := io.Discard
	var bar *progressbar.ProgressBar
	switch {
	case asJSON:
	case env.OutIsTerminal:
		bar = progressbar.NewOptions(max(1, j.Total), progressbar.OptionSetWriter(env.Out), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
			progressbar.OptionSetItsString("msg"), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(askEvery/3),
			progressbar.OptionSetDescription(barText(*j)), progressbar.OptionEnableColorCodes(false))
	default:
		out = env.Out
	}
	t := time.NewTicker(askEvery)
	defer t.Stop()
	began, said, last := time.Now(), time.Now(), ""
	for j.State == deadletters.Running || j.State == deadletters.Stopping {
		select {
		case <-ctx.Done():
			if bar != nil {
				fmt.Fprintln(env.Out)
			}
			return failed(fmt.Errorf("job %s goes on without this command; follow it: gridfan jobs show --follow %s; stop it: gridfan jobs stop %s", j.ID, j.ID, j.ID))
		case <-t.C:
		}
		now, err := client.Job(ctx, j.ID)
		switch {
		case ctx.Err() != nil:
			continue
		case err != nil:
			return failed(fmt.Errorf("job %s goes on, but cannot be followed: %w", j.ID, err))
		}
		j = now
		if bar != nil {
			bar.Describe(barText(*j))
			_ = bar.Set(min(j.Looked, max(1, j.Total))) // a screen that is gone is noticed at the end
		}
		if line := barText(*j) + fmt.Sprintf(", %d of %d", j.Looked, j.Total); time.Since(said) >= lineEvery && line != last {
			fmt.Fprintln(out, line)
			said, last = time.Now(), line
		}
	}
	if bar != nil {
		fmt.Fprintln(env.Out)
	}
	if asJSON {
		if err := printJSON(env.Out, j); err != nil {
			return err
		}
	} else if err := writeEnd(env.Out, *j, time.Since(began)); err != nil {
		return failed(err)
	}
	switch j.State {
	case deadletters.Failed:
		return failed(fmt.Errorf("job %s failed: %s", j.ID, j.Error))
	case deadletters.Stopped:
		return failed(fmt.Errorf("job %s was stopped; go on with it: gridfan jobs resume %s", j.ID, j.ID))
	}
	if j.Failed > 0 {
		return failed(errors.New(j.Error))
	}
	return nil
}

func barText(j deadletters.Job) string {
	text := fmt.Sprintf("job %s, %s", j.ID, j.Kind)
	if j.Waiting != "" {
		text += ", waits: " + printable([]byte(j.Waiting))
	}
	return text
}

// writeEnd says what a job has done.
func writeEnd(out io.Writer, j deadletters.Job, took time.Duration) error {
	what := map[deadletters.Kind]string{
		deadletters.Redrive: "dead letter", deadletters.Drop: "dead letter", deadletters.Replay: "event",
	}[j.Kind]
	verb := map[deadletters.Kind]string{
		deadletters.Redrive: "sent out anew", deadletters.Drop: "dropped", deadletters.Replay: "sent once more",
	}[j.Kind]
	fmt.Fprintf(out, "%s %s in %s\n", plural(j.Done, what), verb, deliver.Roughly(took))
	for _, why := range slices.Sorted(maps.Keys(j.Skipped)) {
		fmt.Fprintf(out, "%d skipped: %s\n", j.Skipped[why], why)
	}
	if j.Failed > 0 {
		fmt.Fprintf(out, "%d left alone: %s\n", j.Failed, printable([]byte(j.Error)))
	}
	if j.Kind == deadletters.Drop || j.Done == 0 {
		return nil
	}
	_, err := fmt.Fprintf(out, "See how they fare:  gridfan subscribers show %s\n", j.Subscriber)
	return err
}
