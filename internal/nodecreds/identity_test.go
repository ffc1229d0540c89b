// SPDX-License-Identifier: Apache-2.0

package nodecreds

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRevokedCertificates: of a revoked node's certificates those from before the revocation are refused, and a later
// machine of the same name has others. Other clients are never refused.
func TestRevokedCertificates(t *testing.T) {
	certificate := func(name string, uris ...string) *x509.Certificate {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
		for _, u := range uris {
			c.URIs = append(c.URIs, testenv.Must(url.Parse(u))(t))
		}
		return c
	}
	of := func(name, node string, generation uint64) *x509.Certificate {
		return certificate(name, Identity{node, generation}.URI().String())
	}
	const n1 = UserPrefix + "n1"
	for _, tt := range []struct {
		name    string
		cert    *x509.Certificate
		revoked Revoked
		refused bool
	}{
		{"nothing is revoked", certificate(NetworkUser), nil, false},
		{"the kubelet", of(n1, "n1", 0), Revoked{"n1": 1}, true},
		{"the network parts", of(NetworkUser, "n1", 0), Revoked{"n1": 1}, true},
		{"another node's kubelet", of(UserPrefix+"n2", "n2", 0), Revoked{"n1": 1}, false},
		{"another node's network parts", of(NetworkUser, "n2", 0), Revoked{"n1": 1}, false},
		{"a later machine of that name", of(n1, "n1", 1), Revoked{"n1": 1}, false},
		{"its network parts", of(NetworkUser, "n1", 1), Revoked{"n1": 1}, false},
		{"it was revoked as well", of(n1, "n1", 1), Revoked{"n1": 2}, true},
		{"a kubelet from an earlier version", certificate(n1), Revoked{"n1": 1}, true},
		{"another kubelet from an earlier version", certificate(UserPrefix + "n2"), Revoked{"n1": 1}, false},
		{"network parts from an earlier version", certificate(NetworkUser), Revoked{"n1": 1}, true},
		{"a kubelet that names another machine", of(n1, "n2", 9), Revoked{"n1": 1}, true},
		{"a URI that is none of ours", certificate(n1, "https://n1/9"), Revoked{"n1": 1}, true},
		{"an identity without a number", certificate(n1, "coracle:node:n1"), Revoked{"n1": 1}, true},
		{"a server's own node", of(n1, "n1", ServersOwn), Revoked{"n1": 7}, false},
		{"an administrator", certificate("system:admin"), Revoked{"n1": 1}, false},
	} {
		if err := tt.revoked.Refuses(tt.cert); (err != nil) != tt.refused {
			t.Errorf("%s: refused: %t (%v)", tt.name, err != nil, err)
		}
	}
}

// TestRevocationsAreMerged: a list that lacks some is completed, and a later revocation counts.
func TestRevocationsAreMerged(t *testing.T) {
	store, own := Revoked{"a": 1, "b": 2}, Revoked{"b": 1, "c": 3}
	both := store.With(own)
	if !store.Lacks(own) || both.Lacks(store) || both.Lacks(own) || both["b"] != 2 || len(both) != 3 || len(store) != 2 {
		t.Errorf("%v and %v are %v", store, own, both)
	}
}
