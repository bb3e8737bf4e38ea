package broker

// One subscriber's trouble must not take the room of the others. The server
// knows limits for a stream and not for a part of its subjects, so whoever
// stores for a subscriber asks here how much it may have.

const (
	deadLettersPercent = 15
	// retryPercent is what the limits of the other streams and buckets leave:
	// RETRY can have no limit of its own.
	retryPercent = 8
)

// DeadLetterShare is the room that one subscriber may take in DEADLETTERS: half
// of it.
func (b *Broker) DeadLetterShare() int64 { return b.cfg.MaxBytes / 100 * deadLettersPercent / 2 }

// RetryShare is the room that one subscriber may take in RETRY: a quarter of
// what is left for it.
func (b *Broker) RetryShare() int64 { return b.cfg.MaxBytes / 100 * retryPercent / 4 }
