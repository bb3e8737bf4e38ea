package receive

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/blobtest"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
)

// deadTo is a source whose dead letters are at a server.
func deadTo(s *blobtest.Server, kind string, change func(*BlobContainer)) Source {
	c := &BlobContainer{Container: s.Container, Every: Never, Auth: credentials.AzureAuth{ConnectionString: s.ConnectionString()}}
	if change != nil {
		change(c)
	}
	return Source{Name: "files", Kind: kind, DeadLetters: &DeadLetters{Blob: c}}
}

// gridLetter is a dead letter in Event Grid's schema (the sample of
// delivery-and-retry.md, shortened).
func gridLetter(id string) string {
	return fmt.Sprintf(`{"id":%q,"eventTime":"2020-08-13T17:18:13.1647262Z","eventType":"Microsoft.Storage.BlobCreated","dataVersion":"","metadataVersion":"1",
		"topic":"/subscriptions/0/resourceGroups/r/providers/Microsoft.Storage/storageAccounts/acme","subject":"/blobServices/default/containers/c/blobs/f.txt","data":{"api":"PutBlob","contentLength":9007199254740993},
		"deadLetterReason":"MaxDeliveryAttemptsExceeded","deliveryAttempts":1,"lastDeliveryOutcome":"NotFound","publishTime":"2020-08-13T17:18:14.0265758Z","lastDeliveryAttemptTime":"2020-08-13T17:18:14.0465788Z"}`, id)
}

// blobName is how Event Grid names blobs.
func blobName(n int) string {
	return fmt.Sprintf("MYTOPIC/MYSUB/2026/11/%d/%d/6d3e1c5e-0000-4000-8000-%012d.json", 1+n%28, n%24, n)
}

