// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	storagev1client "k8s.io/client-go/kubernetes/typed/storage/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/agent/tunnels"
	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/version"
	joiningnode "github.com/coracle-k8s/coracle/joining/node"
)

const (
	retryAfter = time.Second
	// followEvery is how often an agent's balancer asks for the servers (agent/balancer).
	followEvery = 30 * time.Second
	// An HTTP/2 connection on which nothing comes is asked whether it works, as client-go does it.
	askIdle, askPatience = 30 * time.Second, 15 * time.Second
)

// node is one of a fleet's.
type node struct {
	f      *fleet
	number int
	name   string
	ip     netip.Addr
	server string // whose API it uses

	serving          atomic.Pointer[tls.Certificate]
	joined           *joiningnode.Node
	kubelet, network *http.Client // the identities, each with its connection
	core             corev1client.CoreV1Interface
	leases           coordinationclient.CoordinationV1Interface
	storage          storagev1client.StorageV1Interface

	subnet     netip.Prefix // of its pods
	uid        string
	pods       map[string]bool // UIDs of those that were begun, true when they are being ended; for the goroutine of the pods
	configMaps map[string]bool // namespaces whose authority is watched; likewise
	addresses  int             // that pods have had
}

// again does something until it succeeds or ctx is done.
func (n *node) again(ctx context.Context, what string, do func(context.Context) error) {
	for {
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		n.f.complain(n.name+": "+what, err)
		pause(ctx, retryAfter)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// join makes it a node of the cluster that is Ready, a member, and connected to all servers. What it begins goes on
// until ctx is done.
func (n *node) join(ctx context.Context) error {
	dir := filepath.Join(folder, n.name)
	if n.joined == nil {
		through, stop, err := relay(n.ip, n.server)
		if err != nil {
			return err
		}
		joined, err := joiningnode.Join(ctx, joiningnode.Options{
			Dir: filepath.Join(dir, "cred"), StateDir: dir, Server: &url.URL{Scheme: "https", Host: through}, API: "https://" + n.server, Token: n.f.o.Token,
			NodeName: n.name, Addresses: []netip.Addr{n.ip}, Program: version.Get().Coracle, Logger: slog.New(slog.DiscardHandler),
		})
		stop()
		if err != nil {
			return err
		}
		if err := n.clients(joined); err != nil {
			return err
		}
		n.joined = joined
		n.f.running.Go(func() {
			tunnels.Run(ctx, tunnels.Options{
				Servers: func() []string { return n.f.o.Servers }, NodePair: joined.Credentials.KubeletPair, ServerCAFile: joined.Credentials.ServerCAFile,
				NodeIPs: []netip.Addr{n.ip}, Until: n.until(), Logger: slog.New(slog.DiscardHandler),
			})
		})
	}
	if err := n.register(ctx); err != nil {
		return err
	}
	if n.number < n.f.o.Members {
		member, err := n.member()
		if err != nil {
			return err
		}
		n.f.running.Go(func() {
			if err := member.Run(ctx); err != nil && ctx.Err() == nil {
				n.f.complain(n.name+": gossip", err)
			}
		})
	}
	n.f.running.Go(func() { n.keepLease(ctx) })
	n.f.running.Go(func() { n.keepStatus(ctx) })
	return nil
}

// until says how long it is until the next moment of a period, from a moment on that is this node's alone: real nodes
// are processes of their own, which do nothing at the same moment.
func (n *node) until() func(period time.Duration) time.Duration {
	began := time.Now().Add(-time.Duration(rand.Int64N(int64(time.Hour))))
	return func(period time.Duration) time.Duration { return period - time.Since(began)%period }
}

// clients makes the clients of both identities.
func (n *node) clients(joined *joiningnode.Node) error {
	c := joined.Credentials
	serving, err := tls.LoadX509KeyPair(c.KubeletServing, c.KubeletServing)
	if err != nil {
		return err
	}
	roots, err := pool(c.ServerCAFile)
	if err != nil {
		return err
	}
	if n.kubelet, err = n.client(c.KubeletPair, roots); err != nil {
		return err
	}
	if n.network, err = n.client(c.NetworkPair, roots); err != nil {
		return err
	}
	config := &rest.Config{Host: "https://" + n.server, QPS: -1, ContentConfig: rest.ContentConfig{
		ContentType: runtime.ContentTypeProtobuf, AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON}}
	if n.core, err = corev1client.NewForConfigAndClient(config, n.kubelet); err != nil {
		return err
	}
	if n.leases, err = coordinationclient.NewForConfigAndClient(config, n.kubelet); err != nil {
		return err
	}
	if n.storage, err = storagev1client.NewForConfigAndClient(config, n.kubelet); err != nil {
		return err
	}
	n.serving.Store(&serving)
	return nil
}

// client makes one with a connection of its own, from the node's address.
func (n *node) client(pairFile string, roots *x509.CertPool) (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(pairFile, pairFile)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: n.ip.AsSlice()}, Timeout: 30 * time.Second}
	return &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{SendPingTimeout: askIdle, PingTimeout: askPatience},
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}},
	}}, nil
}

