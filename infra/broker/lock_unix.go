//go:build unix

package broker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const lockName = "gridfan.lock"

// dirLock keeps a second process out of a store. The kernel lets go of it when
// the process dies, however it dies.
type dirLock struct{ f *os.File }

func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("the store %s is in use by another gridfan; stop that one, or choose another --data", dir)
		}
		return nil, fmt.Errorf("lock the store %s: %w", dir, err)
	}
	return &dirLock{f}, nil
}

func (l *dirLock) release() { l.f.Close() }
