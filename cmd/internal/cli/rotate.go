package cli

import (
	"cmp"
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
signs from now on; for one that fetches its events it lets receivers in, and for one
that takes them with a NATS client, that client. The key before it is good too until
the overlap ends, so that the other side can exchange it at any time in between. A key
that has leaked ends at once with --overlap 0s.

When the key of a NATS client ends, clients that are connected with it are cut off.`,
		Example: "  gridfan subscribers rotate-key warehouse --overlap 48h",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&overlap, "overlap", "", "how long the key before it is still good (default what overlap says in the definition, 24h unless set)")
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON, with the key as signingKey, accessKey or clientSeed")
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
				verb, whom := "signs", "receiver"
				switch to := s.Definition.Deliver; {
				case to.Pull != nil:
					verb = "is good"
				case to.Nats != nil:
					verb, whom = "opens", "client"
				}
				fmt.Fprintf(env.Out, "Key %s %s too until %s: give the %s the new one before.\n", k.ID, verb, k.Expires.Local().Format(time.DateTime), whom)
			}
		}
		_, err = fmt.Fprintf(env.Out, "See its keys:  gridfan subscribers show %s\n", args[0])
		return failed(err)
	}
	return c
}

// writeKey shows a key that was just made.
func writeKey(out io.Writer, s *admin.Subscriber) {
	if s.ClientSeed != "" {
		fmt.Fprintf(out, "Seed of the key of %s, which is shown only now and kept nowhere (docs/native-nats.md):\n  %s\n", s.Definition.Name, s.ClientSeed)
	}
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

// writeConnect shows how a subscriber's own NATS client gets its events.
func writeConnect(out io.Writer, s *admin.Subscriber) {
	c := s.Connect
	url := cmp.Or(c.URL, "tls://HOST:4223")
	if c.URL == "" {
		fmt.Fprintln(out, "The server has no address for its client yet: set broker.embedded.clients.listen.")
	}
	if !c.Managed {
		fmt.Fprintf(out, "The operator of the NATS server lets its client in (docs/native-nats.md):\n  publish    %s\n  subscribe  %s\n",
			strings.Join(c.Publish, " "), strings.Join(c.Subscribe, " "))
	}
	fmt.Fprintf(out, "Take an event, with the seed of its key in the file %s.nk:\n  nats --server %s --nkey %s.nk --inbox-prefix %s consumer next %s %s\n",
		c.Consumer, url, c.Consumer, c.InboxPrefix, c.Stream, c.Consumer)
}

// clientKeys tells in words which keys let a subscriber's own client in.
func clientKeys(s admin.Subscriber, now time.Time) string {
	words := slices.Clone(s.Definition.Deliver.Nats.Keys)
	for _, k := range s.Keys {
		word := k.ID
		if !k.Expires.IsZero() {
			word += ", for another " + deliver.Roughly(k.Expires.Sub(now))
		}
		words = append(words, word)
	}
	return cmp.Or(strings.Join(words, "; "), "none")
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
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
