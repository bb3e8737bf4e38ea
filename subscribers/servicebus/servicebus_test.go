package servicebus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/go-amqp"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/sendertest"
)

// What the configuration must keep to itself.
const (
	canaryKey   = "Y2FuYXJ5LWtleS1vZi1hLW5hbWVzcGFjZQ=="
	canaryToken = "canary-token-of-an-identity"
)

func connectionTo(addr string) string {
	return "Endpoint=sb://" + addr + ";SharedAccessKeyName=send;SharedAccessKey=" + canaryKey + ";UseDevelopmentEmulator=true;"
}

func overPlain(t *testing.T, opts amqptest.Options) (*Sender, *amqptest.Server) {
	t.Helper()
	srv := amqptest.Start(t, opts)
	s, err := New(Config{Queue: "orders", Auth: credentials.AzureAuth{ConnectionString: connectionTo(srv.Addr)}}, Options{Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	return s, srv
}

// identity gives a token, or fails.
type identity struct{ err error }

func (i identity) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if len(o.Scopes) != 1 || o.Scopes[0] != azureamqp.Scope {
		return azcore.AccessToken{}, fmt.Errorf("scopes %v", o.Scopes)
	}
	return azcore.AccessToken{Token: canaryToken, ExpiresOn: time.Now().Add(time.Hour)}, i.err
}

func overTLS(t *testing.T, opts amqptest.Options, id identity) (*Sender, *amqptest.Server) {
	t.Helper()
	web := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(web.Close)
	opts.TLS = &tls.Config{Certificates: web.TLS.Certificates}
	srv := amqptest.Start(t, opts)
	s, err := New(Config{Namespace: srv.Addr, Topic: "orders", Auth: credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{}}}, Options{Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	s.dialer.TLS.RootCAs = x509.NewCertPool()
	s.dialer.TLS.RootCAs.AddCert(web.Certificate())
	return s, srv
}

// said puts a status into the service's words.
var words = map[int]string{
	400: "amqp:invalid-field", 401: "amqp:unauthorized-access", 404: "amqp:not-found", 408: "com.microsoft:timeout",
	412: "amqp:precondition-failed", 413: "amqp:link:message-size-exceeded", 429: "com.microsoft:server-busy",
	500: "amqp:internal-error", 503: "com.microsoft:operation-cancelled", 507: "amqp:resource-limit-exceeded",
}

// playing lets the suite answer.
func playing(t *testing.T, respond sendertest.Respond) amqptest.Options {
	return amqptest.Options{Receive: func(d amqptest.Delivery) amqptest.Verdict {
		r := sendertest.Received{Batch: d.Batch}
		for _, m := range d.Messages {
			e, err := read(m)
			if err != nil {
				t.Errorf("unreadable message: %v", err)
				return amqptest.Verdict{Error: &amqptest.Error{Condition: "amqp:decode-error"}}
			}
			r.Events = append(r.Events, e)
		}
		r.Event = r.Events[0]
		reply := respond(r)
		v := amqptest.Verdict{Fault: map[sendertest.Fault]amqptest.Fault{
			sendertest.Hangs: amqptest.Hangs, sendertest.Trickles: amqptest.Trickles, sendertest.Resets: amqptest.Resets,
		}[reply.Fault]}
		if reply.Status > 200 {
			v.Error = &amqptest.Error{Condition: words[reply.Status], Description: reply.Body}
		}
		return v
	}}
}

// read gives the event in a message, and holds the message to what is promised of
// every one.
func read(m *amqp.Message) (*event.Event, error) {
	if m.Properties == nil || m.Properties.ContentType == nil || len(m.Data) != 1 {
		return nil, errors.New("no body, or nobody says of what")
	}
	e, err := event.Decode(map[string][]string{"content-type": {*m.Properties.ContentType}}, m.Data[0])
	if err != nil {
		return nil, err
	}
	if m.Properties.MessageID != messageID(e) {
		return nil, fmt.Errorf("id %v, want %s", m.Properties.MessageID, messageID(e))
	}
	if p := m.ApplicationProperties; p != nil && (p["cloudEvents:id"] != e.ID || p["cloudEvents:source"] != e.Source || p["cloudEvents:type"] != e.Type) {
		return nil, fmt.Errorf("properties %v of %+v", p, e)
	}
	return e, nil
}

func TestSender(t *testing.T) {
	statuses := []int{200}
	for status := range words {
		statuses = append(statuses, status)
	}
	h := sendertest.Harness{
		Limit: 1 << 20, Single: true, Statuses: statuses, NoHeaders: true, Busy: busyFor,
		Faults: []sendertest.Fault{sendertest.Hangs, sendertest.Trickles, sendertest.Resets},
	}
	t.Run("emulator, connection string", func(t *testing.T) {
		h.Secrets = []string{canaryKey, "canary-key-of-a-namespace", url.QueryEscape(canaryKey)}
		h.New = func(t *testing.T, respond sendertest.Respond) deliver.Sender {
			s, _ := overPlain(t, playing(t, respond))
			return s
		}
		sendertest.Run(t, h)
	})
	t.Run("TLS, identity", func(t *testing.T) {
		h.Secrets = []string{canaryToken}
		h.New = func(t *testing.T, respond sendertest.Respond) deliver.Sender {
			s, _ := overTLS(t, playing(t, respond), identity{})
			return s
		}
		sendertest.Run(t, h)
	})
}

func simple(id, key string) *event.Event {
	e := &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte(`{}`), DataJSON: true}
	e.Set(event.ExtPartitionKey, key)
	return e
}

func delivered(t *testing.T, s *Sender, e *event.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if a := s.Send(ctx, e); a != (deliver.Attempt{Outcome: deliver.Delivered, Status: 200}) {
		t.Errorf("%s: %+v", e.ID, a)
	}
}

// All Sends share one connection. It is made again after it broke, and ends with
// Close.
func TestOneConnection(t *testing.T) {
	s, srv := overPlain(t, amqptest.Options{})
	many := func() {
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() { delivered(t, s, simple(fmt.Sprint(i), "")) })
		}
		wg.Wait()
	}
	many()
	if made, open := srv.Connections(); made != 1 || open != 1 {
		t.Errorf("%d connections made, %d open, want one", made, open)
	}
	srv.Drop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The client may not know yet.
	if a := s.Send(ctx, simple("x", "")); a.Outcome == deliver.Rejected || a.Outcome == deliver.Aborted {
		t.Errorf("after the connection broke: %+v", a)
	}
	many()
	if made, open := srv.Connections(); made != 2 || open != 1 {
		t.Errorf("%d connections made, %d open, want a second one", made, open)
	}
	s.Close()
	for ctx.Err() == nil {
		if _, open := srv.Connections(); open == 0 {
			break
		}
	}
	if _, open := srv.Connections(); open != 0 {
		t.Error("Close leaves the connection open")
	}
	if a := s.Send(ctx, simple("x", "")); a.Outcome != deliver.Failed {
		t.Errorf("after Close: %+v", a)
	}
}