// Dead letters of Event Grid are looked at, read back as late events, and deleted once
// stored; what was published before is recognised.
func TestBlobs(t *testing.T) {
	s := blobtest.Start(t, "deadletters")
	s.Page = 3
	h := newHall(t, deadTo(s, event.KindEventGrid, func(c *BlobContainer) { c.Prefix = "MYTOPIC/MYSUB/" }))
	// The first one was delivered, but nobody heard that.
	delivered := strings.Split(gridLetter("e-0"), `,
		"deadLetterReason"`)[0] + "}"
	src := h.sources["files"]
	if _, err := h.pub.Publish(t.Context(), src.origin(time.Now()), src.parse("files", nil, []byte("["+delivered+"]"))); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		s.Put(blobName(i), "["+gridLetter(fmt.Sprintf("e-%d", 2*i))+","+gridLetter(fmt.Sprintf("e-%d", 2*i+1))+"]")
	}
	s.Put(blobName(10), `[{"specversion":"1.0","id":"c-1","source":"mysource","subject":"mySubject","type":"fooEventType","datacontenttype":"application/json","dataversion":"1.0","data":{"prop1":"value1","prop2":5},
		"deadletterreason":"MaxDeliveryAttemptsExceeded","deliveryattempts":2,"lastdeliveryoutcome":"TimedOut","publishtime":"2020-08-13T21:21:36.4018726Z"}]`)
	s.Put(blobName(11), gridLetter("single"))
	s.Put(blobName(12), `[{"half":`)
	s.Put(blobName(13), `["no event", `+gridLetter("beside")+`]`)
	s.Put(blobName(14), `[]`)
	s.Put("MYTOPIC/MYSUB/readme.txt", "not ours")
	s.Put("MYTOPIC/OTHER/2026/1/1/1/x.json", "["+gridLetter("theirs")+"]")
	want := &Recovery{
		Source: "files", From: strings.TrimPrefix(s.URL, "http://") + "/deadletters/MYTOPIC/MYSUB/", DryRun: true, Messages: 25, Blobs: 15, Published: 23, Quarantined: 2,
		Reasons: map[string]int{"MaxDeliveryAttemptsExceeded (NotFound)": 22, "MaxDeliveryAttemptsExceeded (TimedOut)": 1, "unknown": 2},
	}
	got, err := h.Recover(t.Context(), "files", true, 1000)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if len(s.Names()) != 17 || len(h.stored(broker.StreamEvents)) != 1 || s.Count("delete") != 0 {
		t.Error("a look has changed something")
	}
	// While nothing can be stored, nothing is deleted.
	h.failing(publish.ErrStorageFull)
	if got, err := h.Recover(t.Context(), "files", false, 1000); err != nil || got.Problem != "the storage is full" || !got.More || len(s.Names()) != 17 {
		t.Errorf("%+v %v, %d left", got, err, len(s.Names()))
	}
	h.failing(nil)
	// It goes on where it stopped.
	first, err := h.Recover(t.Context(), "files", false, 5)
	if err != nil || first.Messages < 5 || !first.More {
		t.Errorf("%+v %v", first, err)
	}
	rest, err := h.Recover(t.Context(), "files", false, 1000)
	if err != nil || rest.More || rest.Problem != "" {
		t.Errorf("%+v %v", rest, err)
	}
	first.add(rest)
	if first.Published != 22 || first.Duplicate != 1 || first.Quarantined != 2 || first.Messages != 25 || first.Blobs != 15 {
		t.Errorf("together %+v", first)
	}
	if d := cmp.Diff([]string{"MYTOPIC/MYSUB/readme.txt", "MYTOPIC/OTHER/2026/1/1/1/x.json"}, s.Names()); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
	seen := map[string]bool{}
	for _, m := range h.stored(broker.StreamEvents)[1:] {
		seen[m.Header.Get("ce-id")] = true
		e, err := event.Decode(m.Header, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if e.Get("late") != "true" || e.Get("via") != "push" || e.Get("deadletterreason") != "MaxDeliveryAttemptsExceeded" || strings.Contains(string(m.Data), "eadLetter") {
			t.Errorf("event %v %s", m.Header, m.Data)
		}
		if e.ID == "c-1" && (e.Get("deliveryattempts") != "2" || e.Get("lastdeliveryoutcome") != "TimedOut" || e.Source != "mysource") {
			t.Errorf("the cloud event: %+v", e)
		}
		if e.ID == "single" && string(e.Data) != `{"api":"PutBlob","contentLength":9007199254740993}` {
			t.Errorf("data %s", e.Data)
		}
	}
	if len(seen) != 22 || !seen["c-1"] || !seen["single"] || !seen["beside"] {
		t.Errorf("stored %v", seen)
	}
	if q := h.stored(broker.StreamQuarantine); len(q) != 2 {
		t.Errorf("%d in quarantine", len(q))
	}
}

// What the container says decides, and nothing of a key is shown.
func TestBlobFaults(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*BlobContainer)
		answer func(http.ResponseWriter, *http.Request) bool
		kind   Kind
		want   string
	}{
		{"no container", func(c *BlobContainer) { c.Container = "other" }, nil, Configuration, "no such container"},
		{"another key", func(c *BlobContainer) {
			c.Auth.ConnectionString = strings.Replace(c.Auth.ConnectionString, "AccountName=devstoreaccount1", "AccountName=other", 1)
		}, nil, Credentials, "may not do this"},
		{"busy", nil, func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "7")
			blobtest.Refuse(w, 503, "ServerBusy", "slower, "+blobtest.Key)
			return true
		}, Unavailable, "HTTP 503"},
		{"no XML", nil, func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "{}"); return true }, Answer, "no answer to this"},
		{"redirect", nil, func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, Configuration, "redirects are not followed"},
		{"no reading", nil, func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("comp") == "list" {
				return false
			}
			blobtest.Refuse(w, 403, "AuthorizationPermissionMismatch", "not this")
			return true
		}, Credentials, "may not do this"},
		{"no deleting", nil, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodDelete {
				return false
			}
			blobtest.Refuse(w, 403, "AuthorizationPermissionMismatch", "not this")
			return true
		}, Credentials, "may not do this"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := blobtest.Start(t, "deadletters")
			s.Put(blobName(1), "["+gridLetter("e-1")+"]")
			s.Answer(tt.answer)
			h := newHall(t, deadTo(s, event.KindEventGrid, tt.change))
			got, err := h.Recover(t.Context(), "files", false, 10)
			reason := ""
			if f, ok := errors.AsType[*Fault](err); ok {
				reason = f.Reason
				if f.Kind != tt.kind {
					t.Errorf("kind %s", f.Kind)
				}
			} else if err == nil {
				reason = got.Problem
			}
			if !strings.Contains(reason, tt.want) || strings.Contains(reason, blobtest.Key) {
				t.Errorf("got %+v, %v", got, err)
			}
			if len(s.Names()) != 1 {
				t.Error("it was deleted")
			}
		})
	}
	if _, err := newHall(t).Recover(t.Context(), "files", false, 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("a source without: %v", err)
	}
}

