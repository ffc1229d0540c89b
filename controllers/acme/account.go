// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

// Annotations of the account's Secret: the registered values, and the authority's URL of the account.
const (
	emailAnnotation     = "coracle.dev/acme-email"
	directoryAnnotation = "coracle.dev/acme-directory"
	accountAnnotation   = "coracle.dev/acme-account"
)

// account is the account at the authority, as this term knows it.
type account struct {
	mu         sync.Mutex // held during a registration, so that others wait for it
	client     *acme.Client
	thumbprint string
	key        []byte // as in the Secret

	failures    int
	nextAttempt time.Time
	problem     error // error of the last attempt
}

// accountError says that there is no account with which to order.
type accountError struct {
	cause       error
	nextAttempt time.Time
}

func (e *accountError) Error() string { return e.cause.Error() }
func (e *accountError) Unwrap() error { return e.cause }

// client returns the account's client and thumbprint. It registers a new account first.
func (m *Manager) client(ctx context.Context) (*acme.Client, string, error) {
	a := &m.id
	a.mu.Lock()
	defer a.mu.Unlock()
	if s, err := m.o.Secrets.Secrets(compile.Account.Namespace).Get(compile.Account.Name); a.client != nil && err == nil &&
		bytes.Equal(s.Data[corev1.TLSPrivateKeyKey], a.key) {
		return a.client, a.thumbprint, nil
	}
	if time.Now().Before(a.nextAttempt) {
		return nil, "", &accountError{a.problem, a.nextAttempt}
	}
	err := m.register(ctx)
	if err == nil {
		a.failures = 0
		return a.client, a.thumbprint, nil
	}
	if ctx.Err() != nil {
		return nil, "", err
	}
	a.failures++
	wait := shortBackoff(a.failures)
	if v := classifyError(err); v.refused {
		wait = max(longBackoff(a.failures), v.wait)
	}
	a.problem, a.nextAttempt = err, time.Now().Add(wait)
	return nil, "", &accountError{a.problem, a.nextAttempt}
}

// clearAccount makes the next attempt register again, for an account that the authority no longer has.
func (m *Manager) clearAccount(ctx context.Context) error {
	m.id.mu.Lock()
	defer m.id.mu.Unlock()
	m.id.client = nil
	secrets := m.o.Client.CoreV1().Secrets(compile.Account.Namespace)
	s, err := secrets.Get(ctx, compile.Account.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	delete(s.Annotations, accountAnnotation)
	_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
	return err
}

// register reads or makes the account's key. It registers the key unless the Secret says that it is registered.
func (m *Manager) register(ctx context.Context) error {
	secrets := m.o.Client.CoreV1().Secrets(compile.Account.Namespace)
	s, err := secrets.Get(ctx, compile.Account.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if s, err = newAccount(); err == nil {
			s, err = secrets.Create(ctx, s, metav1.CreateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("the Secret %s with the account's key: %w", compile.Account, err)
	}
	key, err := readKey(s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return fmt.Errorf("the Secret %s holds no key of an account; delete it, and there will be a new account: %w", compile.Account, err)
	}
	thumbprint, err := acme.JWKThumbprint(key.Public())
	if err != nil {
		return err
	}
	c := &acme.Client{Key: key, HTTPClient: m.http, DirectoryURL: m.o.Directory, UserAgent: m.o.UserAgent, RetryBackoff: retryDelay}
	registered := s.Annotations[directoryAnnotation] == m.o.Directory && s.Annotations[emailAnnotation] == m.o.Email
	if url := s.Annotations[accountAnnotation]; registered && url != "" {
		c.KID = acme.KeyID(url)
	} else if err := m.announce(ctx, c); err != nil {
		return err
	}
	if was := s.Annotations[accountAnnotation]; !registered || was != string(c.KID) || string(s.Data[compile.ThumbprintKey]) != thumbprint {
		s.Annotations = labels.Merge(s.Annotations, labels.Set{
			emailAnnotation: m.o.Email, directoryAnnotation: m.o.Directory, accountAnnotation: string(c.KID),
		})
		s.Data[compile.ThumbprintKey] = []byte(thumbprint)
		if _, err := secrets.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("writing the Secret %s: %w", compile.Account, err)
		}
		m.o.Logger.Info("acme: there is an account", "directory", m.o.Directory, "account", string(c.KID), "email", m.o.Email)
	}
	m.id.client, m.id.thumbprint, m.id.key = c, thumbprint, s.Data[corev1.TLSPrivateKeyKey]
	return nil
}

// announce registers the key with the authority. For an existing account it changes the e-mail address.
func (m *Manager) announce(ctx context.Context, c *acme.Client) error {
	contact := &acme.Account{Contact: []string{"mailto:" + m.o.Email}}
	_, err := c.Register(ctx, contact, acme.AcceptTOS)
	if errors.Is(err, acme.ErrAccountAlreadyExists) {
		_, err = c.UpdateReg(ctx, contact)
	}
	if err != nil {
		return fmt.Errorf("registering the account of %s at %s: %w", m.o.Email, m.o.Directory, err)
	}
	return nil
}

// newAccount returns the Secret of an account that is not registered yet. It has the Secret type that each server
// watches for certificates (server/ingress).
func newAccount() (*corev1.Secret, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	text, err := writeKey(key)
	if err != nil {
		return nil, err
	}
	thumbprint, err := acme.JWKThumbprint(key.Public())
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: compile.Account.Namespace, Name: compile.Account.Name, Labels: map[string]string{managedBy: managerName},
		},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: text, compile.ThumbprintKey: []byte(thumbprint)},
	}, nil
}

// retryDelay returns the wait before a failed request is sent once more, since nonces expire and servers fail for a
// moment. 0 is for never: a request that exceeds the authority's limits is not sent again.
func retryDelay(n int, _ *http.Request, res *http.Response) time.Duration {
	const maxTries = 5
	if n > maxTries || res.StatusCode == http.StatusTooManyRequests {
		return 0
	}
	if res.StatusCode < http.StatusInternalServerError { // an expired nonce
		return time.Millisecond
	}
	return time.Second << (n - 1)
}
