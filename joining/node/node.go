// SPDX-License-Identifier: Apache-2.0

// Package node makes a machine without a server a node of a cluster, and renews the credentials for that
// (joining/protocol is the protocol).
//
// It owns the node's credentials on such a machine (internal/nodecreds names the files), the node's password, and the
// cluster's settings from a server's last response: if no server replies at a start, the machine uses those. Keys are
// made here and never leave the machine.
package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/certend"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
)

const (
	// firstPause and maxPause are the shortest and longest pause between requests without a response.
	firstPause, maxPause = time.Second, 15 * time.Second
	// dateCheck is the interval of checks of the certificates' dates: the clock may be set. newsCheck is the interval
	// of requests by a machine that has had no response since it started, and of those that fail.
	dateCheck, newsCheck = time.Minute, time.Minute
	// renewPause is the longest pause between requests while new certificates do not last.
	renewPause = time.Hour
	// A certificate is renewed when less than this fraction of its life is left, as on a server (pki.LeafLifetime).
	renewPart = 3
	// dialTimeout limits how long a server may take to accept a connection.
	dialTimeout = 2 * time.Second
	// atStart limits how long a machine that has joined before asks for news. Then it starts with the stored settings.
	atStart = 5 * time.Second
)

// All fields of Options are required, except Others, Search, External, Restart, Part, Logger and Now.
type Options struct {
	// Dir is the folder of the credentials. StateDir is the folder of password and settings.
	Dir, StateDir string
	// Server is one of the cluster's servers. Others, when set, lists more, as host:port.
	Server *url.URL
	Others func() []string
	// Search, when set, is called when no server replies. It searches for servers with other addresses, with the gossip
	// keys of an earlier run, and adds them to Others.
	Search func(ctx context.Context, keys clusterconfig.GossipKeys)
	// API is the URL at which the node's parts reach the API server.
	API string
	// Token is the operator's value of --token.
	Token string
	// NodeName and Addresses are this machine's.
	NodeName  string
	Addresses []netip.Addr
	// External are further addresses at which it is reached.
	External []netip.Addr
	// Program is this program's version.
	Program string
	Now     func() time.Time
	// Restart, when set, is called by Run when the servers have renewed authorities: clients that the node's parts have
	// made trust the former certificates alone. Run then returns.
	Restart func()
	// Part is the line of the certificates in status.
	Part   *status.Part
	Logger *slog.Logger
}

// Node has the credentials and settings of a machine that has joined a cluster, and renews them.
type Node struct {
	o     Options
	token token.Token
	// Credentials names the files of the credentials. Settings are the cluster's.
	Credentials nodecreds.Files
	Settings    clusterconfig.Settings
	// Level is the cluster's level at this start: by a server's response, or by the last one of an earlier run.
	Level int
	// noReply means that no server has replied in this run. authoritiesRenewed means that a response had other
	// certificates of authorities than this machine had.
	noReply, authoritiesRenewed bool

	mu     sync.Mutex // guards gossip and the state file
	gossip clusterconfig.GossipKeys
}

// state is the part of the last response that is kept in a file.
type state struct {
	// Node and Addresses are in the certificates.
	Node      string                 `json:"node"`
	Addresses []netip.Addr           `json:"addresses"`
	External  []netip.Addr           `json:"external,omitempty"`
	Settings  clusterconfig.Settings `json:"settings"`
	// Level is the cluster's, 0 for the first one.
	Level int `json:"level,omitempty"`
	// Gossip is empty if the server was of an earlier version.
	Gossip clusterconfig.GossipKeys `json:"gossip,omitzero"`
}

// Join makes this machine a node. It asks until a server replies. It returns an error for a refusal that does not end
// by itself. A machine that has joined before needs no server's response as long as its certificates are valid.
func Join(ctx context.Context, o Options) (*Node, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	n := &Node{o: o, Credentials: nodecreds.In(o.Dir)}
	o.Part.Set(status.Waiting, "")
	var err error
	if n.token, err = token.Parse(o.Token); err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	if n.token.Role == token.RoleServer {
		return nil, errors.New("--token: this is the token for servers, with which a machine gets the cluster's keys; it was not sent. " +
			"A node joins with the one for agents: `coracle token print` on a server shows it")
	}
	if !n.loadState() || n.updateServer() != nil { // a response provides all that is missing
		return n, n.joinUntilAccepted(ctx)
	}
	err = n.joinWithin(ctx, atStart)
	var refusal *protocol.Refusal
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil:
	case errors.As(err, &refusal) && !refusal.Passing() && refusal.Code != protocol.CodeClock:
		return nil, fmt.Errorf("the cluster at %s no longer accepts this machine as the node %s: %w", o.Server.Host, o.NodeName, err)
	default:
		n.noReply = true
		o.Logger.Warn("the cluster cannot be asked for its settings; the node starts with those it received last", "server", o.Server.Host, "reason", err)
	}
	return n, nil
}

