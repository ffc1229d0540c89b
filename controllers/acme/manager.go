// SPDX-License-Identifier: Apache-2.0

// Package acme requests and renews certificates by ACME (RFC 8555) for Ingresses with the annotation
// kubernetes.io/tls-acme.
//
// It owns the account, the orders under way, and the Secrets that it made. It does not touch Secrets of another origin,
// or those that were changed since. All data of an order is in the store before the request to the authority, so that
// another leader can continue the order. Challenges are of the type HTTP-01, which nodes' proxies answer by the account
// alone (ingress/table.Challenges). An order begins when all nodes answer. The package does not decide which Ingresses
// are served.
//
// Its goroutines: one, asleep until a certificate is due; four attempts at a time, of ten minutes at most, with sixteen
// questions each.
package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// maxOrders is the greatest number of orders under way, and maxOrdersOfNamespace the same for one namespace.
	maxOrders, maxOrdersOfNamespace = 4, 3
	// newOrders is how many new orders of one namespace are begun within newOrdersTime: half of what Let's Encrypt
	// accepts of an account, which all namespaces share.
	newOrders, newOrdersTime = 150, 3 * time.Hour
	// attemptTimeout limits one attempt to get a certificate.
	attemptTimeout = 10 * time.Minute
	// cacheLag is the time that the caches may take to show a certificate that is in the store.
	cacheLag = time.Second
	// requestTimeout limits one request to the authority.
	requestTimeout = 30 * time.Second
	// idleConnections is the time for which a connection to the authority stays open without a request.
	idleConnections = 30 * time.Second
)

// Reasons of events.
const (
	// ReasonIssued says that a certificate was issued.
	ReasonIssued = "CertificateIssued"
	// ReasonFailed says why there is no certificate yet.
	ReasonFailed = "CertificateFailed"
)

// All fields of Options are required, except Roots, Built, Refuse, Transport, Part and Logger.
type Options struct {
	// Client reads and writes Secrets. Secrets and Slices are the term's caches.
	Client   kubernetes.Interface
	Secrets  corelisters.SecretLister
	Slices   discoverylisters.EndpointSliceLister
	Recorder record.EventRecorder
	// Email is the address for the authority's messages about the account. Directory is the URL of the authority's
	// directory.
	Email, Directory string
	// Roots are the authorities that may sign the directory's certificate. nil is for the machine's.
	Roots *x509.CertPool
	// Dial connects to an address of a node.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Built is the build time of this program: a clock that shows an earlier time is wrong. It is zero if unknown.
	Built time.Time
	// UserAgent is this program's name and version, for the authority.
	UserAgent string
	// Refuse reports addresses of the cluster, to which the authority may not make this server connect. nil is for
	// none. The directory's own host is exempt.
	Refuse func(netip.Addr) bool
	// Transport replaces HTTP in tests.
	Transport http.RoundTripper
	// Part is the status line.
	Part   *status.Part
	Logger *slog.Logger
}

// Manager requests and renews certificates for one term.
type Manager struct {
	o    Options
	http *http.Client
	wake timers.Signal // the orders or a Secret may have changed
	id   account

	mu          sync.Mutex
	ordersKnown bool // Want was called
	orders      []compile.Order
	running     map[types.NamespacedName]bool
	begun       map[string]uint64 // the number of attempts when each namespace last had a turn
	attempts    uint64
	tried       map[types.NamespacedName]*failedAttempts
	unsaved     map[types.NamespacedName]*progress         // orders whose last state could not be written
	shares      map[string]*rate.Limiter                   // of new orders, by namespace
	pausedUntil time.Time                                  // before that time the authority accepts no new order
	leaves      map[types.NamespacedName]storedCertificate // cache of read certificates, by Secret
}

// failedAttempts are the failed attempts of this term at one certificate.
type failedAttempts struct {
	failures    int
	nextAttempt time.Time
	problem     string // text of the last event
}

// New makes a Manager that does nothing before Run.
func New(o Options) *Manager {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Transport == nil {
		g := newGuard(o.Directory, o.Refuse)
		o.Transport = &http.Transport{
			Proxy: g.proxy, TLSClientConfig: &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			DialContext: g.dial, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: idleConnections,
		}
	}
	return &Manager{
		o: o, http: &http.Client{Transport: &boundedTransport{o.Transport}, Timeout: requestTimeout}, wake: timers.NewSignal(),
		running: map[types.NamespacedName]bool{}, begun: map[string]uint64{}, tried: map[types.NamespacedName]*failedAttempts{},
		unsaved: map[types.NamespacedName]*progress{}, shares: map[string]*rate.Limiter{},
		leaves: map[types.NamespacedName]storedCertificate{},
	}
}

