// SPDX-License-Identifier: Apache-2.0

package nodecreds

import (
	"crypto/x509"
	"fmt"
	"maps"
	"math"
	"net/url"
	"strconv"
	"strings"
)

const (
	// UserPrefix is the prefix of the names of nodes' users. NetworkUser is the user of the network parts of all nodes.
	UserPrefix  = "system:node:"
	NetworkUser = "system:coracle:network"
	// identityPrefix begins the URI in a certificate that names its machine. No client can have it signed by a
	// CertificateSigningRequest of a kubelet: Kubernetes refuses a URI there.
	identityPrefix = "coracle:node:"
	// ServersOwn is the generation of the certificates of a server's own node. A server cannot be revoked: it has the
	// authorities' keys.
	ServersOwn = math.MaxUint64
)

// Identity says to which machine a client certificate was issued.
type Identity struct {
	// Node is the node's name. Generation is the number of revocations of nodes with that name before the certificate
	// was issued.
	Node       string
	Generation uint64
}

// URI returns the form of the identity in a certificate.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "coracle", Opaque: strings.TrimPrefix(identityPrefix, "coracle:") + i.Node + ":" +
		strconv.FormatUint(i.Generation, 10)}
}

// IdentityOf returns the identity in a certificate. Its Node is empty in a certificate of an earlier version.
func IdentityOf(c *x509.Certificate) Identity {
	for _, u := range c.URIs {
		text, ours := strings.CutPrefix(u.String(), identityPrefix)
		node, number, whole := strings.Cut(text, ":")
		if generation, err := strconv.ParseUint(number, 10, 64); ours && whole && err == nil {
			return Identity{Node: node, Generation: generation}
		}
	}
	return Identity{}
}

// IsNode says whether a client certificate is one of a node's: the kubelet's, or that of the network parts.
func IsNode(c *x509.Certificate) bool {
	return c.Subject.CommonName == NetworkUser || strings.HasPrefix(c.Subject.CommonName, UserPrefix)
}

// Revoked are the revocations of a cluster's nodes: for each name, their number. A certificate of an earlier generation
// is refused.
type Revoked map[string]uint64

// Refuses returns why a client certificate is refused, or nil. A certificate of the network parts that names no machine
// is from an earlier version, and may be a revoked node's.
func (r Revoked) Refuses(c *x509.Certificate) error {
	if len(r) == 0 || !IsNode(c) {
		return nil
	}
	i := IdentityOf(c)
	if name, kubelet := strings.CutPrefix(c.Subject.CommonName, UserPrefix); kubelet && name != i.Node {
		i = Identity{Node: name} // of an earlier version, or of another signer
	}
	switch {
	case i.Node == "":
		return fmt.Errorf("a node was revoked, and the certificate of %s does not name its node: it is from an earlier version. "+
			"Restart coracle there to renew it", c.Subject.CommonName)
	case i.Generation < r[i.Node]:
		return fmt.Errorf("the node %s was revoked (coracle node revoke): its certificate is refused by all servers", i.Node)
	}
	return nil
}

// Lacks says whether revocations of other are missing.
func (r Revoked) Lacks(other Revoked) bool {
	for name, n := range other {
		if n > r[name] {
			return true
		}
	}
	return false
}

// With returns the revocations of both.
func (r Revoked) With(other Revoked) Revoked {
	out := Revoked{}
	maps.Copy(out, r)
	for name, n := range other {
		out[name] = max(out[name], n)
	}
	return out
}
