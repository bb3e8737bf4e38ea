package receive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// What Event Grid could not deliver it puts into a container, if the event
// subscription names one: blobs of one or more events in an array, in the schema in
// which they would have been delivered, each with members that say why they were
// given up; in the CloudEvents schema their names are lower case. An event of a topic
// with a schema of its own is the data of one in Event Grid's. Names of blobs are
// …/SUBSCRIPTION/year/month/day/hour/id.json, numbers without leading zeros.
// (MicrosoftDocs/azure-docs, articles/event-grid/delivery-and-retry.md, "Dead-letter
// events", and manage-event-delivery.md; learn.microsoft.com's later text of the
// latter has the array; read 2026-11.)

const (
	// storageScope is that of tokens for Azure Storage (azblob v1.7.0).
	storageScope = "https://storage.azure.com/.default"
	// readers is how many blobs are worked on at once: each costs three round trips.
	readers = 8
	// mostBlob is how large a blob may be: Event Grid takes 1 MB at once.
	mostBlob = 16 << 20
	// blobPage is how many are listed at once.
	blobPage = 1000
	// blobTimeout bounds a request.
	blobTimeout = 60 * time.Second
	// passLease outlives the process that reads a container, and passWait is how long
	// somebody waits for another one to be done.
	passLease = 10 * time.Second
	passWait  = 15 * time.Second
	// recoveredKey is the metadata of a blob that was read and is kept. Index tags
	// would want more than the role of a contributor.
	recoveredKey = "gridfanrecovered"
	// mostLeft bounds the blobs that are remembered because nothing can be done with
	// them.
	mostLeft = 10_000
)

// blobs is a source's container of dead letters.
type blobs struct {
	source   *source
	cfg      BlobContainer
	client   *container.Client
	tokens   *credentials.Credentials // nil without an identity
	identity azcore.TokenCredential   // likewise
	secrets  *secret.Veil
	from     string

	mu     sync.Mutex             // guards all below
	left   map[string]azcore.ETag // too large; not to be read again as they are
	status DeadLetterStatus
	told   bool // people were told that it fails
}

// DeadLetterStatus is how reading a container of dead letters back goes; counts are
// since the start of this process.
type DeadLetterStatus struct {
	Source string `json:"source"`
	// From names the container and what blobs of it.
	From string `json:"from"`
	// Every is how often it is read, in seconds; 0: only when somebody says so.
	Every float64 `json:"every"`
	// Reads says that this process does.
	Reads bool `json:"reads"`
	// Last is when all of it was last read.
	Last *time.Time `json:"last,omitempty"`
	// Kind and Reason say why it cannot be read, since Since.
	Kind   Kind       `json:"kind,omitempty"`
	Reason string     `json:"reason,omitempty"`
	Since  *time.Time `json:"since,omitempty"`
	// Blobs were read back, and Left could not be and are there still.
	Blobs int64 `json:"blobs"`
	Left  int64 `json:"left"`
}

// newBlobs makes one of a valid configuration; it asks for nothing yet.
func (s *source) newBlobs(cfg BlobContainer) (*blobs, error) {
	b := &blobs{source: s, cfg: cfg, left: map[string]azcore.ETag{}}
	hidden := cfg.Auth.Secrets()
	for part := range strings.SplitSeq(cfg.Auth.ConnectionString, ";") {
		for _, name := range []string{"AccountKey=", "SharedAccessSignature="} {
			if value, ok := strings.CutPrefix(part, name); ok {
				hidden = append(hidden, value)
			}
		}
	}
	// A signature is shown when it is part of an address.
	for _, text := range slices.Clone(hidden) {
		if q, err := url.ParseQuery(strings.TrimPrefix(text, "?")); err == nil && q.Get("sig") != "" {
			hidden = append(hidden, q.Get("sig"), url.QueryEscape(q.Get("sig")))
		}
	}
	b.secrets = secret.NewVeil(hidden...)
	target := connectionEndpoint(cfg.Auth.ConnectionString)
	address := strings.TrimRight(cfg.Account, "/") + "/" + cfg.Container
	if cfg.Auth.ConnectionString == "" {
		var err error
		if target, err = url.Parse(cfg.Account); err != nil {
			return nil, errors.New("account: want https://contoso.blob.core.windows.net") // Validate has parsed it
		}
	}
	if target == nil {
		target = &url.URL{Scheme: "https"}
	}
	t := newTransport(s.parts.Egress, target)
	t.limit = mostBlob
	t.MaxIdleConnsPerHost = readers
	s.close = append(s.close, t.CloseIdleConnections)
	o := &container.ClientOptions{ClientOptions: s.clientOptions(t)}
	var err error
	switch auth := cfg.Auth; {
	case auth.ConnectionString != "":
		b.client, err = container.NewClientFromConnectionString(auth.ConnectionString, cfg.Container, o)
	case auth.SAS != "":
		b.client, err = container.NewClientWithNoCredential(address+"?"+strings.TrimPrefix(auth.SAS, "?"), o)
	default:
		b.tokens = auth.Credentials(s.parts.Log)
		b.identity = b.tokens.Azure()
		s.close = append(s.close, b.tokens.Close)
		b.client, err = container.NewClient(address, b.identity, o)
	}
	if err != nil {
		return nil, fmt.Errorf("deadLetters.blob: %s", b.secrets.Printable(err.Error(), maxReason))
	}
	where, err := url.Parse(b.client.URL())
	if err != nil || where.Host == "" {
		return nil, errors.New("deadLetters.blob.auth.connectionString: it names no account")
	}
	b.from = where.Host + where.Path + "/" + cfg.Prefix
	b.status = DeadLetterStatus{Source: s.Name, From: b.from, Every: max(0, cfg.Every.Seconds())}
	s.parts.Metrics.initBlobs(s.Name)
	return b, nil
}

