package egress

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"
)

const (
	// stagger is how long one address is given before the next one is tried beside
	// it. RFC 8305 §8 recommends 250 ms.
	stagger = 250 * time.Millisecond

	// maxAddrs is how many of a name's addresses are tried. Real ones have a
	// handful; an answer of DNS has room for thousands.
	maxAddrs = 8
)

// DialContext connects to a host, by one of its addresses that the rules permit: it
// looks the name up, judges what it finds and dials that. It is for a
// http.Transport that has no proxy. The error is a *RefusedError when no address is
// permitted.
func (r *Rules) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.AddrError{Err: "invalid port", Addr: service}}
	}
	name, addr, err := r.look(host)
	if err != nil {
		return nil, err
	}
	found := []netip.Addr{addr}
	if !addr.IsValid() {
		if found, err = r.lookup(ctx, name); err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
	}
	var permitted []netip.AddrPort
	var refused error
	for _, a := range found {
		if err := r.judge(name, a); err != nil {
			refused = cmp.Or(refused, err)
			continue
		}
		permitted = append(permitted, netip.AddrPortFrom(a, uint16(port)))
	}
	if len(permitted) == 0 {
		return nil, refused
	}
	permitted = alternate(permitted)
	// Addresses: there is nothing to look up any more.
	return race(ctx, network, permitted[:min(len(permitted), maxAddrs)], new(net.Dialer).DialContext)
}

// alternate brings addresses into an order in which the families take turns, the
// first one's first: where one of them leads nowhere, the other is tried next.
func alternate(all []netip.AddrPort) []netip.AddrPort {
	var same, other []netip.AddrPort
	for _, a := range all {
		if a.Addr().Is4() == all[0].Addr().Is4() {
			same = append(same, a)
		} else {
			other = append(other, a)
		}
	}
	mixed := make([]netip.AddrPort, 0, len(all))
	for i := range max(len(same), len(other)) {
		if i < len(same) {
			mixed = append(mixed, same[i])
		}
		if i < len(other) {
			mixed = append(mixed, other[i])
		}
	}
	return mixed
}

// race dials addresses in their order, the next one as soon as one has failed or
// has had its time, and gives the first connection. The error is that of the first
// that failed.
func race(ctx context.Context, network string, addrs []netip.AddrPort, dial func(ctx context.Context, network, address string) (net.Conn, error)) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	running, done := context.WithCancel(ctx)
	defer done()
	next, pending := 0, 0
	start := func() {
		address := addrs[next].String()
		next++
		pending++
		go func() {
			conn, err := dial(running, network, address)
			select {
			case results <- result{conn, err}:
			case <-running.Done():
				if conn != nil {
					conn.Close() // another one was quicker
				}
			}
		}()
	}
	start()
	t := time.NewTicker(stagger)
	defer t.Stop()
	var first error
	for {
		select {
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: network, Err: cmp.Or(first, ctx.Err())}
		case <-t.C:
			if next < len(addrs) {
				start()
			}
		case res := <-results:
			if res.err == nil {
				return res.conn, nil
			}
			pending--
			first = cmp.Or(first, res.err)
			if next < len(addrs) {
				start()
				t.Reset(stagger)
			} else if pending == 0 {
				return nil, first
			}
		}
	}
}
