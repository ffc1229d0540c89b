// SPDX-License-Identifier: Apache-2.0

// Package balancer gives a node without a server of its own one local address at which the cluster's API answers, as
// long as any server does.
//
// It passes TCP connections on and sees nothing of what they say: TLS goes on between the node's parts and the API
// server. One server is used until it does not answer; then its connections are closed, so that their owners come again
// and get another one. It owns the list of servers, in memory and in a file: a node that starts finds any server that
// lives. An address that leads back to this program is noticed (itself.go).
//
// A machine that has the gossip key can put addresses on that list. So an address is used only after it has shown the
// certificate of one of the cluster's servers, and one whose certificate names that address stays, whatever others say
// of it (verify.go).
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
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// dialTimeout is how long is waited for a server to accept a connection, or to show its certificate.
	dialTimeout = 2 * time.Second
	// handshakeTimeout is for how long a handshake goes on that no caller waits for any more: one that asks again then
	// finds what came of it. Over a line on which a packet needs a second, no server would ever show itself otherwise.
	handshakeTimeout = 6 * time.Second
	// most is how many servers are remembered; a cluster has up to seven, and they may change. mostProved of these are
	// kept whatever others say.
	most, mostProved = 16, 8
	// mostFile bounds the file of the list, in bytes.
	mostFile = 64 << 10
	// acceptPause is how long to wait after a connection could not be accepted, for want of file descriptors usually.
	acceptPause = 100 * time.Millisecond
)

// Options are all required but Logger.
type Options struct {
	// Address is where the node's parts connect.
	Address string
	// File keeps the list.
	File string
	// Server is host:port of the server that the operator named. It stays in the list.
	Server string
	// ServerCAFile has the authority of the servers. It is there before the first connection is.
	ServerCAFile string
	Logger       *slog.Logger
}

// Balancer is that address.
type Balancer struct {
	o        Options
	listener net.Listener

	waiting connlimit.Table // connections of this machine's that have no server yet

	mu      sync.Mutex
	servers []string // the one in use first
	open    map[net.Conn]string
	// named are those that the cluster has called servers, in this run or before; excluded those that are said to be
	// none.
	named, excluded map[string]bool
	proved          map[string]proof
	proving         map[string]*proving
	ended           bool                // no handshake begins any more
	pairs           map[addressPair]int // of connections that are open
	reason          string              // why no server could be used, when it was last logged; "" if one can

	here  int           // connections of this machine's that are open
	quiet timers.Signal // the last of them has ended

	now    func() time.Time // time.Now, or a test's, which jumps as a process sees it that was paused
	longer time.Duration    // 0, or a test's time for dialTimeout, handshakeTimeout and holdFor
}

// within is how long is waited for something that usually takes no longer than that.
func (b *Balancer) within(usual time.Duration) time.Duration { return cmp.Or(b.longer, usual) }

// New takes the address and reads the list.
func New(ctx context.Context, o Options) (*Balancer, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	b := &Balancer{
		o: o, servers: []string{o.Server}, open: map[net.Conn]string{}, named: map[string]bool{}, excluded: map[string]bool{},
		proved: map[string]proof{}, proving: map[string]*proving{}, pairs: map[addressPair]int{},
		waiting: connlimit.Table{Max: mostWaiting},
		now:     time.Now, quiet: timers.NewSignal(),
	}
	b.servers = unique(append(b.servers, readList(o.File)...))
	b.servers = b.servers[:min(len(b.servers), most)]
	for _, s := range b.servers {
		b.named[s] = s != o.Server
	}
	var err error
	if b.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", o.Address); err != nil {
		return nil, fmt.Errorf("the local address of the API, %s, cannot be used: %w%s. "+
			"Stop what uses it, or choose another port with --lb-server-port", o.Address, err, user(o.Address, err))
	}
	return b, nil
}

// user names the program that has the address already, for the error.
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

// arrive counts a connection of this machine's until the function that it returns is called.
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

// readList is what an earlier run has kept: nothing if the file is not there, or is damaged.
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

// Servers lists what is known, the one in use first. Those that are said to be none are left out, unless nothing else
// is known.
func (b *Balancer) Servers() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if left := slices.DeleteFunc(slices.Clone(b.servers), b.leftOut); len(left) > 0 {
		return left
	}
	return slices.Clone(b.servers)
}