// request makes one and judges what came of it. The status is 0 without an answer.
func (b *blobs) request(ctx context.Context, what string, send func(context.Context) error) (*kept, error) {
	ctx, cancel := context.WithTimeout(ctx, blobTimeout)
	defer cancel()
	secrets := b.secrets
	if b.identity != nil {
		t, err := b.identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{storageScope}})
		if err != nil {
			return &kept{}, noToken(err, secrets)
		}
		secrets = secrets.And(t.Token)
	}
	ctx, k := keep(ctx)
	if err := send(ctx); err != nil {
		return k, k.fault(err, what, secrets)
	}
	return k, nil
}

// pass reads back what is in the container: up to about limit events. With dryRun it
// only looks.
func (b *blobs) pass(ctx context.Context, dryRun bool, limit int, out *Recovery) error {
	include := container.ListBlobsInclude{Metadata: true}
	size := int32(blobPage)
	o := &container.ListBlobsFlatOptions{Include: include, MaxResults: &size}
	if b.cfg.Prefix != "" {
		o.Prefix = &b.cfg.Prefix
	}
	left := map[string]azcore.ETag{}
	for pager := b.client.NewListBlobsFlatPager(o); pager.More(); {
		var page container.ListBlobsFlatResponse
		_, err := b.request(ctx, "container", func(ctx context.Context) (err error) {
			page, err = pager.NextPage(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if page.Segment == nil {
			return &Fault{Kind: Answer, Reason: "the answer is no list of blobs"}
		}
		all, err := b.readAll(ctx, page.Segment.BlobItems, dryRun, limit, left, out)
		if err != nil || !all {
			return err
		}
	}
	if !dryRun {
		// Others are not there any more.
		b.mu.Lock()
		b.left = left
		b.status.Left = int64(len(left))
		b.mu.Unlock()
	}
	return nil
}

// readAll reads the blobs of a page, several at once; all is false when the limit was
// reached.
func (b *blobs) readAll(ctx context.Context, items []*container.BlobItem, dryRun bool, limit int, left map[string]azcore.ETag, out *Recovery) (all bool, _ error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // guards left, out and failed
	var failed error
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, readers)
	for _, item := range items {
		if item == nil || item.Name == nil || item.Properties == nil || item.Properties.ETag == nil {
			continue
		}
		name, etag := *item.Name, *item.Properties.ETag
		if !strings.HasSuffix(strings.ToLower(name), ".json") || recovered(item.Metadata) {
			continue
		}
		slots <- struct{}{}
		mu.Lock()
		enough, stop := out.Messages >= limit, failed != nil || ctx.Err() != nil
		if enough {
			out.More = true
		}
		mu.Unlock()
		if enough || stop {
			break
		}
		b.mu.Lock()
		known := b.left[name] == etag
		b.mu.Unlock()
		length := int64(0)
		if n := item.Properties.ContentLength; n != nil {
			length = *n
		}
		wg.Go(func() {
			defer func() { <-slots }()
			one := &Recovery{Reasons: map[string]int{}}
			var err error
			if known || length > mostBlob {
				one.Blobs, one.TooLarge = 1, 1
			} else {
				err = b.read(ctx, name, etag, dryRun, one)
			}
			mu.Lock()
			defer mu.Unlock()
			out.add(one)
			if one.TooLarge > 0 && len(left) < mostLeft {
				left[name] = etag
			}
			if one.TooLarge > 0 && !known && !dryRun {
				b.source.parts.Metrics.blob(b.source.Name, "left")
				b.source.parts.Log.Warn("a blob of dead letters is left where it is: it, or an event in it, is too large", "source", b.source.Name, "blob", name, "bytes", length)
			}
			if err != nil && failed == nil {
				failed = err
				cancel()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return false, failed
	}
	return !out.More, ctx.Err()
}

// recovered says whether a blob is marked as read.
func recovered(metadata map[string]*string) bool {
	for name, value := range metadata {
		if strings.EqualFold(name, recoveredKey) && value != nil {
			return true
		}
	}
	return false
}

// read publishes what is in one blob, and then deletes or marks it.
func (b *blobs) read(ctx context.Context, name string, etag azcore.ETag, dryRun bool, out *Recovery) error {
	client := b.client.NewBlobClient(name)
	same := &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &etag}}
	k, err := b.request(ctx, "blob", func(ctx context.Context) error {
		_, err := client.DownloadStream(ctx, &blob.DownloadStreamOptions{AccessConditions: same})
		return err
	})
	switch {
	case other(k):
		return nil // somebody else was first, or it is another by now
	case err != nil:
		return err
	}
	out.Blobs++
	elements := letters(b.source.Kind, k.body)
	err = b.store(ctx, elements, dryRun, out)
	if errors.Is(err, publish.ErrTooLarge) {
		*out = Recovery{Reasons: map[string]int{}, Blobs: 1, TooLarge: 1}
		return nil
	}
	if err != nil || dryRun {
		return err
	}
	// Only now: all that is in it is durable here.
	k, err = b.request(context.WithoutCancel(ctx), "blob", func(ctx context.Context) error {
		if b.cfg.Keep {
			at := event.FormatTime(time.Now().UTC())
			_, err := client.SetMetadata(ctx, map[string]*string{recoveredKey: &at}, &blob.SetMetadataOptions{AccessConditions: same})
			return err
		}
		snapshots := blob.DeleteSnapshotsOptionTypeInclude
		_, err := client.Delete(ctx, &blob.DeleteOptions{AccessConditions: same, DeleteSnapshots: &snapshots})
		return err
	})
	switch {
	case other(k):
		return nil // somebody has put it there again, and it is read again
	case err != nil:
		return err
	}
	b.source.parts.Metrics.blob(b.source.Name, "recovered")
	b.mu.Lock()
	b.status.Blobs++
	b.mu.Unlock()
	return nil
}

// other says whether an answer means that the blob is not there, or not as it was.
func other(k *kept) bool {
	code := k.header.Get("X-Ms-Error-Code")
	return k.status == http.StatusNotFound && (code == "BlobNotFound" || code == "") || k.status == http.StatusPreconditionFailed
}

// store publishes the letters of one blob.
func (b *blobs) store(ctx context.Context, elements []letter, dryRun bool, out *Recovery) error {
	s := b.source
	o := s.origin(time.Now())
	o.Late = true
	var events []event.Result
	type faulty struct {
		result event.Result
		header map[string][]string
	}
	var bad []faulty
	for _, l := range elements {
		out.Messages++
		out.why(l.reason)
		for _, r := range l.read(s) {
			switch {
			case r.Fault != nil:
				bad = append(bad, faulty{r, l.header})
			case dryRun && r.Control != nil:
				out.Control++
			case dryRun:
				out.Published++
			default:
				events = append(events, r)
			}
		}
	}
	if dryRun {
		out.Quarantined += len(bad)
		return nil
	}
	err := s.publish(ctx, o, events, out.count)
	if err != nil {
		return b.unstored(err)
	}
	for _, f := range bad {
		o := o
		o.Header = quarantineHeaders(f.header)
		s.parts.Log.Warn("element of a dead letter quarantined", "source", s.Name, "code", f.result.Fault.Code, "detail", f.result.Fault.Detail)
		if err := s.publish(ctx, o, []event.Result{f.result}, out.count); err != nil {
			return b.unstored(err)
		}
	}
	return nil
}

// unstored words why nothing can be stored, but for what is too large.
func (b *blobs) unstored(err error) error {
	if errors.Is(err, publish.ErrTooLarge) {
		return err
	}
	return &Fault{Kind: Storage, Reason: storageReason(err)}
}

// letter is one event of a blob, as it would have been delivered.
type letter struct {
	header map[string][]string
	bodies [][]byte // the first that is understood counts, or just the first
	fault  *event.Fault
	reason string
	// said are the members that say why it was given up, as attributes.
	said []event.Extension
}

// The members of a dead letter that are not its event's.
var deadLetterMembers = []string{"deadletterreason", "deliveryattempts", "lastdeliveryoutcome", "publishtime", "lastdeliveryattempttime"}

// letters takes a blob apart.
func letters(kind string, body []byte) []letter {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	elements, _, err := rawjson.Elements(body)
	if err != nil {
		return []letter{{
			header: map[string][]string{"Content-Type": {"application/json"}}, bodies: [][]byte{body},
			fault: event.Faultf(event.FaultNotJSON, "a blob of dead letters: %v", err),
		}}
	}
	all := make([]letter, 0, len(elements))
	for _, e := range elements {
		all = append(all, letterOf(kind, e))
	}
	return all
}

func letterOf(kind string, raw []byte) letter {
	l := letter{header: map[string][]string{"Content-Type": {"application/json; charset=utf-8"}}, bodies: [][]byte{raw}}
	if rawjson.Kind(raw) != "an object" {
		return l // its kind's parser says what is wrong
	}
	members, err := rawjson.Members(raw)
	if err != nil {
		return l
	}
	has := map[string]bool{}
	var data []byte
	var rest []rawjson.Member
	for _, m := range members {
		if name := strings.ToLower(m.Name); slices.Contains(deadLetterMembers, name) {
			l.said = append(l.said, said(name, m.Value))
			continue
		}
		has[m.Name] = true
		if m.Name == "data" {
			data = m.Value
		}
		rest = append(rest, m)
	}
	for _, x := range l.said {
		switch x.Name {
		case "deadletterreason":
			l.reason = x.Value + l.reason
		case "lastdeliveryoutcome":
			l.reason += " (" + x.Value + ")"
		}
	}
	cloud := has["specversion"] || has["type"] && has["source"] && !has["eventType"]
	if cloud {
		l.header["Content-Type"] = []string{"application/cloudevents+json; charset=utf-8"}
	}
	var b bytes.Buffer
	b.WriteByte('{')
	if cloud && !has["specversion"] {
		// The documentation's own samples leave it out.
		b.WriteString(`"specversion":"1.0",`)
	}
	for i, m := range rest {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quoted(m.Name))
		b.WriteByte(':')
		b.Write(m.Value)
	}
	b.WriteByte('}')
	l.bodies = [][]byte{b.Bytes()}
	if kind == event.KindCustom && !cloud && len(data) > 0 && data[0] == '{' {
		// What would have been delivered is the data alone, if the topic has a schema
		// of its own. The mapping knows.
		l.bodies = [][]byte{data, b.Bytes()}
	}
	return l
}

// quoted writes a name as JSON.
func quoted(name string) []byte {
	b, _ := jsontext.AppendQuote(nil, name)
	return b
}

// said makes an attribute of a member.
func said(name string, value []byte) event.Extension {
	if text, ok := rawjson.Text(value); ok {
		return event.Extension{Name: name, Value: text}
	}
	if n, err := strconv.ParseInt(string(value), 10, 32); err == nil {
		return event.Extension{Name: name, Value: strconv.FormatInt(n, 10), Type: event.Integer}
	}
	return event.Extension{Name: name, Value: string(value)}
}

// read makes results of a letter.
func (l *letter) read(s *source) []event.Result {
	if l.fault != nil {
		return []event.Result{{Raw: l.bodies[0], Fault: l.fault}}
	}
	var results []event.Result
	for _, body := range l.bodies {
		these := s.read(&message{header: l.header, body: body})
		if results == nil || !slices.ContainsFunc(these, unmapped) {
			results = these
		}
		if !slices.ContainsFunc(results, unmapped) {
			break
		}
	}
	for i := range results {
		e := results[i].Event
		if e == nil {
			continue
		}
		for _, x := range l.said {
			if x.Value != "" && e.Get(x.Name) == "" {
				e.SetExtension(x)
			}
		}
		if f := e.Validate(); f != nil {
			results[i] = event.Result{Raw: results[i].Raw, Fault: event.FaultOf(f)}
		}
	}
	return results
}

// unmapped says whether a result is no event, or one in which a mapping has found no
// type, so that it has the one of its kind.
func unmapped(r event.Result) bool {
	return r.Fault != nil || r.Event != nil && r.Event.Type == event.KindCustom
}

// sweep reads the container again and again, where no other router does.
func (b *blobs) sweep(ctx context.Context) {
	s := b.source
	for ctx.Err() == nil {
		l, err := s.parts.Broker.Lease(ctx, "recover."+s.Name, s.parts.Log)
		if err != nil {
			return
		}
		b.sweeps(ctx, l)
		l.Release()
	}
}

func (b *blobs) sweeps(ctx context.Context, l *broker.Lease) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.Context(), cancel)()
	b.reads(true)
	defer b.reads(false)
	for failures := 0; ctx.Err() == nil; {
		out := &Recovery{Source: b.source.Name, From: b.from, Reasons: map[string]int{}}
		err := b.exclusively(ctx, func(ctx context.Context) error { return b.pass(ctx, false, sweepLimit, out) })
		if ctx.Err() != nil {
			return
		}
		wait := spread(b.cfg.Every)
		switch {
		case errors.Is(err, ErrBusy):
			wait = min(wait, passWait)
		case err != nil:
			f := faultOf(err)
			wait = min(wait, b.source.wait(f, failures))
			failures++
		default:
			failures = 0
			if out.More {
				wait = 0
			}
		}
		b.swept(out, err)
		pause(ctx, wait)
	}
}

