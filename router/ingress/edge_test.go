package ingress_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/schemas/event"
)

// with is config with one more source, which everybody may send to unless it
// says otherwise.
func with(s ingress.Source) ingress.Config {
	cfg := config()
	if s.Kind == "" {
		s.Kind = event.KindEventGrid
	}
	if len(s.Auth.AnyOf) == 0 {
		s.Auth.None = true
	}
	cfg.Sources = append(cfg.Sources, s)
	return cfg
}

// TestGzip unpacks what Content-Encoding says is gzip, and no more of it than
// a body may have.
func TestGzip(t *testing.T) {
	e := open(t)
	send := func(body string, encoding string) answer {
		return e.do(request{path: "/ingress/eg", header: map[string]string{"Content-Encoding": encoding}, body: text(body)})
	}
	for i, encoding := range []string{"gzip", "GZIP", " gzip "} {
		if a := send(gzipped(good(fmt.Sprint("z", i))), encoding); a.status != http.StatusOK || a.field(t, "published") != 1.0 {
			t.Errorf("%q: HTTP %d %s", encoding, a.status, a.body)
		}
	}
	if a := send(good("z9"), "identity"); a.status != http.StatusOK || a.field(t, "published") != 1.0 {
		t.Errorf("identity: HTTP %d %s", a.status, a.body)
	}
	// What is not understood is kept as it reads, not as it came.
	if a := send(gzipped("no JSON"), "gzip"); a.status != http.StatusOK || a.field(t, "quarantined") != 1.0 {
		t.Errorf("no JSON: HTTP %d %s", a.status, a.body)
	}
	held := e.stored(broker.StreamQuarantine)
	if len(held) != 1 || string(held[0].Data) != "no JSON" || held[0].Header.Get("Gridfan-Request-Content-Encoding") != "" {
		t.Errorf("in quarantine: %v", held)
	}
	e.works()
}

// TestGzipBomb sends 10 and 100 MB of zeros in some KB.
func TestGzipBomb(t *testing.T) {
	e := open(t)
	for _, size := range []int{10 << 20, 100 << 20} {
		var bomb bytes.Buffer
		z := gzip.NewWriter(&bomb)
		zeros := make([]byte, 1<<20)
		for range size >> 20 {
			if _, err := z.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		e.do(request{path: "/ingress/eg", header: map[string]string{"Content-Encoding": "gzip"}, body: &bomb}).wantError(t, 413, "body-too-large")
		runtime.ReadMemStats(&after)
		// 4 MiB are read, into a slice that grows.
		if got := after.TotalAlloc - before.TotalAlloc; got > 48<<20 {
			t.Errorf("%d bytes were allocated for %d", got, size)
		}
		e.works()
	}
}

// ask sends a request from an address of the test's choice.
func (e *edge) ask(remote string, header map[string]string, path, body string) answer {
	e.t.Helper()
	r := httptest.NewRequestWithContext(e.t.Context(), http.MethodPost, path, text(body))
	r.RemoteAddr = remote
	for name, value := range header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	e.in.ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.Bytes()}
}

