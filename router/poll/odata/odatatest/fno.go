package odatatest

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// FnO is a /data with one entity, Orders, whose key is dataAreaId and OrderNumber. It
// is safe for concurrent use.
type FnO struct {
	// URL is where it is served, without a path; set it before the first request.
	URL string

	mu sync.Mutex // guards all below
	limits
	rows     map[string]*order
	recID    int64
	Requests int
}

type order struct {
	company, number, text string
	recID, version        int64
	modified              time.Time
	deleted               bool
}

func (o *order) key() string { return o.company + "/" + o.number }

// NewFnO makes an FnO without orders.
func NewFnO(clock *Clock, seed uint64) *FnO {
	return &FnO{limits: limits{clock: clock, rand: rand.New(rand.NewPCG(seed, 2)), left: 1}, rows: map[string]*order{}, recID: 5637144576}
}

// Throttle makes it answer 429 after so many requests, on average.
func (f *FnO) Throttle(every int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Every = every
}

// Throttled is as Dataverse's.
func (f *FnO) Throttled() (denied, early int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Denied, f.Early
}

// Create begins the creation of an order. It is seen once commit has been called.
func (f *FnO) Create(company, text string) (key string, commit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recID++
	o := order{company: company, number: fmt.Sprintf("PO-%06d", f.recID%1000000), text: text, recID: f.recID, version: 1, modified: f.clock.Now()}
	return o.key(), f.write(o)
}

// Update begins a change of an order that no other transaction holds.
func (f *FnO) Update(key, text string) (commit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := *f.rows[key]
	o.text, o.modified, o.version = text, f.clock.Now(), o.version+1
	return f.write(o)
}

// UpdateAll changes many in one statement, which gives them one time.
func (f *FnO) UpdateAll(keys []string, text string) {
	for _, key := range keys {
		f.Update(key, text)()
	}
}

func (f *FnO) write(o order) (commit func()) {
	o.modified = o.modified.Truncate(time.Second)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.rows[o.key()] = &o
	}
}

// Delete removes an order, which nobody is told.
func (f *FnO) Delete(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows[key].deleted = true
}

// Texts are those of all orders that are there.
func (f *FnO) Texts() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]string{}
	for key, o := range f.rows {
		if !o.deleted {
			all[key] = o.text
		}
	}
	return all
}

var (
	atLeast = regexp.MustCompile(`^ModifiedDateTime ge (\S+)$`)
	behind  = regexp.MustCompile(`^\(ModifiedDateTime gt (\S+)\) or \(ModifiedDateTime eq (\S+) and RecId gt (\d+)\)$`)
)

// ServeHTTP answers a request.
func (f *FnO) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Requests++
	date(w, f.clock)
	if f.refuses(w, "", "The server is too busy.") {
		return
	}
	q := r.URL.Query()
	if r.URL.Path != "/data/Orders" {
		refuse(w, 404, "", "No HTTP resource was found that matches the request URI.")
		return
	}
	keep := func(*order) bool { return true }
	filter := q.Get("$filter")
	if m := atLeast.FindStringSubmatch(filter); m != nil {
		least, err := time.Parse(time.RFC3339, m[1])
		if err != nil {
			refuse(w, 400, "", "bad time")
			return
		}
		keep = func(o *order) bool { return !o.modified.Before(least) }
	} else if m := behind.FindStringSubmatch(filter); m != nil && m[1] == m[2] {
		t, err := time.Parse(time.RFC3339, m[1])
		n, _ := strconv.ParseInt(m[3], 10, 64)
		if err != nil {
			refuse(w, 400, "", "bad time")
			return
		}
		keep = func(o *order) bool { return o.modified.After(t) || o.modified.Equal(t) && o.recID > n }
	} else if filter != "" {
		// "gt" on text is refused.
		refuse(w, 400, "", "A binary operator with incompatible types was detected: "+filter)
		return
	}
	less := func(a, b *order) int { return strings.Compare(a.key(), b.key()) }
	switch q.Get("$orderby") {
	case "":
	case "ModifiedDateTime asc,RecId asc":
		less = func(a, b *order) int { return cmp.Or(a.modified.Compare(b.modified), cmp.Compare(a.recID, b.recID)) }
	case "ModifiedDateTime asc,dataAreaId asc,OrderNumber asc":
		less = func(a, b *order) int {
			return cmp.Or(a.modified.Compare(b.modified), strings.Compare(a.company, b.company), strings.Compare(a.number, b.number))
		}
	default:
		refuse(w, 400, "", "order: "+q.Get("$orderby"))
		return
	}
	var all []*order
	for _, o := range f.rows {
		if !o.deleted && keep(o) && (q.Get("cross-company") == "true" || o.company == "usmf") {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, less)
	skip, _ := strconv.Atoi(q.Get("$skip"))
	top, err := strconv.Atoi(q.Get("$top"))
	if err != nil || top > 10000 {
		top = 10000
	}
	all = all[min(skip, len(all)):]
	page := map[string]any{"@odata.count": 42}
	if len(all) > top {
		all = all[:top]
		// A trap: it skips rows of what is there then.
		q.Set("$skip", strconv.Itoa(skip+top))
		page["@odata.nextLink"] = f.URL + "/data/Orders?" + q.Encode()
	}
	rows := make([]any, len(all))
	for i, o := range all {
		rows[i] = map[string]any{
			"@odata.etag": `W/"` + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "'%d,%d'", o.version, o.recID)) + `"`,
			"dataAreaId":  o.company, "OrderNumber": o.number, "RecId": o.recID, "Text": o.text, "Status": "Backorder",
			"ModifiedDateTime": stamp(o.modified), "ConfirmedDate": "1900-01-01T12:00:00Z",
		}
	}
	page["value"] = rows
	answer(w, page)
}
