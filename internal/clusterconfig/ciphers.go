// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"crypto/tls"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// CipherSuites returns the cipher suites of TLS 1.2 that the ports of servers and nodes accept. These are the suites
// that encrypt and authenticate in one step (AEAD). crypto/tls alone would also accept suites in CBC mode. The suites
// of TLS 1.3 all are AEAD and cannot be chosen.
func CipherSuites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// CipherSuiteNames returns the names of CipherSuites, as Kubernetes' settings have them.
func CipherSuiteNames() []string {
	return convert.Slice(CipherSuites(), tls.CipherSuiteName)
}
