package eventgrid

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/messaging"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/sendertest"
)

// What the configuration must keep to itself.
const (
	canaryKey   = "Y2FuYXJ5LWtleS1vZi1hLXRvcGlj"
	canarySAS   = "r=https%3a%2f%2ft%2fapi%2fevents&e=11%2f5%2f2031&s=Y2FuYXJ5LXNpZ25hdHVyZQ%3d%3d"
	canaryToken = "canary-token-of-an-identity"
)

// identity gives a token, or fails.
type identity struct {
	err   error
	asked atomic.Int32
	hangs bool
}

func (i *identity) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	i.asked.Add(1)
	if i.hangs {
		<-ctx.Done()
		return azcore.AccessToken{}, ctx.Err()
	}
	if len(o.Scopes) != 1 || o.Scopes[0] != scope {
		return azcore.AccessToken{}, fmt.Errorf("scopes %v", o.Scopes)
	}
	return azcore.AccessToken{Token: canaryToken, ExpiresOn: time.Now().Add(time.Hour)}, i.err
}

// service answers as Event Grid does, and checks what it is sent besides events.
func service(t *testing.T, want func(*http.Request) error, next http.Handler) *httptest.Server {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := want(r); err != nil {
			t.Error(err)
			w.WriteHeader(http.StatusTeapot)
			return
		}
		next.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that tests break off
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func header(name, value string) func(*http.Request) error {
	return func(r *http.Request) error {
		if got := r.Header.Get(name); got != value {
			return fmt.Errorf("%s is %q, want %q", name, got, value)
		}
		return nil
	}
}

func all(checks ...func(*http.Request) error) func(*http.Request) error {
	return func(r *http.Request) error {
		var errs []error
		for _, c := range checks {
			errs = append(errs, c(r))
		}
		return errors.Join(errs...)
	}
}

func uri(want string) func(*http.Request) error {
	return func(r *http.Request) error {
		if r.RequestURI != want {
			return fmt.Errorf("got a request for %s, want %s", r.RequestURI, want)
		}
		return nil
	}
}

func trust(t *testing.T, srv *httptest.Server, s *Sender, err error) *Sender {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	s.http.Transport.TLSClientConfig.RootCAs = pool
	return s
}

const (
	topicURI     = "/api/events?api-version=2018-01-01"
	namespaceURI = "/topics/orders:publish?api-version=2024-06-01"
)

// auths are the ways to be let in, with the header that shows each.
var auths = map[string]struct {
	auth         credentials.AzureAuth
	identity     bool
	secrets      []string
	topic, space func(*http.Request) error
}{
	"key": {
		auth: credentials.AzureAuth{Key: canaryKey}, secrets: []string{canaryKey, "canary-key-of-a-topic"},
		topic: header("aeg-sas-key", canaryKey), space: header("Authorization", "SharedAccessKey "+canaryKey),
	},
	"sas": {
		auth: credentials.AzureAuth{SAS: canarySAS}, secrets: []string{canarySAS, "Y2FuYXJ5LXNpZ25hdHVyZQ", "canary-signature"},
		topic: header("aeg-sas-token", canarySAS),
	},
	"identity": {
		auth: credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{}}, identity: true, secrets: []string{canaryToken},
		topic: header("Authorization", "Bearer "+canaryToken), space: header("Authorization", "Bearer "+canaryToken),
	},
}

func options(auth string) Options {
	o := Options{Concurrency: 32, Version: "1.2.3"}
	if auths[auth].identity {
		o.Identity = &identity{}
	}
	return o
}

func topic(t *testing.T, auth string, schema Schema, respond sendertest.Respond) *Sender {
	decode := map[Schema]func(http.Header, []byte) ([]*event.Event, bool, error){CloudEvents: cloudEventsBatch, EventGrid: eventGridBatch}[schema]
	srv := service(t, all(uri(topicURI), auths[auth].topic, named), sendertest.ListHandler(t, decode, respond))
	s, err := New(Config{Endpoint: srv.URL + "/api/events", Schema: schema, Auth: auths[auth].auth}, options(auth))
	return trust(t, srv, s, err)
}

