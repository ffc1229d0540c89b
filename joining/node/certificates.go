// SPDX-License-Identifier: Apache-2.0

package node

import (
	"path/filepath"
	"time"

	"github.com/coracle-k8s/coracle/internal/certend"
	"github.com/coracle-k8s/coracle/internal/status"
)

// RenewalHint says, on a node, how to renew an authority.
const RenewalHint = "On each server: `coracle certificate renew-authority`, then restart coracle there. This machine takes the new ones by itself"

// authorities returns this machine's copies of the authorities' certificates. It leaves out files that cannot be read.
func (n *Node) authorities() []certend.Certificate {
	server, _ := certend.Read("server-ca", n.Credentials.ServerCAFile)
	client, _ := certend.Read("client-ca", n.Credentials.ClientCAFile)
	return append(server, client...)
}

// Certificates returns the authorities' certificates and the node's own ones. A server renews the latter four months
// before their end, unless their authority ends as well.
func (n *Node) Certificates() []certend.Certificate {
	out := n.authorities()
	for _, file := range n.pairFiles() {
		if certs, _ := certend.Read(filepath.Base(file), file); len(certs) > 0 {
			out = append(out, certs[0]) // the others are the authority's
		}
	}
	return out
}

// showCertificates writes to the status which certificates end, and why the last renewal failed.
func (n *Node) showCertificates(failed error) {
	now := n.o.Now()
	words := certend.Words(certend.Ending(n.Certificates(), now), now)
	if words == "" {
		n.o.Part.Set(status.Running, "")
		return
	}
	words = "after their end this machine and its servers refuse one another, and pods keep running. " + words + ". " + RenewalHint
	if failed != nil {
		words += ". The last renewal failed: " + failed.Error()
	}
	n.o.Part.Set(status.Degraded, words)
}

// certificateExpired reports whether one of the machine's certificates has expired.
func (n *Node) certificateExpired() bool {
	now := n.o.Now()
	ending := certend.Ending(n.Certificates(), now)
	return len(ending) > 0 && now.After(ending[0].NotAfter)
}

// untilEnd returns the time until the next end of a certificate, when the status changes, and most if there is none
// before.
func (n *Node) untilEnd(most time.Duration) time.Duration {
	return certend.Next(n.Certificates(), n.o.Now(), most)
}
