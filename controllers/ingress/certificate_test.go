// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func (b bed) defaultCertificate() *corev1.Secret {
	s, err := b.client.CoreV1().Secrets("kube-system").Get(b.Context(), compile.DefaultCertificate.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	testenv.NoError(b, err)
	return s
}

// TestDefaultCertificateIsKept: it is made with the first Ingress, stays the same for years, and is renewed before it
// expires.
func TestDefaultCertificateIsKept(t *testing.T) {
	run(t, func(b bed) {
		b.settle()
		testenv.True(t, b.defaultCertificate() == nil, "there is a default certificate without an Ingress")
		b.create(web())
		b.settle()
		first := b.defaultCertificate()
		testenv.Require(t, first != nil && first.Type == corev1.SecretTypeTLS, "the default certificate is %v", first)
		pair, err := tls.X509KeyPair(first.Data[corev1.TLSCertKey], first.Data[corev1.TLSPrivateKeyKey])
		testenv.False(t, err != nil || pair.Leaf.VerifyHostname("ingress.local") != nil, "it cannot be used: %v", err)
		wake := func() {
			ing := testenv.Must(b.client.NetworkingV1().Ingresses("shop").Get(b.Context(), "web", metav1.GetOptions{}))(t)
			if ing.Annotations == nil {
				ing.Annotations = map[string]string{}
			}
			ing.Annotations["example.org/changed"] = time.Now().String()
			testenv.Must(b.client.NetworkingV1().Ingresses("shop").Update(b.Context(), ing, metav1.UpdateOptions{}))(t)
			b.settle()
		}
		time.Sleep(8 * 365 * 24 * time.Hour)
		wake()
		testenv.True(t, string(b.defaultCertificate().Data[corev1.TLSCertKey]) == string(first.Data[corev1.TLSCertKey]), "it is another one after eight years")
		time.Sleep(366 * 24 * time.Hour)
		wake()
		now := b.defaultCertificate()
		pair, err = tls.X509KeyPair(now.Data[corev1.TLSCertKey], now.Data[corev1.TLSPrivateKeyKey])
		testenv.True(t, err == nil && !pair.Leaf.NotAfter.Before(time.Now().Add(ingress.DefaultRest)), "it was not renewed: %v", err)
	})
}

// TestDefaultCertificateOfTheFuture was made while the leader's clock was ahead, and is replaced once the clock is
// right.
func TestDefaultCertificateOfTheFuture(t *testing.T) {
	run(t, func(b bed) {
		data := testenv.Must(ingress.NewDefault(time.Now().AddDate(0, 0, 400)))(t)
		testenv.Must(b.client.CoreV1().Secrets("kube-system").Create(b.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: compile.DefaultCertificate.Name, Labels: ingress.OwnLabels()},
			Type:       corev1.SecretTypeTLS, Data: data,
		}, metav1.CreateOptions{}))(t)
		b.create(web())
		b.settle()
		now := b.defaultCertificate()
		pair := testenv.Must(tls.X509KeyPair(now.Data[corev1.TLSCertKey], now.Data[corev1.TLSPrivateKeyKey]))(t)
		testenv.False(t, time.Now().Before(pair.Leaf.NotBefore), "it is valid from %v on", pair.Leaf.NotBefore)
	})
}

// TestDefaultCertificateOfAUser is left alone, and an event says what is wrong with it.
func TestDefaultCertificateOfAUser(t *testing.T) {
	for _, c := range []struct {
		name string
		kind corev1.SecretType
		data func(t *testing.T) map[string][]byte
		want string
	}{
		{"good", corev1.SecretTypeTLS, pairOf, ""},
		{"of another type", corev1.SecretTypeOpaque, pairOf, "this Secret has to be of the type kubernetes.io/tls"},
		{"no certificate", corev1.SecretTypeTLS, func(*testing.T) map[string][]byte { return map[string][]byte{corev1.TLSCertKey: []byte("x")} }, "this Secret holds no certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(b bed) {
				foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: compile.DefaultCertificate.Name}, Type: c.kind, Data: c.data(t)}
				testenv.Must(b.client.CoreV1().Secrets("kube-system").Create(b.Context(), foreign, metav1.CreateOptions{}))(t)
				b.create(web())
				b.settle()
				testenv.True(t, string(b.defaultCertificate().Data[corev1.TLSCertKey]) == string(foreign.Data[corev1.TLSCertKey]), "it was changed")
				if said := b.said(); c.want != "" && !strings.Contains(said, c.want) || c.want == "" && strings.Contains(said, "proxy makes") {
					t.Errorf("events: %s", said)
				}
			})
		})
	}
}

// TestEndOfAUsersDefaultCertificateIsAnEvent: days before, and at its end.
func TestEndOfAUsersDefaultCertificateIsAnEvent(t *testing.T) {
	run(t, func(b bed) {
		testenv.Must(b.client.CoreV1().Secrets("kube-system").Create(b.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: compile.DefaultCertificate.Name}, Type: corev1.SecretTypeTLS, Data: pairOf(t),
		}, metav1.CreateOptions{}))(b)
		ing := web()
		ing.Spec.DefaultBackend = nil // of which nothing is to be said
		b.create(ing)
		b.settle()
		testenv.Equal(t, b.said(), "", "events:")
		time.Sleep((10*365 - 9) * 24 * time.Hour) // fake time
		b.settle()
		testenv.True(t, strings.HasPrefix(b.said(), "Warning CertificateExpiring "), "no event before the end")
		time.Sleep(10 * 24 * time.Hour) // fake time
		b.settle()
		testenv.True(t, strings.HasPrefix(b.said(), "Warning CertificateExpired "), "no event after the end")
	})
}

func pairOf(t *testing.T) map[string][]byte {
	return testenv.Must(ingress.NewDefault(time.Now()))(t)
}
