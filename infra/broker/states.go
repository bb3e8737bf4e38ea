package broker

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// states keeps copies of the small files in which the server keeps the settings
// of streams and consumers and how far each consumer is.
//
// The server replaces such a file by renaming a new one over it, unsynced. A
// sync of the file system that falls between can commit the name before the
// content; seen on ext4 with its default dioread_nolock: a power cut then leaves
// zeros or nothing, and the server refuses the consumer for ever (nats-server
// v2.15.2, server/filestore.go writeFileWithOptionalSync, checkConsumerHeader). A
// copy that is some seconds old costs nothing: what was settled since is recalled
// from ATTEMPTS.
type states struct {
	dir   string
	known map[string]state // by path below dir
}

// state is a file as it was last read.
type state struct {
	changed time.Time
	content []byte
}

const statesName = "gridfan.states"

// stateFiles are where they are below a store.
var stateFiles = []string{
	"jetstream/*/streams/*/meta.inf", "jetstream/*/streams/*/meta.sum",
	"jetstream/*/streams/*/obs/*/meta.inf", "jetstream/*/streams/*/obs/*/meta.sum",
	"jetstream/*/streams/*/obs/*/o.dat",
}

// whole says whether a file holds what was written.
func whole(name string, b []byte) bool {
	switch filepath.Base(name) {
	case "o.dat":
		const magic = 22
		return len(b) > 1 && b[0] == magic && !hole(b)
	case "meta.inf":
		return json.Valid(b)
	default: // meta.sum
		_, err := hex.DecodeString(string(b))
		return len(b) > 0 && err == nil
	}
}

// hole says whether a page of b never got to the disk.
func hole(b []byte) bool {
	const page = 4096
	zeros := make([]byte, page)
	for at := 0; at < len(b); at += page {
		part := b[at:min(at+page, len(b))]
		if bytes.Equal(part, zeros[:len(part)]) {
			return true
		}
	}
	return false
}

func (s *states) files() ([]string, error) {
	var all []string
	for _, pattern := range stateFiles {
		names, err := filepath.Glob(filepath.Join(s.dir, filepath.FromSlash(pattern)))
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	return all, nil
}

// keep makes new copies if any file has changed since it last did.
func (s *states) keep() error {
	names, err := s.files()
	if err != nil {
		return err
	}
	now, changed := make(map[string]state, len(names)), len(names) != len(s.known)
	for _, name := range names {
		rel, err := filepath.Rel(s.dir, name)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // just deleted
		} else if err != nil {
			return err
		}
		was, ok := s.known[rel]
		if ok && was.changed.Equal(info.ModTime()) {
			now[rel] = was
			continue
		}
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !whole(name, b) {
			continue
		} else if err != nil {
			return err
		}
		now[rel], changed = state{info.ModTime(), b}, true
	}
	if !changed {
		return nil
	}
	copies := make(map[string][]byte, len(now))
	for rel, k := range now {
		copies[filepath.ToSlash(rel)] = k.content
	}
	b, err := json.Marshal(copies)
	if err != nil {
		return err
	}
	if err := ReplaceFile(filepath.Join(s.dir, statesName), bytes.NewReader(b), 0o600); err != nil {
		return err
	}
	s.known = now
	return nil
}

// restore puts copies in the place of files that a power cut spoilt. It runs
// before the server does. How far a consumer was is forgotten when there is no
// copy: rather everything twice than something never.
func (s *states) restore(log *slog.Logger) error {
	names, err := s.files()
	if err != nil {
		return err
	}
	spoilt := map[string]bool{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if whole(name, b) {
			continue
		}
		spoilt[name] = true
		if base, ok := strings.CutSuffix(name, ".inf"); ok {
			spoilt[base+".sum"] = true // one is worth nothing without the other
		} else if base, ok := strings.CutSuffix(name, ".sum"); ok {
			spoilt[base+".inf"] = true
		}
	}
	if len(spoilt) == 0 {
		return nil
	}
	copies := map[string][]byte{}
	all, err := os.ReadFile(filepath.Join(s.dir, statesName))
	if err == nil {
		err = json.Unmarshal(all, &copies)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("copies of the server's files", "error", err)
	}
	for _, name := range slices.Sorted(maps.Keys(spoilt)) {
		rel, err := filepath.Rel(s.dir, name)
		if err != nil {
			return err
		}
		copied, ok := copies[filepath.ToSlash(rel)]
		switch {
		case ok:
			log.Warn("a file of the store was spoilt, as by a power cut; a copy takes its place", "file", name)
			err = ReplaceFile(name, bytes.NewReader(copied), 0o600)
		case filepath.Base(name) == "o.dat":
			log.Error("the state of a consumer was spoilt, and there is no copy; its subscriber gets its events from its first one on", "file", name)
			err = os.Remove(name)
		default:
			log.Error("a file of the store was spoilt, and there is no copy", "file", name)
		}
		if err != nil {
			return fmt.Errorf("restore the store: %w", err)
		}
	}
	return nil
}
