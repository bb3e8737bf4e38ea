package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gridfan/gridfan/infra/egress"
)

// handshake answers OPTIONS: the CloudEvents abuse protection handshake
// (cloudevents/spec http-webhook.md §4, read 2026-11). It carries no key, and
// is answered without the broker.
func (in *Ingress) handshake(w http.ResponseWriter, r *http.Request) error {
	s, err := in.find(r)
	if err != nil {
		return err
	}
	w.Header().Set("Allow", "POST, OPTIONS")
	origin := r.Header.Get("WebHook-Request-Origin")
	if origin == "" {
		return writeJSON(w, http.StatusOK, struct{}{})
	}
	if !s.allowsOrigin(origin) {
		if n, ok := s.refusals.allow(time.Now()); ok {
			in.log.Warn("handshake refused: origin not allowed", "source", s.Name, "origin", shorten(origin), "not_logged_since_last_line", n)
		}
		return refuse(http.StatusUnauthorized, "origin-not-allowed", "this WebHook-Request-Origin is not in the source's push.origins")
	}
	if !s.handshakes.Allow() {
		return retryLater("too-many-handshakes", "too many handshakes; try again", 5*time.Second)
	}
	if callback := r.Header.Get("WebHook-Request-Callback"); callback != "" && s.Validation == ValidateByURL {
		// Permission is given at the callback instead of here.
		in.confirm(s, callback)
		return writeJSON(w, http.StatusOK, struct{}{})
	}
	in.report("source.validated", s.Name, map[string]any{"by": "handshake", "origin": shorten(origin)})
	w.Header().Set("WebHook-Allowed-Origin", origin)
	w.Header().Set("WebHook-Allowed-Rate", s.allowedRate())
	return writeJSON(w, http.StatusOK, struct{}{})
}

// allowedRate is the source's limit as the handshake has it: requests a minute,
// or * for no limit.
func (s *source) allowedRate() string {
	if s.rate == nil {
		return "*"
	}
	return strconv.Itoa(max(1, int(s.Limits.Rate*60)))
}

func (s *source) allowsOrigin(origin string) bool {
	return slices.ContainsFunc(s.Origins, func(o string) bool { return o == "*" || strings.EqualFold(o, origin) })
}

// confirmHosts ends the host of every validation URL. Those of national clouds
// are not known to us and so are not fetched. Whoever can post an event
// here could otherwise make us fetch any URL (Event Grid's are of the form
// https://rp-eastus2.eventgrid.azure.net:553/…; Event Grid docs,
// end-point-validation-event-grid-events-schema; read 2026-11).
const confirmHosts = ".eventgrid.azure.net"

// confirmWaits are the pauses between tries: Event Grid wants to hear within
// ten minutes.
var confirmWaits = []time.Duration{0, 2 * time.Second, 10 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute}

// maxConfirming bounds what a flood of validations can make us do.
const maxConfirming = 16

// confirm fetches a validation URL in the background.
func (in *Ingress) confirm(s *source, raw string) {
	if err := confirmable(raw); err != nil {
		in.log.Warn("validation URL not fetched", "source", s.Name, "error", err)
		return
	}
	if in.confirming.Add(1) > maxConfirming {
		in.confirming.Add(-1)
		in.log.Warn("validation URL not fetched: too many at once", "source", s.Name)
		return
	}
	go func() {
		defer in.confirming.Add(-1)
		for i, wait := range confirmWaits {
			select {
			case <-in.stopped:
				return
			case <-time.After(wait):
			}
			err := in.fetch(raw)
			if err == nil {
				in.report("source.validated", s.Name, map[string]any{"by": "validation URL", "try": i + 1})
				return
			}
			in.log.Warn("validation URL", "source", s.Name, "try", i+1, "error", err)
		}
		in.report("source.not-validated", s.Name, map[string]any{"why": "the validation URL did not answer"})
	}()
}

// confirmable checks a validation URL. The error does not repeat it: it holds
// a token.
func confirmable(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("not a URL")
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme != "https" || u.User != nil:
		return errors.New("not https")
	case !strings.HasSuffix(host, confirmHosts):
		return fmt.Errorf("host %.64q is not Event Grid's", host)
	}
	return nil
}

func (in *Ingress) fetch(raw string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, raw, nil)
	if err != nil {
		return errors.New("not a URL")
	}
	resp, err := in.confirmClient.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the rest repeats the URL
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // for the connection's sake
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	return nil
}

// newConfirmClient makes a client that reaches public addresses only, whatever
// a name resolves to at the moment of dialing, and follows no redirect.
func newConfirmClient() *http.Client {
	d := &net.Dialer{Timeout: 10 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if !egress.Public(ap.Addr()) {
			return fmt.Errorf("address %s is not public", ap.Addr())
		}
		return nil
	}}
	return &http.Client{
		Transport:     &http.Transport{DialContext: d.DialContext, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
