package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

func newRotateKey(env Env) *cobra.Command {
	var asJSON bool
	var overlap string
	c := &cobra.Command{
		Use: "rotate-key NAME", Short: "Make a new key for a subscriber",
		Long: `rotate-key makes a new key and shows it once. For a subscriber that is posted to it
signs from now on; for one that fetches its events it lets receivers in. The key
before it is good too until the overlap ends, so that the receiver can exchange it at
any time in between. A key that has leaked ends at once with --overlap 0s.`,
		Example: "  gridfan subscribers rotate-key warehouse --overlap 48h",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&overlap, "overlap", "", "how long the key before it is still good (default what overlap says in the definition, 24h unless set)")
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON, with the key as signingKey or accessKey")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var lasts *deliver.Duration
		if overlap != "" {
			d, err := deliver.ParseDuration(overlap)
			if err != nil {
				return fmt.Errorf("--overlap: %w", err)
			}
			lasts = new(deliver.Duration(d))
		}
		s, err := client().RotateKey(cmd.Context(), args[0], lasts)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		writeKey(env.Out, s)
		for _, k := range s.Keys {
			if !k.Expires.IsZero() {
				verb := "signs"
				if s.Definition.Deliver.Pull != nil {
					verb = "is good"
				}
				fmt.Fprintf(env.Out, "Key %s %s too until %s: give the receiver the new one before.\n", k.ID, verb, k.Expires.Local().Format(time.DateTime))
			}
		}
		_, err = fmt.Fprintf(env.Out, "See its keys:  gridfan subscribers show %s\n", args[0])
		return failed(err)
	}
	return c
}

// writeKey shows a key that was just made.
func writeKey(out io.Writer, s *admin.Subscriber) {
	switch {
	case s.SigningKey == "":
	case slices.ContainsFunc(s.Keys, func(k admin.SigningKey) bool { return k.PublicKey == s.SigningKey }):
		fmt.Fprintf(out, "Public key of %s, by which its receiver verifies (docs/delivery.md says how):\n  %s\n", s.Definition.Name, s.SigningKey)
	default:
		fmt.Fprintf(out, "Signing key of %s, which is shown only now (docs/delivery.md says how to verify):\n  %s\n", s.Definition.Name, s.SigningKey)
	}
	if s.AccessKey != "" {
		fmt.Fprintf(out, "Key of the receivers of %s, which is shown only now:\n  %s\n", s.Definition.Name, s.AccessKey)
	}
}

// admission tells in words who may fetch a subscriber's events.
func admission(s admin.Subscriber, now time.Time) string {
	p := s.Definition.Deliver.Pull
	var words []string
	if p.OwnKeys() {
		words = ownKeys(s, now)
	}
	if n := len(p.Keys); n > 0 {
		words = append(words, plural(n, "key")+" of its definition")
	}
	if p.Entra != nil {
		words = append(words, "tokens of tenant "+p.Entra.Tenant)
	}
	return strings.Join(words, "; ")
}

// howToFetch is a line that fetches an event. Which address the listener has for
// receivers is not known here.
func howToFetch(name string) string {
	return `curl -X POST -H "Authorization: SharedAccessKey $KEY" 'https://HOST` + pull.Path(name) + `:receive?maxEvents=10'`
}

// signing tells in words what posts are signed with.
func signing(s admin.Subscriber, now time.Time) string {
	sign := s.Definition.Deliver.Webhook.Sign
	switch {
	case !sign.On:
		return "no"
	case len(sign.Keys) > 0:
		return fmt.Sprintf("with %s of its definition", plural(len(sign.Keys), "key"))
	}
	return "with " + strings.Join(ownKeys(s, now), "; ")
}

// ownKeys are those that gridfan made.
func ownKeys(s admin.Subscriber, now time.Time) []string {
	words := []string{}
	for _, k := range s.Keys {
		word := "key " + k.ID
		if k.PublicKey != "" {
			word = string(webhook.Ed25519) + " " + word
		}
		if !k.Expires.IsZero() {
			word += ", for another " + deliver.Roughly(k.Expires.Sub(now))
		}
		words = append(words, word)
	}
	return words
}
