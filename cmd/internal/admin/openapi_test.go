package admin

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/servicebus"
	"github.com/gridfan/gridfan/subscribers/trace"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// The description is valid, in YAML and in JSON, and has exactly the routes that
// are served.
func TestDescriptionHasEveryRoute(t *testing.T) {
	h, patterns := newHandler(Parts{Gatherer: prometheus.NewRegistry()}, secret.String{})
	var served []string
	for _, p := range patterns {
		if p != "/" {
			served = append(served, strings.TrimSuffix(p, "{$}"))
		}
	}
	slices.Sort(served)
	for _, form := range []string{"yaml", "json"} {
		req := httptest.NewRequest(http.MethodGet, "http://localhost/api/v1/openapi."+form, nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		doc, err := openapi3.NewLoader().LoadFromData(w.Body.Bytes())
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		if err := doc.Validate(t.Context()); err != nil {
			t.Errorf("%s: %v", form, err)
		}
		var described []string
		for path, item := range doc.Paths.Map() {
			for method := range item.Operations() {
				described = append(described, method+" "+path)
			}
		}
		slices.Sort(described)
		if d := cmp.Diff(served, described); d != "" {
			t.Errorf("%s: routes that are served (-) and described (+) differ; describe a new one under paths in openapi.yaml, "+
				"with its types under components.schemas and in the table of TestDescriptionHasEveryMember:\n%s", form, d)
		}
	}
}

// The schemas have the members that the Go types have, and require those that
// are always written.
func TestDescriptionHasEveryMember(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(description)
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]any{
		"EventGridTopic":          eventgrid.Config{},
		"EventGridNamespaceTopic": eventgrid.NamespaceConfig{},
		"ServiceBus":              servicebus.Config{},
		"AzureAuth":               credentials.AzureAuth{},

		"Problem":             Problem{},
		"Status":              Status{},
		"Process":             broker.Process{},
		"BrokerStatus":        BrokerStatus{},
		"Durability":          broker.Durability{},
		"StreamUse":           broker.StreamUse{},
		"Space":               broker.Space{},
		"SpoolStatus":         publish.SpoolStatus{},
		"Dedup":               Dedup{},
		"SourceStatus":        SourceStatus{},
		"Source":              Source{},
		"Reading":             config.Reading{},
		"PollStatus":          poll.Status{},
		"PollProgress":        poll.Progress{},
		"RewindOrder":         RewindOrder{},
		"BaselineOrder":       BaselineOrder{},
		"PartitionStatus":     receive.PartitionStatus{},
		"ReceiveStatus":       receive.Status{},
		"Recovery":            receive.Recovery{},
		"DeadLetterStatus":    receive.DeadLetterStatus{},
		"CompleteStatus":      complete.Status{},
		"TracedHeld":          trace.Held{},
		"Subscriber":          Subscriber{},
		"Replica":             Replica{},
		"Definition":          registry.Definition{},
		"Deliver":             registry.Deliver{},
		"Webhook":             webhook.Config{},
		"Auth":                credentials.Auth{},
		"OAuth2":              credentials.OAuth2{},
		"ManagedIdentity":     credentials.ManagedIdentity{},
		"WorkloadIdentity":    credentials.WorkloadIdentity{},
		"APIKey":              credentials.APIKey{},
		"Basic":               credentials.Basic{},
		"Bearer":              credentials.Bearer{},
		"ClientTLS":           credentials.TLS{},
		"Limits":              deliver.Limits{},
		"Batch":               deliver.Batch{},
		"BacklogLimits":       deliver.Backlog{},
		"Retry":               deliver.Retry{},
		"RetryRule":           deliver.Rule{},
		"Breaker":             deliver.Breaker{},
		"Epoch":               registry.Epoch{},
		"Backlog":             registry.Backlog{},
		"Held":                registry.Held{},
		"BreakerStatus":       deliver.BreakerStatus{},
		"BreakerCause":        deliver.Cause{},
		"Ramp":                deliver.Ramp{},
		"Deleted":             Deleted{},
		"Shed":                Shed{},
		"ShedEvent":           ShedEvent{},
		"Endpoint":            Endpoint{},
		"EndpointDefinition":  registry.Endpoint{},
		"Endpoints":           Endpoints{},
		"Pull":                pull.Config{},
		"PullEntra":           pull.Entra{},
		"SigningKey":          SigningKey{},
		"Connect":             Connect{},
		"Nats":                native.Config{},
		"RotateRequest":       RotateRequest{},
		"ConfigState":         config.State{},
		"ApplyRequest":        ApplyRequest{},
		"Declared":            Declared{},
		"Applied":             Applied{},
		"ConfigChange":        registry.Change{},
		"QuarantineList":      QuarantineList{},
		"QuarantineEntry":     quarantine.Entry{},
		"QuarantineOrder":     RedriveRequest{},
		"QuarantineRedriven":  RedriveResult{},
		"QuarantineOutcome":   quarantine.Outcome{},
		"QuarantineDropped":   Dropped{},
		"DeadLetterGroups":    deadletters.Groups{},
		"DeadLetterGroup":     deadletters.Group{},
		"DeadLetterList":      LetterList{},
		"DeadLetter":          deadletters.Letter{},
		"DeadLetterDetail":    deadletters.Detail{},
		"History":             deadletters.History{},
		"Record":              deliver.Record{},
		"Try":                 deliver.Try{},
		"DeadLetterSelection": deadletters.Selection{},
		"DeadLetterOrder":     LetterOrder{},
		"ReplayRange":         deadletters.Range{},
		"ReplayOrder":         ReplayOrder{},
		"Ordered":             Ordered{},
		"Preview":             deadletters.Preview{},
		"Job":                 deadletters.Job{},
		"Heard":               Heard{},
		"TrialRequest":        TrialRequest{},
		"Trial":               Trial{},
		"TrialCounts":         Counts{},
		"TrialSubject":        TrialSubject{},
		"TrialFailure":        TrialFailure{},
		"Shadow":              Shadow{},
		"ShadowDifference":    ShadowDifference{},
		"TrialExample":        TrialExample{},
		"Books":               books.Reading{},
		"BooksLag":            books.Lag{},
		"BooksLoss":           books.Loss{},
		"SubscriberBook":      books.Subscriber{},
		"SourceBook":          books.Source{},
		"Accepted":            Accepted{},
		"Trace":               trace.Answer{},
		"TraceLooked":         trace.Looked{},
		"TracedEvent":         trace.Event{},
		"TracedDelivery":      trace.Delivery{},
		"TracedStep":          trace.Step{},
		"TracedEntry":         trace.Entry{},
		"SchemaList":          SchemaList{},
		"SchemaRef":           SchemaRef{},
	}
	// Those that have no Go type of their own.
	byHand := []string{"Duration", "Size", "Rate", "Fault", "SubscriberList", "SourceList", "JobList"}
	for name, ref := range doc.Components.Schemas {
		v, ok := table[name]
		if !ok {
			if !slices.Contains(byHand, name) {
				t.Errorf("components.schemas.%s: add its Go type to the table", name)
			}
			continue
		}
		all, always := members(reflect.TypeOf(v))
		var described []string
		for p := range ref.Value.Properties {
			described = append(described, p)
		}
		slices.Sort(described)
		if d := cmp.Diff(all, described); d != "" {
			t.Errorf("components.schemas.%s.properties: the type %T has (-), described is (+):\n%s", name, v, d)
		}
		// A schema that refuses other members is that of a request, where
		// most may be left out.
		if ref.Value.AdditionalProperties.Has != nil {
			continue
		}
		required := slices.Sorted(slices.Values(ref.Value.Required))
		if d := cmp.Diff(always, required); d != "" {
			t.Errorf("components.schemas.%s.required: %T always has (-), described is (+):\n%s", name, v, d)
		}
	}
	for name := range table {
		if doc.Components.Schemas[name] == nil {
			t.Errorf("components.schemas.%s is missing", name)
		}
	}
}

// members gives the names of a struct's JSON members, and of those that are
// never left out.
func members(t reflect.Type) (all, always []string) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			a, b := members(f.Type)
			all, always = append(all, a...), append(always, b...)
		case name == "-" || !f.IsExported():
		default:
			all = append(all, name)
			if options == "" {
				always = append(always, name)
			}
		}
	}
	slices.Sort(all)
	slices.Sort(always)
	return all, always
}
