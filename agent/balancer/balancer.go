// SPDX-License-Identifier: Apache-2.0

// Package balancer gives a node without a server of its own one local address at which the cluster's API is served, as
// long as any server works.
//
// It forwards TCP connections without reading them: TLS is between the node's parts and the API server. One server is
// used until it becomes unresponsive. Then its connections are closed, so that the clients reconnect and get another
// one. It owns the list of servers, in memory and in a file, so that a node that starts finds any server that still
// works. An address that leads back to this program is detected (itself.go).
//
// A machine that has the gossip key can put addresses on that list. So an address is used only after it has presented
// the certificate of one of the cluster's servers. An address that the presented certificate names stays on the list,
// whatever other sources say about it (verify.go).
//
// Its goroutines: the watch of servers, every second, and of their list, every 30 s; two for each connection to the
// API, 256 that wait; handshakes, 16 at most, 6 s each.
package balancer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/relay"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
)

const (
	// dialTimeout limits how long to wait until a server accepts a connection or has presented its certificate.
	dialTimeout = 2 * time.Second
	// handshakeTimeout limits a handshake that no caller waits for any more. The next caller then finds its result.
	// Over a line on which a packet needs a second, no server could ever be verified otherwise.
	handshakeTimeout = 6 * time.Second
	// most is how many servers are remembered. A cluster has up to seven, and they may change. mostProved is how many
	// of these are kept whatever other sources say.
	most, mostProved = 16, 8
	// mostFile limits the size of the file with the list, in bytes.
	mostFile = 64 << 10
	// acceptPause is how long to wait after accepting a connection failed, usually for want of file descriptors.
	acceptPause = 100 * time.Millisecond
)

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
	o        Options
	listener net.Listener

	waiting *connlimit.Table // connections from this machine that are not connected to a server yet

	mu      sync.Mutex
	servers []string // the server in use is the first
	used    string   // the last server to which a connection was opened; at first the first
	open    map[net.Conn]string
	// named are servers that the cluster has listed, in this run or before. excluded are addresses that are said to be
	// no servers.
	named, excluded map[string]bool
	proved          map[string]proof
	proving         map[string]*proving
	unready         map[string]unready  // servers that are not ready for clients
	ended           bool                // no new handshake begins
	pairs           map[addressPair]int // of open connections
	reason          string              // why no server could be used, as last logged; "" if one can

	here  int           // the number of open connections from this machine
	quiet timers.Signal // the last of these connections has ended

	now    func() time.Time // time.Now, or a test's clock, which jumps like that of a paused process
	longer time.Duration    // 0, or in tests a value for dialTimeout, handshakeTimeout and holdFor
}

// within returns the limit usual, or in tests the longer one.
func (b *Balancer) within(usual time.Duration) time.Duration { return cmp.Or(b.longer, usual) }

// New listens at the address and reads the list.
func New(ctx context.Context, o Options) (*Balancer, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	b := &Balancer{
		o: o, servers: []string{o.Server}, open: map[net.Conn]string{}, named: map[string]bool{}, excluded: map[string]bool{},
		proved: map[string]proof{}, proving: map[string]*proving{}, unready: map[string]unready{}, pairs: map[addressPair]int{},
		waiting: &connlimit.Table{Max: mostWaiting},
		now:     time.Now, quiet: timers.NewSignal(),
	}
	b.servers = unique(append(b.servers, readList(o.File)...))
	b.servers = b.servers[:min(len(b.servers), most)]
	b.used = o.Server
	for _, s := range b.servers {
		b.named[s] = s != o.Server
	}
	o.Part.Set(status.Waiting, "no server was used yet")
	var err error
	if b.listener, err = connlimit.Listen(ctx, "api-local", "tcp", o.Address, b.waiting); err != nil {
		return nil, fmt.Errorf("the local address of the API, %s, cannot be used: %w%s. "+
			"Stop what uses it, or choose another port with --lb-server-port", o.Address, err, user(o.Address, err))
	}
	return b, nil
}

// user names the program that already uses the address, for the error.
func user(address string, err error) string {
	at, parsed := netip.ParseAddrPort(address)
	if parsed != nil || !errors.Is(err, unix.EADDRINUSE) {
		return ""
	}
	if who := preflight.OwnerOf("tcp", int(at.Port())); who != "" {
		return " by " + who
	}
	return ""
}

// arrive counts a connection from this machine until the returned function is called.
func (b *Balancer) arrive() (left func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.here++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.here--; b.here == 0 {
			b.quiet.Send()
		}
	}
}

// readList returns the list that an earlier run has kept. It returns nothing if the file is missing or damaged.
func readList(file string) (kept []string) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostFile+1))
	if err != nil || len(data) > mostFile || json.Unmarshal(data, &kept) != nil {
		return nil
	}
	return kept[:min(len(kept), most)]
}

// Servers lists the known servers, the one in use first. Excluded ones are left out, unless no others are known.
func (b *Balancer) Servers() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if left := slices.DeleteFunc(slices.Clone(b.servers), b.leftOut); len(left) > 0 {
		return left
	}
	return slices.Clone(b.servers)
}