// A blob that becomes another one while it is read, or is gone, is left alone; one
// that is too large is left, and counted.
func TestBlobChanges(t *testing.T) {
	s := blobtest.Start(t, "deadletters")
	for i := range 3 {
		s.Put(blobName(i), "["+gridLetter(fmt.Sprint("e-", i))+"]")
	}
	big := strings.Replace(gridLetter("big"), `"PutBlob"`, `"`+strings.Repeat("a", 9<<20)+`"`, 1)
	s.Put(blobName(3), "["+big+"]")
	s.Put(blobName(4), strings.Repeat(" ", 17<<20))
	var did bool
	s.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "000000000001.json") && !did {
			did = true
			s.Put(blobName(1), "["+gridLetter("e-1")+","+gridLetter("e-9")+"]")
		}
		return false
	})
	h := newHall(t, deadTo(s, event.KindEventGrid, nil))
	got, err := h.Recover(t.Context(), "files", false, 1000)
	if err != nil || got.TooLarge != 2 || got.Published != 3 || got.Blobs != 5 {
		t.Errorf("%+v, %v", got, err)
	}
	gets := s.Count("get")
	got, err = h.Recover(t.Context(), "files", false, 1000)
	if err != nil || got.TooLarge != 2 || got.Published != 1 || got.Duplicate != 1 {
		t.Errorf("again: %+v, %v", got, err)
	}
	if n := s.Count("get") - gets; n != 1 {
		t.Errorf("%d blobs were read again", n)
	}
	if d := cmp.Diff([]string{blobName(3), blobName(4)}, s.Names()); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
	if st := h.DeadLetters(); len(st) != 1 || st[0].Left != 2 || st[0].Blobs != 3 || st[0].Every != 0 {
		t.Errorf("status %+v", st)
	}
}

// A container is read by itself, by one router at a time, and blobs that are kept are
// not read again.
func TestBlobSweep(t *testing.T) {
	s := blobtest.Start(t, "deadletters")
	source := deadTo(s, event.KindEventGrid, func(c *BlobContainer) { c.Every, c.Keep = time.Second, true })
	h := newHall(t, source)
	other := h.receivers(deadTo(s, event.KindEventGrid, func(c *BlobContainer) { c.Every, c.Keep = time.Second, true }))
	s.Put(blobName(1), "["+gridLetter("e-1")+"]")
	s.Answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	h.Start()
	other.Start()
	h.eventually("it says that it fails", func() bool { return slices.Contains(h.reported(), "source.recover-failing files") })
	s.Answer(nil)
	h.eventually("it is read", func() bool { return len(s.Marked()) == 1 })
	s.Put(blobName(2), "["+gridLetter("e-2")+"]")
	h.eventually("the next one is read", func() bool { return len(s.Marked()) == 2 })
	lists := s.Count("list")
	h.eventually("it goes on", func() bool { return s.Count("list") > lists+2 })
	if s.Count("get") != 2 || s.Count("delete") != 0 || len(h.stored(broker.StreamEvents)) != 2 {
		t.Errorf("%d were read, %d deleted", s.Count("get"), s.Count("delete"))
	}
	reads := 0
	for _, r := range []*Receivers{h.Receivers, other} {
		if st := r.DeadLetters()[0]; st.Reads {
			reads++
			if st.Last == nil || st.Every != 1 || st.Kind != "" {
				t.Errorf("status %+v", st)
			}
		}
	}
	if reads != 1 {
		t.Errorf("%d routers read it", reads)
	}
	if got := h.reported(); !slices.Contains(got, "source.recovering files") || !slices.Contains(got, "source.recovered files") {
		t.Errorf("reported %q", got)
	}
	// Somebody who says so reads it, too, whoever has the lease.
	s.Put(blobName(3), "["+gridLetter("e-3")+"]")
	if got, err := other.Recover(t.Context(), "files", false, 10); err != nil || got.Messages > 1 {
		t.Errorf("%+v, %v", got, err)
	}
	h.eventually("it is read", func() bool { return len(s.Marked()) == 3 })
}