// TestTrustedProxies believes X-Forwarded-For as far as trusted proxies wrote it.
func TestTrustedProxies(t *testing.T) {
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, s := range list {
			all = append(all, netip.MustParsePrefix(s))
		}
		return all
	}
	cfg := with(ingress.Source{Name: "near", Auth: auth.Config{Allow: prefixes("198.51.100.0/24", "2001:db8:1::/48")}})
	cfg.TrustedProxies = prefixes("10.0.0.0/8", "fd00::/8")
	e := newEdge(t, brokertest.New(t), cfg)
	for i, tt := range []struct {
		name, remote, forwarded string
		in                      bool
	}{
		{"direct", "198.51.100.7:4711", "", true},
		{"direct, IPv4 in IPv6", "[::ffff:198.51.100.7]:4711", "", true},
		{"direct, IPv6", "[2001:db8:1::7]:4711", "", true},
		{"direct, IPv6 with a zone", "[2001:db8:1::7%eth0]:4711", "", true},
		{"direct, from elsewhere", "203.0.113.9:4711", "", false},
		{"the proxy itself", "10.1.2.3:4711", "", false},
		{"behind a proxy", "10.1.2.3:4711", "198.51.100.7", true},
		{"behind a proxy, with port", "10.1.2.3:4711", "198.51.100.7:52001", true},
		{"behind a proxy, IPv6", "[fd00::1]:4711", "2001:db8:1::7", true},
		{"behind a proxy, IPv6 with port", "10.1.2.3:4711", "[2001:db8:1::7]:52001", true},
		{"behind a proxy, IPv6 in brackets", "10.1.2.3:4711", "[2001:db8:1::7]", true},
		{"behind two proxies", "10.1.2.3:4711", "198.51.100.7, 10.9.9.9", true},
		{"behind two proxies, with ports", "10.1.2.3:4711", "198.51.100.7:1, [fd00::2]:2", true},
		{"from elsewhere behind a proxy", "10.1.2.3:4711", "203.0.113.9", false},
		{"spoofed by a stranger", "203.0.113.9:4711", "198.51.100.7", false},
		{"spoofed behind a proxy", "10.1.2.3:4711", "198.51.100.7, 203.0.113.9", false},
		{"spoofed behind two proxies", "10.1.2.3:4711", "198.51.100.7, 203.0.113.9:1, 10.9.9.9", false},
		{"spoofed, then nonsense", "10.1.2.3:4711", "198.51.100.7, unknown", false},
		{"nonsense, then the sender", "10.1.2.3:4711", "unknown, 198.51.100.7", true},
		{"only nonsense", "10.1.2.3:4711", "evil, ,", false},
		{"no address", "@", "198.51.100.7", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			header := map[string]string{}
			if tt.forwarded != "" {
				header["X-Forwarded-For"] = tt.forwarded
			}
			a := e.ask(tt.remote, header, "/ingress/near", good(fmt.Sprint("x", i)))
			if !tt.in {
				a.wantError(t, 401, "unauthorized")
			} else if a.status != http.StatusOK || a.field(t, "published") != 1.0 {
				t.Errorf("HTTP %d %s", a.status, a.body)
			}
		})
	}
}

// TestSlowBody sends half a body: who reads the answer is asked to repeat, and
// others are served meanwhile.
func TestSlowBody(t *testing.T) {
	e := open(t)
	s := httptest.NewUnstartedServer(e.in)
	s.Config.ReadTimeout = 500 * time.Millisecond
	s.Start()
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /ingress/eg HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n[{"); err != nil {
		t.Fatal(err)
	}
	e.works()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 503 ") || !strings.Contains(string(all), "body-incomplete") || !strings.Contains(string(all), "Retry-After: ") {
		t.Errorf("answer %q, %v", all, err)
	}
	if held := e.stored(broker.StreamQuarantine); len(held) != 0 {
		t.Errorf("half a body is in quarantine: %q", held[0].Data)
	}
}

// TestRateLimit is one source's own, and strangers use nothing of it up.
func TestRateLimit(t *testing.T) {
	cfg := with(ingress.Source{Name: "few", Auth: shopKey, Limits: ingress.Limits{Rate: 0.001}})
	e := newEdge(t, brokertest.New(t), cfg)
	withKey := map[string]string{"aeg-sas-key": key}
	for range 5 {
		e.do(request{path: "/ingress/few", body: text(good("r"))}).wantError(t, 401, "unauthorized")
	}
	if a := e.do(request{path: "/ingress/few", header: withKey, body: text(good("r1"))}); a.status != http.StatusOK {
		t.Fatalf("HTTP %d %s", a.status, a.body)
	}
	for range 3 {
		e.do(request{path: "/ingress/few", header: withKey, body: text(good("r2"))}).wantError(t, 503, "rate-limit")
		e.works()
	}
}

