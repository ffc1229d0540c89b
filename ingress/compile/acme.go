// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// acmeAnnotation, when it is "true", requests the certificates of an Ingress' Secrets. Several controllers support
	// it.
	acmeAnnotation = "kubernetes.io/tls-acme"
	// certManager is the prefix of the annotations of cert-manager. It makes the Secrets of an Ingress that has such an
	// annotation.
	certManager = "cert-manager.io/"
	// maxNames is the greatest number of names of a certificate, as with Let's Encrypt.
	maxNames = 100
	// maxOrdered is the greatest number of hosts of the certificates that are ordered for one namespace. All namespaces
	// share an authority's limits, such as Let's Encrypt's 300 orders in three hours.
	maxOrdered = 500
)

// Names of Secrets of the type kubernetes.io/tls in kube-system.
var (
	// DefaultCertificate is the certificate of hosts that have none.
	DefaultCertificate = types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "ingress-default"}
	// Account holds the key of the ACME account.
	Account = types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "ingress-acme"}
)

// ThumbprintKey is the key of Account's data that holds the thumbprint of the account's key (RFC 7638), in base64url.
const ThumbprintKey = "thumbprint"

// Order is a certificate that Ingresses request by the annotation kubernetes.io/tls-acme.
type Order struct {
	// Secret is the Secret for the certificate.
	Secret types.NamespacedName
	// Hosts are the names of the certificate, sorted. It is empty if the Ingresses name none that a certificate can
	// have.
	Hosts []string
	// Ingresses are the Ingresses that name the Secret, the oldest first.
	Ingresses []*networkingv1.Ingress
}

// asksACME reports whether an Ingress requests certificates by ACME, and from no other controller.
func asksACME(ing *networkingv1.Ingress) bool {
	if ing.Annotations[acmeAnnotation] != "true" {
		return false
	}
	for name := range ing.Annotations {
		if strings.HasPrefix(name, certManager) {
			return false
		}
	}
	return true
}

// acmeHint returns a hint for an Ingress that requests a certificate although coracle orders none.
func (c *compiler) acmeHint(ing *networkingv1.Ingress) string {
	if !asksACME(ing) || c.s.Account != nil {
		return ""
	}
	return ". The annotation " + acmeAnnotation + " has an effect when the servers are given --ingress-acme-email"
}

// orders adds the certificates that Ingresses request by ACME. If there is an account, it also makes the proxy answer
// the challenges of their hosts.
func (c *compiler) orders() error {
	owners, by := c.owners(), map[types.NamespacedName]*Order{}
	var byAge []*Order // by that of the oldest Ingress
	for _, a := range c.ingresses {
		ing := a.ing
		if !asksACME(ing) {
			continue
		}
		for _, t := range TLS(ing.Spec.TLS) {
			if t.SecretName == "" {
				continue
			}
			name := types.NamespacedName{Namespace: ing.Namespace, Name: t.SecretName}
			o := by[name]
			if o == nil {
				o = &Order{Secret: name}
				by[name] = o
				byAge = append(byAge, o)
			}
			if len(o.Ingresses) == 0 || o.Ingresses[len(o.Ingresses)-1] != ing {
				o.Ingresses = append(o.Ingresses, ing)
			}
			c.orderNames(o, ing, t.Hosts, owners)
		}
	}
	thumbprint := ""
	if c.s.Account != nil {
		thumbprint = string(c.s.Account.Data[ThumbprintKey])
	}
	ordered := map[string]int{} // by namespace
	for _, o := range byAge {
		name := o.Secret
		slices.Sort(o.Hosts)
		o.Hosts = slices.Compact(o.Hosts)
		if len(o.Hosts) > maxNames {
			c.find(o.Ingresses[0], Finding{ReasonCertificate, fieldTLS, fmt.Sprintf(
				"the Secret %s is for %d hosts, and a certificate has %d names at most: name several Secrets in spec.tls", name.Name,
				len(o.Hosts), maxNames)})
			continue
		}
		if ordered[name.Namespace] += max(1, len(o.Hosts)); ordered[name.Namespace] > maxOrdered {
			ordered[name.Namespace] -= max(1, len(o.Hosts))
			c.find(o.Ingresses[0], Finding{ReasonCertificate, fieldTLS, fmt.Sprintf(
				"the certificate of the Secret %s is not ordered: certificates for %d hosts of a namespace at most are, those of older "+
					"Ingresses first", name.Name, maxOrdered)})
			continue
		}
		c.r.Orders = append(c.r.Orders, *o)
		for _, host := range o.Hosts {
			if thumbprint == "" {
				break
			}
			if err := c.r.Sections.Put(table.ChallengesKey(host), table.Challenges{Thumbprint: thumbprint}); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(c.r.Orders, func(a, b Order) int { return strings.Compare(a.Secret.String(), b.Secret.String()) })
	return nil
}

// orderNames adds the hosts that an Ingress names for a certificate, except those that the certificate cannot have.
func (c *compiler) orderNames(o *Order, ing *networkingv1.Ingress, hosts []string, owners map[string]string) {
	if len(hosts) == 0 {
		c.find(ing, Finding{ReasonCertificate, fieldTLS, fmt.Sprintf("the entry of spec.tls with the Secret %s names no hosts, so that no "+
			"certificate can be ordered: name them", o.Secret.Name)})
	}
	for _, text := range hosts {
		name, ok := hostName(text)
		switch {
		case strings.HasPrefix(name, "*."):
			c.find(ing, Finding{ReasonCertificate, fieldTLS, fmt.Sprintf(
				"no certificate is ordered for %s: a wildcard needs an entry in DNS as "+
					"proof, which cert-manager can make", name)})
		case !ok || !dnsName.MatchString(name) || !strings.Contains(name, "."):
			c.find(ing, Finding{ReasonCertificate, fieldTLS, fmt.Sprintf(
				"no certificate is ordered for %.100q, which is no DNS name of the internet",
				text)})
		case c.certified(name, owners) != ing.Namespace:
			c.find(ing, Finding{ReasonCertificate, fieldTLS, fmt.Sprintf(
				"no certificate is ordered for %s: an Ingress of another namespace has this host, and a certificate would let this one "+
					"pass for it", name)})
		default:
			o.Hosts = append(o.Hosts, name)
		}
	}
}

// owners returns, by host, the namespace of the oldest Ingress that names it, in a rule or for a certificate.
func (c *compiler) owners() map[string]string {
	out := map[string]string{}
	add := func(text, namespace string) {
		if name, ok := hostName(text); ok && out[name] == "" {
			out[name] = namespace
		}
	}
	for _, a := range c.ingresses {
		for _, r := range a.ing.Spec.Rules {
			add(r.Host, a.ing.Namespace)
		}
		for _, t := range TLS(a.ing.Spec.TLS) {
			for _, host := range t.Hosts {
				add(host, a.ing.Namespace)
			}
		}
	}
	return out
}

// defaultCertificate adds the certificate of hosts that have none.
func (c *compiler) defaultCertificate() {
	if section := c.s.Memory.certificateOf(c.s.Default).section; section != nil && len(c.r.Served) > 0 {
		c.r.Sections[table.DefaultCertificateKey] = section
	}
}
