// SPDX-License-Identifier: Apache-2.0

// Package certend finds the certificates that do not renew themselves and end soon: those of the cluster's authorities,
// and those that no server has renewed in time. Servers and agents name them in status and metrics.
//
// It reads certificates, and never issues or renews one.
package certend

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/util/cert"
)

// Notice is how long before its end a certificate is named: enough to have it signed by an authority elsewhere.
const Notice = 90 * 24 * time.Hour

// Certificate is a certificate with the name that users know, such as server-ca.
type Certificate struct {
	Name string
	*x509.Certificate
}

// Named gives the certificates of one file their name. All but the first get their own subject in parentheses.
func Named(name string, chain []*x509.Certificate) (out []Certificate) {
	for i, c := range chain {
		if i > 0 {
			out = append(out, Certificate{name + " (" + c.Subject.String() + ")", c})
		} else {
			out = append(out, Certificate{name, c})
		}
	}
	return out
}

// Read returns the certificates in a file. It returns none if the file is missing.
func Read(name, file string) ([]Certificate, error) {
	chain, err := cert.CertsFromFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificate in %s: %w", file, err)
	}
	return Named(name, chain), nil
}

// dropSuperseded leaves out a certificate if another one of the same subject and key ends later: the former certificate
// of a renewed authority may stay in a file.
func dropSuperseded(certs []Certificate) []Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(c Certificate) bool {
		return slices.ContainsFunc(certs, func(o Certificate) bool {
			return o.NotAfter.After(c.NotAfter) && bytes.Equal(o.RawSubject, c.RawSubject) && SameKey(o.PublicKey, c.PublicKey)
		})
	})
}

// SameKey reports whether two public keys are equal.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// IsRenewal reports whether one chain of an authority, in PEM, may replace another one: their first certificates have
// the same key.
func IsRenewal(former, next []byte) bool {
	a, errA := cert.ParseCertsPEM(former)
	b, errB := cert.ParseCertsPEM(next)
	return errA == nil && errB == nil && SameKey(a[0].PublicKey, b[0].PublicKey)
}

// Later returns that of two chains in PEM that ends later, if next is a renewal of have or the reverse. Otherwise it
// returns next.
func Later(have, next []byte) []byte {
	if IsRenewal(have, next) && firstEnd(have).After(firstEnd(next)) {
		return have
	}
	return next
}

// firstEnd returns the earliest end of the certificates in PEM, without former ones.
func firstEnd(pem []byte) (end time.Time) {
	chain, _ := cert.ParseCertsPEM(pem) // the caller has parsed it
	for _, c := range dropSuperseded(Named("", chain)) {
		if end.IsZero() || c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// Ending returns the certificates that end within Notice or have ended, the earliest first.
func Ending(certs []Certificate, now time.Time) []Certificate {
	out := slices.DeleteFunc(dropSuperseded(certs), func(c Certificate) bool { return c.NotAfter.Sub(now) >= Notice })
	slices.SortStableFunc(out, func(a, b Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return out
}

// Words lists the certificates that Ending returns, each with its end. It returns "" for none.
func Words(ending []Certificate, now time.Time) string {
	var out []string
	for _, c := range ending {
		end := c.NotAfter.UTC().Format("2006-01-02 15:04 UTC")
		if left := c.NotAfter.Sub(now); left < 0 {
			out = append(out, fmt.Sprintf("%s ended on %s", c.Name, end))
		} else {
			out = append(out, fmt.Sprintf("%s ends on %s (in %s)", c.Name, end, formatDays(left)))
		}
	}
	return strings.Join(out, ", ")
}

func formatDays(left time.Duration) string {
	switch n := int(left / (24 * time.Hour)); n {
	case 0:
		return "less than a day"
	case 1:
		return "a day"
	default:
		return fmt.Sprintf("%d days", n)
	}
}

// Next returns the time until the next of the ends, and most if there is none before.
func Next(certs []Certificate, now time.Time, most time.Duration) time.Duration {
	for _, c := range certs {
		if left := c.NotAfter.Sub(now); left >= 0 {
			most = min(most, left+time.Second)
		}
	}
	return most
}

// collector has a metric with the expiry of each certificate.
type collector struct {
	list func() []Certificate
	desc *prometheus.Desc
}

// Collector returns a collector with the end of each certificate that list returns.
func Collector(list func() []Certificate) prometheus.Collector {
	return &collector{list, prometheus.NewDesc("coracle_certificate_end_timestamp_seconds",
		"End of a certificate that does not renew itself, in seconds since 1970.", []string{"certificate"}, nil)}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector. Of certificates with the same name it shows the first end.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	first := map[string]time.Time{}
	for _, one := range dropSuperseded(c.list()) {
		if end, ok := first[one.Name]; !ok || one.NotAfter.Before(end) {
			first[one.Name] = one.NotAfter
		}
	}
	for name, end := range first {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(end.Unix()), name)
	}
}