// TestConcurrencyLimit: a source that keeps all its requests open waits for
// itself, and takes nothing from others.
func TestConcurrencyLimit(t *testing.T) {
	e := newEdge(t, brokertest.New(t), with(ingress.Source{Name: "slow", Limits: ingress.Limits{Concurrency: 2}}))
	var finish []io.WriteCloser
	var wg sync.WaitGroup
	answers := make(chan int, 2)
	for range 2 {
		r, w := io.Pipe()
		finish = append(finish, w)
		wg.Go(func() {
			resp, err := http.Post(e.url+"/ingress/slow", "application/json", r)
			if err != nil {
				answers <- 0
				return
			}
			resp.Body.Close()
			answers <- resp.StatusCode
		})
		if _, err := io.WriteString(w, "["); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for {
		a := e.do(request{path: "/ingress/slow", body: text(good("c1"))})
		if a.status != http.StatusOK { // both have come
			a.wantError(t, 503, "overloaded")
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("three requests are worked on at once")
		}
	}
	waiting := make(chan answer, 1)
	wg.Go(func() { waiting <- e.ask("127.0.0.1:1", nil, "/ingress/slow", good("c2")) })
	for range 20 {
		start := time.Now()
		e.works()
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("another source's event took %s", took)
		}
	}
	for _, w := range finish {
		if _, err := io.WriteString(w, "]"); err != nil {
			t.Error(err)
		}
		w.Close()
	}
	wg.Wait()
	for range 2 {
		if got := <-answers; got != http.StatusOK {
			t.Errorf("a slow request is answered %d", got)
		}
	}
	// The one that waited comes in, or was told to repeat if this took long.
	if a := <-waiting; a.status != http.StatusOK {
		a.wantError(t, 503, "overloaded")
	}
	if a := e.do(request{path: "/ingress/slow", body: text(good("c3"))}); a.status != http.StatusOK {
		t.Errorf("afterwards: HTTP %d %s", a.status, a.body)
	}
}

// validation is what Event Grid posts to a new endpoint.
func validation(url string) string {
	return fmt.Sprintf(`[{"id":"v","topic":"/t","subject":"","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2026-11-01T10:00:00Z","data":{"validationCode":"code-1","validationUrl":%q},"dataVersion":"1"}]`, url)
}

// TestSubscriptions lets only listed event subscriptions in, whatever their
// case, and validates no other: anybody can aim a topic at us.
func TestSubscriptions(t *testing.T) {
	e := newEdge(t, brokertest.New(t), with(ingress.Source{Name: "listed", Auth: shopKey, Subscriptions: []string{"Orders-To-Gridfan", "second"}}))
	send := func(name, body string, more ...string) answer {
		header := map[string]string{"aeg-sas-key": key}
		if name != "" {
			header["aeg-subscription-name"] = name
		}
		for i := 0; i < len(more); i += 2 {
			header[more[i]] = more[i+1]
		}
		return e.do(request{path: "/ingress/listed", header: header, body: text(body)})
	}
	for i, name := range []string{"Orders-To-Gridfan", "ORDERS-TO-GRIDFAN", "orders-to-gridfan", "SECOND"} {
		if a := send(name, good(fmt.Sprint("l", i))); a.status != http.StatusOK || a.field(t, "published") != 1.0 {
			t.Errorf("%s: HTTP %d %s", name, a.status, a.body)
		}
	}
	for _, name := range []string{"", "orders", "orders-to-gridfan2", canary} {
		send(name, good("l9")).wantError(t, 401, "subscription-not-allowed")
		a := send(name, validation("https://rp-x.eventgrid.azure.net/"), "aeg-event-type", "SubscriptionValidation")
		a.wantError(t, 401, "subscription-not-allowed")
		if bytes.Contains(a.body, []byte("code-1")) {
			t.Errorf("%q: the code is echoed: %s", name, a.body)
		}
	}
	if a := send("SECOND", validation("https://rp-x.eventgrid.azure.net/"), "aeg-event-type", "SubscriptionValidation"); a.status != http.StatusOK || a.field(t, "validationResponse") != "code-1" {
		t.Errorf("validation: HTTP %d %s", a.status, a.body)
	}
	// A listed name alone is no key.
	e.do(request{path: "/ingress/listed", header: map[string]string{"aeg-subscription-name": "second"}, body: text(good("l10"))}).wantError(t, 401, "unauthorized")
}

