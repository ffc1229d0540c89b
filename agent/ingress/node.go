// SPDX-License-Identifier: Apache-2.0

// Package ingress is a node's part of the ingress. It starts the proxy (cmd/coracle-ingress) when the cluster has
// something to serve. It sends the proxy the table that a server compiles and the endpoints that this node knows. It
// writes to the Node on which ports the proxy serves.
//
// It owns the proxy's process, its sockets and the folder RunDir/ingress. The process outlives this one, as pods do,
// and the next run finds it by its socket. In that folder it keeps the last table, on a tmpfs only, for a restart while
// no server answers. While the cluster has no ingress Service there is no process, no open port
// and no request for the table. It reads no requests, and of objects only Nodes, Services and EndpointSlices.
//
// Its goroutines: one that follows the table and one that reads from the proxy; the wait for the caches; while no
// server answers, requests for the table, every five seconds; one that takes the proxy's exit status.
package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/proxy"
)

// All fields of Options are required, except Cluster, Unreachable, PodNetworkOf, Memory, MaxConnections, Event, Part
// and Logger.
type Options struct {
	// Program is the path of the proxy, which is the same for all versions.
	Program string
	// Dir is the folder for sockets and the list of processes, on a tmpfs where there is one.
	Dir string
	// Cluster identifies the cluster: a kept table of another one is not used.
	Cluster string
	// NodeIPs are the addresses at which the proxy listens.
	NodeIPs []netip.Addr
	// PodCIDRs and ServiceCIDRs are the cluster's networks. Reserved are the cluster's own ports on nodes, to which the
	// proxy never connects.
	PodCIDRs, ServiceCIDRs []netip.Prefix
	Reserved               []uint16
	// NodeName is this node's name. Unreachable lists the nodes that it cannot reach; nil where that is not found out.
	NodeName    string
	Unreachable proxy.Unreachable
	// PodNetworkOf is this node's name where coracle makes the pod network, and empty where another plugin does.
	PodNetworkOf string
	// Memory limits each proxy's memory, in bytes; defaultMemory by default. MaxConnections limits its connections of
	// clients; defaultConnections by default.
	Memory         int64
	MaxConnections int
	// Nodes, Services and EndpointSlices are the node's caches; the caller runs them.
	Nodes          coreinformers.NodeInformer
	Services       coreinformers.ServiceInformer
	EndpointSlices discoveryinformers.EndpointSliceInformer
	// Stream requests the table from a server (table.Path). It is called again when the returned stream has ended.
	Stream func(context.Context) (io.ReadCloser, error)
	// Annotation returns the value of the Node's annotation table.NodeAnnotation.
	Annotation func(ctx context.Context) (string, error)
	// Annotate writes the Node's annotation table.NodeAnnotation. An empty value means that this node serves nothing.
	Annotate func(ctx context.Context, value string) error
	// Event, unless it is nil, records an event on the object of a charge, once for all nodes that say the same.
	Event  func(ctx context.Context, of table.Charge, message string) error
	Part   *status.Part
	Logger *slog.Logger

	cgroups     string        // where control groups are mounted, for tests; cgroupRoot by default
	bridgeDelay time.Duration // bridgeAfter, for tests
}

// Node runs the ingress of this node: a proxy process, its routing table and the kernel's rules.
type Node struct {
	o           Options
	wake        timers.Signal // an object has changed
	tableEvents chan struct{} // capacity 1: one event means that another program may have deleted the kernel's table
	// credentialsRefused receives when a server has refused this node's credentials.
	credentialsRefused timers.Signal
	// savedTable is the file with the last table, by which a proxy can serve without a server.
	savedTable *savedTableFile
	// questions are sent by the collectors of Metrics. It is unbuffered: the sender stops waiting when its context
	// ends.
	questions chan question
	// rules are the kernel's rules as last written.
	rules string
	// table is the last one that a server sent. A new proxy gets it at once.
	table table.Sections
	// leftOut are the namespaces whose routes are closed in table, with their charges.
	leftOut map[string]table.Charge
	// backends are the back ends that the table names. nil means that they were not read yet.
	backends map[string]table.Backend
	failures recentFailures
	// annotation is the last known value of the Node's annotation.
	annotation string
}

