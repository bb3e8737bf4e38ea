package registry

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
	"github.com/gridfan/gridfan/subscribers/filter"
	"github.com/gridfan/gridfan/subscribers/transform"
)

// schemas are those of the data that sources of a kind publish. F&O sends its
// data events through Dataverse, and its rows are read. Of other kinds the senders
// decide.
var schemas = map[string]func() ([]*filter.Schema, error){
	event.KindFnO:       read(businessevent.Schema, dataverse.Schema, record.Schema),
	event.KindDataverse: read(dataverse.Schema),
}

func read(texts ...[]byte) func() ([]*filter.Schema, error) {
	return sync.OnceValues(func() ([]*filter.Schema, error) {
		var all []*filter.Schema
		for _, text := range texts {
			s, err := filter.ReadSchema(text)
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		return all, nil
	})
}

// Schemas are those that the data of events on the subjects follow, none if
// there may be events of which nothing is known.
func Schemas(subjects []string) ([]*filter.Schema, error) {
	kind := ""
	for i, s := range subjects {
		tokens := strings.Split(s, ".")
		if len(tokens) < 2 || i > 0 && tokens[1] != kind {
			return nil, nil
		}
		kind = tokens[1]
	}
	if of := schemas[kind]; of != nil {
		return of()
	}
	return nil, nil
}

// compile makes the expressions ready to run; nil where there is none.
func (d *Definition) compile() (f *filter.Filter, t *transform.Transform, err error) {
	path := "subscribers." + d.Name
	var errs []error
	if d.Filter != "" {
		known, err := Schemas(d.Subjects)
		if err == nil {
			f, err = filter.Compile(d.Filter, known...)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.filter: %w", path, err))
		}
	}
	if d.Transform != "" {
		if t, err = transform.Compile(d.Transform); err != nil {
			errs = append(errs, fmt.Errorf("%s.transform: %w", path, err))
		}
	}
	return f, t, errors.Join(errs...)
}

// functions gives the expressions as a worker wants them; nil where there is
// none.
func (d *Definition) functions() (match func(*event.Event) (bool, error), apply func(*event.Event) (*event.Event, error), err error) {
	f, t, err := d.compile()
	if err != nil {
		return nil, nil, err
	}
	if f != nil {
		match = f.Match
	}
	if t != nil {
		apply = t.Apply
	}
	return match, apply, nil
}
