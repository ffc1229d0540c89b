// SPDX-License-Identifier: Apache-2.0

package certend

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var now = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

func authority(t *testing.T, key *ecdsa.PrivateKey, left time.Duration) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own"}, NotAfter: now.Add(left), IsCA: true}
	der := testenv.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return testenv.Must(x509.ParseCertificate(der))(t)
}

// TestEndsAreNamedFrom90DaysBefore: a former certificate of the same key is not named while its successor is valid.
func TestEndsAreNamedFrom90DaysBefore(t *testing.T) {
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	other := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	day := 24 * time.Hour
	for _, tt := range []struct {
		name  string
		certs []*x509.Certificate
		want  string
	}{
		{"long", []*x509.Certificate{authority(t, key, 90*day)}, ""},
		{"soon", []*x509.Certificate{authority(t, key, 90*day-time.Second)}, "ca ends on 2027-05-30 11:59 UTC (in 89 days)"},
		{"tomorrow", []*x509.Certificate{authority(t, key, day)}, "ca ends on 2027-03-02 12:00 UTC (in a day)"},
		{"ended", []*x509.Certificate{authority(t, key, -day)}, "ca ended on 2027-02-28 12:00 UTC"},
		{"renewed", []*x509.Certificate{authority(t, key, 400*day), authority(t, key, -day)}, ""},
		{"other key", []*x509.Certificate{authority(t, other, 400*day), authority(t, key, -day)}, "ca (CN=own) ended on 2027-02-28 12:00 UTC"},
		{"two", []*x509.Certificate{authority(t, other, time.Hour), authority(t, key, -day)},
			"ca (CN=own) ended on 2027-02-28 12:00 UTC, ca ends on 2027-03-01 13:00 UTC (in less than a day)"},
	} {
		testenv.Equal(t, Words(Ending(Named("ca", tt.certs), now), now), tt.want, "%s:", tt.name)
	}
	soon := Named("ca", []*x509.Certificate{authority(t, key, -day), authority(t, other, time.Minute)})
	testenv.Equal(t, Next(soon, now, time.Hour), time.Minute+time.Second, "the next end:")
	if certs, err := Read("ca", filepath.Join(t.TempDir(), "none.crt")); err != nil || len(certs) > 0 {
		t.Errorf("a missing file: %v, %v", certs, err)
	}
}

func TestMetricsHaveEnds(t *testing.T) {
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	other := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	certs := append(Named("server-ca", []*x509.Certificate{authority(t, key, time.Hour), authority(t, key, -time.Hour)}),
		Named("client-ca", []*x509.Certificate{authority(t, other, -time.Hour)})...)
	r := prometheus.NewRegistry()
	r.MustRegister(Collector(func() []Certificate { return certs }))
	got := map[string]float64{}
	for _, m := range testenv.Must(r.Gather())(t)[0].Metric {
		got[m.Label[0].GetValue()] = m.Gauge.GetValue()
	}
	want := map[string]float64{"server-ca": float64(now.Add(time.Hour).Unix()), "client-ca": float64(now.Add(-time.Hour).Unix())}
	testenv.Equal(t, fmt.Sprint(got), fmt.Sprint(want), "")
}
