// SPDX-License-Identifier: Apache-2.0

// Package certificate checks whether Secrets of tenants can be used as certificates of the ingress proxy.
package certificate

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

const (
	// maxKey and MaxChain limit the key and the chain of a certificate, in bytes of PEM. Each handshake sends the
	// chain. An RSA key of 16,384 bits takes 2.8 s of a processor for each handshake, one of 4,096 bits 6 ms.
	maxKey, MaxChain = 8 << 10, 64 << 10
	// maxRSA limits an RSA key, in bits.
	maxRSA = 4096
)

// Parse returns the leaf certificate of a Secret, or the reason for which the Secret cannot be used as a certificate.
// The Secret may be nil.
func Parse(s *corev1.Secret) (*x509.Certificate, string) {
	if s == nil {
		return nil, "does not exist"
	}
	chain, key := s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]
	if len(chain) > MaxChain || len(key) > maxKey {
		return nil, fmt.Sprintf("has %d bytes in tls.crt and %d in tls.key, and more than %d and %d are no certificate that is served",
			len(chain), len(key), MaxChain, maxKey)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, "holds no certificate with its key in tls.crt and tls.key (" + err.Error() + ")"
	}
	if k, ok := pair.PrivateKey.(*rsa.PrivateKey); ok && k.N.BitLen() > maxRSA {
		return nil, fmt.Sprintf("has an RSA key of %d bits, and more than %d take too long for each connection", k.N.BitLen(), maxRSA)
	}
	return pair.Leaf, ""
}