func namespace(t *testing.T, auth string, respond sendertest.Respond) *Sender {
	srv := service(t, all(uri(namespaceURI), auths[auth].space, named), sendertest.Handler(t, event.Decode, respond))
	s, err := NewNamespace(NamespaceConfig{Endpoint: srv.URL, Topic: "orders", Auth: auths[auth].auth}, options(auth))
	return trust(t, srv, s, err)
}

// named: it can be seen in the service's logs who sends.
func named(r *http.Request) error {
	if got := r.UserAgent(); !strings.HasPrefix(got, "gridfan/1.2.3 ") {
		return fmt.Errorf("User-Agent %q", got)
	}
	return nil
}

func TestSender(t *testing.T) {
	for name, h := range map[string]sendertest.Harness{
		"topic, CloudEvents": {
			Secrets: auths["key"].secrets, Lists: true, Arrives: throughSDK, InBatch: throughSDK,
			New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
				return topic(t, "key", CloudEvents, respond)
			},
		},
		"topic, Event Grid schema": {
			Secrets: auths["sas"].secrets, Lists: true, Arrives: throughEventGrid, InBatch: throughEventGrid,
			New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
				return topic(t, "sas", EventGrid, respond)
			},
		},
		"namespace": {
			Secrets: auths["identity"].secrets, Arrives: throughSDK, InBatch: throughSDK,
			New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
				return namespace(t, "identity", respond)
			},
		},
	} {
		h.Limit = maxRequest
		t.Run(name, func(t *testing.T) { sendertest.Run(t, h) })
	}
}

// The headers are checked by the service.
func TestAuth(t *testing.T) {
	for name, auth := range auths {
		respond := func(sendertest.Received) sendertest.Reply { return sendertest.Reply{} }
		senders := []*Sender{topic(t, name, CloudEvents, respond)}
		if auth.space != nil {
			senders = append(senders, namespace(t, name, respond))
		}
		for _, s := range senders {
			if a := s.Send(t.Context(), &event.Event{ID: "1", Source: "/s", Type: "t"}); a != (deliver.Attempt{Outcome: deliver.Delivered, Status: 200}) {
				t.Errorf("%s: %+v", name, a)
			}
			s.Close()
		}
	}
}

func cloudEventsBatch(h http.Header, body []byte) ([]*event.Event, bool, error) {
	if got, want := h.Get("Content-Type"), "application/cloudevents-batch+json; charset=utf-8"; got != want {
		return nil, true, fmt.Errorf("Content-Type %q, want %q", got, want)
	}
	events, err := sendertest.DecodeBatch(h, body)
	return events, true, err
}

// throughSDK is what is left of e after the SDK has written it anew: all but the
// blanks in JSON.
func throughSDK(e *event.Event) *event.Event {
	if e.DataJSON {
		if b, err := json.Marshal(json.RawMessage(e.Data)); err == nil {
			e.Data = b
		}
	}
	return e
}

// eventGridBatch reads the Event Grid schema, as strictly as a topic that was made
// for it.
func eventGridBatch(h http.Header, body []byte) ([]*event.Event, bool, error) {
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil || len(list) == 0 || h.Get("Content-Type") != "application/json" {
		return nil, true, fmt.Errorf("no list of events as %s: %v", h.Get("Content-Type"), err)
	}
	var events []*event.Event
	for _, m := range list {
		e := &event.Event{Data: m["data"], DataJSON: true}
		var at, version string
		for name, to := range map[string]*string{"id": &e.ID, "eventType": &e.Type, "subject": &e.Subject, "eventTime": &at, "dataVersion": &version} {
			if err := json.Unmarshal(m[name], to); err != nil || *to == "" {
				return nil, true, fmt.Errorf("%s is missing or empty: %v", name, err)
			}
			delete(m, name)
		}
		if e.Data == nil {
			return nil, true, errors.New("data is missing")
		}
		if delete(m, "data"); len(m) > 0 {
			return nil, true, fmt.Errorf("unknown members: %v", m)
		}
		var err error
		if e.Time, err = event.ParseTime(at); err != nil {
			return nil, true, err
		}
		if e.Time.Before(time.Now().Add(-time.Minute)) || e.Time.After(time.Now()) {
			e.Set("time", at) // as it was in the event
		}
		e.Time = time.Time{}
		e.Set("dataversion", version)
		events = append(events, e)
	}
	return events, true, nil
}