// TestDeletion tells the operator when an event subscription is deleted, with
// either header that says so (Unsubscribe: Azure/azure-functions-eventgrid-
// extension, EventGridExtensionConfigProvider.cs; read 2026-11).
func TestDeletion(t *testing.T) {
	e := open(t)
	for i, kind := range []string{"SubscriptionDeletion", "Unsubscribe", "Notification", ""} {
		header := map[string]string{}
		if kind != "" {
			header["aeg-event-type"] = kind
		}
		a := e.do(request{path: "/ingress/eg", header: header, body: text(fmt.Sprintf(`[{"id":"d%d","topic":"/t","subject":"","eventType":"Microsoft.EventGrid.SubscriptionDeletedEvent","eventTime":"2026-11-01T10:00:00Z","data":{"eventSubscriptionId":"/subscriptions/x/sub-%d"},"dataVersion":"1"}]`, i, i))})
		if a.status != http.StatusOK || a.field(t, "control") != 1.0 || a.field(t, "published") != 0.0 {
			t.Errorf("%s: HTTP %d %s", kind, a.status, a.body)
		}
		if log := e.log.text(); strings.Count(log, "source.subscription-deleted") != i+1 || !strings.Contains(log, fmt.Sprint("/subscriptions/x/sub-", i)) {
			t.Errorf("%s: the operator is not told:\n%s", kind, log)
		}
	}
	if n := len(e.stored(broker.StreamEvents)); n != 0 {
		t.Errorf("%d events are stored", n)
	}
}

// TestConfirmable lets validation URLs lead to Event Grid and nowhere else.
func TestConfirmable(t *testing.T) {
	for _, tt := range []struct {
		url string
		ok  bool
	}{
		{"https://rp-eastus2.eventgrid.azure.net:553/eventsubscriptions/estest/validate?id=1&token=" + canary, true},
		{"https://rp-eastus2.EventGrid.Azure.NET/validate?token=" + canary, true},
		{"https://rp-usgovvirginia.eventgrid.azure.us:553/validate?token=" + canary, false},
		{"https://rp-chinaeast2.eventgrid.azure.cn:553/validate?token=" + canary, false},
		{"http://rp-eastus2.eventgrid.azure.net/validate?token=" + canary, false},
		{"ftp://rp-eastus2.eventgrid.azure.net/" + canary, false},
		{"//rp-eastus2.eventgrid.azure.net/" + canary, false},
		{"https://eventgrid.azure.net/" + canary, false},
		{"https://evileventgrid.azure.net/" + canary, false},
		{"https://rp.eventgrid.azure.net.evil.example/" + canary, false},
		{"https://rp.eventgrid.azure.net./" + canary, false},
		{"https://evil.example/?x=.eventgrid.azure.net&t=" + canary, false},
		{"https://evil.example/#.eventgrid.azure.net" + canary, false},
		{"https://evil.example\\.eventgrid.azure.net/" + canary, false},
		{"https://rp.eventgrid.azure.net@evil.example/" + canary, false},
		{"https://" + canary + "@rp.eventgrid.azure.net/", false},
		{"https://169.254.169.254/metadata?t=" + canary, false},
		{"https://[::1]/" + canary, false},
		{"https://localhost/" + canary, false},
		{"file:///etc/" + canary, false},
		{"https://rp.eventgrid.azure.net:bad/" + canary, false},
		{"", false},
	} {
		err := ingress.Confirmable(tt.url)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.url, err)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}

// TestConfirmClient dials no address that is not public, whatever a name
// resolves to.
func TestConfirmClient(t *testing.T) {
	for address, want := range map[string]bool{
		"20.42.0.1": true, "2603:1030::1": true, "::ffff:20.42.0.1": true,
		"127.0.0.1": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "::": false,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.0.1": false, "::ffff:10.0.0.1": false,
		"fd00::1": false, "fd00:ec2::254": false, "fe80::1%eth0": false, "64:ff9b::a9fe:a9fe": false,
		"169.254.169.254": false, "168.63.129.16": false, "100.64.0.1": false,
		"224.0.0.1": false, "ff02::1": false, "255.255.255.255": false,
	} {
		if got := egress.Public(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: public %v, want %v", address, got, want)
		}
	}
	touched := false
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { touched = true }))
	c := ingress.NewConfirmClient()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "168.63.129.16", "192.168.1.1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(host, port), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		cancel()
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "is not public") {
			t.Errorf("%s: %v", host, err)
		}
	}
	s.Close()
	if touched {
		t.Error("a server on a loopback address was asked")
	}
	if err := c.CheckRedirect(nil, nil); err != http.ErrUseLastResponse {
		t.Errorf("redirects are followed: %v", err)
	}
	if p := c.Transport.(*http.Transport).Proxy; p != nil {
		t.Error("a proxy would dial for it")
	}
}

