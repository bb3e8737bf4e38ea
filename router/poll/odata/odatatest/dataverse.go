package odatatest

import (
	"cmp"
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

// Dataverse is a Web API with one table, account. It is safe for concurrent use.
type Dataverse struct {
	// URL is where it is served, without a path; set it before the first request.
	URL string
	// StampLast gives the first delta token the stamp of the last page and not of the
	// first, so that it does not cover what changed while pages were read.
	StampLast bool

	mu sync.Mutex // guards all below
	limits
	version  int64 // last given, at a statement
	commit   int64 // last commit
	rows     map[string]*account
	oldest   int64 // delta tokens below have expired
	links    map[string]link
	Requests int
}

// account is a row with what is committed of it.
type account struct {
	id                string
	name              string
	created, modified time.Time
	version           int64
	commit            int64 // order of commits, by which changes are tracked
	deleted           bool
}

// link is one that was given out.
type link struct {
	page   func(w http.ResponseWriter)
	prefer string
}

// NewDataverse makes an empty Dataverse.
func NewDataverse(clock *Clock, seed uint64) *Dataverse {
	return &Dataverse{
		limits: limits{clock: clock, rand: rand.New(rand.NewPCG(seed, 1)), left: 1},
		rows:   map[string]*account{}, links: map[string]link{},
	}
}

// Throttle makes it answer 429 after so many requests, on average.
func (d *Dataverse) Throttle(every int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Every = every
}

// Throttled tells how many 429s there were, and how many requests came before a
// Retry-After had ended.
func (d *Dataverse) Throttled() (denied, early int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Denied, d.Early
}

// Asked is how many requests there were.
func (d *Dataverse) Asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Requests
}

// Expire makes it forget all delta tokens it has given out.
func (d *Dataverse) Expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commit++
	d.oldest = d.commit
}

// Create begins the creation of a row. It is seen once commit has been called.
func (d *Dataverse) Create(name string) (id string, commit func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id = guid(d.rand)
	now := d.clock.Now().Truncate(time.Second)
	return id, d.write(account{id: id, name: name, created: now, modified: now})
}

// Update begins a change of a row that is there and that no other transaction holds.
func (d *Dataverse) Update(id, name string) (commit func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(account{id: id, name: name, created: d.rows[id].created, modified: d.clock.Now().Truncate(time.Second)})
}

// write gives a row its version now, and lets it be seen later: rowversions are given
// when a statement runs (learn.microsoft.com, MIN_ACTIVE_ROWVERSION; read 2026-11).
func (d *Dataverse) write(a account) (commit func()) {
	d.version++
	a.version = d.version
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.commit++
		a.commit = d.commit
		d.rows[a.id] = &a
	}
}

// Delete removes a row.
func (d *Dataverse) Delete(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commit++
	d.rows[id].deleted, d.rows[id].commit = true, d.commit
}

// Versions are those of all rows that are there, and 0 for those that were deleted.
func (d *Dataverse) Versions() map[string]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]int64{}
	for id, a := range d.rows {
		if all[id] = a.version; a.deleted {
			all[id] = 0
		}
	}
	return all
}

var (
	byVersion  = regexp.MustCompile(`^versionnumber gt (\d+)$`)
	byModified = regexp.MustCompile(`^modifiedon ge (\S+)$`)
	byID       = regexp.MustCompile(`^/api/data/v9\.2/accounts\(([0-9a-f-]{36})\)$`)
)

