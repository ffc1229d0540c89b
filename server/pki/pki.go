// SPDX-License-Identifier: Apache-2.0

// Package pki makes and keeps the cluster's certificate authorities, the key that signs ServiceAccount tokens and every
// leaf certificate that a server hands to itself or to its own node.
//
// There are five authorities, because a certificate must say no more than it was made for:
//
//   - server-ca signs what API servers show. It is what clients trust and what a join token pins.
//   - kubelet-ca signs what kubelets show. Only API servers trust it: whatever name or address a node has in its
//     certificate, it never passes for an API server.
//   - client-ca signs identities: user and group are in the subject. If it were also server-ca, a node that may ask for a
//     serving certificate would be one mistaken key usage away from being an administrator.
//   - request-header-ca signs only the aggregator's front proxy. A client with its certificate may name any user in a
//     header, so it must never sign anything else.
//   - peer-ca signs the servers themselves, towards one another. A client with its certificate can write to the store
//     past every check of the API server, so no node, user or listener is given one, and its key leaves a server only for
//     another server.
//
// The package owns the files in its folder. It never replaces or repairs an authority: everything in the cluster trusts
// those, so a damaged one is refused with words. A leaf is cheap and is replaced whenever it does not fit.
package pki

import (
	"cmp"
	"crypto"
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
)

const (
	// LeafLifetime is how long a leaf is valid; it is replaced when less than a third of that is left, which gives a
	// machine four months of being off or of having no disk space.
	LeafLifetime = 365 * 24 * time.Hour
	renewBefore  = LeafLifetime / 3

	// CALifetime is longer than the ten years others choose: boards in the field outlive that, and an authority that
	// runs out takes every node with it.
	CALifetime = 20 * 365 * 24 * time.Hour

	// A clock that a peer finds an hour ahead of its own must not make a fresh certificate "not yet valid".
	backdate = time.Hour

	// checkEvery is how often dates are compared in memory, so that a clock that jumps by years (a board without a
	// battery getting its time from the network) is noticed; rereadEvery is how often files are read again.
	checkEvery  = time.Minute
	rereadEvery = 24 * time.Hour
)

// ServiceAccountKey is the name of the file with the key that signs ServiceAccount tokens.
const ServiceAccountKey = "service-account.key"

// defaultFloor is a time that no right clock shows any more. It stands in where the build did not record its date.
var defaultFloor = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// epoch is where the clock of a board without a battery starts. Authorities, and leaves made under such a clock, are
// valid from here on: a verifier compares with its own clock, and that may be just as wrong.
var epoch = time.Unix(0, 0).UTC()

// Options says where the authorities live and what time it is.
type Options struct {
	// Dir holds the authorities and the server's own leaves; it is made (mode 0700) when missing.
	Dir string
	// Established says that this cluster has data. Its authorities must then be there: a new one would lock out every
	// node, token and kubeconfig, so a missing file is an error and not a reason to make another.
	Established bool
	// BuildTime is a time the clock cannot honestly be before; zero means the package's own.
	BuildTime time.Time
	// Clock is the time; nil means the machine's.
	Clock clock.WithTicker
	// Logger says what was issued and why; nil means slog's default.
	Logger *slog.Logger
}

// PKI holds the loaded authorities and the leaves it keeps fresh.
type PKI struct {
	dir     string
	clock   clock.WithTicker
	floor   time.Time
	log     *slog.Logger
	server  *authority
	client  *authority
	header  *authority
	peer    *authority
	kubelet *authority
	sa      crypto.Signer
	serving atomic.Pointer[tls.Certificate]

	mu     sync.Mutex // guards leaves, and one issue at a time
	leaves []*managedLeaf
}

// Open loads the authorities from the folder, or makes them when the cluster is new. Files that an operator put there
// before the first start are used as they are.
func Open(o Options) (*PKI, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.BuildTime.IsZero() {
		o.BuildTime = defaultFloor
	}
	p := &PKI{dir: o.Dir, clock: o.Clock, floor: o.BuildTime.UTC(), log: o.Logger}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for certificates: %w", err)
	}
	if now := p.now(); now.Before(p.floor) {
		p.log.Warn("this machine's clock is wrong: it is before this program was built. Certificates are dated so that "+
			"they work now and after the clock is set; set it soon (NTP)", "clock", now, "built", p.floor)
	}
	var errs [6]error
	p.server, errs[0] = p.loadOrCreateAuthority(ServerCA, o.Established)
	p.client, errs[1] = p.loadOrCreateAuthority(ClientCA, o.Established)
	p.header, errs[2] = p.loadOrCreateAuthority(RequestHeaderCA, o.Established)
	p.peer, errs[3] = p.loadOrCreateAuthority(PeerCA, o.Established)
	p.kubelet, errs[4] = p.loadOrCreateAuthority(KubeletCA, o.Established)
	p.sa, errs[5] = p.loadOrCreateServiceAccountKey(o.Established)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if err := p.checkKubeletCA(); err != nil {
		return nil, err
	}
	if err := p.restrictCertificateModes(); err != nil {
		return nil, err
	}
	for _, s := range []Signer{ServerCA, ClientCA, RequestHeaderCA, KubeletCA} {
		if samePublicKey(p.authority(s).key.Public(), p.peer.key.Public()) {
			return nil, fmt.Errorf("%s and %s have the same key: a holder of a certificate of the one could open the store's connections "+
				"between servers. Nothing was changed: put another pair in place of the latter, or remove it before the first start",
				p.CAFile(s), p.CAFile(PeerCA))
		}
	}
	return p, nil
}

// Dir is the folder given to Open.
func (p *PKI) Dir() string { return p.dir }

// CAFile is the certificate file of an authority, for those who verify.
func (p *PKI) CAFile(s Signer) string { return filepath.Join(p.dir, string(s)+".crt") }

// CAKeyFile is the key file of an authority, for the controllers that sign requests.
func (p *PKI) CAKeyFile(s Signer) string { return filepath.Join(p.dir, string(s)+".key") }

// ServiceAccountKeyFile holds the key that signs ServiceAccount tokens; verifiers read its public half from it too.
func (p *PKI) ServiceAccountKeyFile() string { return filepath.Join(p.dir, ServiceAccountKey) }

// Root is the certificate a join token pins: the last of server-ca's chain, so that an intermediate may be replaced.
func (p *PKI) Root() *x509.Certificate { return p.server.root() }

// CAPEM is the certificate chain of an authority, to be embedded in a kubeconfig.
func (p *PKI) CAPEM(s Signer) []byte { return p.authority(s).pem }

func (p *PKI) authority(s Signer) *authority {
	switch s {
	case ServerCA:
		return p.server
	case ClientCA:
		return p.client
	case RequestHeaderCA:
		return p.header
	case PeerCA:
		return p.peer
	case KubeletCA:
		return p.kubelet
	}
	panic("pki: unknown signer " + string(s))
}

// now drops the monotonic reading: dates are compared with the wall clock, which may jump.
func (p *PKI) now() time.Time { return p.clock.Now().Round(0).UTC() }

// clockIsWrong says whether the clock shows a time before this program existed.
func (p *PKI) clockIsWrong() bool { return p.now().Before(p.floor) }
