package odata_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/odata/odatatest"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
)

// rows makes Rows of a valid configuration, and its budget.
func rows(t *testing.T, cfg odata.RowsConfig) (*odata.Rows, *poll.Allowance) {
	t.Helper()
	if err := cfg.Validate("p"); err != nil {
		t.Fatal(err)
	}
	allowance := poll.New(poll.Parts{Broker: brokertest.New(t)}).Allowance(cfg.Identity(), 1000)
	r, err := odata.NewRows(cfg, allowance, time.Minute, request.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, allowance
}

// A row is read as it is now, whether its table is known or asked for.
func TestRow(t *testing.T) {
	clock := odatatest.NewClock(start)
	for _, known := range []bool{true, false} {
		d := odatatest.NewDataverse(clock, 1)
		srv := httptest.NewServer(d)
		defer srv.Close()
		cfg := odata.RowsConfig{Target: request.Target{URL: srv.URL}}
		if known {
			cfg.Table = &odata.Config{Kind: event.KindDataverse, Table: "account", Select: []string{"name"}, Target: cfg.Target}
			if err := cfg.Table.Validate("p"); err != nil {
				t.Fatal(err)
			}
		}
		r, _ := rows(t, cfg)
		id, commit := d.Create("contoso")
		commit()
		for range 2 {
			got, err := r.Row(t.Context(), "Account", "{"+strings.ToUpper(id)+"}")
			if err != nil || got.Key != id || got.Version != "1" || !got.Ordered || got.Modified.IsZero() || !strings.Contains(string(got.Data), "contoso") {
				t.Errorf("got %+v, %v", got, err)
			}
		}
		if want := map[bool]int{true: 2, false: 3}[known]; d.Requests != want {
			t.Errorf("known %v: %d requests, want %d: a table's definition is asked for once", known, d.Requests, want)
		}
		d.Delete(id)
		if got, err := r.Row(t.Context(), "account", id); err != nil || !got.Deleted || got.Key != id {
			t.Errorf("deleted: got %+v, %v", got, err)
		}
		for _, bad := range []struct{ table, id, want string }{
			{"contact", id, "HTTP 404"}, {"account')/x", id, "not the name of a table"}, {"account", "1 or 1 eq 1", "not the id of a row"},
		} {
			f, ok := errors.AsType[*poll.Fault](func() error { _, err := r.Row(t.Context(), bad.table, bad.id); return err }())
			if !ok || f.Kind != poll.Configuration || !strings.Contains(f.Error(), bad.want) {
				t.Errorf("%s %s: %v", bad.table, bad.id, f)
			}
		}
	}
}

// The name of a table says neither where its rows are nor what their key is.
func TestRowOfTask(t *testing.T) {
	const id = "b6b13ba0-0cbf-4f0e-a4ff-0a7e3b7b1a4b"
	answers := map[string]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if text, ok := answers[r.URL.Path]; ok {
			fmt.Fprint(w, text)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer srv.Close()
	r, _ := rows(t, odata.RowsConfig{Target: request.Target{URL: srv.URL + "/api/data/v9.1/"}})
	definition := "/api/data/v9.1/EntityDefinitions(LogicalName='task')"
	row := "/api/data/v9.1/tasks(" + id + ")"
	for _, tt := range []struct{ definition, row, want string }{
		{`{"LogicalName":"task"}`, "", "does not name its entity set"},
		{`{"LogicalName":"email","EntitySetName":"emails","PrimaryIdAttribute":"activityid"}`, "", "does not name its entity set"},
		{`{"LogicalName":"task","EntitySetName":"tasks(1)/x","PrimaryIdAttribute":"activityid"}`, "", "does not name its entity set"},
		{`[]`, "", "no row"},
		{`{"LogicalName":"task","EntitySetName":"tasks","PrimaryIdAttribute":"activityid"}`, `{"taskid":"` + id + `"}`, "key column activityid is missing"},
		{"", `{"activityid":"00000000-0000-0000-0000-000000000001"}`, "another row"},
		{"", `<html>`, "HTML"},
		{"", `{"@odata.etag":"W/\"7\"","activityid":"` + id + `","subject":"call"}`, ""},
	} {
		if tt.definition != "" {
			answers[definition] = tt.definition
		}
		answers[row] = tt.row
		got, err := r.Row(t.Context(), "task", id)
		switch {
		case tt.want == "" && (err != nil || got.Key != id || got.Version != "7"):
			t.Errorf("got %+v, %v", got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// A Retry-After holds everybody off who asks with the same identity, and a token is
// not shown.
func TestRowThrottled(t *testing.T) {
	var mu sync.Mutex
	var asked int
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked++
		mu.Unlock()
		w.Header().Set("Retry-After", "3600")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTooManyRequests)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": "0x80072322", "message": "slower, " + r.Header.Get("Authorization")}})
	}))
	defer srv.Close()
	cfg := odata.RowsConfig{Target: request.Target{URL: srv.URL, Auth: &credentials.Auth{Bearer: &credentials.Bearer{Token: canary}}}}
	r, allowance := rows(t, cfg)
	_, err := r.Row(t.Context(), "account", "b6b13ba0-0cbf-4f0e-a4ff-0a7e3b7b1a4b")
	throttled, ok := errors.AsType[*poll.Throttled](err)
	if !ok || throttled.After != time.Hour || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := allowance.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("others may ask: %v", err)
	}
	if _, err := r.Row(ctx, "account", "b6b13ba0-0cbf-4f0e-a4ff-0a7e3b7b1a4b"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second row: %v", err)
	}
	if mu.Lock(); asked != 1 {
		t.Errorf("%d requests", asked)
	}
	mu.Unlock()
}

func TestRowsConfig(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"https://contoso.crm4.dynamics.com", ""}, {"", "p.url: missing"}, {"https://h/api?x=1", "p.url: a ?query"}, {"ftp://h", "p.url: want https"},
	} {
		cfg := odata.RowsConfig{Target: request.Target{URL: tt.url}}
		err := cfg.Validate("p")
		if tt.want == "" && (err != nil || cfg.URL != tt.url+"/api/data/v9.2") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, %s", tt.url, err, cfg.URL)
		}
	}
}
