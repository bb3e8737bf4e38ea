package config

import (
	"slices"

	"github.com/gridfan/gridfan/router/poll/delta"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/router/poll/sqlrows"
	"github.com/gridfan/gridfan/schemas/event"
)

// ways reads what a source is asked for, and of whom. path is where v stands.
func (d *decoder) ways(v *value, p *Polled, path string) {
	if v == nil || v.kind != mapping {
		return // reported
	}
	var named []string
	if o := v.get("odata"); o != nil {
		named = append(named, "odata")
		p.OData = d.odata(o, p.Kind)
		if slices.Contains(pollable, p.Kind) { // else reported
			d.validated(p.OData.Validate(path+".odata"), o, path+".odata")
		}
		p.Identity = p.OData.Identity()
	}
	if c := v.get("delta"); c != nil {
		named = append(named, "delta")
		p.Delta = d.delta(c)
		d.validated(p.Delta.Validate(path+".delta"), c, path+".delta")
		if p.Kind != event.KindCustom && slices.Contains(pollable, p.Kind) {
			d.problem(c.at, c.path, "rows of an endpoint of your own are events of kind custom, this source's is %s", p.Kind)
		}
		p.Identity = p.Delta.Identity()
	}
	if s := v.get("sql"); s != nil {
		named = append(named, "sql")
		p.SQL = d.sql(s)
		d.validated(p.SQL.Validate(path+".sql"), s, path+".sql")
		if p.Kind != event.KindCustom && slices.Contains(pollable, p.Kind) {
			d.problem(s.at, s.path, "a database's rows are events of kind custom, this source's is %s", p.Kind)
		}
		p.Identity = p.SQL.Identity()
	}
	switch len(named) {
	case 1:
	case 0:
		if !d.troubled(v.path) {
			d.problem(v.at, v.path, "say what is asked: odata, delta or sql")
		}
	default:
		d.problem(v.at, v.path, "%s and %s exclude each other; for several tables make a list of it: poll: [ { %[1]s: … }, { %[2]s: … } ]", named[0], named[1])
	}
}

func (d *decoder) target(v *value) request.Target {
	return request.Target{
		URL:     d.text(v.get("url")),
		Auth:    d.credential(v.get("auth")),
		TLS:     d.clientTLS(v.get("tls")),
		MaxPage: d.size(v.get("maxPage")),
	}
}

func (d *decoder) odata(v *value, kind string) *odata.Config {
	return &odata.Config{
		Kind:           kind,
		Target:         d.target(v),
		Table:          d.text(v.get("table")),
		Entity:         d.text(v.get("entity")),
		Cursor:         odata.Cursor(d.choice(v.get("cursor"))),
		Key:            d.textOrTexts(v.get("key")),
		ModifiedColumn: d.text(v.get("modified")),
		CreatedColumn:  d.text(v.get("created")),
		NumberColumn:   d.text(v.get("number")),
		Select:         d.texts(v.get("select")),
		Filter:         d.expression(v.get("filter")),
		PageSize:       d.integer(v.get("pageSize")),
		Overlap:        d.duration(v.get("overlap")).Std(),
		CrossCompany:   d.chosen(v.get("crossCompany")),
		Annotations:    d.chosen(v.get("annotations")),
	}
}

func (d *decoder) delta(v *value) *delta.Config {
	c := &delta.Config{
		Target:       d.target(v),
		Method:       d.text(v.get("method")),
		Query:        d.pairs(v.get("query")),
		Headers:      d.pairs(v.get("headers")),
		Body:         d.text(v.get("body")),
		Start:        d.text(v.get("start")),
		Items:        d.expression(v.get("items")),
		Cursor:       d.expression(v.get("cursor")),
		Next:         d.expression(v.get("next")),
		Resume:       d.expression(v.get("resume")),
		More:         d.expression(v.get("more")),
		Version:      d.expression(v.get("version")),
		VersionGrows: d.boolean(v.get("versionGrows")),
		Modified:     d.expression(v.get("modified")),
		Created:      d.expression(v.get("created")),
		Deleted:      d.expression(v.get("deleted")),
		Data:         d.expression(v.get("data")),
		Table:        d.text(v.get("table")),
		Scope:        d.text(v.get("scope")),
		ScopeColumn:  d.text(v.get("scopeColumn")),
		Begins:       d.boolean(v.get("begins")),
		Hold:         d.duration(v.get("hold")).Std(),
	}
	if key := v.get("key"); key != nil && key.kind == text {
		c.Key = []string{d.expression(key)}
	} else {
		for _, item := range d.items(key) {
			c.Key = append(c.Key, d.expression(item)) // in its place even if unreadable
		}
	}
	for _, item := range d.items(v.get("expired")) {
		c.Expired = append(c.Expired, d.integer(item))
	}
	return c
}

// pairs reads names and values that may be secret.
func (d *decoder) pairs(v *value) map[string]string {
	if v == nil || v.kind != mapping {
		return nil // reported
	}
	pairs := map[string]string{}
	for _, f := range v.fields {
		pairs[f.name] = d.text(v.get(f.name))
	}
	return pairs
}

// chosen is boolean for a key whose default depends on others.
func (d *decoder) chosen(v *value) *bool {
	if v == nil {
		return nil
	}
	return new(d.boolean(v))
}

func (d *decoder) sql(v *value) *sqlrows.Config {
	table, cursor := v.get("table"), v.get("cursor")
	c := &sqlrows.Config{
		Driver: sqlrows.Driver(d.choice(v.get("driver"))),
		DSN:    d.secret(v.get("dsn")),
		Table: sqlrows.Table{
			Schema:   d.text(table.get("schema")),
			Name:     d.text(table.get("name")),
			Key:      d.textOrTexts(table.get("key")),
			Columns:  d.texts(table.get("columns")),
			Filter:   d.expression(table.get("filter")),
			Created:  d.text(table.get("created")),
			Modified: d.text(table.get("modified")),
			Timezone: d.text(table.get("timezone")),
		},
		Cursor: sqlrows.Cursor{
			Kind:    sqlrows.Kind(d.choice(cursor.get("kind"))),
			Column:  d.text(cursor.get("column")),
			Overlap: d.duration(cursor.get("overlap")).Std(),
		},
		PageSize: d.integer(v.get("pageSize")),
		MaxBytes: d.size(v.get("maxBytes")),
		Timeout:  d.duration(v.get("timeout")).Std(),
	}
	if a := v.get("auth"); a != nil {
		c.Auth = new(d.azureAuth(a))
	}
	return c
}
