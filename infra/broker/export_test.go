package broker

import (
	"context"
	"testing"
)

// Declare declares the streams once more.
func Declare(ctx context.Context, b *Broker) error { return b.declare(ctx) }

// WrapSync puts f in place of the barrier's sync; real is the true one.
func WrapSync(b *Broker, f func(real func() error) error) {
	b.barrier.mu.Lock()
	defer b.barrier.mu.Unlock()
	real := b.barrier.flush
	b.barrier.flush = func() error { return f(real) }
}

// SwitchOff does to JetStream what the server does when a disk is full.
func SwitchOff(b *Broker) error { return b.node.server().ShutdownJetStream() }

// MarkName is the file that remembers how far the store was acknowledged.
const MarkName = markName

// StatesName is the file with copies of the server's small files.
const StatesName = statesName

// LinksName is the folder with second names of blocks.
const LinksName = linksName

// Alarm looks at the fill levels now.
func Alarm(b *Broker) { b.alarm() }

// ListSubjects puts pages of sorted subjects together, which share some; page
// answers with one and with how many subjects there are.
func ListSubjects(overlap int, page func(offset int) (subjects map[string]uint64, total int)) (map[string]uint64, error) {
	return subjectCounts(overlap, func(offset int) (*streamInfo, error) {
		var info streamInfo
		info.State.Subjects, info.Total = page(offset)
		return &info, nil
	})
}

// SubjectsFrom asks the server for a stream's subjects from one on.
func SubjectsFrom(ctx context.Context, b *Broker, stream, filter string, offset int) (subjects map[string]uint64, total int, err error) {
	info, err := b.ask(ctx, stream, filter, offset)
	if err != nil {
		return nil, 0, err
	}
	return info.State.Subjects, info.Total, nil
}

// ListMost is up to how many subjects of RETRY are listed to be counted.
const ListMost = listMost

// Restart ends the server and starts another on its store, as after a failure of
// the disk.
func Restart(t testing.TB, b *Broker) {
	t.Helper()
	b.node.stop()
	if err := b.node.start(); err != nil {
		t.Fatal(err)
	}
}