// throughEventGrid is what the Event Grid schema has room for.
func throughEventGrid(e *event.Event) *event.Event {
	was := throughSDK(e)
	e = &event.Event{ID: was.ID, Type: was.Type, Subject: was.Subject, Data: was.Data, DataJSON: true}
	if e.Subject == "" {
		e.Subject = was.Source
	}
	e.Set("dataversion", "1.0")
	if !was.Time.IsZero() {
		e.Set("time", was.Time.Format(time.RFC3339Nano))
	}
	if !was.DataJSON {
		var v any = was.Data
		if t := string(was.Data); strings.ToValidUTF8(t, "") == t {
			v = t
		}
		e.Data = []byte("null")
		if was.Data != nil {
			e.Data, _ = json.Marshal(v)
		}
	}
	return e
}

// An identity that gets no token costs the event nothing: it waits, whatever the
// reason.
func TestNoToken(t *testing.T) {
	srv := service(t, func(*http.Request) error { return errors.New("a request without a token") }, http.NotFoundHandler())
	for _, tt := range []struct {
		name string
		id   *identity
		want deliver.Attempt
	}{
		{"refused", &identity{err: errors.New("ManagedIdentityCredential: no identity\n GET http://169.254.169.254/?secret=canary")},
			deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultCredentials, Reason: "no token: ManagedIdentityCredential: no identity"}},
		{"hangs", &identity{hangs: true},
			deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultTimeout, Reason: "timed out after 100ms"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := New(Config{Endpoint: srv.URL, Auth: credentials.AzureAuth{Default: true}}, Options{Identity: tt.id})
			s = trust(t, srv, s, err)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			a := s.Send(ctx, &event.Event{ID: "1", Source: "/s", Type: "t"})
			if strings.HasPrefix(a.Reason, "timed out after 1") {
				a.Reason = tt.want.Reason // a busy machine takes longer
			}
			if d := cmp.Diff(tt.want, a); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// A key goes nowhere over plain HTTP, not even to the address in the configuration.
func TestValidate(t *testing.T) {
	key := credentials.AzureAuth{Key: canaryKey}
	for _, tt := range []struct {
		endpoint string
		topic    string
		auth     credentials.AzureAuth
		want     string
	}{
		{"http://t.example.com", "orders", key, "x.endpoint: want https; keys and tokens are sent over nothing else"},
		{"https://t.example.com/?k=" + canaryKey, "orders", key, "x.endpoint: want no user, ?query or #fragment; what lets gridfan in belongs below auth"},
		{"https://u:p@t.example.com/", "orders", key, "x.endpoint: want no user, ?query or #fragment; what lets gridfan in belongs below auth"},
		{"", "orders", key, "x.endpoint: missing"},
		{canaryKey, "orders", key, "x.endpoint: want https://"},
		{"https://t.example.com", "", key, "x.topic: missing"},
		{"https://t.example.com", "../x", key, "x.topic: a name is"},
		{"https://t.example.com", "..", key, "x.topic: a name is"},
		{"https://t.example.com", "orders", credentials.AzureAuth{}, "x.auth: missing; want one of key, managedIdentity, workloadIdentity, default"},
		{"https://t.example.com", "orders", credentials.AzureAuth{Key: "k", Default: true}, "x.auth: key and default exclude each other; keep one"},
		{"https://t.example.com", "orders", credentials.AzureAuth{SAS: canarySAS}, "x.auth.sas: not known to this service"},
		{"https://t.example.com", "orders", credentials.AzureAuth{Key: "two words"}, "x.auth.key: want printable ASCII without blanks; was it copied whole?"},
		{"https://t.example.com", "orders", key.Redacted(), "x.auth.key: it is hidden"},
		{"https://t.example.com", "orders", credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{ClientID: "a/b"}}, "x.auth.managedIdentity.clientID: want the client id of the identity"},
		{"https://t.example.com", "orders", credentials.AzureAuth{WorkloadIdentity: &credentials.WorkloadIdentity{Tenant: "a/b"}}, "x.auth.workloadIdentity.tenant: want the tenant's id"},
		{"https://t.example.com", "orders", credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{Scope: "api://x"}}, "x.auth.managedIdentity.scope: what the token is for is known"},
	} {
		err := (&NamespaceConfig{Endpoint: tt.endpoint, Topic: tt.topic, Auth: tt.auth}).Validate("x")
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), canaryKey) {
			t.Errorf("%+v: got %v, want %s", tt, err, tt.want)
		}
		if _, err := NewNamespace(NamespaceConfig{Endpoint: tt.endpoint, Topic: tt.topic, Auth: tt.auth}, Options{}); err == nil {
			t.Errorf("%+v: there is a Sender", tt)
		}
	}
	c := Config{Endpoint: "https://t.example.com", Schema: "custom", Auth: key}
	if err := c.Validate("x"); err == nil || err.Error() != `x.schema: want cloudevents or eventgrid, got "custom"` {
		t.Errorf("got %v", err)
	}
	if c.Schema = ""; c.Validate("x") != nil || c.Schema != CloudEvents {
		t.Errorf("got schema %q", c.Schema)
	}
}

