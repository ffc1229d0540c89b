// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/acme"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

// refusedError wraps a refusal by the authority. A new order is needed, after a long wait.
type refusedError struct{ cause error }

func (e *refusedError) Error() string { return e.cause.Error() }
func (e *refusedError) Unwrap() error { return e.cause }

// attempt begins or continues an order, and returns when the certificate is in its Secret. issued is the text of the
// event about the certificate, or "" if none was needed any more.
func (m *Manager) attempt(ctx context.Context, o compile.Order) (issued string, err error) {
	target, err := m.o.Client.CoreV1().Secrets(o.Secret.Namespace).Get(ctx, o.Secret.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		target, err = nil, nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the Secret %s: %w", o.Secret, err)
	}
	m.mu.Lock()
	from, wanted := m.neededFrom(o, target)
	m.mu.Unlock()
	if !wanted || time.Now().Before(from) { // the cache was outdated
		return "", nil
	}
	if err := m.checkClock(ctx); err != nil {
		return "", err
	}
	client, thumbprint, err := m.client(ctx)
	if err != nil {
		return "", err
	}
	p, err := m.load(ctx, o.Secret)
	if err != nil {
		return "", err
	}
	if p == nil || !slices.Equal(p.Hosts, o.Hosts) || p.Directory != m.o.Directory {
		p = &progress{Hosts: o.Hosts, Directory: m.o.Directory}
		if p.key, err = newKey(); err != nil {
			return "", err
		}
	}
	if err := m.checkNodes(ctx, o.Hosts, thumbprint); err != nil {
		return "", err
	}
	chain, err := m.issue(ctx, client, o, p)
	if err != nil {
		return "", m.accountLost(ctx, err)
	}
	expires, err := m.store(ctx, o, target, p, chain)
	if err != nil {
		return "", err
	}
	if err := m.deleteState(ctx, stateName(o.Secret)); err != nil { // sweep tries again
		m.o.Logger.Warn("acme: an order that has led to a certificate cannot be deleted", "secret", o.Secret.String(), "error", err)
	}
	return fmt.Sprintf("the Secret %s has a certificate for %s until %s", o.Secret.Name, hostsText(o.Hosts),
		expires.UTC().Format(time.DateOnly)), nil
}

// issue makes the authority issue the certificate of an order, and returns the chain. It does not repeat steps that an
// earlier attempt, or another leader, has done.
func (m *Manager) issue(ctx context.Context, client *acme.Client, o compile.Order, p *progress) ([][]byte, error) {
	order, err := m.order(ctx, client, o, p)
	if err != nil {
		return nil, err
	}
	if order.Status == acme.StatusPending {
		if err := m.prove(ctx, client, order); err != nil {
			return nil, err
		}
	}
	if order.Status != acme.StatusValid {
		if order, err = client.WaitOrder(ctx, p.Order); err != nil {
			return nil, err
		}
	}
	if order.Status == acme.StatusValid {
		return client.FetchCert(ctx, order.CertURL, true)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: o.Hosts}, p.key)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, order, csr, true)
	return chain, err
}

// order returns the order under way, or begins one. It saves the order in the store before anything else.
func (m *Manager) order(ctx context.Context, client *acme.Client, o compile.Order, p *progress) (*acme.Order, error) {
	if p.Order != "" {
		order, err := client.GetOrder(ctx, p.Order)
		if e := (*acme.Error)(nil); errors.As(err, &e) && (e.StatusCode == http.StatusNotFound || e.ProblemType == malformed) ||
			err == nil && order.Status == acme.StatusExpired {
			m.o.Logger.Info("acme: the authority does not know an order any more; there is a new one", "order", p.Order, "error", err)
			p.Order = ""
		} else if err != nil {
			return nil, err
		} else if order.Status == acme.StatusInvalid {
			return nil, &acme.OrderError{OrderURL: p.Order, Status: order.Status, Problem: order.Error}
		} else {
			return order, nil
		}
	}
	if err := m.save(ctx, o.Secret, p); err != nil { // without a writable store no order is begun
		return nil, err
	}
	m.beginOrder(o.Secret.Namespace)
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(o.Hosts...))
	if err != nil {
		return nil, err
	}
	p.Order = order.URI
	return order, m.save(ctx, o.Secret, p)
}