// Set sets which servers the cluster has. Other known servers are kept behind them: one that is unresponsive now may be
// the only one that works when this machine starts again. Connections to such a server stay open. If it is dead, the
// probes show that.
func (b *Balancer) Set(servers []string) error {
	b.mu.Lock()
	for _, s := range servers {
		b.named[s] = true
		delete(b.excluded, s)
	}
	// However many servers are named: the one in use, the one that the operator named, and those that were verified are
	// kept.
	kept := unique(slices.Concat([]string{b.servers[0], b.o.Server}, b.provedLast(), servers, b.servers))
	kept = kept[:min(len(kept), most)]
	gone := func(s string) bool { return !slices.Contains(kept, s) }
	next := slices.DeleteFunc(unique(slices.Concat(b.servers[:1], servers, b.servers, kept)), gone) // the server in use stays in use
	b.removeAddresses(gone)
	b.servers = next
	slices.Sort(kept) // so that nothing is written when only the server in use changes
	b.mu.Unlock()
	return atomicfile.WriteJSON(b.o.File, kept, 0o600)
}

// Run forwards connections until ctx is done, and returns when none is open.
func (b *Balancer) Run(ctx context.Context) error {
	defer b.endProving()
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
			left := b.arrive()
			running.Go(func() {
				defer left()
				b.pass(ctx, c)
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

// join forwards data between a client's connection and one to a server. closedByServer, when set, is called when the
// server ends the connection first, without having sent anything. It is called before the client sees that end.
func (b *Balancer) join(ctx context.Context, c, up net.Conn, server string, closedByServer func()) {
	defer c.Close()
	defer up.Close()
	b.mu.Lock()
	b.open[up] = server
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, up)
	}()
	defer b.leave(opened(up))
	relay.Join(ctx, c, up, closedByServer)
}

// dial connects to the first server that can be verified and accepts the connection. That server is then the one in
// use. When the first one cannot be used, all others are verified concurrently, so unresponsive addresses cost the time
// of one. proving counts the goroutines that are still running on return. may returns an error for a verified server
// that may not be used. The caller passes the connection to join.
func (b *Balancer) dial(ctx context.Context, servers []string, proving *sync.WaitGroup,
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
				b.use(server)
				return c, server, nil
			}
		}
		errs = append(errs, err)
		if i == 0 {
			ensure = b.proveAll(ctx, servers[1:], proving)
		}
	}
	err := errors.Join(errs...)
	if ctx.Err() == nil {
		b.logUnusable(err)
	}
	return nil, "", err
}

func anyServer(string) error { return nil }

// proveAll verifies servers concurrently. It returns a function that waits for the result of one of them.
func (b *Balancer) proveAll(ctx context.Context, servers []string, proving *sync.WaitGroup) func(server string) error {
	outcomes := map[string]chan error{}
	for _, server := range servers {
		outcome := make(chan error, 1) // buffered: the caller may not wait for it any more
		outcomes[server] = outcome
		proving.Go(func() { outcome <- b.ensureVerified(ctx, server) })
	}
	return func(server string) error { return <-outcomes[server] }
}

// logUnusable logs that no server can be used, when the reason has changed.
func (b *Balancer) logUnusable(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if text := err.Error(); text != b.reason {
		b.reason = text
		b.o.Logger.Warn("the API cannot be reached; retrying", "reason", err)
	}
	if refused, ok := errors.AsType[*protocol.RefusedCertificateError](err); ok {
		b.o.Part.Set(status.Degraded, "no server can be used, since this machine refuses their certificates: "+refused.Reason+
			". Pods keep running. Check the clocks; `coracle status` on a server says which of its certificates have to be renewed")
	}
}

// use moves a server to the front of the list.
func (b *Balancer) use(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reason = ""
	if server != b.used {
		b.o.Logger.Info("the API is reached through another server", "server", server, "before", b.used)
		b.used = server
	}
	if i := slices.Index(b.servers, server); i > 0 {
		b.servers = slices.Insert(slices.Delete(b.servers, i, i+1), 0, server)
	}
	b.showReadiness()
}

// inUse returns the servers with open connections.
func (b *Balancer) inUse() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Compact(slices.Sorted(maps.Values(b.open)))
}

// Connected reports whether this machine has connections to a server. An unresponsive server's connections are closed.
func (b *Balancer) Connected() bool { return len(b.inUse()) > 0 }

// drop closes a server's connections and moves it to the end of the list.
func (b *Balancer) drop(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.servers, server); i >= 0 {
		b.servers = append(slices.Delete(b.servers, i, i+1), server)
	}
	if p, ok := b.proved[server]; ok { // its last contact, a moment ago, does not count any more
		b.proved[server] = proof{itself: p.itself}
	}
	b.closeOpen(server)
}

// closeAll closes a server's connections, and does not move it in the list.
func (b *Balancer) closeAll(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closeOpen(server)
}

// closeOpen closes a server's connections. The caller holds mu.
func (b *Balancer) closeOpen(server string) {
	for c, of := range b.open {
		if of == server {
			_ = c.Close() // the goroutine that copies the other direction notices
		}
	}
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