// A signature opens the container, too, and is in no error.
func TestBlobSignature(t *testing.T) {
	s := blobtest.Start(t, "deadletters")
	s.Put(blobName(1), "["+gridLetter("e-1")+"]")
	change := func(sig string) func(*BlobContainer) {
		return func(c *BlobContainer) {
			c.Account, c.Auth = s.URL, credentials.AzureAuth{SAS: "?sv=2026-04-06&sp=rld&sig=" + strings.ReplaceAll(sig, "=", "%3D")}
		}
	}
	if got, err := newHall(t, deadTo(s, event.KindEventGrid, change(blobtest.Key))).Recover(t.Context(), "files", false, 10); err != nil || got.Published != 1 || len(s.Names()) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	_, err := newHall(t, deadTo(s, event.KindEventGrid, change("canary=="))).Recover(t.Context(), "files", false, 10)
	if err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("got %v", err)
	}
}

// What would have been delivered to a source of another kind.
func TestLetters(t *testing.T) {
	mapping := &custom.Mapping{Type: ".myEventType", ID: ".prop1"}
	inCustom := `{"id":"8bc07e6f","eventTime":"2020-08-13T18:11:29.4121391Z","eventType":"myEventType","dataVersion":"1.0","metadataVersion":"1","topic":"/t","subject":"subjectDefault",
		"deadLetterReason":"MaxDeliveryAttemptsExceeded","deliveryAttempts":1,"lastDeliveryOutcome":"NotFound","publishTime":"2020-08-13T18:11:29.4121391Z","data":{"prop1":"my property","prop2":5,"myEventType":"fooEventType"}}`
	inFnO := `{"id":"A-1","eventType":"PurchaseOrderConfirmedBusinessEvent","subject":"Cat_PurchaseOrderConfirmedBusinessEvent_USMF","eventTime":"1900-01-01T00:00:00Z","dataVersion":"0.0","topic":"/t",
		"data":"{\"BusinessEventId\":\"PurchaseOrderConfirmedBusinessEvent\",\"EventId\":\"A-1\",\"LegalEntity\":\"usmf\",\"EventTimeIso8601\":\"2026-11-01T00:00:00Z\"}","deadLetterReason":"TimeToLiveExceeded"}`
	for _, tt := range []struct {
		name, kind, blob string
		options          normalise.Options
		want             string // type and id; empty: not understood
	}{
		{"custom", event.KindCustom, inCustom, normalise.Options{Mapping: mapping}, "fooEventType my property"},
		{"custom, mapped from the envelope", event.KindCustom, inCustom, normalise.Options{Mapping: &custom.Mapping{Type: ".eventType", ID: ".id"}}, "myEventType 8bc07e6f"},
		{"business event", event.KindFnO, inFnO, normalise.Options{}, "PurchaseOrderConfirmedBusinessEvent A-1"},
		{"cloud event, as the documentation has it", event.KindCloudEvents, `{"id":"c","source":"mysource","type":"foo","data":{},"deadletterreason":"x"}`, normalise.Options{}, "foo c"},
		{"no event", event.KindEventGrid, `{"deadLetterReason":"x"}`, normalise.Options{}, ""},
		{"not even an object", event.KindEventGrid, `[7]`, normalise.Options{}, ""},
		{"a member twice", event.KindEventGrid, `{"id":"1","id":"2"}`, normalise.Options{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parse, err := normalise.New(tt.kind, tt.options)
			if err != nil {
				t.Fatal(err)
			}
			s := &source{Source: Source{Name: "s", Kind: tt.kind, Options: tt.options}, parse: parse}
			var got strings.Builder
			for _, l := range letters(tt.kind, []byte(tt.blob)) {
				for _, r := range l.read(s) {
					if r.Event != nil {
						got.WriteString(r.Event.Type + " " + r.Event.ID)
						if r.Event.Get("deadletterreason") == "" {
							t.Errorf("attributes %+v", r.Event.Extensions)
						}
					}
				}
			}
			if got.String() != tt.want {
				t.Errorf("got %q, want %q", got.String(), tt.want)
			}
		})
	}
}

