//go:build linux || darwin

package broker

import "golang.org/x/sys/unix"

// diskSpace tells how much of the file system under dir is free for us, and how
// much it has in all.
func diskSpace(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	size := uint64(st.Bsize)
	return uint64(st.Bavail) * size, uint64(st.Blocks) * size, nil
}