// ServeHTTP answers a request.
func (d *Dataverse) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Requests++
	date(w, d.clock)
	if d.refuses(w, "0x80072322", "Number of requests exceeded the limit of 6000 over time window of 300 seconds.") {
		return
	}
	prefer := r.Header.Get("Prefer")
	if m := byID.FindStringSubmatch(r.URL.Path); m != nil {
		d.one(w, m[1])
		return
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/api/data/v9.2/EntityDefinitions(LogicalName='"); ok {
		d.definition(w, strings.TrimSuffix(name, "')"))
		return
	}
	if r.URL.Path != "/api/data/v9.2/accounts" {
		refuse(w, 404, "0x80060888", "Resource not found for the segment '"+r.URL.Path+"'.")
		return
	}
	if l, ok := d.links[r.RequestURI]; ok {
		if l.prefer != prefer {
			refuse(w, 400, "0x80060888", "The page size of a request must be that of the first page.")
			return
		}
		l.page(w)
		return
	}
	q := r.URL.Query()
	if q.Has("$skiptoken") || q.Has("$deltatoken") {
		refuse(w, 400, "0x80060888", "Malformed XML in the Paging Cookie")
		return
	}
	size := 5000
	if _, n, ok := strings.Cut(prefer, "odata.maxpagesize="); ok {
		n, _, _ = strings.Cut(n, ",")
		size, _ = strconv.Atoi(n)
	}
	filter, order := q.Get("$filter"), q.Get("$orderby")
	if strings.Contains(prefer, "odata.track-changes") {
		if filter != "" || order != "" || q.Has("$expand") || q.Has("$top") {
			refuse(w, 400, "0x80060888", "The \"$filter\" query parameter isn't supported when Change Tracking is enabled.")
			return
		}
		w.Header().Set("Preference-Applied", "odata.track-changes")
		d.track(w, r.URL.RawQuery, prefer, size, "", d.commit)
		return
	}
	keep := func(*account) bool { return true }
	var less func(a, b *account) int
	if m := byVersion.FindStringSubmatch(filter); m != nil && order == "versionnumber asc" {
		least, _ := strconv.ParseInt(m[1], 10, 64)
		keep = func(a *account) bool { return a.version > least }
		less = func(a, b *account) int { return cmp.Compare(a.version, b.version) }
	} else if order == "modifiedon asc,accountid asc" {
		if m := byModified.FindStringSubmatch(filter); m != nil {
			least, err := time.Parse(time.RFC3339, m[1])
			if err != nil {
				refuse(w, 400, "0x80060888", "A binary operator with incompatible types was detected. Found operand types 'Edm.DateTimeOffset' and 'Edm.String' for operator kind 'GreaterThanOrEqual'.")
				return
			}
			keep = func(a *account) bool { return !a.modified.Before(least) }
		} else if filter != "" {
			refuse(w, 400, "0x80060888", "filter: "+filter)
			return
		}
		less = func(a, b *account) int {
			return cmp.Or(a.modified.Compare(b.modified), strings.Compare(a.id, b.id))
		}
	} else {
		refuse(w, 400, "0x80060888", "filter: "+filter+", order: "+order)
		return
	}
	d.list(w, prefer, size, nil, keep, less)
}

func (d *Dataverse) one(w http.ResponseWriter, id string) {
	a := d.rows[id]
	if a == nil || a.deleted {
		refuse(w, 404, "0x80040217", "account With Id = "+id+" Does Not Exist")
		return
	}
	answer(w, d.show(a))
}

// definition tells of a table what its rows are found by (learn.microsoft.com,
// "Retrieve table definitions by name or MetadataId"; read 2026-11).
func (d *Dataverse) definition(w http.ResponseWriter, table string) {
	if table != "account" {
		refuse(w, 404, "0x80060888", "Could not find an entity with name "+table)
		return
	}
	answer(w, map[string]any{
		"@odata.context": d.URL + "/api/data/v9.2/$metadata#EntityDefinitions(LogicalName,EntitySetName,PrimaryIdAttribute)/$entity",
		"LogicalName":    table, "EntitySetName": "accounts", "PrimaryIdAttribute": "accountid", "MetadataId": "70816501-edb9-4740-a16c-6a5efbc05d84",
	})
}

// give makes a link that must come back as it is.
func (d *Dataverse) give(query, prefer string, page func(w http.ResponseWriter)) string {
	uri := "/api/data/v9.2/accounts?" + query
	d.links[uri] = link{page, prefer}
	return d.URL + uri
}

// cookie looks like a paging cookie, which is encoded twice (page-results.md).
func (d *Dataverse) cookie() string {
	return fmt.Sprintf("$skiptoken=%%3Ccookie%%20pagenumber=%%22%d%%22%%20pagingcookie=%%22%%253ccookie%%2520page%%253d%%25221%%2522%%253e%%22%%20istracking=%%22False%%22%%20/%%3E", len(d.links)+2)
}

