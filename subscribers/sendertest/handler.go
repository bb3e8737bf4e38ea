package sendertest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/event"
)

// Handler plays a destination over HTTP. decode reads an event from a request;
// one that it cannot read, or that is no POST, fails t. A batch is read as our
// own ingress reads it from anybody. Over HTTP/2, where a header arrives whole or
// not at all, Trickles is the same as Hangs.
func Handler(t *testing.T, decode func(header map[string][]string, body []byte) (*event.Event, error), respond Respond) http.Handler {
	return ListHandler(t, func(header http.Header, body []byte) ([]*event.Event, bool, error) {
		if strings.HasPrefix(header.Get("Content-Type"), event.MediaBatch) {
			events, err := DecodeBatch(header, body)
			return events, true, err
		}
		e, err := decode(header, body)
		return []*event.Event{e}, false, err
	}, respond)
}

// ListHandler is Handler for a destination that reads requests in its own way:
// decode gives the events of one, and whether it is a batch.
func ListHandler(t *testing.T, decode func(header http.Header, body []byte) (events []*event.Event, batch bool, err error), respond Respond) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			t.Errorf("got a %s, want a POST", r.Method)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the Sender went away
		}
		events, batch, err := decode(r.Header, body)
		if err != nil {
			t.Errorf("unreadable request: %v", err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		reply := respond(Received{Event: events[0], Events: events, Batch: batch})
		if reply.Status == 0 {
			reply.Status = http.StatusOK
		}
		switch reply.Fault {
		case Hangs:
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // panic: net/http's way to end without an answer; a return would be one, 200
		case Trickles:
			trickle(w, r)
			return
		case Resets:
			reset(w)
			return
		}
		maps.Copy(w.Header(), reply.Header)
		w.WriteHeader(reply.Status)
		_, _ = io.WriteString(w, reply.Body) // the Sender need not read it
		rest := http.NewResponseController(w)
		switch reply.Fault {
		case Cuts:
			_, _ = io.WriteString(w, "only the beg")
			_ = rest.Flush()
			panic(http.ErrAbortHandler) // panic: how net/http is told to end a connection
		case Stalls:
			_, _ = io.WriteString(w, "only the beg")
			_ = rest.Flush()
			<-r.Context().Done()
		case Endless:
			for chunk := strings.Repeat("and so on ", 100); r.Context().Err() == nil; {
				if _, err := io.WriteString(w, chunk); err != nil {
					return
				}
			}
		}
	})
}

// DecodeBatch reads a batch of CloudEvents.
func DecodeBatch(header http.Header, body []byte) ([]*event.Event, error) {
	var events []*event.Event
	for i, r := range cloudevents.Parse("", header, body) {
		if r.Fault != nil {
			return nil, fmt.Errorf("event %d of a batch: %w", i, r.Fault)
		}
		events = append(events, r.Event)
	}
	if events == nil {
		return nil, errors.New("an empty batch")
	}
	return events, nil
}

func hijack(w http.ResponseWriter) (net.Conn, bool) {
	h, ok := w.(http.Hijacker)
	if !ok {
		return nil, false
	}
	conn, _, err := h.Hijack()
	return conn, err == nil
}

// trickle sends an endless header, byte by byte.
func trickle(w http.ResponseWriter, r *http.Request) {
	conn, ok := hijack(w)
	if !ok {
		<-r.Context().Done()
		return
	}
	defer conn.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	// After Hijack the request's context no longer ends with the connection,
	// but writing to it fails.
	for _, err := fmt.Fprint(conn, "HTTP/1.1 1"); err == nil; _, err = fmt.Fprint(conn, "0") {
		<-tick.C
	}
}

// reset breaks the connection off amid the header.
func reset(w http.ResponseWriter) {
	conn, ok := hijack(w)
	if !ok {
		panic(http.ErrAbortHandler) // panic: how net/http is told to end a stream
	}
	_, _ = fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Le")
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // Close then resets
	}
	conn.Close()
}
