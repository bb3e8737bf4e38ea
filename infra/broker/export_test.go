package broker

import "context"

// Declare declares the streams once more.
func Declare(ctx context.Context, b *Broker) error { return b.declare(ctx) }
