package odata

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/schemas/record"
)

// answer is a page as it was sent.
type answer struct {
	rows        []record.Row
	rejected    []poll.Rejected
	columns     []string
	next, delta string // absolute; empty: none
	// stamps are the texts of ModifiedColumn, numbers those of NumberColumn, of rows.
	stamps, numbers []string
}

// n is how many rows the source has sent.
func (p *answer) n() int { return len(p.rows) + len(p.rejected) }

// parse takes a page apart. link is what was asked for.
func (f *Fetcher) parse(a *request.Answer, link string) (*answer, error) {
	if err := a.NotJSON(); err != nil {
		return nil, err
	}
	elems, array, err := rawjson.Elements(a.Body)
	if err != nil {
		return nil, poll.Faultf(poll.Answer, a.Status, "the page cannot be read: %v", err)
	}
	if array {
		return nil, poll.Faultf(poll.Answer, a.Status, "the page is an array; want an object with a member value")
	}
	members, err := rawjson.Members(elems[0])
	if err != nil {
		return nil, poll.Faultf(poll.Answer, a.Status, "the page cannot be read: %v", err)
	}
	p := &answer{}
	var values []byte
	for _, m := range members {
		var to *string
		switch strings.Replace(m.Name, "@odata.", "@", 1) { // OData 4.01 leaves it out
		case "value":
			values = m.Value
		case "@nextLink":
			to = &p.next
		case "@deltaLink":
			to = &p.delta
		}
		if to == nil || rawjson.IsNull(m.Value) {
			continue
		}
		text, ok := rawjson.Text(m.Value)
		if !ok {
			return nil, poll.Faultf(poll.Answer, a.Status, "%s is %s; want a string", m.Name, rawjson.Kind(m.Value))
		}
		if *to, err = f.client.Follow(link, text, m.Name); err != nil {
			return nil, err
		}
	}
	if values == nil || values[0] != '[' {
		what := "missing"
		if values != nil {
			what = rawjson.Kind(values)
		}
		if rawjson.Find(members, "error") != nil {
			r := a.Refusal()
			return nil, poll.Faultf(poll.Answer, a.Status, "an error in the place of a page: %s", strings.Trim(r.Code+": "+r.Message, ": "))
		}
		return nil, poll.Faultf(poll.Answer, a.Status, "member value is %s; want an array of rows: is entity %s the name of an entity set?", what, f.cfg.Entity)
	}
	raws, _, err := rawjson.Elements(values)
	if err != nil {
		return nil, poll.Faultf(poll.Answer, a.Status, "the rows cannot be read: %v", err)
	}
	seen := map[string]bool{}
	for _, raw := range raws {
		row, stamp, number, reason := f.readRow(raw, func(name string) {
			if !seen[name] {
				seen[name] = true
				p.columns = append(p.columns, name)
			}
		})
		if reason != "" {
			p.rejected = append(p.rejected, poll.Rejected{Raw: bytes.Clone(raw), Reason: reason})
			continue
		}
		p.rows = append(p.rows, row)
		p.stamps, p.numbers = append(p.stamps, stamp), append(p.numbers, number)
	}
	if len(p.rows) == 0 && len(p.rejected) > 0 {
		return nil, poll.Faultf(poll.Configuration, a.Status, "none of %d rows can be read; the first: %s", len(p.rejected), p.rejected[0].Reason)
	}
	return p, nil
}

// row reads one row. A reason says why it is none.
func (f *Fetcher) row(raw []byte) (row record.Row, reason string) {
	row, _, _, reason = f.readRow(raw, func(string) {})
	return row, reason
}