// New adds handlers to the caches, which must not run yet.
func New(o Options) (*Node, error) {
	n := &Node{o: o, wake: timers.NewSignal(), tableEvents: make(chan struct{}, 1), questions: make(chan question)}
	if n.o.Logger == nil {
		n.o.Logger = slog.Default()
	}
	n.credentialsRefused, n.savedTable = timers.NewSignal(), &savedTableFile{dir: o.Dir, cluster: o.Cluster, log: n.o.Logger}
	if err := o.Services.Informer().AddIndexers(cache.Indexers{byGateway: indexGateway}); err != nil {
		return nil, fmt.Errorf("ingress: adding an index of Services: %w", err)
	}
	if _, err := netinformers.Follow(func(any) { n.wake.Send() }, []netinformers.Source{
		{Informer: o.Nodes.Informer()}, {Informer: o.Services.Informer()}, {Informer: o.EndpointSlices.Informer()},
	}...); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	return n, nil
}

// byGateway is the index of Services of Gateways, all with one value.
const byGateway = "gateway"

func indexGateway(o any) ([]string, error) {
	if svc, ok := o.(*corev1.Service); ok && svc.Labels[table.GatewayLabel] != "" {
		return []string{byGateway}, nil
	}
	return nil, nil
}

// hasService reports whether the cluster has the Service of Ingresses.
func (n *Node) hasService() bool {
	_, err := n.o.Services.Lister().Services(metav1.NamespaceSystem).Get(table.Service)
	return err == nil
}

// isWanted reports whether the cluster may have something to serve. Every client that may write a Service can make it
// true, and the table then has nothing.
func (n *Node) isWanted() bool {
	if n.hasService() {
		return true
	}
	found, _ := n.o.Services.Informer().GetIndexer().IndexKeys(byGateway, byGateway) // the index exists
	return len(found) > 0
}

// Run serves while the cluster has an ingress, until ctx is done. The proxy keeps running then. The caches may begin to
// run after Run.
func (n *Node) Run(ctx context.Context) error {
	synced := make(chan struct{})
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), n.o.Nodes.Informer().HasSynced, n.o.Services.Informer().HasSynced,
			n.o.EndpointSlices.Informer().HasSynced) {
			close(synced)
		}
	})
	n.o.Part.Set(status.Starting, "waiting for a server")
	if err := n.serveSavedTable(ctx, synced); err != nil || ctx.Err() != nil {
		return err
	}
	for first := true; ; first = false {
		switch {
		case n.isWanted():
			if err := n.serve(ctx); err != nil || ctx.Err() != nil {
				return err
			}
		case first: // end what an earlier run has left
			if err := n.stopProxy(ctx); err != nil {
				return err
			}
		}
		n.o.Part.Set(status.Running, "at rest: the cluster has no Ingress and no Gateway")
		drained := n.drainEnded()
		for rest := true; rest; {
			select {
			case <-ctx.Done():
				return nil
			case q := <-n.questions:
				q.response <- nil
				continue
			case <-drained:
				n.groups().sweep()
			case <-n.wake:
			}
			rest = false
		}
	}
}

// drainEnded returns a channel that receives when a stopped proxy's time to drain is over. It returns nil where no
// control group is left.
func (n *Node) drainEnded() <-chan time.Time {
	for _, h := range n.groups().hierarchies() {
		if _, err := os.Stat(filepath.Join(h.dir, cgroupName)); err == nil {
			return time.After(drainTime)
		}
	}
	return nil
}

// stopProxy stops the proxy and deletes the table from memory.
func (n *Node) stopProxy(ctx context.Context) error {
	n.table, n.backends, n.leftOut = nil, nil, nil
	return n.stop(ctx)
}

// stop removes the Node's annotation and stops the proxy.
func (n *Node) stop(ctx context.Context) error {
	if err := n.o.Annotate(ctx, ""); err != nil && ctx.Err() == nil {
		return err
	}
	n.rules, n.annotation = "", ""
	n.savedTable.forget()
	return remove(n.o.Dir, n.groups())
}

// Remove ends the proxy that an earlier run has left, and removes its rules from the kernel.
func Remove(dir string) error { return remove(dir, groups{root: cgroupRoot}) }

func remove(dir string, g groups) error {
	err := stop(dir)
	g.sweep() // the groups of draining processes stay until the next sweep
	return errors.Join(err, nft.Delete(NFTable()))
}

func (n *Node) groups() groups {
	return groups{root: cmp.Or(n.o.cgroups, cgroupRoot), memory: cmp.Or(n.o.Memory, defaultMemory)}
}
