package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// part is a gridfan in a process of its own that does a part of the work.
type part struct {
	*child
	admin *admin.Client
}

// startPart runs one with a configuration file.
func startPart(t *testing.T, role app.Role, file string) *part {
	t.Helper()
	c := startChild(t, childGridfan, file, string(role))
	return &part{c, &admin.Client{URL: "http://" + c.addresses.Admin}}
}

// splitFile is a configuration around an external broker.
func splitFile(t *testing.T, url string, replicas int, parts ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gridfan.yaml")
	text := fmt.Sprintf(`listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker: { url: %q, replicas: %d, durability: sync-always }
egress: { allow: [ 127.0.0.1 ] }
%s`, url, replicas, sources+strings.Join(parts, "\n"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// takes says whether a router stores an event. One that was killed, or tells to come
// back, does not.
func takes(p *part, id string) bool {
	a, err := send(p.addresses.Public, "fo", nil, businessEvent(id))
	return err == nil && a.status == http.StatusOK
}

// TestRoles runs two routers and two processes that deliver around a cluster, kills
// one of each while events come, and wants every event that was accepted delivered
// to all who were there, and the books to balance.
func TestRoles(t *testing.T) {
	cluster, in := brokertest.NewCluster(t), newInbox(t)
	file := splitFile(t, cluster.URL(), 3, "subscribers:", subscriber("declared", in.url+"/declared", quickRetry))
	routers := []*part{startPart(t, app.Router, file), startPart(t, app.Router, file)}
	deliverers := []*part{startPart(t, app.Subscribers, file), startPart(t, app.Subscribers, file)}

	// Who is there, told by each of them.
	for _, p := range append(append([]*part{}, routers...), deliverers...) {
		waitFor(t, "each sees all four", func() bool {
			s, err := p.admin.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			count := map[string]int{}
			for _, other := range s.Processes {
				count[other.Role]++
			}
			return count["router"] == 2 && count["subscribers"] == 2 && len(s.Processes) == 4
		})
	}

	// Added by either's API, it takes effect where events are delivered.
	for name, client := range map[string]*admin.Client{"by-router": routers[1].admin, "by-deliverer": deliverers[1].admin} {
		d := registry.Definition{Name: name, Subjects: []string{"events.>"}, Deliver: registry.Deliver{Webhook: &webhook.Config{URL: in.url + "/" + name}}}
		if _, err := client.Subscribe(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range append(append([]*part{}, routers...), deliverers...) {
		list, err := p.admin.Subscribers(t.Context())
		if err != nil || len(list) != 3 {
			t.Fatalf("process %d lists %d subscribers, %v", i, len(list), err)
		}
	}

	var mu sync.Mutex // guards accepted
	var accepted []string
	post := func(from, to int, to2 func(i int) *part) {
		var wg sync.WaitGroup
		for s := range 4 {
			wg.Go(func() {
				for i := from + s; i < to; i += 4 {
					id := fmt.Sprintf("R-%d", i)
					// A sender repeats what was not accepted, at whichever router answers.
					waitFor(t, "a router takes "+id, func() bool { return takes(to2(i), id) || takes(to2(i+1), id) })
					mu.Lock()
					accepted = append(accepted, id)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	either := func(i int) *part { return routers[i%2] }
	subscribers := []string{"declared", "by-router", "by-deliverer"}
	post(0, 100, either)
	for _, name := range subscribers {
		in.wantOnce(t, name, accepted) // nothing was killed yet
	}

	var load sync.WaitGroup
	load.Go(func() { post(100, 400, either) })
	waitFor(t, "there is load", func() bool { return len(in.of("declared")) > 150 })
	routers[0].kill()
	deliverers[0].kill()
	load.Wait()
	if len(accepted) != 400 {
		t.Fatalf("%d accepted", len(accepted))
	}
	for _, name := range subscribers {
		in.wantAll(t, name, accepted)
	}
	if _, err := routers[1].admin.Books(t.Context()); !isOtherRole(err) {
		t.Errorf("a router's books: %v", err)
	}
	// What the killed router had not yet said that it counted is missing there, which
	// the source's note says. Subscribers' books are counted in the streams.
	waitFor(t, "the subscribers' books balance", func() bool {
		r, err := deliverers[1].admin.Books(t.Context())
		if err != nil {
			return false
		}
		for _, s := range r.Subscribers {
			if s.Balance != 0 || s.Matched < 400 || s.Pending+s.InRetry+s.Parked > 0 {
				return false
			}
		}
		return len(r.Subscribers) == 3
	})
	waitFor(t, "those that were killed are told of no more", func() bool {
		s, err := routers[1].admin.Status(t.Context())
		return err == nil && len(s.Processes) == 2
	})
	// An orderly stop counts everything: then the sources balance, too.
	routers[1].end()
	deliverers[1].end()
}

func isOtherRole(err error) bool {
	var p *admin.Problem
	return errors.As(err, &p) && p.Code == "other-role" && p.Status == http.StatusConflict && strings.Contains(p.Detail, "--role")
}

// startRole runs a part in this process.
func startRole(t *testing.T, role app.Role, file string) *gridfan {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(context.Background(), cfg, app.Options{
		Version: "test", Role: role, Log: slog.New(slog.DiscardHandler), File: file, Load: func() (*config.Config, error) { return config.Load(file) },
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &gridfan{t: t, app: a, admin: &admin.Client{URL: "http://" + a.AdminAddr()}}
	t.Cleanup(g.stop)
	return g
}

// Each role answers what is on the broker, orders what others then do, and names the
// other one for the rest. Together their books balance.
func TestRolesAnswer(t *testing.T) {
	s, in := brokertest.NewServer(t), newInbox(t)
	file := splitFile(t, s.URL(), 1, "subscribers:", subscriber("one", in.url+"/one", ""))
	out := startRole(t, app.Subscribers, file)
	router := startRole(t, app.Router, file)

	ids := names("A", 20)
	router.accept(ids...)
	in.wantOnce(t, "one", ids)
	if a := router.post("fo", nil, []byte("{}")); a.status != http.StatusOK {
		t.Fatalf("HTTP %d %s", a.status, a.body)
	}
	// Events that are led to the wrong place come back.
	a, err := send(out.app.PublicAddr(), "fo", nil, businessEvent("B"))
	if err != nil || a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || !bytes.Contains(a.body, []byte(`"other-role"`)) {
		t.Errorf("%v, HTTP %d %s", err, a.status, a.body)
	}
	for _, g := range []*gridfan{router, out} {
		for _, addr := range []string{g.app.PublicAddr(), g.app.AdminAddr()} {
			for _, path := range []string{"/livez", "/readyz", "/healthz"} {
				if status, body := page(t, "http://"+addr+path); status != http.StatusOK || !strings.HasPrefix(body, "ok") {
					t.Errorf("%s: HTTP %d %s", path, status, body)
				}
			}
		}
	}

	atRouter, atOut := newDescribed(t, router.admin.URL), newDescribed(t, out.admin.URL)
	for _, d := range []*described{atRouter, atOut} {
		for _, path := range []string{"/api/v1/status", "/api/v1/sources", "/api/v1/sources/fo", "/api/v1/subscribers", "/api/v1/subscribers/one", "/api/v1/quarantine", "/api/v1/deadletters", "/api/v1/jobs", "/api/v1/endpoints", "/api/v1/config", "/api/v1/why?id=A-3"} {
			d.call("GET", path, "", 200, "")
		}
		d.call("POST", "/api/v1/subscribers/one/replay", `{"from":"1","dryRun":true}`, 200, "")
	}
	for _, c := range []struct {
		at           *described
		method, path string
		body         string
	}{
		{atRouter, "GET", "/api/v1/books", ""},
		{atRouter, "POST", "/api/v1/books/one/accept", ""},
		{atRouter, "POST", "/api/v1/subscribers/one/probe", ""},
		{atOut, "POST", "/api/v1/sources/fo/poll-now", ""},
		{atOut, "POST", "/api/v1/sources/fo/rewind", `{"to":"beginning"}`},
		{atOut, "POST", "/api/v1/sources/fo/baseline", `{}`},
		{atOut, "POST", "/api/v1/sources/fo/recover", ""},
		{atOut, "POST", "/api/v1/quarantine/redrive", `{"source":"fo"}`},
	} {
		c.at.call(c.method, c.path, c.body, http.StatusConflict, "other-role")
	}

	// A router takes the sources of its file over.
	atRouter.call("POST", "/api/v1/config/apply", "{}", http.StatusOK, "")

	// An order that a router takes is carried out where events are delivered.
	job, err := router.admin.Replay(t.Context(), "one", admin.ReplayOrder{Range: deadletters.Range{From: deadletters.Point{Sequence: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the job is done", func() bool {
		j, err := router.admin.Job(t.Context(), job.Job.ID)
		return err == nil && j.State == "done"
	})
	waitFor(t, "each came twice", func() bool { return in.counts("one")["A-7"] == 2 && len(in.of("one")) == 40 })
	// Dropping from quarantine is a matter of the broker alone.
	if d, err := out.admin.Drop(t.Context(), quarantine.Selection{Source: "fo"}); err != nil || d.Dropped != 1 {
		t.Errorf("dropped %+v, %v", d, err)
	}
	waitFor(t, "the process that delivers tells what routers have counted", func() bool {
		list, err := out.admin.Sources(t.Context())
		return err == nil && len(list) == 2 && list[1].Name == "fo" && list[1].Published == 20 && list[1].Received == 21
	})
	waitFor(t, "all books balance", func() bool {
		r, err := out.admin.Books(t.Context())
		return err == nil && r.Balanced && r.Settled && len(r.Sources) == 2 && r.Sources[1].Published == 20
	})
}

// Receivers fetch from whichever process they ask, and what one lends another one ends.
func TestRolesLend(t *testing.T) {
	s := brokertest.NewServer(t)
	file := splitFile(t, s.URL(), 1)
	router := startRole(t, app.Router, file)
	d := registry.Definition{Name: "nightly", Subjects: []string{"events.>"}, Deliver: registry.Deliver{Pull: &pull.Config{Keys: []string{"key-of-the-receiver"}}}}
	if _, err := router.admin.Subscribe(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	router.accept("A", "B")
	ask := func(g *gridfan, operation, body string) map[string]any {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.app.PublicAddr()+pull.Path("nightly")+":"+operation, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "SharedAccessKey key-of-the-receiver")
		req.Header.Set("Content-Type", "application/json")
		resp, err := sender.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return nil
		}
		return answer{resp.StatusCode, resp.Header, b}.json(t)
	}
	lend := func(g *gridfan) string {
		t.Helper()
		token := ""
		waitFor(t, "an event is lent", func() bool {
			got, _ := ask(g, "receive?maxEvents=1&maxWaitTime=10", "")["value"].([]any)
			if len(got) == 1 {
				token = got[0].(map[string]any)["brokerProperties"].(map[string]any)["lockToken"].(string)
			}
			return len(got) == 1
		})
		return token
	}
	// A router alone is enough; and a token is good at a process of the other role.
	first := lend(router)
	out := startRole(t, app.Subscribers, file)
	second := lend(out)
	for g, token := range map[*gridfan]string{router: second, out: first} {
		body, _ := json.Marshal(map[string]any{"lockTokens": []string{token}})
		if got, _ := ask(g, "acknowledge", string(body))["succeededLockTokens"].([]any); len(got) != 1 {
			t.Errorf("acknowledged %v", got)
		}
	}
	out.drained()
}

// The file's subscribers are taken over by those who deliver, whoever was started
// first; a router only says what differs.
func TestRolesFollowTheFile(t *testing.T) {
	s, in := brokertest.NewServer(t), newInbox(t)
	file := splitFile(t, s.URL(), 1, "subscribers:", subscriber("one", in.url+"/one", ""))
	router := startRole(t, app.Router, file)
	if list, err := router.admin.Subscribers(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("a router alone has %d subscribers, %v", len(list), err)
	}
	out := startRole(t, app.Subscribers, file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	more := string(text) + subscriber("two", in.url+"/two", "") + "storage: { replay: 2h }\n"
	if err := os.WriteFile(file, []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*gridfan{router, out} {
		waitFor(t, "the new file is known", func() bool {
			list, err := g.admin.Subscribers(t.Context())
			c, err2 := g.admin.Config(t.Context())
			return err == nil && err2 == nil && len(list) == 2 && len(c.NeedsRestart) == 1 && c.NeedsRestart[0] == "storage"
		})
	}
	// Sent by API, either takes it.
	res, err := router.admin.Apply(t.Context(), admin.ApplyRequest{Declared: &admin.Declared{Subscribers: []registry.Definition{{
		Name: "one", Subjects: []string{"events.>"}, Deliver: registry.Deliver{Webhook: &webhook.Config{URL: in.url + "/one"}},
	}}}})
	if err != nil || len(res.Changes) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if v, err := out.admin.Subscriber(t.Context(), "two"); err != nil || v.State != admin.Parked {
		t.Errorf("%+v, %v", v, err)
	}
}

// A process that waits for its broker is alive, and ready as far as it can do without.
func TestRolesWithoutBroker(t *testing.T) {
	s := brokertest.NewServer(t)
	file := splitFile(t, s.URL(), 1)
	s.Stop()
	for role, ready := range map[app.Role]int{app.Router: http.StatusOK, app.Subscribers: http.StatusServiceUnavailable} {
		cfg, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listen.Public, cfg.Listen.Admin = freeAddress(t), freeAddress(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := app.New(ctx, cfg, app.Options{Version: "test", Role: role, Log: slog.New(slog.DiscardHandler)})
			ended <- err
		}()
		for _, addr := range []string{cfg.Listen.Public, cfg.Listen.Admin} {
			answers(t, addr)
			if status, _ := page(t, "http://"+addr+"/readyz"); status != ready {
				t.Errorf("%s: /readyz is %d", role, status)
			}
			if status, _ := page(t, "http://"+addr+"/healthz"); status != http.StatusServiceUnavailable {
				t.Errorf("%s: /healthz is %d", role, status)
			}
		}
		if status, body := page(t, "http://"+cfg.Listen.Admin+"/api/v1/status"); status != http.StatusServiceUnavailable || !strings.Contains(body, `"starting"`) {
			t.Errorf("%s: HTTP %d %s", role, status, body)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Errorf("%s: it started", role)
		}
	}
}

// Split roles have nowhere to meet without an external broker.
func TestRolesNeedABroker(t *testing.T) {
	for _, role := range []app.Role{app.Router, app.Subscribers} {
		_, err := app.New(t.Context(), parse(t, t.TempDir(), sources), app.Options{Role: role, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "set broker.url") {
			t.Errorf("%s: %v", role, err)
		}
	}
	if _, err := app.ParseRole("worker"); err == nil {
		t.Error("any word is a role")
	}
}

// A disk that goes with the replica is told of wherever somebody asks.
func TestEphemeral(t *testing.T) {
	dir := t.TempDir()
	g := &gridfan{t: t, dir: dir, log: slog.New(slog.DiscardHandler)}
	t.Cleanup(g.stop)
	cfg := parse(t, dir, sources)
	cfg.Broker.Ephemeral = true
	g.runWith(cfg)
	s, err := g.admin.Status(t.Context())
	if err != nil || !s.Broker.Durability.Warning || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "broker.embedded.ephemeral") {
		t.Errorf("%+v, %v", s.Warnings, err)
	}
	for _, addr := range []string{g.app.PublicAddr(), g.app.AdminAddr()} {
		if status, body := page(t, "http://"+addr+"/healthz"); status != http.StatusOK || !strings.HasPrefix(body, "ok\nwarning: durability") {
			t.Errorf("HTTP %d %s", status, body)
		}
	}
}

// page gets a page.
func page(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := sender.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
