package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// blocks keeps a second name for every file of messages.
//
// To reclaim space the server writes a block anew and renames it over the old
// one, unsynced (nats-server v2.15.2, server/filestore.go compactWithFloor and
// compact). As with its small files, see states, a power cut just then can leave
// the name with zeros for content; here it would take messages along. The second
// name keeps the old file until the new one is known to be on disk. What was
// deleted since is there again when it is put back: repeated deliveries, no loss.
type blocks struct{ dir string }

const linksName = "gridfan.links"

// files gives each block with its second name.
func (b *blocks) files() (map[string]string, error) {
	names, err := filepath.Glob(filepath.Join(b.dir, "jetstream", "*", "streams", "*", "msgs", "*.blk"))
	if err != nil {
		return nil, err
	}
	links := make(map[string]string, len(names))
	for _, name := range names {
		stream := filepath.Base(filepath.Dir(filepath.Dir(name)))
		account := filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(name)))))
		links[name] = filepath.Join(b.dir, linksName, account+"-"+stream+"-"+filepath.Base(name))
	}
	return links, nil
}

// keep gives new blocks their second name, and moves it over to those that were
// written anew.
func (b *blocks) keep() error {
	links, err := b.files()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(b.dir, linksName), 0o700); err != nil {
		return err
	}
	wanted := make(map[string]bool, len(links))
	for name, link := range links {
		wanted[link] = true
		if same, err := sameFile(name, link); err != nil {
			return err
		} else if same {
			continue
		}
		if err := relink(name, link); err != nil && !errors.Is(err, fs.ErrNotExist) { // just deleted
			return err
		}
	}
	// Those of blocks that are gone hold their space.
	old, err := filepath.Glob(filepath.Join(b.dir, linksName, "*"))
	if err != nil {
		return err
	}
	for _, link := range old {
		if !wanted[link] {
			if err := os.Remove(link); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameFile says whether two names are of one file; of a missing one they are not.
func sameFile(a, b string) (bool, error) {
	fa, err := os.Stat(a)
	if err == nil {
		var fb fs.FileInfo
		if fb, err = os.Stat(b); err == nil {
			return os.SameFile(fa, fb), nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return false, err
}

// relink makes link a name of the file that name is of, once that is on disk.
func relink(name, link string) error {
	next := link + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(name, next); err != nil {
		return err
	}
	f, err := os.Open(next)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(next, link)
}

// restore puts blocks back that a power cut spoilt while they were written anew.
// It runs before the server does.
func (b *blocks) restore(log *slog.Logger) error {
	links, err := b.files()
	if err != nil {
		return err
	}
	for name, link := range links {
		same, err := sameFile(name, link)
		if err != nil {
			return err
		}
		if same {
			continue
		}
		if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) {
			continue // too young to have one
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if len(content) > 0 && !hole(content) {
			continue
		}
		log.Warn("a block of messages was spoilt, as by a power cut; what it was before takes its place, so some deliveries may be repeated", "file", name)
		if err := errors.Join(os.Remove(name), os.Link(link, name)); err != nil {
			return fmt.Errorf("restore a block: %w", err)
		}
	}
	return nil
}