// boundedTransport is an HTTP transport whose responses have maxResponse bytes at most, since the ACME client reads
// them to their end.
type boundedTransport struct{ http.RoundTripper }

// maxResponse is greater than a response for 100 hosts.
const maxResponse = 1 << 20

// RoundTrip implements http.RoundTripper.
func (b *boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxResponse)
	}
	return res, err
}

// CloseIdleConnections is called by http.Client.
func (b *boundedTransport) CloseIdleConnections() {
	if t, ok := b.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// Want sets the desired certificates. It has to be called again when they, or a Secret, may have changed.
func (m *Manager) Want(orders []compile.Order) {
	m.mu.Lock()
	m.orders, m.ordersKnown = orders, true
	m.mu.Unlock()
	m.wake.Send()
}

// Run works until ctx is done. It returns when no attempt is under way.
func (m *Manager) Run(ctx context.Context) {
	defer m.http.CloseIdleConnections()
	var attempts sync.WaitGroup
	defer attempts.Wait()
	m.wake.Rounds(ctx, 0, func() time.Duration {
		at := m.beginDueAttempts(ctx, &attempts)
		if at.IsZero() {
			return 0
		}
		return max(time.Until(at), time.Millisecond)
	})
}

// beginDueAttempts begins the attempts that are due. It returns the time of the next one; zero for never.
func (m *Manager) beginDueAttempts(ctx context.Context, attempts *sync.WaitGroup) (next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ordersKnown {
		return time.Time{}
	}
	m.sweep(ctx)
	now := time.Now()
	var ready []compile.Order
	for _, o := range m.orders {
		at, wanted := m.nextAttempt(o)
		if !wanted || m.running[o.Secret] {
			continue
		}
		if at.After(now) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		ready = append(ready, o)
	}
	for len(m.running) < maxOrders { // the end of an attempt wakes the loop
		i := m.nextOrder(ready)
		if i < 0 {
			break
		}
		o := ready[i]
		ready = slices.Delete(ready, i, i+1)
		m.attempts++
		m.running[o.Secret], m.begun[o.Secret.Namespace] = true, m.attempts
		attempts.Go(func() {
			defer m.wake.Send()
			m.makeAttempt(ctx, o)
		})
	}
	m.showStatus()
	return next
}

// nextOrder returns the index of the order to begin next, or -1. It takes one of the namespace whose last attempt began
// before those of the others. A namespace whose orders always fail thus does not block the certificates of others. The
// caller holds mu.
func (m *Manager) nextOrder(ready []compile.Order) int {
	running := map[string]int{}
	for name := range m.running {
		running[name.Namespace]++
	}
	out := -1
	for i, o := range ready {
		namespace := o.Secret.Namespace
		if running[namespace] < maxOrdersOfNamespace && (out < 0 || m.begun[namespace] < m.begun[ready[out].Secret.Namespace]) {
			out = i
		}
	}
	return out
}

// nextAttempt returns the time of the next attempt at a certificate, and whether one is wanted at all. The caller holds
// mu.
func (m *Manager) nextAttempt(o compile.Order) (at time.Time, wanted bool) {
	target, _ := m.o.Secrets.Secrets(o.Secret.Namespace).Get(o.Secret.Name) // nil where there is none
	if at, wanted = m.neededFrom(o, target); !wanted {
		return at, false
	}
	kept, err := m.o.Secrets.Secrets(compile.Account.Namespace).Get(stateName(o.Secret))
	if err == nil {
		if p, err := readProgress(kept); err == nil && slices.Equal(p.Hosts, o.Hosts) && p.Next.After(at) {
			at = p.Next
		}
	}
	if t := m.tried[o.Secret]; t != nil && t.nextAttempt.After(at) {
		at = t.nextAttempt
	}
	at = timers.Later(at, m.pausedUntil)
	if s, now := m.shares[o.Secret.Namespace], time.Now(); s != nil && s.TokensAt(now) < 1 {
		at = timers.Later(at, now.Add(time.Duration((1-s.TokensAt(now))*float64(newOrdersTime/newOrders))+time.Second))
	}
	return at, true
}

func (m *Manager) beginOrder(namespace string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.shares[namespace]
	if s == nil {
		s = rate.NewLimiter(rate.Every(newOrdersTime/newOrders), newOrders)
		m.shares[namespace] = s
	}
	s.Reserve() // attempts under way may go beyond the share
}

// neededFrom returns the time from which a new certificate is needed in place of the Secret's, and whether one is
// wanted at all. target may be nil. The caller holds mu.
func (m *Manager) neededFrom(o compile.Order, target *corev1.Secret) (from time.Time, wanted bool) {
	if len(o.Hosts) == 0 {
		return time.Time{}, false
	}
	if target == nil {
		return time.Time{}, true
	}
	if !isOwned(target) {
		return time.Time{}, false
	}
	l, ok := m.leaves[o.Secret]
	if !ok || l.fingerprint != target.Annotations[madeAnnotation] {
		l = readLeaf(target)
		m.leaves[o.Secret] = l
	}
	if !l.covers(o.Hosts) {
		return time.Time{}, true
	}
	return l.renew, true
}

// isDue reports whether a certificate is due for an order, without regard to earlier failures. The caller holds mu.
func (m *Manager) isDue(o compile.Order) bool {
	target, _ := m.o.Secrets.Secrets(o.Secret.Namespace).Get(o.Secret.Name) // nil where there is none
	from, wanted := m.neededFrom(o, target)
	return wanted && !from.After(time.Now())
}

// makeAttempt makes one attempt and records its result.
func (m *Manager) makeAttempt(ctx context.Context, o compile.Order) {
	limited, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	issued, err := m.attempt(limited, o)
	if err != nil && ctx.Err() == nil {
		m.failed(ctx, o, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, o.Secret)
	if err != nil {
		return
	}
	m.tried[o.Secret] = &failedAttempts{nextAttempt: time.Now().Add(cacheLag)}
	if issued != "" {
		m.o.Logger.Info("acme: a certificate has arrived", "secret", o.Secret.String(), "hosts", o.Hosts)
		for _, ing := range o.Ingresses {
			m.o.Recorder.Event(ing, corev1.EventTypeNormal, ReasonIssued, issued)
		}
	}
}

// failed records a failure: the time of the next attempt, and an event that says what to do. Refusals by the authority
// are recorded in the store, since they count against its limits.
func (m *Manager) failed(ctx context.Context, o compile.Order, err error) {
	now, v := time.Now(), classifyError(err)
	m.mu.Lock()
	t := m.tried[o.Secret]
	if t == nil {
		t = &failedAttempts{}
		m.tried[o.Secret] = t
	}
	t.failures++
	at := timers.Later(now.Add(shortBackoff(t.failures)), v.notBefore)
	if v.refused { // also where the store cannot be written
		at = now.Add(max(longBackoff(t.failures), v.wait))
	}
	if v.pauseOrders > 0 {
		m.pausedUntil = now.Add(v.pauseOrders)
	}
	m.mu.Unlock()
	if v.refused {
		next, saved := m.refused(ctx, o, v, now)
		if saved != nil {
			m.o.Logger.Warn("acme: that an order failed cannot be written down", "secret", o.Secret.String(), "error", saved)
		}
		at = timers.Later(at, next)
	}
	text := fmt.Sprintf("no certificate for the Secret %s yet: %s", o.Secret.Name, v.text)
	m.mu.Lock()
	t.nextAttempt = at
	news := t.problem != text || v.refused
	t.problem = text
	m.mu.Unlock()
	m.o.Logger.Warn("acme: a certificate could not be had; it is tried again", "secret", o.Secret.String(), "hosts", o.Hosts, "next",
		at.UTC(), "error", err)
	if !news {
		return
	}
	for _, ing := range o.Ingresses {
		m.o.Recorder.Eventf(ing, corev1.EventTypeWarning, ReasonFailed, "%s. It is tried again at %s", text, at.UTC().Format(time.RFC3339))
	}
}

// showStatus sets the status line: the number of certificates, and the problem of the first missing one. The caller
// holds mu.
func (m *Manager) showStatus() {
	missing, why := 0, ""
	for _, o := range m.orders {
		if !m.isDue(o) {
			continue
		}
		missing++
		if t := m.tried[o.Secret]; t != nil && why == "" {
			why = t.problem
		}
	}
	text := fmt.Sprintf("%d certificates", len(m.orders))
	switch {
	case missing == 0:
		m.o.Part.Set(status.Running, text)
	case why == "":
		m.o.Part.Set(status.Running, fmt.Sprintf("%s, of which %d are being ordered", text, missing))
	default:
		m.o.Part.Set(status.Degraded, fmt.Sprintf("%s, of which %d are missing or to be renewed: %s", text, missing, why))
	}
}

// errNoNode says that no node could answer a challenge.
var errNoNode = errors.New("no node serves Ingresses yet")

func hostsText(hosts []string) string {
	const shown = 3
	if len(hosts) <= shown {
		return strings.Join(hosts, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(hosts[:shown], ", "), len(hosts)-shown)
}
