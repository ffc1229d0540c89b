// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

const (
	// defaultValidity is the validity of the default certificate. It is replaced when defaultRest of it is left. No
	// client trusts it, whatever its age.
	defaultValidity, renewBefore = 10 * 365 * 24 * time.Hour, 365 * 24 * time.Hour
	// reasonDefault is the reason of events about problems of the default certificate.
	reasonDefault = "BadCertificate"
)

// syncCertificate makes the certificate of hosts that have none, once there is an Ingress. All nodes thus have the same
// certificate, also after restarts. It does not touch a Secret that a user has created in its place.
func (c *Controller) syncCertificate(ctx context.Context, wanted bool) error {
	name, now := compile.DefaultCertificate, time.Now()
	c.defaultNext = time.Time{}
	if !wanted || now.Before(c.o.Built) {
		return nil
	}
	have, err := c.secrets.Secrets(name.Namespace).Get(name.Name)
	if err != nil {
		have = nil
	}
	if have != nil {
		pair, err := tls.X509KeyPair(have.Data[corev1.TLSCertKey], have.Data[corev1.TLSPrivateKeyKey])
		switch {
		case have.Labels[managedBy] != managerName:
			c.judgeDefault(have, pair.Leaf, err)
			return nil
		case err == nil && !now.Before(pair.Leaf.NotBefore) && now.Before(pair.Leaf.NotAfter.Add(-renewBefore)):
			return nil
		}
	}
	data, err := newDefault(now)
	if err != nil {
		return err
	}
	secrets := c.o.Client.CoreV1().Secrets(name.Namespace)
	if have != nil {
		changed := have.DeepCopy()
		changed.Data = data
		_, err = secrets.Update(ctx, changed, metav1.UpdateOptions{})
	} else {
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: map[string]string{managedBy: managerName}},
			Type:       corev1.SecretTypeTLS, Data: data,
		}, metav1.CreateOptions{})
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err) { // the cache receives the newer object
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing the default certificate into the Secret %s: %w", name, err)
	}
	return nil
}

// judgeDefault adds warnings about problems of a user's default certificate.
func (c *Controller) judgeDefault(s *corev1.Secret, leaf *x509.Certificate, err error) {
	switch {
	case err != nil:
		c.warnings.Add(s, reasonDefault,
			"hosts without a certificate have one that each proxy makes: this Secret holds no certificate with its key in tls.crt and "+
				"tls.key (%v)", err)
	case s.Type != corev1.SecretTypeTLS:
		c.warnings.Add(s, reasonDefault,
			"hosts without a certificate have one that each proxy makes: this Secret has to be of the type %s; delete it and create it again",
			corev1.SecretTypeTLS)
	default:
		var reason string
		if reason, c.defaultNext = compile.Ending(leaf.NotBefore, leaf.NotAfter, time.Now()); reason != "" {
			c.warnings.Add(s, reason, "hosts without a certificate have that of this Secret, which ends at %s: put a new one into it",
				leaf.NotAfter.UTC().Format(time.RFC3339))
		}
	}
}

// newDefault makes a self-signed certificate, as the data of a Secret.
func newDefault(now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the default certificate: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Coracle ingress default certificate"}, DNSNames: []string{"ingress.local"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(defaultValidity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	chain, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the default certificate: %w", err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("writing the key of the default certificate: %w", err)
	}
	return map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}),
	}, nil
}
