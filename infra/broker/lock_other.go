//go:build !unix

package broker

const lockName = "gridfan.lock"

// dirLock does nothing where there is no flock.
type dirLock struct{}

func lockDir(string) (*dirLock, error) { return &dirLock{}, nil }

func (*dirLock) release() {}