// sweepLimit is after how many events of one pass the lease of it is given back, so
// that somebody who waits has a turn.
const sweepLimit = 10_000

// spread keeps containers of one account from being read all at once.
func spread(d time.Duration) time.Duration { return d - d/20 + rand.N(d/10+1) }

func (b *blobs) reads(yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.Reads = yes; !yes {
		// Another one tells from here on.
		b.status.Kind, b.status.Reason, b.status.Since, b.told = "", "", nil, false
		b.source.parts.Metrics.rounds.DeleteLabelValues(b.source.Name)
	}
}

// swept notes how reading the container went, and tells people.
func (b *blobs) swept(out *Recovery, err error) {
	s := b.source
	if errors.Is(err, ErrBusy) {
		return
	}
	now := time.Now().UTC()
	b.mu.Lock()
	tell := b.told != (err != nil)
	b.told = err != nil
	if err == nil {
		b.status.Last = &now
		b.status.Kind, b.status.Reason, b.status.Since = "", "", nil
	} else {
		f := faultOf(err)
		b.status.Kind, b.status.Reason = f.Kind, f.Reason
		if b.status.Since == nil {
			b.status.Since = &now
		}
	}
	b.mu.Unlock()
	s.parts.Metrics.blobRound(s.Name, err == nil)
	if err != nil && tell {
		f := faultOf(err)
		s.parts.Log.Warn("dead letters cannot be read back", "source", s.Name, "from", b.from, "reason", f.Error())
		s.parts.Report("source.recover-failing", s.Name, map[string]any{"from": b.from, "kind": string(f.Kind), "reason": f.Reason})
	}
	if err == nil && tell {
		s.parts.Report("source.recovering", s.Name, map[string]any{"from": b.from})
	}
	if out.Blobs > out.TooLarge {
		s.parts.Report("source.recovered", s.Name, map[string]any{
			"from": b.from, "blobs": out.Blobs, "published": out.Published, "duplicate": out.Duplicate, "quarantined": out.Quarantined, "reasons": out.Reasons,
		})
	}
}

// exclusively does something with the container while no other router does.
func (b *blobs) exclusively(ctx context.Context, do func(context.Context) error) error {
	key := "recovering." + b.source.Name
	var l *broker.Lease
	for end := time.Now().Add(passWait); ; pause(ctx, b.source.least) {
		var err error
		if l, err = b.source.parts.Broker.TryLease(ctx, key, passLease); l != nil {
			break
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end) && err != nil:
			return &Fault{Kind: Storage, Reason: "the broker does not answer"}
		case time.Now().After(end):
			return ErrBusy
		}
	}
	defer l.Release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.Context(), cancel)()
	return do(ctx)
}