// updateServer writes the given address of the API to the credentials: it may have changed.
func (n *Node) updateServer() error {
	serverCA, err := os.ReadFile(n.Credentials.ServerCAFile)
	if err != nil {
		return err
	}
	clientCA, err := os.ReadFile(n.Credentials.ClientCAFile)
	if err != nil {
		return err
	}
	return n.Credentials.Publish(nodecreds.Cluster{URL: n.o.API, ServerCA: serverCA, ClientCA: clientCA})
}

// joinWithin asks once and waits at most timeout for the response.
func (n *Node) joinWithin(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return n.joinOnce(ctx)
}

// joinUntilAccepted asks until there is a final response.
func (n *Node) joinUntilAccepted(ctx context.Context) error {
	last := ""
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := n.joinOnce(ctx)
		var refusal *protocol.Refusal
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, protocol.ErrUnreachable):
		case errors.As(err, &refusal) && refusal.Passing():
		case refusal == nil && len(n.GossipKeys().Keys) > 0: // it has joined before: another machine may have the server's address by now
		default:
			return fmt.Errorf("joining the cluster at %s: %w", n.o.Server.Host, err)
		}
		if refusal == nil && n.o.Search != nil && len(n.GossipKeys().Keys) > 0 {
			n.o.Search(ctx, n.GossipKeys())
		}
		if text := err.Error(); text != last {
			last = text
			n.o.Logger.Warn("the node cannot join yet; retrying", "server", n.o.Server.Host, "reason", text)
		}
		if !timers.Sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// joinOnce asks a server once and stores the response. A machine with a node's certificate presents that first: tokens
// expire, and nodes stay.
func (n *Node) joinOnce(ctx context.Context) error {
	password, err := Password(n.o.StateDir)
	if err != nil {
		return err
	}
	keys := &keys{}
	q := protocol.Call{
		Dialer: net.Dialer{Timeout: dialTimeout},
		Request: protocol.Request{
			Role: token.RoleAgent, Program: n.o.Program, Time: n.o.Now(),
			Node: protocol.Node{
				Name: n.o.NodeName, Addresses: n.o.Addresses, External: n.o.External, Password: password,
				KubeletRequest: keys.request(), ServingRequest: keys.request(), NetworkRequest: keys.request(),
			},
		},
	}
	if keys.err != nil {
		return fmt.Errorf("making keys for the node: %w", keys.err)
	}
	var errs []error
	for _, q.Address = range n.servers() {
		a, err := n.sendWithIdentity(ctx, q)
		if err == nil {
			return n.saveResponse(a, keys)
		}
		var refusal *protocol.Refusal
		if errors.As(err, &refusal) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err) // another address may be a server's
	}
	return errors.Join(errs...)
}

