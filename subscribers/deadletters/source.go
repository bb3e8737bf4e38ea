package deadletters

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// stored is one message of a stream.
type stored struct {
	sequence uint64
	subject  string
	header   nats.Header
	data     []byte // nil when only headers are read
	size     int    // of the whole body
	time     time.Time
}

// source reads messages of a stream in their order, from a sequence or time on,
// to the end there is when it gets there. It is for one goroutine.
//
// It has a pull consumer of its own, which needs no acks and which the server
// forgets: a message at a time would be fifteen thousand a second, this is five
// times as fast.
type source struct {
	js       jetstream.JetStream
	stream   string
	subjects []string
	from     uint64
	since    time.Time // instead of from, until the first message is read
	headers  bool      // without the bodies

	c     jetstream.Consumer
	n     uint64 // messages of c so far
	chunk []stored
}

// sizeHeader is what the server adds to a message without its body (nats-server
// v2.15.2, server/stream.go JSMsgSize).
const sizeHeader = "Nats-Msg-Size"

// How much one request brings, and how long the server keeps a consumer that is
// not asked: a job may wait longer, and then makes another one.
const (
	chunkLast  = 500
	chunkBytes = 2*broker.MaxPayload + 1<<20
	sourceIdle = time.Minute
	chunkWait  = 2 * time.Second
)

// next gives the next message, or nil at the end.
func (r *source) next(ctx context.Context) (*stored, error) {
	for tries := 0; len(r.chunk) == 0; {
		more, err := r.fill(ctx)
		switch {
		case err != nil:
			r.c = nil
			if tries++; tries == 3 || ctx.Err() != nil {
				return nil, fmt.Errorf("read %s: %w", r.stream, err)
			}
		case !more:
			return nil, nil
		}
	}
	m := r.chunk[0]
	r.chunk = r.chunk[1:]
	return &m, nil
}

// pending counts what is still to be read.
func (r *source) pending(ctx context.Context) (uint64, error) {
	if r.c == nil {
		if err := r.open(ctx); err != nil {
			return 0, err
		}
		return r.c.CachedInfo().NumPending, nil
	}
	info, err := r.c.Info(ctx)
	if err != nil {
		return 0, err
	}
	return info.NumPending, nil
}

func (r *source) open(ctx context.Context) error {
	cfg := jetstream.ConsumerConfig{
		FilterSubjects: r.subjects, AckPolicy: jetstream.AckNonePolicy, HeadersOnly: r.headers,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, r.from),
		MemoryStorage: true, Replicas: 1, InactiveThreshold: sourceIdle,
	}
	if r.from == 0 && !r.since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &r.since
	}
	c, err := r.js.CreateConsumer(ctx, r.stream, cfg)
	if err != nil {
		return err
	}
	r.c, r.n = c, 0
	return nil
}

// fill reads a chunk, and says no at the end.
func (r *source) fill(ctx context.Context) (more bool, err error) {
	n, err := r.pending(ctx)
	if err != nil || n == 0 {
		return false, err
	}
	batch, err := r.c.Fetch(int(min(n, chunkLast)), jetstream.FetchMaxBytes(chunkBytes), jetstream.FetchMaxWait(chunkWait))
	if err != nil {
		return false, err
	}
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return false, err
		}
		if r.n++; meta.Sequence.Consumer != r.n {
			// Without acks nobody else would notice that one got lost.
			return false, errors.New("a message was lost on its way")
		}
		s := stored{sequence: meta.Sequence.Stream, subject: m.Subject(), header: m.Headers(), data: m.Data(), size: len(m.Data()), time: meta.Timestamp}
		if r.headers {
			s.size, _ = strconv.Atoi(s.header.Get(sizeHeader)) // the server's own number
			s.data = nil
		}
		r.chunk = append(r.chunk, s)
		r.from = s.sequence + 1
		if meta.NumPending == 0 {
			// The rest of the request would be waited for in vain.
			break
		}
	}
	if len(r.chunk) > 0 {
		return true, nil
	}
	if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, jetstream.ErrNoMessages) {
		return false, err
	}
	return true, ctx.Err()
}

// close lets the server forget the consumer at once.
func (r *source) close() {
	if r.c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// The server would do it by itself after a while.
	_ = r.js.DeleteConsumer(ctx, r.stream, r.c.CachedInfo().Name)
	r.c = nil
}

// get reads one message; the error is jetstream.ErrMsgNotFound when it is gone.
func get(ctx context.Context, s jetstream.Stream, sequence uint64) (*stored, error) {
	m, err := s.GetMsg(ctx, sequence)
	if err != nil {
		return nil, err
	}
	return &stored{sequence: m.Sequence, subject: m.Subject, header: m.Header, data: m.Data, size: len(m.Data), time: m.Time}, nil
}
