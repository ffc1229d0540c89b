// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/x509"
	"net/mail"
	"net/url"
	"os"
)

// letsEncrypt is the URL of the ACME directory of Let's Encrypt.
const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// ACME holds the settings for obtaining certificates of Ingresses.
type ACME struct {
	// Email is the address to which the authority may write. Without it no certificate is requested.
	Email string
	// Directory is the URL of the authority's ACME directory.
	Directory string
	// Roots are the authorities for the ACME server's own certificate. nil means the machine's.
	Roots *x509.CertPool
}

func (r *reader) acme() ACME {
	a := ACME{Email: r.text("ingress-acme-email"), Directory: r.text("ingress-acme-server")}
	if a.Email == "" {
		for _, name := range []string{"ingress-acme-server", "ingress-acme-ca-file"} {
			if r.isSet(name) {
				r.addProblem(r.src(name), "needs --ingress-acme-email")
			}
		}
		return a
	}
	if at, err := mail.ParseAddress(a.Email); err != nil || at.Address != a.Email {
		r.addProblem(r.src("ingress-acme-email"), "%q is not an e-mail address such as admin@example.org", a.Email)
	}
	if u, err := url.Parse(a.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		r.addProblem(r.src("ingress-acme-server"), "%q is not a URL such as %s", a.Directory, letsEncrypt)
	}
	if file := r.existing("ingress-acme-ca-file"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return a // existing has reported the error
		}
		a.Roots = x509.NewCertPool()
		if !a.Roots.AppendCertsFromPEM(text) {
			r.addProblem(r.src("ingress-acme-ca-file"), "%s holds no certificate in PEM", file)
		}
	}
	return a
}
