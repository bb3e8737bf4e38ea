//go:build unix

package webhook

import "syscall"

// plainKnows: it can be seen without waiting whether something has come on a
// connection.
const plainKnows = true

// peek looks at a connection that does not block.
func (c *plainConn) peek(fd uintptr) bool {
	var b [1]byte
	_, err := syscall.Read(int(fd), b[:])
	c.silent = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
	return true
}
