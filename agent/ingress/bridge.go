// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/nodestream"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// bridgeAfter is how long the caches may take to be filled before a proxy is started by the kept table.
const bridgeAfter = 3 * time.Second

// serveSavedTable makes sure that a proxy runs while no server fills the caches, until synced is closed or ctx is done.
// It keeps the proxy of the run before. If that has ended, another one serves by the kept table, at the ports that the
// kernel guards since the run before. Without the Node objects the kernel's rules cannot be written.
func (n *Node) serveSavedTable(ctx context.Context, synced <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-synced:
		return nil
	case <-time.After(cmp.Or(n.o.bridgeDelay, bridgeAfter)):
	}
	kept, err := readLast(n.o.Dir, n.o.Cluster)
	if err != nil {
		n.o.Logger.Warn("ingress: without a server, a proxy that ends is not started again", "error", err)
		n.savedTable.forget()
	}
	if kept == nil {
		select {
		case <-ctx.Done():
		case <-synced:
		}
		return nil
	}
	k, err := newSupervisor(n.o, n.groups())
	if err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	defer k.release()
	k.siteSockets = siteSockets(kept.Sections)
	k.setHTTP3(kept.Sections[table.HTTP3Key(table.SiteIngress)] != nil)
	if _, err := k.find(); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	asking, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { n.requestTable(asking) })
	s := &serving{Node: n, supervisor: k}
	for s.showBridge(); ctx.Err() == nil; {
		for k.current == nil && s.retry == nil && kept != nil && ctx.Err() == nil {
			s.startLast(ctx, kept)
		}
		var ended <-chan error
		if k.current != nil {
			ended = k.current.connEnded
		}
		select {
		case <-ctx.Done():
		case <-synced:
			return nil
		case err := <-ended:
			s.giveUp(err)
		case <-s.retry:
			s.retry = nil
		case <-n.credentialsRefused:
			kept = nil
			n.savedTable.forget()
		case q := <-n.questions:
			s.report(ctx, q)
		}
	}
	return nil
}

// requestTable requests the table from a server again and again, until one has answered: it may refuse this node.
func (n *Node) requestTable(ctx context.Context) {
	for {
		body, err := n.stream(ctx)
		if err == nil {
			_ = body.Close() // the table is read when the caches are filled
			return
		}
		if !timers.Sleep(ctx, nodestream.MaxPause) {
			return
		}
	}
}

// stream requests the table from a server. If the server refuses the node, since it was revoked, credentialsRefused
// receives.
func (n *Node) stream(ctx context.Context) (io.ReadCloser, error) {
	body, err := n.o.Stream(ctx)
	if apierrors.IsUnauthorized(err) {
		n.credentialsRefused.Send()
	}
	return body, err
}

// startLast starts a proxy and sends it the kept table.
func (s *serving) startLast(ctx context.Context, kept *savedTable) {
	k := s.supervisor
	if err := k.start(false); err != nil {
		s.reportFailure(fmt.Errorf("the proxy cannot be started: %w", err), s.restarts.nextWait(0))
		return
	}
	if err := kept.checkGuarded(k); err != nil {
		err = errors.Join(err, k.kill(k.current))
		k.current = nil
		k.sockets.close()
		k.sockets = nil
		s.reportFailure(err, s.restarts.nextWait(0))
		return
	}
	if _, err := k.sendTable(ctx, kept.Sections); err != nil {
		if ctx.Err() == nil {
			s.giveUp(err)
		}
		return
	}
	s.o.Logger.Warn("ingress: no server answers, so the proxy serves by the table that was kept", "pid", k.current.PID)
	s.showBridge()
}

// sendSavedTable sends the kept table to a proxy that has none, while the caches are filled and no server has sent the
// table. It returns false if the proxy has failed.
func (s *serving) sendSavedTable(ctx context.Context) bool {
	k := s.supervisor
	if !k.current.startedHere || k.current.sent != nil {
		return true
	}
	kept, err := readLast(s.o.Dir, s.o.Cluster)
	if err != nil {
		s.o.Logger.Warn("ingress: the proxy waits for the table from a server", "error", err)
		s.savedTable.forget()
	}
	if kept == nil {
		return true
	}
	if _, err := k.sendTable(ctx, s.complete(kept.Sections)); err != nil && ctx.Err() == nil {
		s.giveUp(err)
		return false
	}
	s.backends = nil // those of the kept table
	return true
}

// checkGuarded returns an error if the kernel does not guard a port of the proxy.
func (l *savedTable) checkGuarded(k *supervisor) error {
	there, err := nft.Exists(NFTable())
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("the nftables table %s is missing, and without a server it cannot be written", NFTable().Name)
	}
	for _, port := range k.guarded() {
		if !slices.Contains(l.Ports, port) {
			return fmt.Errorf("another program has a port of the proxy, and without a server the port %d cannot be guarded", port)
		}
	}
	for _, port := range k.guardedUDP() {
		if !slices.Contains(l.UDP, port) {
			return fmt.Errorf("another program has a port of the proxy, and without a server the UDP port %d cannot be guarded", port)
		}
	}
	return nil
}

func (s *serving) showBridge() {
	switch p := s.supervisor.current; {
	case p == nil:
	case p.sent == nil:
		s.o.Part.Set(status.Degraded, fmt.Sprintf("no server answers; the proxy of the previous run keeps running, process %d", p.PID))
	default:
		s.o.Part.Set(status.Degraded, fmt.Sprintf("no server answers; the table that was kept is served, process %d", p.PID))
	}
}

// keepLast keeps the table that the proxy serves by, while this machine is a node of the cluster.
func (s *serving) keepLast() {
	s.saveDue = nil
	if _, err := s.o.Nodes.Lister().Get(s.o.NodeName); err != nil || s.credentialsRefused {
		s.savedTable.forget()
		return
	}
	k := s.supervisor
	if again := s.savedTable.save(&savedTable{Ports: k.guarded(), UDP: k.guardedUDP(), Sections: k.current.sent}); again > 0 {
		s.saveDue = time.After(again)
	}
}