// prove makes the authority verify an order's challenges. It waits until the authority has done so.
func (m *Manager) prove(ctx context.Context, client *acme.Client, order *acme.Order) error {
	var open []string
	for _, url := range order.AuthzURLs {
		a, err := client.GetAuthorization(ctx, url)
		if err != nil {
			return err
		}
		if a.Status != acme.StatusPending {
			if a.Status != acme.StatusValid {
				open = append(open, url) // WaitAuthorization returns the reason
			}
			continue
		}
		i := slices.IndexFunc(a.Challenges, func(c *acme.Challenge) bool { return c.Type == "http-01" })
		if i < 0 {
			return &refusedError{fmt.Errorf("the authority offers no challenge of the type http-01 for %s", a.Identifier.Value)}
		}
		if a.Challenges[i].Status == acme.StatusPending {
			if _, err := client.Accept(ctx, a.Challenges[i]); err != nil {
				return err
			}
		}
		open = append(open, url)
	}
	for _, url := range open {
		if _, err := client.WaitAuthorization(ctx, url); err != nil {
			return err
		}
	}
	return nil
}

// store writes the certificate into its Secret. It returns the certificate's expiry.
func (m *Manager) store(ctx context.Context, o compile.Order, target *corev1.Secret, p *progress, chain [][]byte) (time.Time, error) {
	var text bytes.Buffer
	for _, der := range chain {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a bytes.Buffer returns no error
	}
	key, err := writeKey(p.key)
	if err != nil {
		return time.Time{}, err
	}
	pair, err := tls.X509KeyPair(text.Bytes(), key)
	if err != nil {
		return time.Time{}, &refusedError{fmt.Errorf("the authority's certificate cannot be used: %w", err)}
	}
	for _, host := range o.Hosts {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			return time.Time{}, &refusedError{fmt.Errorf("the authority's certificate is not for all hosts: %w", err)}
		}
	}
	secrets := m.o.Client.CoreV1().Secrets(o.Secret.Namespace)
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Secret.Namespace, Name: o.Secret.Name,
		Labels: map[string]string{managedBy: managerName}}, Type: corev1.SecretTypeTLS}
	if target != nil {
		s = target.DeepCopy()
	}
	metav1.SetMetaDataAnnotation(&s.ObjectMeta, madeAnnotation, fingerprint(text.Bytes()))
	s.Data = map[string][]byte{corev1.TLSCertKey: text.Bytes(), corev1.TLSPrivateKeyKey: key}
	if target == nil {
		_, err = secrets.Create(ctx, s, metav1.CreateOptions{})
	} else {
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{}) // a conflict means that another client has changed it
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("writing the certificate into the Secret %s: %w", o.Secret, err)
	}
	return pair.Leaf.NotAfter, nil
}

// refused records in the store that the authority has refused an order. It returns when there may be another order.
func (m *Manager) refused(ctx context.Context, o compile.Order, v failure, now time.Time) (time.Time, error) {
	p, err := m.load(ctx, o.Secret)
	if err != nil {
		return time.Time{}, err
	}
	if p == nil { // an order begins with its Secret
		return time.Time{}, fmt.Errorf("the order for %s is not there any more", o.Secret)
	}
	p.Order, p.Problem = "", v.text
	p.Failures++
	p.Next = now.Add(max(longBackoff(p.Failures), v.wait)).Truncate(time.Second)
	return p.Next, m.save(ctx, o.Secret, p)
}

// accountLost makes the next attempt register again when the authority no longer has the account. It returns err.
func (m *Manager) accountLost(ctx context.Context, err error) error {
	if e := (*acme.Error)(nil); !errors.As(err, &e) || e.ProblemType != noAccount {
		return err
	}
	return errors.Join(err, m.clearAccount(ctx))
}
