// SPDX-License-Identifier: Apache-2.0

// Package balancer gives a node without a server of its own one local address at which the cluster's API is served, as
// long as any server works.
//
// It forwards TCP connections without reading them: TLS is between the node's parts and the API server. One server is
// used until it becomes unresponsive. Then its connections are closed, so that the clients reconnect and get another
// one. It owns the list of servers, in memory and in a file, so that a node that starts finds any server that still
// works. An address that leads back to this program is detected (loop.go).
//
// A machine that has the gossip key can put addresses on that list. So an address is used only after it has presented
// the certificate of one of the cluster's servers. An address that the presented certificate names stays on the list,
// whatever other sources say about it (servers.go, verify.go).
//
// Its goroutines: the watch of servers, every second, and of their list, every 30 s; two for each connection to the
// API, 256 that wait; handshakes, 16 at most, 6 s each.
package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// acceptPause is how long to wait after accepting a connection failed, usually for want of file descriptors.
const acceptPause = 100 * time.Millisecond

// All fields of Options are required, except Part and Logger.
type Options struct {
	// Address is where the node's parts connect.
	Address string
	// File is where the list of servers is kept.
	File string
	// Server is the server that the operator named, as host:port. It is never removed from the list.
	Server string
	// ServerCAFile has the authority of the servers. The file has to exist before the first connection is made.
	ServerCAFile string
	// Part is the line in status for the servers' certificates, and for whether the server in use is ready.
	Part   *status.Part
	Logger *slog.Logger
}

// Balancer forwards the connections to Options.Address.
type Balancer struct {
	*serverList
	*connTable
	*verifier
	listener net.Listener
	waiting  *connlimit.Table // connections from this machine that are not connected to a server yet
}

// New listens at the address and reads the list.
func New(ctx context.Context, o Options) (*Balancer, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	list := newServerList(o)
	conns := &connTable{openConns: map[net.Conn]string{}, pairs: map[addressPair]int{}, localEnded: timers.NewSignal()}
	b := &Balancer{
		serverList: list, connTable: conns, verifier: &verifier{list: list, conns: conns, handshakes: map[string]*runningHandshake{}},
		waiting: &connlimit.Table{Max: maxWaiting},
	}
	o.Part.Set(status.Waiting, "no server was used yet")
	var err error
	if b.listener, err = connlimit.Listen(ctx, "api-local", "tcp", o.Address, b.waiting); err != nil {
		return nil, fmt.Errorf("the local address of the API, %s, cannot be used: %w%s. "+
			"Stop what uses it, or choose another port with --lb-server-port", o.Address, err, userOfAddress(o.Address, err))
	}
	return b, nil
}

// userOfAddress names the program that already uses the address, for the error.
func userOfAddress(address string, err error) string {
	at, parsed := netip.ParseAddrPort(address)
	if parsed != nil || !errors.Is(err, unix.EADDRINUSE) {
		return ""
	}
	if who := preflight.OwnerOf("tcp", int(at.Port())); who != "" {
		return " by " + who
	}
	return ""
}

// Run forwards connections until ctx is done, and returns when none is open.
func (b *Balancer) Run(ctx context.Context) error {
	defer b.endHandshakes()
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = b.listener.Close() })()
	running.Go(func() { b.watch(ctx) })
	for {
		c, err := b.listener.Accept()
		switch {
		case err == nil:
			left := b.countLocal()
			running.Go(func() {
				defer left()
				b.joinToServer(ctx, c)
			})
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("the local address of the API: %w", err)
		default:
			b.o.Logger.Warn("a connection to the API could not be accepted; retrying", "error", err)
			timers.Sleep(ctx, acceptPause)
		}
	}
}

// dial connects to the first server that can be verified and accepts the connection. That server is then the one in
// use. When the first one cannot be used, all others are verified concurrently, so unresponsive addresses cost the time
// of one. verifying counts the goroutines that are still running on return. may returns an error for a verified server
// that may not be used. The caller passes the connection to forwardData.
func (b *Balancer) dial(ctx context.Context, servers []string, verifying *sync.WaitGroup,
	may func(server string) error) (net.Conn, string, error) {
	errs := []error{errors.New("no server can be used")}
	ensure := func(server string) error { return b.ensureVerified(ctx, server) }
	for i, server := range servers {
		err := ensure(server)
		if err == nil {
			err = may(server)
		}
		if err == nil {
			var c net.Conn
			if c, err = b.connect(ctx, server); err == nil {
				b.moveToFront(server)
				return c, server, nil
			}
		}
		errs = append(errs, err)
		if i == 0 {
			ensure = b.verifyAll(ctx, servers[1:], verifying)
		}
	}
	err := errors.Join(errs...)
	if ctx.Err() == nil {
		b.logUnusable(err)
	}
	return nil, "", err
}

func anyServer(string) error { return nil }

// verifyAll verifies servers concurrently. It returns a function that waits for the result of one of them.
func (b *Balancer) verifyAll(ctx context.Context, servers []string, verifying *sync.WaitGroup) func(server string) error {
	outcomes := map[string]chan error{}
	for _, server := range servers {
		outcome := make(chan error, 1) // buffered: the caller may not wait for it any more
		outcomes[server] = outcome
		verifying.Go(func() { outcome <- b.ensureVerified(ctx, server) })
	}
	return func(server string) error { return <-outcomes[server] }
}

// dropServer closes the connections to a server and moves the server to the end of the list.
func (b *Balancer) dropServer(server string) {
	b.demote(server)
	b.closeAll(server)
}

// Ended records that a server has ended the node's connection. A server whose disk is stalled does so, and would delay
// all requests. If another server replies, the connections to this one are closed at once, so that clients use the
// other one.
func (b *Balancer) Ended(server string) {
	if other := b.otherReady(server); other != "" {
		b.o.Logger.Info("a server has drained this node's connections; moving them to another server", "server", server, "other", other)
		b.dropServer(server)
	}
}
