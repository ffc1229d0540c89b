// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// nginxPrefix is that of ingress-nginx's annotations.
const nginxPrefix = "nginx.ingress.kubernetes.io/"

// options are what an Ingress' annotations ask for.
type options struct {
	protocol string
	// redirect is the status with which plain HTTP is sent to https at hosts that have a certificate, and forceHTTPS says at all; 0 serves both.
	redirect   int
	forceHTTPS bool
	refused    string
	findings   []Finding
}

// optionsOf reads the annotations. An annotation of ingress-nginx's that is not known here closes the routes: it may restrict who gets in.
func optionsOf(ing *networkingv1.Ingress) options {
	var o options
	if classOf(ing) == "nginx" { // ingress-nginx redirects where there is a certificate
		o.redirect = http.StatusPermanentRedirect
	}
	for name, value := range ing.Annotations {
		rest, ok := strings.CutPrefix(name, nginxPrefix)
		if !ok {
			continue
		}
		switch rest {
		case "ssl-redirect":
			if value == "false" {
				o.redirect = 0
			}
		case "force-ssl-redirect":
			o.forceHTTPS = value == "true"
		case "backend-protocol":
			o.backendProtocol(value)
		default:
			o.findings = append(o.findings, Finding{ReasonUnsupported, fmt.Sprintf("the annotation %s is not served: the Ingress' routes answer 503, for it may restrict who gets in", name)})
		}
	}
	if o.forceHTTPS {
		o.redirect = http.StatusPermanentRedirect
	}
	slices.SortFunc(o.findings, func(a, b Finding) int { return strings.Compare(a.Message, b.Message) })
	if len(o.findings) > 0 {
		o.refused = o.findings[0].Message
	}
	return o
}

func (o *options) backendProtocol(value string) {
	switch strings.ToUpper(value) {
	case "HTTP", "":
	case "GRPC":
		o.protocol = table.H2C
	default:
		o.findings = append(o.findings, Finding{ReasonUnsupported, fmt.Sprintf("the backend protocol %s is not served yet: the Ingress' routes answer 503", value)})
	}
}

// flawOf says why a Secret is no certificate; empty for one that is. It may be nil.
func flawOf(s *corev1.Secret) string {
	if s == nil {
		return "does not exist"
	}
	if _, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		return "holds no certificate with its key in tls.crt and tls.key (" + err.Error() + ")"
	}
	return ""
}
