package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
)

// mtlsMethod checks the certificate that the sender showed to the listener.
type mtlsMethod struct{ MTLS }

func newMTLS(c *MTLS) *mtlsMethod { return &mtlsMethod{*c} }

func (*mtlsMethod) rank() int { return 0 }

func (m *mtlsMethod) check(r *request) verdict {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return verdict{outcome: absent, reason: "no client certificate"}
	}
	// Without a chain the listener asked for a certificate and checked nothing:
	// anybody can write one with any name.
	if len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return refusedf("client certificate: not verified; the listener has no clientCA")
	}
	leaf := r.TLS.VerifiedChains[0][0]
	// A connection can outlive the certificate it began with.
	if r.now.After(leaf.NotAfter.Add(Skew)) {
		return refusedf("client certificate: expired since the connection began")
	}
	sum := sha256.Sum256(leaf.Raw)
	if slices.Contains(m.SHA256, hex.EncodeToString(sum[:])) ||
		slices.Contains(m.CN, leaf.Subject.CommonName) ||
		slices.ContainsFunc(leaf.DNSNames, func(got string) bool {
			return slices.ContainsFunc(m.DNS, func(want string) bool { return strings.EqualFold(got, want) })
		}) ||
		slices.ContainsFunc(leaf.URIs, func(got *url.URL) bool { return slices.Contains(m.URI, got.String()) }) {
		return verdict{outcome: accepted}
	}
	// The client CA has signed the name.
	return refusedf("client certificate: verified, but neither name nor fingerprint is listed (common name %.100q, SHA-256 %x)", leaf.Subject.CommonName, sum)
}
