// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/keyutil"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

const (
	managedBy, managerName = "app.kubernetes.io/managed-by", "coracle"
	// madeAnnotation marks the Secrets that this package made. It is the hash of their certificate, so that a
	// certificate that another client wrote is not treated as coracle's.
	madeAnnotation = compile.MadeByACME
	// foreignPrefix is the prefix of annotations on Secrets that cert-manager manages.
	foreignPrefix = "cert-manager.io/"
	// orderLabel is the label of the Secrets that hold orders. forAnnotation names the Secret that the order is for.
	orderLabel, forAnnotation = "coracle.dev/acme-order", "coracle.dev/acme-secret"
	// progressKey is the key of an order's state in its Secret.
	progressKey = "order"
)

// progress is the stored state of an order under way, or of a failed one, in a Secret of kube-system.
type progress struct {
	// Hosts and Directory are those of the order. If others are wanted, a new order begins.
	Hosts     []string `json:"hosts"`
	Directory string   `json:"directory"`
	// Order is the authority's URL of the order. It is empty before there is one.
	Order string `json:"order,omitempty"`
	// Failures is the number of refusals by the authority. Next is the time of the next permitted attempt.
	Failures int       `json:"failures,omitempty"`
	Next     time.Time `json:"next,omitzero"`
	Problem  string    `json:"problem,omitempty"`

	key crypto.Signer // of the certificate
}

// stateName returns the name of the Secret in kube-system that holds the order for a Secret.
func stateName(of types.NamespacedName) string {
	sum := sha256.Sum256([]byte(of.String()))
	return compile.Account.Name + "-" + hex.EncodeToString(sum[:8])
}

func readProgress(s *corev1.Secret) (*progress, error) {
	p := &progress{}
	if err := json.Unmarshal(s.Data[progressKey], p); err != nil {
		return nil, fmt.Errorf("the Secret %s/%s holds no order; delete it: %w", s.Namespace, s.Name, err)
	}
	var err error
	if p.key, err = readKey(s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		return nil, fmt.Errorf("the Secret %s/%s holds no key; delete it: %w", s.Namespace, s.Name, err)
	}
	return p, nil
}

// load returns the saved order for a certificate, or nil.
func (m *Manager) load(ctx context.Context, of types.NamespacedName) (*progress, error) {
	m.mu.Lock()
	p := m.unsaved[of]
	m.mu.Unlock()
	if p != nil {
		return p, nil
	}
	s, err := m.o.Client.CoreV1().Secrets(compile.Account.Namespace).Get(ctx, stateName(of), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the order: %w", err)
	}
	return readProgress(s)
}

// save writes an order to the store. If that fails, the order stays in memory, so that this term does not order again.
func (m *Manager) save(ctx context.Context, of types.NamespacedName, p *progress) (err error) {
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if delete(m.unsaved, of); err != nil && p.Order != "" {
			m.unsaved[of] = p
		}
	}()
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	key, err := writeKey(p.key)
	if err != nil {
		return err
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: compile.Account.Namespace, Name: stateName(of),
			Labels:      map[string]string{managedBy: managerName, orderLabel: "true"},
			Annotations: map[string]string{forAnnotation: of.String()},
		},
		Data: map[string][]byte{progressKey: text, corev1.TLSPrivateKeyKey: key},
	}
	return m.writeSecret(ctx, s)
}

// writeSecret creates a Secret or replaces it.
func (m *Manager) writeSecret(ctx context.Context, s *corev1.Secret) error {
	secrets := m.o.Client.CoreV1().Secrets(s.Namespace)
	_, err := secrets.Update(ctx, s, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(ctx, s, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing the Secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

func (m *Manager) deleteState(ctx context.Context, name string) error {
	err := m.o.Client.CoreV1().Secrets(compile.Account.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// sweep deletes saved orders that are not wanted any more, and those that have led to a certificate, since a renewal is
// another order. Failed orders stay until another attempt would be permitted. The caller holds mu.
func (m *Manager) sweep(ctx context.Context) {
	wanted, namespaces := make(map[string]compile.Order, len(m.orders)), map[string]bool{}
	for _, o := range m.orders {
		wanted[stateName(o.Secret)], namespaces[o.Secret.Namespace] = o, true
	}
	maps.DeleteFunc(m.begun, func(namespace string, _ uint64) bool { return !namespaces[namespace] })
	// a lister of a cache returns no error
	kept, _ := m.o.Secrets.Secrets(compile.Account.Namespace).List(labels.SelectorFromSet(labels.Set{orderLabel: "true"}))
	for _, s := range kept {
		o, ok := wanted[s.Name]
		if !ok {
			if p, err := readProgress(s); err == nil && time.Now().Before(p.Next) {
				continue
			}
		} else if m.running[o.Secret] || m.isDue(o) {
			continue
		}
		if err := m.deleteState(ctx, s.Name); err != nil && ctx.Err() == nil {
			m.o.Logger.Warn("acme: an order that nothing asks for cannot be deleted", "secret", s.Name, "for", s.Annotations[forAnnotation],
				"error", err)
		}
	}
}

// fingerprint returns the value of madeAnnotation for a chain in PEM.
func fingerprint(chain []byte) string {
	sum := sha256.Sum256(chain)
	return hex.EncodeToString(sum[:16])
}

// isOwned reports whether a Secret holds a certificate that this package wrote.
func isOwned(s *corev1.Secret) bool {
	for name := range s.Annotations {
		if strings.HasPrefix(name, foreignPrefix) {
			return false
		}
	}
	made := s.Annotations[madeAnnotation]
	return made != "" && made == fingerprint(s.Data[corev1.TLSCertKey])
}

// storedCertificate has the fields of a Secret's certificate that decide when it is renewed.
type storedCertificate struct {
	fingerprint string // madeAnnotation
	names       []string
	renew       time.Time
}

// readLeaf reads a Secret of this package. A certificate that cannot be read is renewed at once.
func readLeaf(s *corev1.Secret) storedCertificate {
	out := storedCertificate{fingerprint: s.Annotations[madeAnnotation]}
	block, _ := pem.Decode(s.Data[corev1.TLSCertKey])
	if block == nil {
		return out
	}
	if c, err := x509.ParseCertificate(block.Bytes); err == nil { // only the leaf: Go may not support the rest of the chain
		out.names, out.renew = c.DNSNames, renewalTime(c)
	}
	return out
}

func (l storedCertificate) covers(hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool { return !slices.Contains(l.names, h) })
}

// renewalTime returns when a certificate is renewed: when a third of its life is left, or up to a thirtieth of its life
// earlier. How much earlier follows from the certificate. All leaders thus compute the same time, and certificates
// issued at the same time are renewed at different times.
func renewalTime(c *x509.Certificate) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	sum := sha256.Sum256(c.Raw)
	part := float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32)
	return c.NotAfter.Add(-life/3 - time.Duration(part*float64(life/30)))
}

func newKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func writeKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("writing a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func readKey(text []byte) (crypto.Signer, error) {
	k, err := keyutil.ParsePrivateKeyPEM(text)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not of the type ECDSA")
	}
	return signer, nil
}
