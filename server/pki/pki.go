// SPDX-License-Identifier: Apache-2.0

// Package pki makes and stores the cluster's certificate authorities (CAs), the key that signs ServiceAccount tokens,
// and all leaf certificates that a server makes for itself or its own node.
//
// There are five CAs, because a certificate must not be accepted for another purpose than its own:
//
//   - server-ca signs API servers' serving certificates. Clients trust it, and a join token pins it.
//   - kubelet-ca signs kubelets' serving certificates. Only API servers trust it: whatever name or address a node has
//     in its certificate, it never passes for an API server.
//   - client-ca signs client certificates, with user and group in the subject. If it were also server-ca, a node that
//     may request a serving certificate would be one mistaken key usage away from being an administrator.
//   - request-header-ca signs only the aggregator's front proxy. A client with its certificate may name any user in a
//     header, so it must never sign anything else.
//   - peer-ca signs the servers' certificates for one another. A client with such a certificate can write to the store
//     past every check of the API server. So no node, user or listener gets one, and its key leaves a server only for
//     another server.
//
// The package owns the files in its folder. It never replaces or repairs a CA, since everything in the cluster trusts
// it: a damaged one is an error. An operator may put a new certificate of the same key in place of a CA's. A leaf is
// replaced whenever it does not fit.
package pki

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/certend"
)

const (
	// LeafLifetime is how long a leaf is valid. renewBefore is the remaining time from which on it is replaced: a
	// machine may be off, or its disk full, for four months.
	LeafLifetime = 365 * 24 * time.Hour
	renewBefore  = LeafLifetime / 3

	// CALifetime is longer than the usual ten years: boards in the field outlive those, and an expired CA disables
	// every node.
	CALifetime = 20 * 365 * 24 * time.Hour

	// Backdate makes a fresh certificate valid for a peer whose clock is up to an hour behind this one.
	Backdate = time.Hour

	// checkEvery is how often dates are compared in memory, to notice a clock that jumps by years (a board without a
	// battery that gets its time from the network). rereadEvery is how often files are read again.
	checkEvery  = time.Minute
	rereadEvery = 24 * time.Hour
)

// ServiceAccountKey is the name of the file with the key that signs ServiceAccount tokens.
const ServiceAccountKey = "service-account.key"

// defaultFloor is a time before which no correct clock can be. It is used if the build did not record its date.
var defaultFloor = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// epoch is where the clock of a board without a battery starts. CAs, and leaves made with such a clock, are valid from
// epoch on: a verifier uses its own clock, which may be just as wrong.
var epoch = time.Unix(0, 0).UTC()

// Options are Open's parameters.
type Options struct {
	// Dir contains the CAs and the server's own leaves. It is made (mode 0700) when missing.
	Dir string
	// Established says that this cluster has data. A missing CA is then an error: a new one would lock out every node,
	// token and kubeconfig.
	Established bool
	// BuildTime is a time before which the clock is certainly wrong. Zero means defaultFloor.
	BuildTime time.Time
	// Clock is the clock for dates. Nil means the machine's.
	Clock clock.WithTicker
	// Logger logs which certificates were issued, and why. Nil means slog's default.
	Logger *slog.Logger
}

// PKI holds the loaded CAs and the leaves that it renews.
type PKI struct {
	dir         string
	clock       clock.WithTicker
	floor       time.Time
	log         *slog.Logger
	authorities map[Signer]*authority // Open sets it
	root        *x509.Certificate     // names the cluster (Root)
	serving     atomic.Pointer[tls.Certificate]

	mu     sync.Mutex // guards leaves, and one issue at a time
	leaves []*managedLeaf
}

// Open loads the CAs from the folder, or makes them when the cluster is new. It uses files that an operator put there
// before the first start.
func Open(o Options) (*PKI, error) {
	o.Clock = cmp.Or[clock.WithTicker](o.Clock, clock.RealClock{})
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.BuildTime.IsZero() {
		o.BuildTime = defaultFloor
	}
	p := &PKI{dir: o.Dir, clock: o.Clock, floor: o.BuildTime.UTC(), log: o.Logger, authorities: map[Signer]*authority{}}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for certificates: %w", err)
	}
	if now := p.now(); now.Before(p.floor) {
		p.log.Warn("this machine's clock is wrong: it is before this program was built. Certificates are dated so that "+
			"they work now and after the clock is set; set it soon (NTP)", "clock", now, "built", p.floor)
	}
	var errs []error
	for _, s := range Signers() {
		a, err := p.loadOrCreateAuthority(s, o.Established)
		p.authorities[s], errs = a, append(errs, err)
	}
	if err := errors.Join(append(errs, p.ensureServiceAccountKey(o.Established))...); err != nil {
		return nil, err
	}
	if err := p.readRoot(); err != nil {
		return nil, err
	}
	if err := p.checkKubeletCA(); err != nil {
		return nil, err
	}
	if err := p.restrictCertificateModes(); err != nil {
		return nil, err
	}
	for _, s := range []Signer{ServerCA, ClientCA, RequestHeaderCA, KubeletCA} {
		if certend.SameKey(p.authority(s).key.Public(), p.authority(PeerCA).key.Public()) {
			return nil, fmt.Errorf("%s and %s have the same key: a holder of a certificate of the one could open the store's connections "+
				"between servers. Nothing was changed: put another pair in place of the latter, or remove it before the first start",
				p.CAFile(s), p.CAFile(PeerCA))
		}
	}
	return p, nil
}

// Dir returns the folder given to Open.
func (p *PKI) Dir() string { return p.dir }

// CAFile returns the path of a CA's certificate, for verifiers.
func (p *PKI) CAFile(s Signer) string { return filepath.Join(p.dir, string(s)+".crt") }

// CAKeyFile returns the path of a CA's key, for the controllers that sign requests.
func (p *PKI) CAKeyFile(s Signer) string { return filepath.Join(p.dir, string(s)+".key") }

// ServiceAccountKeyFile returns the path of the key that signs ServiceAccount tokens. Verifiers read its public half.
func (p *PKI) ServiceAccountKeyFile() string { return filepath.Join(p.dir, ServiceAccountKey) }

// CAPEM returns the certificate chain of a CA, to be embedded in a kubeconfig.
func (p *PKI) CAPEM(s Signer) []byte { return p.authority(s).pem }

func (p *PKI) authority(s Signer) *authority { return p.authorities[s] }

// now drops the monotonic reading: dates are compared with the wall clock, which may jump.
func (p *PKI) now() time.Time { return p.clock.Now().Round(0).UTC() }

// clockIsWrong says whether the clock is at a time before this program was built.
func (p *PKI) clockIsWrong() bool { return p.now().Before(p.floor) }
