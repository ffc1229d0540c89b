// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// MadeByACME is the annotation of Secrets that coracle has got by ACME, and renews.
const MadeByACME = "coracle.dev/acme"

// expiryNotice is the time before the end of a certificate at which a finding says so, as with ingress-nginx. Of a
// short life it is a tenth, when what renews certificates should have done so.
const expiryNotice = 10 * 24 * time.Hour

// validity is the time for which a certificate is valid. The zero value is of none.
type validity struct{ start, end time.Time }

// Ending says which reason a finding about the end of a certificate has at a time; "" for none. next is when that
// changes; zero for never.
func Ending(from, until, now time.Time) (reason string, next time.Time) {
	soon := until.Add(-min(expiryNotice, until.Sub(from)/10))
	switch {
	case now.Before(soon):
		return "", soon
	case !now.After(until):
		return ReasonExpiring, until.Add(time.Second) // the last second counts
	}
	return ReasonExpired, time.Time{}
}

// ending adds a finding about a certificate of a Secret that has ended, or will soon. what names the certificate, and
// so is the consequence.
func (c *compiler) ending(ing *networkingv1.Ingress, field string, s *corev1.Secret, v validity, what, so string) {
	if c.s.Now.IsZero() || s == nil || v.end.IsZero() || asksACME(ing) && c.s.Account != nil && s.Annotations[MadeByACME] != "" {
		return
	}
	reason, next := Ending(v.start, v.end, c.s.Now)
	if !next.IsZero() && (c.r.Next.IsZero() || next.Before(c.r.Next)) {
		c.r.Next = next
	}
	date := v.end.UTC().Format(time.RFC3339)
	switch reason {
	case ReasonExpiring:
		c.find(ing, Finding{reason, field, fmt.Sprintf("the %s in the Secret %s ends at %s: put a new one into it before", what, s.Name, date)})
	case ReasonExpired:
		c.find(ing, Finding{reason, field, fmt.Sprintf("the %s in the Secret %s has ended at %s: %s. Put a new one into it", what, s.Name,
			date, so)})
	}
}

// lastOf returns the validity of that of several certificates, in PEM, which ends last.
func lastOf(text []byte) (last validity) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if one, err := x509.ParseCertificate(block.Bytes); err == nil && one.NotAfter.After(last.end) {
			last = validity{one.NotBefore, one.NotAfter}
		}
	}
	return last
}