func pool(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return p, nil
}

// member makes it one of the gossip, at its own address.
func (n *node) member() (*gossip.Member, error) {
	at := netip.AddrPortFrom(n.ip, clusterPort)
	credentials := n.joined.Credentials
	pair, err := tls.LoadX509KeyPair(credentials.KubeletPair, credentials.KubeletPair)
	if err != nil {
		return nil, err
	}
	trust := gossip.Trust{Own: func() (*tls.Certificate, error) { return &pair, nil }}
	if trust.ServerCA, err = pool(credentials.ServerCAFile); err != nil {
		return nil, err
	}
	if trust.ClientCA, err = pool(credentials.ClientCAFile); err != nil {
		return nil, err
	}
	streams, err := net.Listen("tcp4", at.String())
	if err != nil {
		return nil, err
	}
	packets, err := net.ListenPacket("udp4", at.String())
	if err != nil {
		_ = streams.Close()
		return nil, err
	}
	var servers []netip.AddrPort
	for _, s := range n.f.o.Servers {
		servers = append(servers, netip.MustParseAddrPort(s))
	}
	return gossip.New(gossip.Options{
		Name: n.name, Address: at, Packets: packets, Streams: gossip.NewStreams(streams, trust), Keys: n.joined.GossipKeys(),
		Meta: gossip.Meta{Role: gossip.RoleAgent, Addresses: []netip.Addr{n.ip}, PodSubnets: []netip.Prefix{n.subnet}, Version: version.Get().Coracle},
		Ask:  func() []netip.AddrPort { return servers }, Logger: slog.New(slog.DiscardHandler),
	})
}

// keepServers asks for the servers as an agent's balancer does, until ctx is done.
func (n *node) keepServers(ctx context.Context) {
	const path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"
	for pause(ctx, rand.N(followEvery)); ctx.Err() == nil; pause(ctx, followEvery) {
		n.again(ctx, "ask for the servers", func(ctx context.Context) error {
			answer, err := get(ctx, n.network, "https://"+n.server+path, runtime.ContentTypeJSON)
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			_, err = io.Copy(io.Discard, answer.Body)
			return err
		})
	}
}

// relay passes connections on to a server from a node's own address: servers bound how often one address may try a
// token, and whole fleets are seldom behind one.
func relay(from netip.Addr, to string) (address string, stop func(), err error) {
	l, err := net.Listen("tcp4", netip.AddrPortFrom(from, clusterPort+1).String())
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 30 * time.Second}
			out, err := dialer.DialContext(ctx, "tcp4", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			// One conversation at a time: a machine that joins has no other.
			back := make(chan struct{})
			go func() {
				defer close(back)
				_, _ = io.Copy(in, out)
				_ = in.Close()
			}()
			_, _ = io.Copy(out, in)
			_ = out.Close()
			<-back
		}
	}()
	return l.Addr().String(), func() {
		cancel()
		_ = l.Close()
		<-done
	}, nil
}