// grid stands in for Event Grid's validation URL.
type grid struct {
	fails int // answers that are none

	mu   sync.Mutex // guards urls
	urls []string
}

func (g *grid) RoundTrip(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.urls = append(g.urls, r.Method+" "+r.URL.String())
	w := httptest.NewRecorder()
	switch n := len(g.urls); {
	case n == 1 && g.fails > 0:
		return nil, fmt.Errorf("connection refused by a test")
	case n <= g.fails:
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	return w.Result(), nil
}

func (g *grid) asked() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.urls...)
}

// TestValidationByURL fetches the URL until it answers, instead of echoing the
// code.
func TestValidationByURL(t *testing.T) {
	const url = "https://rp-eastus2.eventgrid.azure.net:553/eventsubscriptions/estest/validate?token=" + canary
	defer ingress.HurryConfirm(0, time.Millisecond, time.Millisecond)()
	for _, tt := range []struct {
		name, url string
		fails     int
		asked     int
		log       string
	}{
		{"at once", url, 0, 1, "source.validated"},
		{"after two failures", url, 2, 3, "source.validated"},
		{"never", url, 9, 3, "source.not-validated"},
		{"not Event Grid's", "https://evil.example/?token=" + canary, 0, 0, "validation URL not fetched"},
		{"not there", "", 0, 0, "validation URL not fetched"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEdge(t, brokertest.New(t), with(ingress.Source{Name: "behind", Validation: ingress.ValidateByURL}))
			g := &grid{fails: tt.fails}
			e.in.ConfirmWith(&http.Client{Transport: g})
			a := e.do(request{path: "/ingress/behind", header: map[string]string{"aeg-event-type": "SubscriptionValidation"}, body: text(validation(tt.url))})
			if a.status != http.StatusOK || a.field(t, "control") != 1.0 || a.field(t, "validationResponse") != nil {
				t.Errorf("HTTP %d %s", a.status, a.body)
			}
			waitFor(t, tt.log, func() bool { return strings.Contains(e.log.text(), tt.log) })
			asked := g.asked()
			if len(asked) != tt.asked {
				t.Errorf("asked %v", asked)
			}
			for _, got := range asked {
				if got != "GET "+tt.url {
					t.Errorf("asked %q", got)
				}
			}
			if log := e.log.text(); strings.Contains(log, canary) {
				t.Errorf("the log shows the token:\n%s", log)
			}
		})
	}
}