func TestBlobConfig(t *testing.T) {
	valid := func(change func(*BlobContainer)) *Source {
		c := &BlobContainer{Account: "https://contoso.blob.core.windows.net", Container: "deadletters", Auth: credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{}}}
		change(c)
		return &Source{Name: "s", Kind: event.KindEventGrid, DeadLetters: &DeadLetters{Blob: c}}
	}
	for _, tt := range []struct {
		change func(*BlobContainer)
		want   string
	}{
		{func(*BlobContainer) {}, ""},
		{func(c *BlobContainer) { c.Every = Never }, ""},
		{func(c *BlobContainer) { c.Container = "" }, "s.deadLetters.blob.container: missing"},
		{func(c *BlobContainer) { c.Container = "Dead/Letters" }, "s.deadLetters.blob.container: a name is"},
		{func(c *BlobContainer) { c.Account = "" }, "s.deadLetters.blob.account: missing"},
		{func(c *BlobContainer) { c.Account = "http://contoso.blob.core.windows.net" }, "s.deadLetters.blob.account: want https"},
		{func(c *BlobContainer) { c.Account += "/deadletters" }, "s.deadLetters.blob.account: want the address without a path"},
		{func(c *BlobContainer) { c.Account += "?sig=canary" }, "s.deadLetters.blob.account: want no user, ?query"},
		{func(c *BlobContainer) { c.Every = 48 * time.Hour }, "s.deadLetters.blob.every: want 1s to 24h, or none"},
		{func(c *BlobContainer) { c.Prefix = "/x" }, "s.deadLetters.blob.prefix: want"},
		{func(c *BlobContainer) { c.Auth = credentials.AzureAuth{} }, "s.deadLetters.blob.auth: missing"},
		{func(c *BlobContainer) { c.Auth = credentials.AzureAuth{Key: "canary"} }, "s.deadLetters.blob.auth.key: not known"},
		{func(c *BlobContainer) {
			c.Auth = credentials.AzureAuth{ConnectionString: "AccountName=a;AccountKey=canary"}
		}, "s.deadLetters.blob.account: the connection string says which"},
		{func(c *BlobContainer) {
			c.Account, c.Auth = "", credentials.AzureAuth{ConnectionString: "DefaultEndpointsProtocol=http;AccountName=contoso;AccountKey=canary"}
		}, "s.deadLetters.blob.auth.connectionString: want DefaultEndpointsProtocol=https"},
	} {
		s := valid(tt.change)
		err := s.Validate("s")
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("it shows a secret: %v", err)
		}
	}
	if err := (&Source{Name: "s", DeadLetters: &DeadLetters{}}).Validate("s"); err == nil || !strings.HasPrefix(err.Error(), "s.deadLetters: want blob") {
		t.Errorf("got %v", err)
	}
	if got := valid(func(c *BlobContainer) { c.Auth = credentials.AzureAuth{SAS: "canary"} }).Redacted(); strings.Contains(fmt.Sprintf("%+v", got.DeadLetters.Blob), "canary") {
		t.Error("redacted, it shows a secret")
	}
}
