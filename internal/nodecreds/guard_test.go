// SPDX-License-Identifier: Apache-2.0

package nodecreds

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestConnectionsOfRevokedNodesEnd: a revocation ends the open connections of that node, once each, and those of no
// other; a connection that was released is left alone, and a refused certificate holds none.
func TestConnectionsOfRevokedNodesEnd(t *testing.T) {
	certificate := func(node string, generation uint64) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: UserPrefix + node},
			URIs: []*url.URL{Identity{Node: node, Generation: generation}.URI()}}
	}
	var g Guard
	ended := map[string]int{}
	hold := func(name string, c *x509.Certificate) func() {
		var release func()
		release = testenv.Must(g.Hold(c, func() { ended[name]++; release() }))(t)
		return release
	}
	hold("first", certificate("n1", 0))
	hold("second", certificate("n1", 0))
	hold("released", certificate("n1", 0))()
	hold("another node", certificate("n2", 0))
	g.Set(Revoked{"n1": 1})
	testenv.Fails(t, testenv.Err(g.Hold(certificate("n1", 0), nil)), "a revoked node connects")
	hold("the next machine", certificate("n1", 1))
	g.Set(Revoked{"n1": 1})
	testenv.True(t, len(ended) == 2 && ended["first"] == 1 && ended["second"] == 1, "ended: %v", ended)
	testenv.Equal(t, len(g.open), 2, "connections are held:")
}