// list gives the rows after one, in the order of less, and a link whose cookie holds
// the last of them.
func (d *Dataverse) list(w http.ResponseWriter, prefer string, size int, after *account, keep func(*account) bool, less func(a, b *account) int) {
	var all []*account
	for _, a := range d.rows {
		if !a.deleted && keep(a) && (after == nil || less(after, a) < 0) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, less)
	page := map[string]any{}
	if len(all) > size {
		all = all[:size]
		last := *all[size-1]
		page["@odata.nextLink"] = d.give(d.cookie(), prefer, func(w http.ResponseWriter) { d.list(w, prefer, size, &last, keep, less) })
	}
	page["value"] = d.showAll(all)
	answer(w, page)
}

// track gives all rows by id, and on the last page a delta link.
func (d *Dataverse) track(w http.ResponseWriter, query, prefer string, size int, after string, began int64) {
	var all []*account
	for _, a := range d.rows {
		if !a.deleted && a.id > after {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b *account) int { return strings.Compare(a.id, b.id) })
	page := map[string]any{}
	if len(all) > size {
		all = all[:size]
		last := all[size-1].id
		page["@odata.nextLink"] = d.give(query+"&"+d.cookie(), prefer, func(w http.ResponseWriter) { d.track(w, query, prefer, size, last, began) })
	} else {
		if d.StampLast {
			began = d.commit
		}
		page["@odata.deltaLink"] = d.delta(query, prefer, size, began)
	}
	page["value"] = d.showAll(all)
	answer(w, page)
}

// delta gives a link to what is committed after a commit.
func (d *Dataverse) delta(query, prefer string, size int, since int64) string {
	token := fmt.Sprintf("$deltatoken=%d%%2111%%2f23%%2f2026%%2008%%3a10%%3a%02d", since, len(d.links)%60)
	if query != "" {
		token = query + "&" + token
	}
	return d.give(token, prefer, func(w http.ResponseWriter) { d.changes(w, query, prefer, size, since, d.commit) })
}

// changes gives what was committed in (since, until], one row for all that was done
// to it: updated rows by their version, then deleted ones.
func (d *Dataverse) changes(w http.ResponseWriter, query, prefer string, size int, since, until int64) {
	if since < d.oldest {
		// Which status comes with it is not documented.
		refuse(w, []int{400, 404, 410, 500}[d.rand.IntN(4)], "0x80044352", "Version stamp associated with the client has expired. Please perform a full sync.")
		return
	}
	var all []*account
	for _, a := range d.rows {
		if a.commit > since {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b *account) int {
		if a.deleted != b.deleted {
			return map[bool]int{true: 1, false: -1}[a.deleted]
		}
		return cmp.Or(cmp.Compare(a.version, b.version), strings.Compare(a.id, b.id))
	})
	// The pages of one delta are those of one reading.
	d.pages(w, query, prefer, size, all, until)
}

func (d *Dataverse) pages(w http.ResponseWriter, query, prefer string, size int, all []*account, until int64) {
	page := map[string]any{}
	rest := all[min(size, len(all)):]
	if len(rest) > 0 {
		page["@odata.nextLink"] = d.give(query+"&"+d.cookie(), prefer, func(w http.ResponseWriter) { d.pages(w, query, prefer, size, rest, until) })
	} else {
		page["@odata.deltaLink"] = d.delta(query, prefer, size, until)
	}
	page["value"] = d.showAll(all[:min(size, len(all))])
	answer(w, page)
}

func (d *Dataverse) showAll(all []*account) []any {
	out := make([]any, len(all))
	for i, a := range all {
		if out[i] = d.show(a); a.deleted {
			out[i] = map[string]any{"@odata.context": d.URL + "/api/data/v9.2/$metadata#accounts/$deletedEntity", "id": a.id, "reason": "deleted"}
		}
	}
	return out
}

func (d *Dataverse) show(a *account) map[string]any {
	return map[string]any{
		"@odata.etag": fmt.Sprintf(`W/"%d"`, a.version), "accountid": a.id, "name": a.name,
		"createdon": stamp(a.created), "modifiedon": stamp(a.modified), "versionnumber": a.version,
	}
}