// readRow reads one row and hands its columns to column.
func (f *Fetcher) readRow(raw []byte, column func(name string)) (row record.Row, stamp, number, reason string) {
	if raw = bytes.TrimSpace(raw); raw[0] != '{' {
		return row, "", "", "the row is " + rawjson.Kind(raw) + "; want an object"
	}
	members, err := rawjson.Members(raw)
	if err != nil {
		return row, "", "", err.Error()
	}
	row.Data = raw
	if id, deleted := removed(members); deleted {
		if id == "" {
			return row, "", "", "the deletion has no id"
		}
		row.Key, row.Deleted = f.key([]string{id}), true
		return row, "", "", ""
	}
	values := make([]string, len(f.cfg.Key))
	for i, name := range f.cfg.Key {
		v := rawjson.Find(members, name)
		if v == nil || v[0] == '{' || v[0] == '[' || v[0] == 'n' || v[0] == '"' && f.cfg.dataverse() && len(v) == 2 {
			return row, "", "", "key column " + name + " is missing or null; name the key columns in poll.odata.key"
		}
		text, ok := rawjson.Text(v)
		if !ok {
			text = string(v)
		}
		if strings.EqualFold(name, "dataAreaId") {
			text = strings.ToLower(text)
		}
		values[i] = text
	}
	row.Key = f.key(values)
	var etag string
	for _, m := range members {
		switch m.Name {
		case "@odata.etag", "@etag":
			etag, _ = rawjson.Text(m.Value)
		case versionNumber:
			if f.cfg.dataverse() {
				setVersion(&row, string(m.Value))
			}
		case f.cfg.ModifiedColumn:
			stamp, _ = rawjson.Text(m.Value)
			row.Modified = when(stamp)
		case f.cfg.NumberColumn:
			number = string(m.Value)
		}
		if m.Name == f.cfg.CreatedColumn {
			text, _ := rawjson.Text(m.Value)
			row.Created = when(text)
		}
		if !strings.Contains(m.Name, "@") {
			column(m.Name)
		}
	}
	switch {
	case row.Version != "":
	case f.cfg.dataverse():
		// W/"915244" is the versionnumber
		// (TeachingRecordSystem and the samples of powerapps-docs; read 2026-11).
		setVersion(&row, strings.TrimSuffix(strings.TrimPrefix(etag, `W/"`), `"`))
	default:
		row.Version = version(etag)
	}
	return row, stamp, number, ""
}

// version shortens an etag of F&O, which is W/"…" around base64 of what tells
// versions apart, a RecVersion and a RecId of each data source.
func version(etag string) string {
	inner := strings.TrimSuffix(strings.TrimPrefix(etag, `W/"`), `"`)
	if b, err := base64.StdEncoding.DecodeString(inner); err == nil && len(b) > 0 && len(b) <= 128 {
		return strings.Trim(string(bytes.ToValidUTF8(b, nil)), "'")
	}
	return inner
}

func setVersion(row *record.Row, text string) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		row.Version, row.Ordered = strconv.FormatInt(n, 10), true
	}
}

func when(text string) time.Time {
	t, err := event.ParseTime(text)
	if err != nil || event.IsNullTime(t) {
		return time.Time{}
	}
	return t.UTC()
}

// removed says whether a row is a deletion, as Dataverse and OData 4.0 have it, or
// OData 4.01.
func removed(members []rawjson.Member) (id string, deleted bool) {
	context, _ := rawjson.Text(rawjson.Find(members, "@odata.context"))
	plain := rawjson.Find(members, "id")
	switch {
	case strings.HasSuffix(context, "/$deletedEntity"):
	case rawjson.Find(members, "@removed") != nil, rawjson.Find(members, "@odata.removed") != nil:
		if plain == nil {
			plain = rawjson.Find(members, "@id")
		}
	default:
		return "", false
	}
	id, _ = rawjson.Text(plain)
	// An entity id may be a URL: …/accounts(<id>).
	if i := strings.LastIndexByte(id, '('); i >= 0 {
		id = strings.TrimSuffix(id[i+1:], ")")
	}
	return id, true
}

// key spells a row's key. Columns of F&O's keys are parted by slashes, which no
// encoded value has.
func (f *Fetcher) key(values []string) string {
	if f.cfg.dataverse() {
		return strings.ToLower(strings.Trim(values[0], "{}"))
	}
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = url.PathEscape(v)
	}
	return strings.Join(out, "/")
}

// page makes a Page of what was sent, without what is older than the cursor wants.
func (c *cursor) page(p *answer) *poll.Page {
	out := &poll.Page{Rows: p.rows, Rejected: p.rejected, Columns: p.columns, Bound: c.Bound}
	if !c.From.IsZero() {
		out.Rows = slices.DeleteFunc(slices.Clone(p.rows), func(r record.Row) bool {
			return !r.Deleted && !r.Modified.IsZero() && r.Modified.Before(c.From)
		})
	}
	return out
}
