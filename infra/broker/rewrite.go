package broker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// rewrite writes every file of a store that changed since the last good sync
// once more, to new blocks of the disk.
//
// After a failed sync the kernel counts the pages it could not write as clean:
// they are right in memory and wrong on the disk, and the next sync succeeds
// without them. The server would read them from memory, take a repeated event
// for a duplicate, and a power cut would lose it. So what is in memory is copied
// to new files, and each copy is synced by itself. What memory has dropped by
// now reads as garbage, which the server's checksums find.
func rewrite(dir string, since time.Time) error {
	// Times of files tick coarsely.
	since = since.Add(-2 * time.Second)
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == linksName {
			return fs.SkipDir // second names; they move over to the new files
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		switch filepath.Base(path) {
		case lockName, markName: // held open by us
			return nil
		}
		info, err := d.Info()
		if err != nil || info.ModTime().Before(since) {
			return err
		}
		if err := rewriteFile(path, info); err != nil {
			return fmt.Errorf("write %s once more: %w", path, err)
		}
		return nil
	})
}

func rewriteFile(path string, info fs.FileInfo) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	return ReplaceFile(path, from, info.Mode().Perm())
}

// ReplaceFile puts new content in the place of a file. The content is on disk
// before its name is, and both are when it returns.
func ReplaceFile(path string, content io.Reader, perm fs.FileMode) error {
	to, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, content)
	err = errors.Join(err, to.Sync(), to.Close())
	if err == nil {
		err = os.Rename(to.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(to.Name()))
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
