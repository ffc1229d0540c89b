// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/cert"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/certificate"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// referrer is an object that refers to others.
type referrer struct {
	kind      gatewayv1.Kind // in the group of the Gateway API
	namespace string
}

// referent is an object of the core group that is referred to.
type referent struct {
	kind gatewayv1.Kind
	types.NamespacedName
}

// permitted reports whether a reference is permitted: both objects are in the same namespace, or a ReferenceGrant in
// the referent's namespace permits it.
func (c *compiler) permitted(from referrer, to referent) bool {
	if from.namespace == to.Namespace {
		return true
	}
	return slices.ContainsFunc(c.grants[to.Namespace], func(g *gatewayv1.ReferenceGrant) bool {
		return g.DeletionTimestamp == nil &&
			slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
				return f.Group == gatewayv1.GroupName && f.Kind == from.kind && string(f.Namespace) == from.namespace
			}) &&
			slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
				return t.Group == "" && t.Kind == to.kind && (t.Name == nil || *t.Name == "" || string(*t.Name) == to.Name)
			})
	})
}

func refusedReference(from referrer, to referent) string {
	return fmt.Sprintf("the %s %s is in another namespace, where no ReferenceGrant permits it to the kind %s of the namespace %s", to.kind,
		to.NamespacedName, from.kind, from.namespace)
}

// keyPair is a Secret that holds a chain with its key.
type keyPair struct {
	key   string          // of its section
	names map[string]bool // the hosts that it is for
	pair  table.Certificate
}

// certificateOf reads a Secret. The reason of a problem is invalid, or RefNotPermitted.
func (c *compiler) certificateOf(from referrer, ref gatewayv1.SecretObjectReference, invalid string) (keyPair, problem) {
	if group, kind := ptr.Deref(ref.Group, ""), ptr.Deref(ref.Kind, "Secret"); group != "" || kind != "Secret" {
		return keyPair{}, problem{invalid, fmt.Sprintf("the certificate %s is of the kind %s in the group %q: only Secrets of the core "+
			"group are read", ref.Name, kind, group)}
	}
	name := types.NamespacedName{Namespace: string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(from.namespace))), Name: string(ref.Name)}
	if to := (referent{"Secret", name}); !c.permitted(from, to) {
		return keyPair{}, problem{string(gatewayv1.ListenerReasonRefNotPermitted), refusedReference(from, to)}
	}
	secret := c.secret(name)
	if secret == nil {
		return keyPair{}, problem{invalid, fmt.Sprintf("there is no Secret %s", name)}
	}
	j := c.s.Memory.judge(secret)
	if j.flaw != "" {
		return keyPair{}, problem{invalid, fmt.Sprintf("the Secret %s %s", name, j.flaw)}
	}
	return keyPair{
		key: table.CertificateKey(name.Namespace, name.Name), names: j.names,
		pair: table.Certificate{Chain: string(secret.Data[corev1.TLSCertKey]), Key: string(secret.Data[corev1.TLSPrivateKeyKey])},
	}, problem{}
}

// namesOf returns the hosts that a certificate is for.
func namesOf(leaf *x509.Certificate) map[string]bool {
	out := map[string]bool{}
	for _, n := range leaf.DNSNames {
		if name, ok := hostName(gatewayv1.Hostname(n)); ok {
			out[name] = true
		}
	}
	return out
}

// size returns the number of bytes of a certificate's text.
func (c keyPair) size() int { return len(c.pair.Chain) + len(c.pair.Key) }

// fits reports whether the certificate is for the host, by its name or by a wildcard for its first label.
func (c keyPair) fits(name string) bool {
	_, rest, _ := strings.Cut(name, ".")
	return c.names[name] || rest != "" && c.names["*."+rest]
}

// reasons are the reasons of problems with references to authorities.
type reasons struct{ invalid, kind string }

// authorities are the authorities of several objects, by which certificates are verified.
type authorities struct {
	key   string   // of the section
	texts []string // PEM
}

func (a authorities) section() table.Authorities {
	var out strings.Builder
	for _, text := range a.texts {
		out.WriteString(strings.TrimRight(text, "\n") + "\n")
	}
	return table.Authorities{Certificates: out.String()}
}

// size returns the number of bytes of the authorities' text.
func (a authorities) size() (n int) {
	for _, text := range a.texts {
		n += len(text)
	}
	return n
}

// authoritiesOf reads the valid references among refs. p is the first problem. An empty key in out says that none is
// valid.
func (c *compiler) authoritiesOf(from referrer, refs []gatewayv1.ObjectReference, why reasons) (out authorities, p problem) {
	var keys []string
	for _, ref := range refs {
		namespace := ptr.Deref(ref.Namespace, gatewayv1.Namespace(from.namespace))
		name := types.NamespacedName{Namespace: string(namespace), Name: string(ref.Name)}
		text, flaw := c.authority(from, referent{ref.Kind, name}, ref.Group, why)
		p = firstProblem(p, flaw)
		if flaw.ok() {
			keys = append(keys, strings.ToLower(string(ref.Kind))+"/"+name.Namespace+"/"+name.Name)
			out.texts = append(out.texts, text)
		}
	}
	if len(keys) > 0 { // several references make one section
		out.key = table.KindAuthorities + "/" + strings.Join(keys, "+")
	}
	return out, p
}

func (c *compiler) authority(from referrer, to referent, group gatewayv1.Group, why reasons) (text string, p problem) {
	if group != "" || to.kind != "ConfigMap" && to.kind != "Secret" {
		return "", problem{why.kind, fmt.Sprintf("the authority %s is of the kind %s in the group %q: only ConfigMaps and Secrets of the "+
			"core group are read", to.Name, to.kind, group)}
	}
	if !c.permitted(from, to) {
		return "", problem{string(gatewayv1.ListenerReasonRefNotPermitted), refusedReference(from, to)}
	}
	var object metav1.Object
	if to.kind == "ConfigMap" {
		if m := c.configMap(to.NamespacedName); m != nil {
			text, object = m.Data[caKey], m
		}
	} else if s := c.secret(to.NamespacedName); s != nil {
		text, object = string(s.Data[caKey]), s
	}
	switch {
	case object == nil:
		return "", problem{why.invalid, fmt.Sprintf("there is no %s %s", to.kind, to.NamespacedName)}
	case len(text) > certificate.MaxChain:
		return "", problem{why.invalid, fmt.Sprintf("the %s %s has more than %d bytes in %s", to.kind, to.NamespacedName,
			certificate.MaxChain, caKey)}
	case !c.s.Memory.holds(object, text):
		return "", problem{why.invalid, fmt.Sprintf("the %s %s holds no certificates in PEM in %s", to.kind, to.NamespacedName, caKey)}
	}
	return text, problem{}
}

// caKey is the key of an object's data that holds authorities.
const caKey = "ca.crt"

func holdsCertificates(text string) bool {
	_, err := cert.ParseCertsPEM([]byte(text))
	return err == nil
}
