// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestIntermediateOfUnknownCurve: an authority's own certificate may have a key that Go does not know. What it issued
// is stored and served all the same, and is not ordered once more for that.
func TestIntermediateOfUnknownCurve(t *testing.T) {
	key := testenv.Must(newKey())(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"shop.example"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(90 * 24 * time.Hour)}
	der := testenv.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	p256, p239 := []byte("\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"), []byte("\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x06")
	other := bytes.Replace(der, p256, p239, 1)
	testenv.WantError(t, testenv.Err(x509.ParseCertificate(other)), "curve")
	chain := slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other}))
	l := readLeaf(&corev1.Secret{Data: map[string][]byte{corev1.TLSCertKey: chain}})
	testenv.False(t, !l.covers([]string{"shop.example"}) || !l.renew.After(time.Now()), "it is read as %+v", l)
}