// A link that the service has taken down, as it does with idle ones, costs nothing.
func TestDetached(t *testing.T) {
	var n atomic.Int32
	s, srv := overPlain(t, amqptest.Options{Receive: func(amqptest.Delivery) amqptest.Verdict {
		if n.Add(1) == 2 {
			return amqptest.Verdict{Fault: amqptest.Detaches}
		}
		return amqptest.Verdict{}
	}})
	defer s.Close()
	for i := range 3 {
		delivered(t, s, simple(fmt.Sprint(i), ""))
	}
	if made, _ := srv.Connections(); made != 1 {
		t.Errorf("%d connections for a link", made)
	}
}

// A service that accepts connections and says nothing holds up nobody longer than
// the attempt may take, not even many that wait for the same connection.
func TestMute(t *testing.T) {
	s, _ := overPlain(t, amqptest.Options{Mute: true})
	var wg sync.WaitGroup
	start := time.Now()
	for range 16 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if a := s.Send(ctx, simple("1", "")); a.Outcome != deliver.Failed || a.Fault != deliver.FaultTimeout {
				t.Errorf("got %+v", a)
			}
		})
	}
	wg.Wait()
	s.Close()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

// What keeps a link from being there, and nothing quotes the token.
func TestNoLink(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	refuse := func(condition string) amqptest.Options {
		return amqptest.Options{Attach: func(string) *amqptest.Error {
			return &amqptest.Error{Condition: condition, Description: "words; sig=canary%3d"}
		}}
	}
	claim := func(status int) amqptest.Options {
		return amqptest.Options{Claim: func(audience, token string) int {
			if !strings.Contains(audience, "orders") || token == "" {
				t.Errorf("a claim for %q", audience)
			}
			return status
		}}
	}
	for name, tt := range map[string]struct {
		opts amqptest.Options
		want deliver.Attempt
	}{
		"no such queue": {refuse("amqp:not-found"), deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultAddress, Status: 404, Reason: "amqp:not-found: words; sig=<redacted>"}},
		"not let in":    {refuse("amqp:unauthorized-access"), deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultAccess, Status: 401, Reason: "amqp:unauthorized-access: words; sig=<redacted>"}},
		"disabled":      {refuse("com.microsoft:entity-disabled"), deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 503, Reason: "com.microsoft:entity-disabled: words; sig=<redacted>"}},
		"wrong key":     {claim(401), deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultAccess, Status: 401, Reason: "HTTP 401 for the key or identity"}},
		"no entity":     {claim(404), deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultAddress, Status: 404, Reason: "HTTP 404 for the key or identity"}},
		"claims down":   {claim(503), deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 503, Reason: "HTTP 503 for the key or identity"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, srv := overPlain(t, tt.opts)
			defer s.Close()
			for range 2 {
				if d := cmp.Diff(tt.want, s.Send(t.Context(), simple("1", ""))); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
			if made, _ := srv.Connections(); made != 2 {
				t.Errorf("%d connections for two attempts", made)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		s, err := New(Config{Queue: "orders", Auth: credentials.AzureAuth{ConnectionString: connectionTo(gone.Addr().String())}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		want := deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultNetwork, Reason: "connection refused"}
		if d := cmp.Diff(want, s.Send(t.Context(), simple("1", ""))); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
	t.Run("unknown certificate", func(t *testing.T) {
		s, _ := overTLS(t, amqptest.Options{}, identity{})
		defer s.Close()
		s.dialer.TLS.RootCAs = x509.NewCertPool()
		if a := s.Send(t.Context(), simple("1", "")); a.Fault != deliver.FaultTLS || a.Outcome != deliver.Failed {
			t.Errorf("got %+v", a)
		}
	})
	t.Run("no token", func(t *testing.T) {
		s, srv := overTLS(t, amqptest.Options{}, identity{errors.New("no identity here\nGET ?canary")})
		defer s.Close()
		want := deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultCredentials, Reason: "no token: no identity here"}
		if d := cmp.Diff(want, s.Send(t.Context(), simple("1", ""))); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if made, _ := srv.Connections(); made != 0 {
			t.Error("there is a connection all the same")
		}
	})
}

// Sessions come from partition keys; a batch has one.
func TestSessions(t *testing.T) {
	type seen struct {
		id, session, label any
	}
	var mu sync.Mutex
	var got []seen
	srv := amqptest.Start(t, amqptest.Options{Receive: func(d amqptest.Delivery) amqptest.Verdict {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range d.Messages {
			got = append(got, seen{m.Properties.MessageID, *m.Properties.GroupID, *m.Properties.Subject})
		}
		return amqptest.Verdict{}
	}})
	s, err := New(Config{Queue: "orders", Session: ByPartition, Auth: credentials.AzureAuth{ConnectionString: connectionTo(srv.Addr)}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	long := strings.Repeat("k", 200)
	events := []*event.Event{simple("1", "a"), simple("2", "a"), simple("3", long), simple("4", ""), simple("5", "a")}
	sizes := []int{}
	for rest := events; len(rest) > 0; {
		n := s.Pack(rest)
		sizes = append(sizes, n)
		if a := s.SendBatch(t.Context(), rest[:n]); a.Outcome != deliver.Delivered {
			t.Errorf("%+v", a)
		}
		rest = rest[n:]
	}
	if d := cmp.Diff([]int{2, 1, 1, 1}, sizes); d != "" {
		t.Error(d)
	}
	if a := s.SendBatch(t.Context(), events); a.Fault != deliver.FaultRefused {
		t.Errorf("a batch of several sessions: %+v", a)
	}
	if len(got) != 5 || got[0].session != "a" || got[1].session != "a" || got[4].session != "a" || got[3].session != got[3].id || len(got[2].session.(string)) > maxID || got[0].label != "t" {
		t.Errorf("got %+v", got)
	}
	if messageID(events[0]) == messageID(events[1]) || messageID(events[0]) != messageID(simple("1", "b")) {
		t.Error("the id of a message is not the identity of its event")
	}
	// However they are cut, two identities are two.
	if messageID(&event.Event{Source: "a", ID: "bc"}) == messageID(&event.Event{Source: "ab", ID: "c"}) {
		t.Error("two events have one id")
	}
}

func TestValidate(t *testing.T) {
	with := func(s string) credentials.AzureAuth { return credentials.AzureAuth{ConnectionString: s} }
	good := "Endpoint=sb://h.example.com/;SharedAccessKeyName=n;SharedAccessKey=" + canaryKey
	mi := credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{}}
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Queue: "q", Auth: with(good)}, ""},
		{Config{Queue: "q", Auth: with(good + ";EntityPath=q")}, ""},
		{Config{Topic: "a/b-c_d.e", Namespace: "h.example.com", Auth: mi}, ""},
		{Config{Namespace: "h.example.com", Auth: mi}, "x: want queue or topic"},
		{Config{Queue: "q", Topic: "t", Namespace: "h.example.com", Auth: mi}, "x.topic: queue and topic exclude each other; keep one"},
		{Config{Topic: "a b", Namespace: "h.example.com", Auth: mi}, "x.topic: a name is up to 260"},
		{Config{Queue: "/q", Namespace: "h.example.com", Auth: mi}, "x.queue: a name is up to 260"},
		{Config{Queue: "q", Session: "key", Namespace: "h.example.com", Auth: mi}, `x.session: want none or partitionkey, got "key"`},
		{Config{Queue: "q", Auth: mi}, "x.namespace: missing"},
		{Config{Queue: "q", Namespace: "sb://h.example.com/", Auth: mi}, "x.namespace: want a host"},
		{Config{Queue: "q", Namespace: "h.example.com", Auth: with(good)}, "x.namespace: the connection string says which"},
		{Config{Queue: "q", Auth: with(canaryKey)}, "x.auth.connectionString: want Endpoint=sb://"},
		{Config{Queue: "q", Auth: with("Endpoint=" + canaryKey + ";SharedAccessSignature=" + canaryKey)}, "x.auth.connectionString: its Endpoint is no address"},
		{Config{Queue: "q", Auth: with(good + ";EntityPath=other")}, "x.auth.connectionString: its EntityPath is another queue, topic or hub"},
		{Config{Queue: "q", Namespace: "h.example.com"}, "x.auth: missing; want one of connectionString, managedIdentity"},
		{Config{Queue: "q", Namespace: "h.example.com", Auth: credentials.AzureAuth{Key: canaryKey}}, "x.auth.key: not known to this service"},
		{Config{Queue: "q", Auth: with(good).Redacted()}, "x.auth.connectionString: it is hidden"},
	} {
		err := tt.c.Validate("x")
		if tt.want == "" {
			if err != nil || tt.c.Session != NoSession {
				t.Errorf("%+v: %v", tt.c, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), canaryKey) {
			t.Errorf("%+v: got %v, want %s", tt.c, err, tt.want)
		}
	}
}

// Where the rules of egress do not let a stranger's namespace lead, nothing connects.
func TestForbiddenAddress(t *testing.T) {
	rules, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	came := make(chan struct{})
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			close(came)
		}
	}()
	s, err := New(Config{Queue: "orders", Auth: credentials.AzureAuth{ConnectionString: connectionTo(l.Addr().String())}}, Options{Egress: rules.Way(true)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := deliver.Attempt{
		Outcome: deliver.Failed, Fault: deliver.FaultAddress,
		Reason: "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
	}
	if a := s.Send(t.Context(), &event.Event{ID: "1", Source: "/s", Type: "t"}); a != want {
		t.Errorf("got %+v", a)
	}
	select {
	case <-came:
		t.Error("somebody connected")
	default:
	}
}

// A message that the service gives back is not delivered, and the next one is.
func TestGivenBack(t *testing.T) {
	for name, verdict := range map[string]amqptest.Verdict{"released": {Released: true}, "modified": {Modified: true}} {
		t.Run(name, func(t *testing.T) {
			var came atomic.Int32
			s, _ := overPlain(t, amqptest.Options{Receive: func(amqptest.Delivery) amqptest.Verdict {
				if came.Add(1) == 1 {
					return verdict
				}
				return amqptest.Verdict{}
			}})
			defer s.Close()
			a := s.Send(t.Context(), &event.Event{ID: "1", Source: "/s", Type: "t"})
			if a.Outcome != deliver.Failed || a.Fault != deliver.FaultNetwork || !strings.Contains(a.Reason, "neither accepted nor rejected") {
				t.Errorf("given back: %+v", a)
			}
			if a := s.Send(t.Context(), &event.Event{ID: "1", Source: "/s", Type: "t"}); a.Outcome != deliver.Delivered {
				t.Errorf("then: %+v", a)
			}
			if n := came.Load(); n != 2 {
				t.Errorf("%d messages came, want 2", n)
			}
		})
	}
}
