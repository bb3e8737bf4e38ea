//go:build unix && !linux

package app_test

import "os"

func fdatasync(f *os.File) error { return f.Sync() }
