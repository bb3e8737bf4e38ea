package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/samples"
)

func newTrigger(env Env) *cobra.Command {
	var source, ingress, key string
	var list, asJSON bool
	if ingress = env.Getenv("GRIDFAN_INGRESS"); ingress == "" {
		ingress = "http://127.0.0.1:8080"
	}
	c := &cobra.Command{
		Use:   "trigger NAME --source SOURCE",
		Short: "Post a sample event as Dynamics or Event Grid would",
		Long: `trigger posts one named sample, in the wire shape its sender really uses and with
a fresh id and time, to a source of a running gridfan, through its public
listener. It exits with 1 unless the answer is 200.`,
		Example: "  gridfan trigger --list\n  GRIDFAN_KEY=… gridfan trigger purchase-order-confirmed --source prod",
		Args:    cobra.MaximumNArgs(1),
	}
	c.Flags().StringVar(&source, "source", "", "name of the source, as in the configuration")
	c.Flags().StringVar(&ingress, "ingress", ingress, "where the public listener is; also GRIDFAN_INGRESS")
	c.Flags().StringVar(&key, "key", "", "the source's key; better as GRIDFAN_KEY, which other users of the machine can't see")
	c.Flags().BoolVar(&list, "list", false, "list the samples")
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as it came, or the list as JSON")
	c.ValidArgs = samples.Names()
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if list {
			return listSamples(env, asJSON)
		}
		if len(args) == 0 {
			return errors.New("which sample? gridfan trigger --list shows them")
		}
		s, ok := samples.Find(args[0])
		if !ok {
			return fmt.Errorf("no sample %q; want one of %s", args[0], strings.Join(samples.Names(), ", "))
		}
		if source == "" {
			return fmt.Errorf("--source is missing: the name of a source of kind %s", s.Kind)
		}
		if key == "" {
			key = env.Getenv("GRIDFAN_KEY")
		}
		if !strings.Contains(ingress, "://") {
			ingress = "http://" + ingress
		}
		to := strings.TrimRight(ingress, "/") + "/ingress/" + url.PathEscape(source)
		header, body := s.Request(time.Now())
		req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPost, to, bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("--ingress %q: %w", ingress, err)
		}
		maps.Copy(req.Header, header)
		if key != "" {
			req.Header.Set("aeg-sas-key", key)
		}
		return failed(post(env, req, asJSON))
	}
	return c
}

func post(env Env, req *http.Request, asJSON bool) error {
	client := &http.Client{
		Timeout: time.Minute,
		// The key is for this address and no other.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("no gridfan answers at %s: %w; start one with gridfan serve, or say where it is with --ingress", req.URL.Host, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if asJSON {
		if _, err := env.Out.Write(answer); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(env.Out, "POST %s  %d in %s  %s\n", req.URL.Path, resp.StatusCode, time.Since(start).Round(time.Millisecond), inWords(answer)); err != nil {
		return err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized:
		return errors.New("the source refused the key; set GRIDFAN_KEY to one of its push.auth keys")
	}
	return fmt.Errorf("the answer was HTTP %d", resp.StatusCode)
}

// inWords shortens the ingress's answer.
func inWords(answer []byte) string {
	var counts map[string]json.RawMessage
	if json.Unmarshal(answer, &counts) != nil {
		return strings.TrimSpace(string(answer))
	}
	if detail, ok := counts["detail"]; ok {
		var s string
		_ = json.Unmarshal(detail, &s) // then it stays empty
		return s
	}
	var words []string
	for _, name := range []string{"published", "duplicate", "control", "quarantined"} {
		if n := string(counts[name]); n != "" && n != "0" {
			words = append(words, n+" "+name)
		}
	}
	if words == nil {
		return strings.TrimSpace(string(answer))
	}
	return strings.Join(words, ", ")
}

func listSamples(env Env, asJSON bool) error {
	type row struct {
		Name        string `json:"name"`
		Kind        string `json:"kind"`
		Description string `json:"description"`
	}
	var rows []row
	for _, s := range samples.All() {
		rows = append(rows, row{s.Name, s.Kind, s.Description})
	}
	if asJSON {
		return printJSON(env.Out, rows)
	}
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SAMPLE\tFOR KIND\tWHAT IT IS")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, r.Kind, r.Description)
	}
	return failed(w.Flush())
}
