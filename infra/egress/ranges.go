package egress

import (
	"net/netip"
	"slices"
)

// block is a range of addresses that is not simply the Internet.
type block struct {
	prefix netip.Prefix
	what   string // with its article
	source string // the RFC, or whose address it is
	// never: no rule of the operator opens it.
	never bool
}

func (b block) String() string { return b.what + " (" + b.source + ")" }

// blocks are IANA's special-purpose registries for IPv4 and IPv6
// (iana.org/assignments/iana-ipv4-special-registry, iana-ipv6-special-registry),
// multicast, and the addresses at which clouds answer their own machines, which
// are the prize of an attack. Where blocks overlap, the first one counts. What the
// registries call globally reachable is not here, but for pieces of 192.0.0.0/24
// and 2001::/23, at which nobody takes events. Read 2026-11.
//
// The clouds' own: learn.microsoft.com/azure/virtual-network/
// what-is-ip-address-168-63-129-16; docs.aws.amazon.com/AWSEC2, "Access instance
// metadata", and docs.aws.amazon.com/eks, "Pod Identity Agent" (all of
// fd00:ec2::/32 is AWS's); docs.cloud.google.com/compute, "View and query VM
// metadata"; alibabacloud.com/help/ecs, "Instance metadata"; scaleway.com/docs,
// "Use the metadata API". Those of the others are link-local, or in 192.0.0.0/24.
var blocks = []block{
	never("168.63.129.16/32", "a platform address of Azure", "its wire server"),
	never("100.100.100.200/32", "a metadata address", "Alibaba Cloud"),
	never("fd00:ec2::/32", "a metadata address", "AWS"),
	never("fd20:ce::254/128", "a metadata address", "Google Cloud"),
	never("fd00:42::42/128", "a metadata address", "Scaleway"),

	never("0.0.0.0/8", "an address of this network", "RFC 791"),
	byLeave("10.0.0.0/8", "a private address", "RFC 1918"),
	byLeave("100.64.0.0/10", "an address shared behind carriers", "RFC 6598"),
	byLeave("127.0.0.0/8", "a loopback address", "RFC 1122"),
	never("169.254.0.0/16", "a link-local address", "RFC 3927"),
	byLeave("172.16.0.0/12", "a private address", "RFC 1918"),
	never("192.0.0.0/24", "an address for protocols", "RFC 6890"),
	never("192.0.2.0/24", "an address for documentation", "RFC 5737"),
	never("192.88.99.0/24", "a reserved address", "RFC 7526"),
	byLeave("192.168.0.0/16", "a private address", "RFC 1918"),
	never("198.18.0.0/15", "an address for measurements", "RFC 2544"),
	never("198.51.100.0/24", "an address for documentation", "RFC 5737"),
	never("203.0.113.0/24", "an address for documentation", "RFC 5737"),
	never("224.0.0.0/4", "a multicast address", "RFC 1112"),
	never("255.255.255.255/32", "the broadcast address", "RFC 919"),
	never("240.0.0.0/4", "a reserved address", "RFC 1112"),

	never("::/128", "the unspecified address", "RFC 4291"),
	byLeave("::1/128", "a loopback address", "RFC 4291"),
	byLeave("64:ff9b:1::/48", "an address for translation in one network", "RFC 8215"),
	never("100::/64", "an address for discarding", "RFC 6666"),
	never("2001::/23", "an address for protocols", "RFC 2928"),
	never("2001:db8::/32", "an address for documentation", "RFC 3849"),
	never("3fff::/20", "an address for documentation", "RFC 9637"),
	never("5f00::/16", "an address for segment routing", "RFC 9602"),
	byLeave("fc00::/7", "a private address", "RFC 4193"),
	never("fe80::/10", "a link-local address", "RFC 4291"),
	never("fec0::/10", "a site-local address", "RFC 3879"),
	never("ff00::/8", "a multicast address", "RFC 4291"),
}

// global is all that IANA has handed out of IPv6 so far
// (iana.org/assignments/ipv6-address-space; read 2026-11).
var (
	global     = netip.MustParsePrefix("2000::/3")
	unassigned = never("::/0", "a reserved address", "RFC 4291")
)

func never(prefix, what, source string) block {
	return block{netip.MustParsePrefix(prefix), what, source, true}
}

// byLeave is a block that the operator may open.
func byLeave(prefix, what, source string) block {
	return block{netip.MustParsePrefix(prefix), what, source, false}
}

// special finds the block of an address that carries no other one.
func special(a netip.Addr) (block, bool) {
	if i := slices.IndexFunc(blocks, func(b block) bool { return b.prefix.Contains(a) }); i >= 0 {
		return blocks[i], true
	}
	return unassigned, a.Is6() && !global.Contains(a)
}

// Forms of IPv6 that carry an IPv4 address, which is where their packets end. Those
// that nobody routes any more (IPv4-compatible, IPv4-translated) are reserved.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052 §2.1
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/96") // RFC 8215, as it is mostly used
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056 §2
	teredo     = netip.MustParsePrefix("2001::/32")      // RFC 4380 §4
)

// inside gives the addresses that a carries, and whether there is more to it than
// them: own says that a is to be judged itself, too.
func inside(a netip.Addr) (carried []netip.Addr, own bool) {
	if a.Is4() {
		return nil, true
	}
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case nat64.Contains(a):
		return []netip.Addr{at(12)}, false
	case nat64Local.Contains(a):
		return []netip.Addr{at(12)}, true
	case sixToFour.Contains(a):
		return []netip.Addr{at(2)}, false
	case teredo.Contains(a):
		// Its server, and its client with all bits turned over.
		client := at(12).As4()
		for i := range client {
			client[i] = ^client[i]
		}
		return []netip.Addr{at(4), netip.AddrFrom4(client)}, false
	case (b[8] == 0 || b[8] == 2) && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return []netip.Addr{at(12)}, true // ISATAP, RFC 5214 §6.1
	}
	return nil, true
}

// plain gives an address without its zone, and an IPv4 one as such.
func plain(a netip.Addr) netip.Addr { return a.WithZone("").Unmap() }

// strictest gives the block that decides on an address, as the addresses in it
// say: one that is never reached before one that needs leave. open says of one
// that needs leave whether it has it. Without any, the address is anybody's.
func strictest(a netip.Addr, open func(netip.Addr) bool) (block, bool) {
	a = plain(a)
	carried, own := inside(a)
	all := carried
	if own {
		all = append(all, a)
	}
	var found block
	ok := false
	for _, c := range all {
		b, is := special(c)
		switch {
		case !is, !b.never && (open(c) || open(a)):
		case b.never:
			return b, true
		case !ok:
			found, ok = b, true
		}
	}
	return found, ok
}

// Public says whether an address belongs to a machine of the Internet.
func Public(a netip.Addr) bool {
	_, is := strictest(a, func(netip.Addr) bool { return false })
	return a.IsValid() && !is
}
