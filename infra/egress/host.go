package egress

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// spelled brings a URL's host into the form that net/http dials. addr is valid
// when it is an address. odd is a number that is no address as it stands: this
// program would look it up as a name, but a proxy or the resolver of the machine
// may read it as an address.
func spelled(host string) (name string, addr netip.Addr, odd bool) {
	// As net/http does, which makes plain digits of the wide and the circled ones.
	if strings.ContainsFunc(host, func(r rune) bool { return r >= utf8.RuneSelf }) {
		if ascii, err := idna.Lookup.ToASCII(host); err == nil {
			host = ascii
		}
	}
	name = strings.ToLower(strings.TrimSuffix(host, "."))
	if a, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return a.String(), plain(a), false
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	return name, netip.Addr{}, number(last)
}

// number says whether the last part of a host is one, as browsers decide whether
// it is an address (url.spec.whatwg.org, "ends in a number checker"; 2026-11). No
// top-level domain is.
func number(label string) bool {
	if label != "" && strings.Trim(label, "0123456789") == "" {
		return true
	}
	rest, hex := strings.CutPrefix(label, "0x")
	return hex && strings.Trim(rest, "0123456789abcdef") == ""
}

// meant reads an odd host as inet_aton does: one to four parts, each decimal,
// octal or hexadecimal, the last of which fills what is left.
func meant(name string) (netip.Addr, bool) {
	parts := strings.Split(name, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var sum uint64
	for i, p := range parts {
		base := 10
		switch {
		case strings.HasPrefix(p, "0x"):
			base, p = 16, p[2:]
			if p == "" {
				p = "0"
			}
		case len(p) > 1 && p[0] == '0':
			base = 8
		}
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		n, err := strconv.ParseUint(p, base, bits)
		if err != nil {
			return netip.Addr{}, false
		}
		sum = sum<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}), true
}

// known gives the address of a name that every machine resolves alike: RFC 6761
// §6.3, and Google's, which the clouds' resolvers answer (docs.cloud.google.com/
// compute, "View and query VM metadata"; 2026-11). A proxy might know it where this
// machine does not.
func known(name string) (netip.Addr, bool) {
	switch {
	case name == "localhost", strings.HasSuffix(name, ".localhost"):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	case name == "metadata.google.internal", name == "metadata.goog":
		return netip.AddrFrom4([4]byte{169, 254, 169, 254}), true
	}
	return netip.Addr{}, false
}