// Set tells which servers there are. Others that are known are kept behind them: what is silent now may be all that
// answers when this machine starts again. Connections to such a one go on; if it is dead, that is found out here.
func (b *Balancer) Set(servers []string) error {
	b.mu.Lock()
	for _, s := range servers {
		b.named[s] = true
		delete(b.excluded, s)
	}
	// However many are named: what is in use, what the operator named, and what has proved to be a server are among
	// those that are kept.
	kept := unique(slices.Concat([]string{b.servers[0], b.o.Server}, b.provedLast(), servers, b.servers))
	kept = kept[:min(len(kept), most)]
	gone := func(s string) bool { return !slices.Contains(kept, s) }
	next := slices.DeleteFunc(unique(slices.Concat(b.servers[:1], servers, b.servers, kept)), gone) // what is in use stays in use
	b.removeAddresses(gone)
	b.servers = next
	slices.Sort(kept) // so that a change of the one in use writes nothing
	b.mu.Unlock()
	return atomicfile.WriteJSON(b.o.File, kept, 0o600)
}

// Run passes connections on until ctx is done, and returns when none is left.
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
			b.o.Logger.Warn("a connection to the API could not be accepted; trying on", "error", err)
			timers.Sleep(ctx, acceptPause)
		}
	}
}

// join joins a connection to one with a server. closedByServer, when set, is called for a server that ends it first,
// without a word, and before the client sees that end.
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

// dial connects to the first server that shows itself to be one and accepts, which is then the one in use. When the
// first cannot be used, all others show themselves side by side: addresses at which nothing replies cost the time
// of one. What then goes on beside that is in proving. may says which of those that have shown themselves may be used.
// The connection is join's.
func (b *Balancer) dial(ctx context.Context, servers []string, proving *sync.WaitGroup,
	may func(server string) error) (net.Conn, string, error) {
	errs := []error{errors.New("no server can be used")}
	ensure := func(server string) error { return b.ensureProven(ctx, server) }
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

// proveAll has servers show themselves side by side and returns what waits for one of them.
func (b *Balancer) proveAll(ctx context.Context, servers []string, proving *sync.WaitGroup) func(server string) error {
	outcomes := map[string]chan error{}
	for _, server := range servers {
		outcome := make(chan error, 1) // buffered: the caller may not wait for it any more
		outcomes[server] = outcome
		proving.Go(func() { outcome <- b.ensureProven(ctx, server) })
	}
	return func(server string) error { return <-outcomes[server] }
}

// logUnusable logs that no server can be used, once for each reason.
func (b *Balancer) logUnusable(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if text := err.Error(); text != b.reason {
		b.reason = text
		b.o.Logger.Warn("the API cannot be reached; it is tried again", "reason", err)
	}
}

// use puts a server first.
func (b *Balancer) use(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reason = ""
	if i := slices.Index(b.servers, server); i > 0 {
		b.o.Logger.Info("the API is reached through another server", "server", server, "before", b.servers[0])
		b.servers = slices.Insert(slices.Delete(b.servers, i, i+1), 0, server)
	}
}

// inUse are the servers that have connections.
func (b *Balancer) inUse() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Compact(slices.Sorted(maps.Values(b.open)))
}

// Connected says whether a server has connections of this machine's. One that does not answer loses them.
func (b *Balancer) Connected() bool { return len(b.inUse()) > 0 }

// drop closes a server's connections and tries it last.
func (b *Balancer) drop(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.servers, server); i >= 0 {
		b.servers = append(slices.Delete(b.servers, i, i+1), server)
	}
	if p, ok := b.proved[server]; ok { // that it was heard a moment ago counts no more
		b.proved[server] = proof{itself: p.itself}
	}
	b.closeOpen(server)
}

// closeAll closes a server's connections, and leaves it where it is in the list.
func (b *Balancer) closeAll(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closeOpen(server)
}

// closeOpen is called with mu held.
func (b *Balancer) closeOpen(server string) {
	for c, of := range b.open {
		if of == server {
			_ = c.Close() // the other half notices
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
