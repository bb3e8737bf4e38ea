//go:build !unix

package webhook

// plainKnows: it cannot be seen without waiting whether something has come on a
// connection, so http.Transport does all.
const plainKnows = false

func (c *plainConn) peek(uintptr) bool { return true }
