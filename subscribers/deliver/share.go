package deliver

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
)

// share is what one subscriber has of a stream that all of them use, and how
// much of it it may have: bytes, for the sake of the disk, and, where each message
// costs memory too, messages. The server counts messages by subject and bytes only
// for a whole stream, so the bytes are an estimate: the messages this process
// stored count as they are, the others with the mean size of these or, before
// there are any, of the whole stream.
type share struct {
	limit int64
	most  int64 // messages; 0: any number
	// count asks the server for the subscriber's messages and the mean size of
	// all the stream's.
	count func(context.Context) (messages uint64, mean float64, err error)
	// every is how old a count may be when it says that there is no room.
	every time.Duration
	// after is how many messages may be stored before they are counted again,
	// because other replicas store too. 0: any number.
	after int
	// changed is told when the share is used up, and when it is no longer. It
	// is called outside the lock.
	changed func(full bool, used, messages int64)
	log     *slog.Logger

	mu      sync.Mutex // guards all below
	counted time.Time  // zero: never
	since   int        // stored since
	used    int64
	n       int64 // messages
	own     int64 // stored by this process
	ownSize int64
	full    bool
}

// overhead is what the server adds to each message on the disk (nats-server
// v2.15.2, server/filestore.go: fileStoreMsgSizeRaw).
const overhead = 30

func sizeOf(m *nats.Msg) int64 { return int64(m.Size()) + overhead }

// take reserves room for a message, and says no when there is none.
func (s *share) take(ctx context.Context, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ensure(ctx)
	if s.beyond(size) && time.Since(s.counted) >= s.every {
		s.recount(ctx)
	}
	// A message larger than a whole share goes when there is no other.
	if s.beyond(size) && s.used > 0 {
		s.turn(true)
		return false
	}
	s.grow(size)
	s.eased()
	return true
}

// beyond says whether there is no room for a message. The caller holds mu.
func (s *share) beyond(size int64) bool {
	return s.used+size > s.limit || s.most > 0 && s.n+1 > s.most
}

// up says whether all is used up. The caller holds mu.
func (s *share) up() bool { return s.used >= s.limit || s.most > 0 && s.n >= s.most }

// add counts a message that is stored whether there is room or not.
func (s *share) add(ctx context.Context, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ensure(ctx)
	s.grow(size)
	if s.up() {
		s.turn(true)
	}
}

// ensure counts at the first use, and when others may have stored meanwhile.
// The caller holds mu.
func (s *share) ensure(ctx context.Context) {
	if s.counted.IsZero() || s.after > 0 && s.since >= s.after {
		s.recount(ctx)
	}
}

// begin counts before the first message comes.
func (s *share) begin(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recount(ctx)
}

// grow counts one message more. The caller holds mu.
func (s *share) grow(size int64) {
	s.used += size
	s.n++
	s.own++
	s.ownSize += size
	s.since++
}

// give returns the room of a message that was not stored, or is gone.
func (s *share) give(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = max(0, s.used-size)
	s.n = max(0, s.n-1)
	s.eased()
}

// spent says whether there is no room, or was none a moment ago and not much has
// gone since. It is a guess until the first message.
func (s *share) spent(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counted.IsZero() || !s.full && !s.up() {
		return false
	}
	if time.Since(s.counted) >= s.every {
		s.recount(ctx)
	}
	if s.up() {
		s.turn(true)
	}
	return s.full
}

// eased notes that there is room again. It must be a tenth, so that it is not
// said all the time. The caller holds mu.
func (s *share) eased() {
	if s.full && s.used < s.limit/10*9 && (s.most == 0 || s.n <= s.most/10*9) {
		s.turn(false)
	}
}

func (s *share) turn(full bool) {
	if s.full != full {
		s.full = full
		go s.changed(full, s.used, s.n)
	}
}

// recount asks the server. The caller holds mu: whoever else wants room needs
// the answer too.
func (s *share) recount(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	n, mean, err := s.count(ctx)
	s.counted, s.since = time.Now(), 0
	if err != nil {
		s.log.Debug("share of a stream not counted", "error", err)
		return
	}
	if s.own > 0 {
		mean = float64(s.ownSize) / float64(s.own)
	}
	s.used, s.n = int64(float64(n)*mean), int64(n)
	s.eased()
}

// deadLetters counts a subscriber's dead letters, which have a subject for each
// cause.
func deadLetters(b *broker.Broker, name string) func(context.Context) (uint64, float64, error) {
	return func(ctx context.Context) (messages uint64, mean float64, err error) {
		all, err := b.CountSubjects(ctx, broker.StreamDeadLetters, broker.DeadLetterAll(name))
		if err != nil {
			return 0, 0, err
		}
		counts, err := b.SubjectCounts(ctx, broker.StreamDeadLetters, broker.DeadLetterAll(name))
		for _, n := range counts {
			messages += n
		}
		return messages, meanOf(all), err
	}
}

// retries counts what a subscriber has on the retry lane.
func retries(b *broker.Broker, name string) func(context.Context) (uint64, float64, error) {
	return func(ctx context.Context) (messages uint64, mean float64, err error) {
		messages, all, err := b.CountRetries(ctx, name)
		return messages, meanOf(all), err
	}
}

// meanOf is the mean size of a stream's messages, 0 if there are none.
func meanOf(c broker.Counted) float64 {
	if c.Messages == 0 {
		return 0
	}
	return float64(c.Bytes) / float64(c.Messages)
}
