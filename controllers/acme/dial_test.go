// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/outside"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAuthorityLeadsNowhereInside: the directory may be anywhere, as one of an authority in the cluster is, and no
// URL that it names, or redirects to, leads to another server of the machine or the cluster.
func TestAuthorityLeadsNowhereInside(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("another server of the machine was asked")
	}))
	defer other.Close()
	directory := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, other.URL, http.StatusFound)
		}
	}))
	defer directory.Close()
	roots := x509.NewCertPool()
	roots.AddCert(directory.Certificate())
	m := New(Options{Directory: directory.URL + "/dir", Roots: roots, Refuse: func(a netip.Addr) bool {
		return a == netip.MustParseAddr("192.0.2.7")
	}})
	defer m.http.CloseIdleConnections()
	res, err := m.http.Get(directory.URL + "/dir")
	testenv.NoError(t, err, "the directory at a local address cannot be asked")
	_ = res.Body.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(other.URL, "http://"), ":")
	for _, at := range []string{
		other.URL, directory.URL + "/redirect", "http://localhost:" + port, "http://[::ffff:127.0.0.1]:" + port,
		"http://169.254.169.254/", "http://192.0.2.7/",
	} {
		res, err := m.http.Get(at)
		if err == nil {
			_ = res.Body.Close()
		}
		testenv.True(t, errors.Is(err, outside.ErrRefused), "%s: %v", at, err)
	}
}