// What was hidden comes back, but not to another address.
func TestReveal(t *testing.T) {
	was := NamespaceConfig{Endpoint: "https://a.example.com", Topic: "orders", Auth: credentials.AzureAuth{Key: canaryKey}}
	now := was.Redacted()
	if fmt.Sprintf("%+v", now) == fmt.Sprintf("%+v", was) {
		t.Fatal("nothing is hidden")
	}
	now.Topic = "other"
	moved := now
	moved.Endpoint = "https://b.example.com"
	now.Reveal(was)
	moved.Reveal(was)
	if now.Auth.Key != canaryKey || moved.Auth.Key == canaryKey || moved.Validate("x") == nil {
		t.Errorf("got %q, and elsewhere %q", now.Auth.Key, moved.Auth.Key)
	}
}

// What the size of an event is thought to be is what it has at least.
func TestJSONSize(t *testing.T) {
	e := &event.Event{
		ID: "\x00\"\\<>&", Source: strings.Repeat("\u2028é", 50), Type: "t\n", DataContentType: "text/plain", DataSchema: "urn:x",
		Time: time.Now(), Data: bytes.Repeat([]byte("<\x01\"\u2029é"), 1000),
	}
	e.Set("extension", strings.Repeat("&", 200))
	e.SetExtension(event.Extension{Name: "count", Value: "-5", Type: event.Integer})
	for _, change := range []func(){
		func() {},
		func() {
			e.DataContentType, e.Data, e.DataJSON = "", []byte(`"`+strings.Repeat("<\u2028é", 500)+`"`), true
		},
		func() { e.DataJSON, e.Data = false, bytes.Repeat([]byte{0xff}, 1001) },
		func() { e.Data = nil },
	} {
		change()
		for _, v := range []any{cloudEvent(e), eventGridEvents([]*event.Event{e}, time.Now())[0]} {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			_, whole := v.(messaging.CloudEvent) // the other schema leaves some out
			if n := jsonSize(e); n < len(b) || whole && n > 2*len(b)+500 {
				t.Errorf("thought to have %d bytes, has %d", n, len(b))
			}
		}
	}
	if _, err := base64.StdEncoding.DecodeString(canaryKey); err != nil {
		t.Error("the key is not what Event Grid gives out")
	}
}

// Where the rules of egress do not let a stranger's endpoint lead, nothing connects.
func TestForbiddenAddress(t *testing.T) {
	rules, err := egress.New(egress.Config{Proxy: secret.New(egress.None)})
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
	endpoint, key := "https://"+l.Addr().String(), credentials.AzureAuth{Key: "canary-key"}
	topic, err := New(Config{Endpoint: endpoint, Auth: key}, Options{Egress: rules.Way(true)})
	if err != nil {
		t.Fatal(err)
	}
	namespace, err := NewNamespace(NamespaceConfig{Endpoint: endpoint, Topic: "t", Auth: key}, Options{Egress: rules.Way(true)})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Sender{topic, namespace} {
		defer s.Close()
		want := deliver.Attempt{
			Outcome: deliver.Failed, Fault: deliver.FaultAddress,
			Reason: "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		}
		if a := s.Send(t.Context(), &event.Event{ID: "1", Source: "/s", Type: "t"}); a != want {
			t.Errorf("got %+v", a)
		}
	}
	select {
	case <-came:
		t.Error("somebody connected")
	default:
	}
}
