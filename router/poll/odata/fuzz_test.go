package odata

import (
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
)

// Whatever a source sends is a page, of which every row has a key and makes an event
// or a fault, or an error.
func FuzzParse(f *testing.F) {
	for _, body := range []string{
		`{"@odata.context":"$metadata#accounts","value":[{"@odata.etag":"W/\"7\"","accountid":"A2A2A2A2-0000-4000-8000-000000000001","modifiedon":"2026-01-01T00:00:00Z","versionnumber":7,"_x_value":null}],"@odata.nextLink":"?$skiptoken=%3Ccookie"}`,
		`{"value":[{"@odata.context":"x/$metadata#accounts/$deletedEntity","id":"1","reason":"deleted"},{"@removed":{},"@id":"accounts(2)"}],"@odata.deltaLink":"https://h/api?$deltatoken=1"}`,
		`{"value":[{"dataAreaId":"USMF","Number":"1/2","M":"1900-01-01T00:00:00Z","R":1}]}`,
		`{"value":[{"accountid":""}]}`, `{"value":[[],7,null]}`, `[]`, `null`, `{"value":[],"@nextLink":"//"}`,
	} {
		f.Add([]byte(body))
	}
	var fetchers []*Fetcher
	for _, cfg := range []Config{
		{Kind: event.KindDataverse, Table: "account"},
		{Kind: event.KindFnO, Entity: "E", Key: []string{"dataAreaId", "Number"}, ModifiedColumn: "M", NumberColumn: "R"},
	} {
		cfg.URL = "https://h/api"
		if err := cfg.Validate("p"); err != nil {
			f.Fatal(err)
		}
		fetcher, err := New(cfg, request.Options{})
		if err != nil {
			f.Fatal(err)
		}
		fetchers = append(fetchers, fetcher)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, fetcher := range fetchers {
			p, err := fetcher.parse(&request.Answer{Status: 200, Body: body, Asked: time.Now()}, "https://h/api/accounts")
			if err != nil {
				continue
			}
			for _, link := range []string{p.next, p.delta} {
				if link != "" && !strings.HasPrefix(strings.ToLower(link), "https://h/") && !strings.HasPrefix(strings.ToLower(link), "https://h:443") && !strings.HasPrefix(strings.ToLower(link), "https://h?") && !strings.EqualFold(link, "https://h") {
					t.Errorf("it leads to %q", link)
				}
			}
			if len(p.rows) != len(p.stamps) || len(p.rows) != len(p.numbers) {
				t.Fatal("rows without their stamps")
			}
			shape := fetcher.cfg.Shape("s")
			for _, r := range p.rows {
				if result := shape.Event(r); (result.Event == nil) == (result.Fault == nil) {
					t.Errorf("%+v: %+v", r, result)
				}
			}
		}
	})
}