// TestHandshakeDetails: callback and rate of CloudEvents' abuse protection.
func TestHandshakeDetails(t *testing.T) {
	defer ingress.HurryConfirm(0)()
	cfg := with(ingress.Source{Name: "limited", Limits: ingress.Limits{Rate: 2.5}})
	cfg.Sources = append(cfg.Sources,
		ingress.Source{Name: "tiny", Kind: event.KindCloudEvents, Auth: auth.Config{None: true}, Limits: ingress.Limits{Rate: 0.001}},
		ingress.Source{Name: "behind", Kind: event.KindCloudEvents, Auth: auth.Config{None: true}, Validation: ingress.ValidateByURL})
	e := newEdge(t, brokertest.New(t), cfg)
	g := &grid{}
	e.in.ConfirmWith(&http.Client{Transport: g})
	const callback = "https://rp-eastus2.eventgrid.azure.net/callback?token=" + canary
	ask := func(source string, more map[string]string) answer {
		header := map[string]string{"WebHook-Request-Origin": "eventgrid.azure.net"}
		maps.Copy(header, more)
		return e.do(request{method: "OPTIONS", path: "/ingress/" + source, header: header})
	}
	for source, rate := range map[string]string{"eg": "*", "limited": "150", "tiny": "1"} {
		for _, asked := range []string{"", "120", "a lot"} {
			more := map[string]string{"WebHook-Request-Callback": callback} // not needed: the answer says it
			if asked != "" {
				more["WebHook-Request-Rate"] = asked
			}
			a := ask(source, more)
			if a.status != http.StatusOK || a.header.Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" || a.header.Get("WebHook-Allowed-Rate") != rate {
				t.Errorf("%s: HTTP %d %v", source, a.status, a.header)
			}
		}
	}
	if asked := g.asked(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
	reported := strings.Count(e.log.text(), "source.validated")
	if reported != 9 {
		t.Errorf("%d handshakes are reported, want 9", reported)
	}
	a := ask("behind", map[string]string{"WebHook-Request-Callback": callback})
	if a.status != http.StatusOK || a.header.Get("WebHook-Allowed-Origin") != "" {
		t.Errorf("by URL: HTTP %d %v", a.status, a.header)
	}
	waitFor(t, "the callback is confirmed", func() bool { return strings.Contains(e.log.text(), "by:validation URL") })
	if asked := g.asked(); len(asked) != 1 || asked[0] != "GET "+callback {
		t.Errorf("asked %v", asked)
	}
	if n := strings.Count(e.log.text(), "source.validated"); n != reported+1 {
		t.Errorf("%d lines more say validated, want 1", n-reported)
	}
	// Without a callback there is nothing to fetch: the answer says it.
	if a := ask("behind", nil); a.header.Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" {
		t.Errorf("by URL, without a callback: %v", a.header)
	}
	if strings.Contains(e.log.text(), canary) {
		t.Errorf("the log shows the token:\n%s", e.log.text())
	}
}

// Sources that are put in the place of others are there at once; what is gone is told to
// come back for a while and is unknown then, and what has changed keeps its counts.
func TestPrepare(t *testing.T) {
	e := newEdge(t, brokertest.New(t), config())
	now := config()
	now.Sources = append(now.Sources[1:2:2], ingress.Source{Name: "new", Kind: event.KindEventGrid, Auth: auth.Config{None: true}})
	now.Sources[0].Limits.Concurrency = 5
	for i := range now.Sources {
		if err := now.Sources[i].Validate(); err != nil {
			t.Fatal(err)
		}
	}
	body := []byte(`[{"id":"1","topic":"/t","subject":"s","eventType":"T","eventTime":"2026-01-01T00:00:00Z","data":{},"dataVersion":"1"}]`)
	want := func(when string, statuses map[string]int) {
		t.Helper()
		for source, status := range statuses {
			resp, err := http.Post(e.url+"/ingress/"+source, "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != status {
				t.Errorf("%s: %s is answered %d, want %d", when, source, resp.StatusCode, status)
			}
		}
	}
	want("before", map[string]int{"eg": 200, "fo": 200, "new": 404, "mine": 404})
	take, err := e.in.Prepare(now.Sources, []string{"mine"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want("prepared", map[string]int{"eg": 200, "new": 404})
	take()
	want("taken", map[string]int{"eg": 503, "fo": 200, "new": 200, "mine": 503})
	if st := e.in.Status(); len(st) != 2 || st[0].Name != "fo" || st[0].Received != 2 || st[1].Name != "new" || st[1].Received != 1 {
		t.Errorf("%+v", st)
	}
	if take, err = e.in.Prepare(now.Sources, []string{"mine"}, time.Now().Add(-ingress.RolloutGrace)); err != nil {
		t.Fatal(err)
	}
	take()
	want("later", map[string]int{"eg": 404, "fo": 200, "new": 200, "mine": 404})
	// What cannot be changes nothing.
	bad := now.Sources[1]
	bad.Kind = "nothing"
	if _, err := e.in.Prepare([]ingress.Source{now.Sources[0], bad}, nil, time.Now()); err == nil {
		t.Error("a kind that there is not")
	}
	want("still", map[string]int{"fo": 200, "new": 200})
}