// servers returns the servers to ask, the one that was named first.
func (n *Node) servers() []string {
	out := []string{n.o.Server.Host}
	if n.o.Others == nil {
		return out
	}
	for _, s := range n.o.Others() {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (n *Node) sendWithIdentity(ctx context.Context, q protocol.Call) (*protocol.Response, error) {
	if pair, root := n.identity(); pair != nil {
		q.Certificate, q.Root = pair, root
		a, err := protocol.Send(ctx, q)
		var refusal *protocol.Refusal
		if err == nil || !errors.As(err, &refusal) || refusal.Code != protocol.CodeCertificate {
			return a, err
		}
		n.o.Logger.Info("the node's certificate was rejected; joining with its token", "reason", refusal.Message)
		q.Certificate, q.Root = nil, nil
	}
	q.Token = n.token
	return protocol.Send(ctx, q)
}

// identity returns the node's certificate and the root of its cluster. It returns nil if there are none, or the token
// is of another cluster.
func (n *Node) identity() (*tls.Certificate, *x509.Certificate) {
	pair, err := tls.LoadX509KeyPair(n.Credentials.KubeletPair, n.Credentials.KubeletPair)
	if err != nil || n.o.Now().After(pair.Leaf.NotAfter) {
		return nil, nil
	}
	chain, err := cert.CertsFromFile(n.Credentials.ServerCAFile)
	if err != nil || n.token.VerifyCA(chain[len(chain)-1]) != nil {
		return nil, nil
	}
	return &pair, chain[len(chain)-1]
}

// saveResponse stores a response. It stores the settings last: once they exist, everything does. Before it stores
// credentials of another cluster it removes the state of the old one.
func (n *Node) saveResponse(a *protocol.Response, k *keys) error {
	if err := a.CheckLevel(); err != nil {
		return err
	}
	if err := a.Settings.Validate(); err != nil {
		return fmt.Errorf("the cluster's settings as the server gave them: %w", err)
	}
	f, serverCA, clientCA := n.Credentials, a.ServerCA, a.ClientCA
	if have, err := os.ReadFile(f.ServerCAFile); err == nil {
		if !sameCluster(have, serverCA) {
			if err := os.Remove(n.stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("leaving another cluster: %w", err)
			}
		}
		serverCA = certend.Later(have, serverCA) // this server may not have the renewed one yet
		n.authoritiesRenewed = n.authoritiesRenewed || !bytes.Equal(have, serverCA)
	}
	if have, err := os.ReadFile(f.ClientCAFile); err == nil {
		clientCA = certend.Later(have, clientCA)
		n.authoritiesRenewed = n.authoritiesRenewed || !bytes.Equal(have, clientCA)
	}
	if err := f.Publish(nodecreds.Cluster{URL: n.o.API, ServerCA: serverCA, ClientCA: clientCA}); err != nil {
		return err
	}
	for i, c := range []struct {
		path  string
		chain []byte
	}{{f.KubeletPair, a.Kubelet}, {f.KubeletServing, a.Serving}, {f.NetworkPair, a.Network}} {
		both := slices.Concat(c.chain, k.pem[i])
		pair, err := tls.X509KeyPair(both, both)
		if err != nil {
			return fmt.Errorf("the server's certificate for %s cannot be used: %w", filepath.Base(c.path), err)
		}
		if have, err := tls.LoadX509KeyPair(c.path, c.path); err == nil && sameButDates(&have, &pair) && !n.dueFor(&have, &pair) {
			continue // nothing new: a start writes nothing
		}
		if err := atomicfile.Write(c.path, both, 0o600); err != nil {
			return err
		}
	}
	if err := n.useGossipKeys(a.Gossip); err != nil {
		return err
	}
	n.mu.Lock()
	n.Settings, n.Level = a.Settings, max(a.Level, level.First)
	n.mu.Unlock()
	return n.writeState()
}

// sameCluster reports whether two chains of server-ca end with the same certificate, which names the cluster.
func sameCluster(a, b []byte) bool {
	x, errX := cert.ParseCertsPEM(a)
	y, errY := cert.ParseCertsPEM(b)
	return errX == nil && errY == nil && x[len(x)-1].Equal(y[len(y)-1])
}

// loadState reads what an earlier run has stored, and returns whether the node can start with that.
func (n *Node) loadState() bool {
	var s state
	if found, _ := atomicfile.ReadJSON(n.stateFile(), &s); !found {
		return false
	}
	n.gossip = s.Gossip // needed to search for the servers, whatever else has changed
	if s.Settings.Validate() != nil || s.Node != n.o.NodeName || !slices.Equal(s.Addresses, n.o.Addresses) ||
		!slices.Equal(s.External, n.o.External) {
		return false
	}
	for _, path := range n.pairFiles() {
		pair, err := tls.LoadX509KeyPair(path, path)
		if err != nil || n.o.Now().After(pair.Leaf.NotAfter) {
			return false
		}
	}
	if pair, _ := n.identity(); pair == nil {
		return false // the token is of another cluster
	}
	if s.Level = max(s.Level, level.First); !level.Known(s.Level) {
		n.o.Logger.Warn("the cluster had a level that this coracle does not know when this node last asked; it waits for a server", "level",
			s.Level, "oldest", level.Oldest(), "newest", level.Newest())
		return false // the cluster may have another level by now; a server refuses this program otherwise
	}
	n.Settings, n.Level, n.gossip = s.Settings, s.Level, s.Gossip
	return true
}

// Run renews the certificates until ctx is done.
func (n *Node) Run(ctx context.Context) error {
	last, soon := "", firstPause
	n.authoritiesRenewed = false // the node's parts have not started before
	var failed error
	for {
		n.showCertificates(failed)
		pause := n.untilEnd(timers.Until(dateCheck))
		switch {
		case n.noReply:
			pause = newsCheck
		case n.renewalDue(): // repeatedly if new certificates do not last: the server's authority expires
			if pause, soon = soon, min(2*soon, renewPause); n.certificateExpired() {
				pause = min(pause, newsCheck)
			}
		default:
			soon = firstPause
		}
		if !timers.Sleep(ctx, pause) {
			return nil
		}
		if !n.noReply && !n.renewalDue() {
			continue
		}
		failed = n.joinOnce(ctx)
		switch err := failed; {
		case err == nil && n.authoritiesRenewed && n.o.Restart != nil:
			n.o.Logger.Info("the servers have renewed authorities; the node's parts start again with their certificates")
			n.o.Restart()
			return nil
		case err == nil:
			n.noReply, last = false, ""
		case ctx.Err() == nil && !n.noReply:
			soon = min(soon, newsCheck)
			if err.Error() != last {
				last = err.Error()
				n.o.Logger.Warn("the node's certificates could not be renewed; retrying within a minute", "error", err)
			}
		}
	}
}

// renewalDue reports whether a certificate should be renewed. All have the same age, unless writing one of them failed.
// It also reports true shortly before an authority expires: the servers may have renewed it.
func (n *Node) renewalDue() bool {
	return len(certend.Ending(n.authorities(), n.o.Now())) > 0 || slices.ContainsFunc(n.pairFiles(), func(path string) bool {
		pair, err := tls.LoadX509KeyPair(path, path)
		return err != nil || n.dueFor(&pair, &pair)
	})
}

// dueFor reports whether a certificate should be renewed, when next is what a server gives. One of the future was made
// while a clock was ahead. One that does not name its machine is from a server of an earlier version. After the renewal
// of an authority the next one lives longer.
func (n *Node) dueFor(have, next *tls.Certificate) bool {
	now, life := n.o.Now(), next.Leaf.NotAfter.Sub(next.Leaf.NotBefore)
	if slices.Contains(have.Leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && nodecreds.IdentityOf(have.Leaf).Node == "" {
		return true
	}
	return now.Before(have.Leaf.NotBefore) || have.Leaf.NotAfter.Sub(now) < life/renewPart
}

// sameButDates reports whether a new certificate has the same content as the existing one, except dates and keys, and
// the same authority.
func sameButDates(have, next *tls.Certificate) bool {
	a, b := have.Leaf, next.Leaf
	names := nodecreds.IdentityOf(b) // a server of an earlier version names no machine, which is nothing new
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawIssuer, b.RawIssuer) &&
		bytes.Equal(a.AuthorityKeyId, b.AuthorityKeyId) &&
		slices.Equal(a.DNSNames, b.DNSNames) && slices.EqualFunc(a.IPAddresses, b.IPAddresses, net.IP.Equal) &&
		slices.Equal(a.ExtKeyUsage, b.ExtKeyUsage) && (names.Node == "" || nodecreds.IdentityOf(a) == names) &&
		slices.EqualFunc(have.Certificate[1:], next.Certificate[1:], bytes.Equal)
}

// pairFiles returns the paths of the files with the node's certificates and their keys.
func (n *Node) pairFiles() []string {
	return []string{n.Credentials.KubeletPair, n.Credentials.KubeletServing, n.Credentials.NetworkPair}
}

func (n *Node) stateFile() string { return filepath.Join(n.o.StateDir, "cluster.json") }

// Password returns the password of the node with that state folder. It makes one when there is none.
func Password(stateDir string) (string, error) {
	path := filepath.Join(stateDir, "node-password")
	data, err := os.ReadFile(path)
	if have := strings.TrimSpace(string(data)); err == nil && have != "" {
		return have, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the node's password: %w", err)
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("making the node's password: %w", err)
	}
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return "", fmt.Errorf("making the folder for the node's password: %w", err)
	}
	made := hex.EncodeToString(secret)
	return made, atomicfile.Write(path, []byte(made+"\n"), 0o600)
}

// keys are new keys, in the order of the certificate requests.
type keys struct {
	pem [][]byte
	err error
}

// request makes a key and the certificate request for it.
func (k *keys) request() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		k.err = errors.Join(k.err, err)
		return nil
	}
	der, err := x509.MarshalECPrivateKey(key)
	k.err = errors.Join(k.err, err)
	k.pem = append(k.pem, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "coracle"}}, key)
	k.err = errors.Join(k.err, err)
	return request
}
