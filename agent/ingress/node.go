// SPDX-License-Identifier: Apache-2.0

// Package ingress is a node's part of the ingress: it starts the proxy (cmd/coracle-ingress) when the cluster has something to serve, tells it the table that a
// server compiles and the endpoints that this node knows, and says on the Node at which ports it serves.
//
// It owns the proxy's process, its sockets and the folder RunDir/ingress. The process outlives this one, as pods do, and the next run finds it by its socket.
// While the cluster has no ingress Service nothing runs, nothing listens and nothing is asked for. It reads no request and no object but Services and EndpointSlices.
package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/status"
)

// Options are required but Part and Logger.
type Options struct {
	// Program is the path of the proxy, which stays the same for another version.
	Program string
	// Dir is the folder for sockets and the record of the process, on a tmpfs where there is one.
	Dir string
	// NodeIPs are the addresses at which the proxy listens.
	NodeIPs []netip.Addr
	// PodCIDRs and ServiceCIDRs are the cluster's networks, and Reserved the ports of nodes that are the cluster's own: the proxy never connects there.
	PodCIDRs, ServiceCIDRs []netip.Prefix
	Reserved               []uint16
	// Nodes, Services and EndpointSlices are the node's caches; they are run by somebody else.
	Nodes          coreinformers.NodeInformer
	Services       coreinformers.ServiceInformer
	EndpointSlices discoveryinformers.EndpointSliceInformer
	// Stream asks a server for the table (table.Path). It is called again when what it returned has ended.
	Stream func(context.Context) (io.ReadCloser, error)
	// Annotate writes the Node's annotation table.NodeAnnotation; an empty value says that this node serves nothing.
	Annotate func(ctx context.Context, value string) error
	Part     *status.Part
	Logger   *slog.Logger
}

// Node is a node's ingress.
type Node struct {
	o    Options
	wake chan struct{} // capacity 1: one says that an object has changed
	// rules are those of the kernel as they were written last.
	rules string
}

// New listens to the caches, which must not run yet.
func New(o Options) (*Node, error) {
	n := &Node{o: o, wake: make(chan struct{}, 1)}
	if n.o.Logger == nil {
		n.o.Logger = slog.Default()
	}
	poke := func(any) {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke}
	for _, i := range []cache.SharedIndexInformer{o.Nodes.Informer(), o.Services.Informer(), o.EndpointSlices.Informer()} {
		if _, err := i.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("ingress: listening to an informer: %w", err)
		}
	}
	return n, nil
}

// wanted says whether the cluster has an ingress.
func (n *Node) wanted() bool {
	_, err := n.o.Services.Lister().Services(metav1.NamespaceSystem).Get(table.Service)
	return err == nil
}

// Run serves while the cluster has an ingress, until ctx is done. The proxy goes on then.
func (n *Node) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), n.o.Nodes.Informer().HasSynced, n.o.Services.Informer().HasSynced, n.o.EndpointSlices.Informer().HasSynced) {
		return nil
	}
	for first := true; ; first = false {
		switch {
		case n.wanted():
			if err := n.serve(ctx); err != nil || ctx.Err() != nil {
				return err
			}
		case first: // what an earlier run left
			if err := n.end(ctx); err != nil {
				return err
			}
		}
		n.o.Part.Set(status.Waiting, "the cluster has no Ingress")
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		}
	}
}

// end stops the proxy and takes the node's word back.
func (n *Node) end(ctx context.Context) error {
	if err := n.o.Annotate(ctx, ""); err != nil && ctx.Err() == nil {
		return err
	}
	n.rules = ""
	return Remove(n.o.Dir)
}

// Remove ends the proxy that an earlier run has left, and what the kernel has of it.
func Remove(dir string) error {
	return errors.Join(stop(dir), nfttable.Delete(Table()))
}

// serve runs until the cluster has no ingress any more, or ctx is done.
func (n *Node) serve(ctx context.Context) error {
	p, err := start(ctx, n.o)
	if err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	defer p.close()
	serving, cancel := context.WithCancel(ctx)
	tables := make(chan table.Sections) // no room: the last one that was received counts
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		follow(serving, n.o.Stream, tables, n.o.Logger)
	}()
	defer func() {
		cancel()
		<-followed
	}()
	n.o.Part.Set(status.Starting, "waiting for the table from a server")
	var now table.Sections
	said := false
	for {
		if err := n.protect(ctx, p.record.Ports); err != nil && ctx.Err() == nil {
			return fmt.Errorf("ingress: %w", err) // it serves nobody without
		}
		if now != nil {
			problems, err := p.put(ctx, n.complete(now))
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("ingress: the proxy: %w", err)
			}
			if !said {
				if err := n.o.Annotate(ctx, p.word()); err != nil {
					return fmt.Errorf("ingress: %w", err)
				}
				said = true
			}
			n.show(now, p, problems)
		}
		select {
		case <-ctx.Done():
			return nil
		case now = <-tables:
		case err := <-p.ended:
			return fmt.Errorf("ingress: the proxy has ended: %w", err)
		case <-n.wake:
			if !n.wanted() {
				return n.end(ctx)
			}
		}
	}
}

func (n *Node) show(s table.Sections, p *process, problems map[string]string) {
	hosts := 0
	for key := range s {
		if table.Kind(key) == table.KindHost {
			hosts++
		}
	}
	text := fmt.Sprintf("%d hosts, process %d", hosts, p.pid)
	if len(problems) > 0 {
		first := slices.Sorted(maps.Keys(problems))[0]
		n.o.Part.Set(status.Degraded, fmt.Sprintf("%s; %d sections lack something, such as %s: %s", text, len(problems), first, problems[first]))
		return
	}
	n.o.Part.Set(status.Running, text)
}

// complete is a table with the endpoints of the Services that it names.
func (n *Node) complete(s table.Sections) table.Sections {
	out := maps.Clone(s)
	backends, err := s.Backends()
	if err != nil {
		n.o.Logger.Warn("ingress: a section of the table cannot be read; it is served as far as it can be", "error", err)
	}
	for key, b := range backends {
		if err := out.Put(key, table.Endpoints{Addresses: n.endpoints(b)}); err != nil {
			n.o.Logger.Warn("ingress: endpoints cannot be written", "error", err)
		}
	}
	return out
}

// endpoints are the addresses of a backend's endpoints that are ready, or, where none is, of those that serve while they end.
func (n *Node) endpoints(b table.Backend) []string {
	svc, err := n.o.Services.Lister().Services(b.Namespace).Get(b.Service)
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	name, ok := portName(svc, b.Port)
	if !ok {
		return nil
	}
	found, err := n.o.EndpointSlices.Lister().EndpointSlices(b.Namespace).List(ofService(b.Service))
	if err != nil {
		return nil
	}
	var ready, ending []string
	for _, s := range found {
		for _, p := range s.Ports {
			if p.Port == nil || deref(p.Name) != name || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					ip, err := netip.ParseAddr(a)
					if err != nil {
						continue
					}
					at := netip.AddrPortFrom(ip, uint16(*p.Port)).String()
					switch {
					case e.Conditions.Ready == nil || *e.Conditions.Ready:
						ready = append(ready, at)
					case e.Conditions.Serving != nil && *e.Conditions.Serving:
						ending = append(ending, at)
					}
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.Sort(ready)
	return slices.Compact(ready)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// portName is the name of a Service's port, which is given by its name or its number.
func portName(svc *corev1.Service, port string) (name string, ok bool) {
	number, err := strconv.Atoi(port)
	for _, p := range svc.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		if p.Name == port || err == nil && int(p.Port) == number {
			return p.Name, true
		}
	}
	return "", false
}

const (
	// shortestPause, doubled up to longestPause, is between two streams.
	shortestPause, longestPause = 200 * time.Millisecond, 5 * time.Second
)

// follow asks for the table again and again, and sends each state of it to tables, until ctx is done.
func follow(ctx context.Context, stream func(context.Context) (io.ReadCloser, error), tables chan<- table.Sections, log *slog.Logger) {
	complaint := ""
	for pause := shortestPause; ctx.Err() == nil; {
		began := time.Now()
		err := listen(ctx, stream, tables)
		if time.Since(began) > longestPause {
			pause = shortestPause
		}
		if text := fmt.Sprint(err); ctx.Err() == nil && !errors.Is(err, io.EOF) && text != complaint {
			complaint = text
			log.Info("ingress: the table cannot be had from the server; the proxy goes on with what it has, and it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// listen follows one stream to its end.
func listen(ctx context.Context, stream func(context.Context) (io.ReadCloser, error), tables chan<- table.Sections) error {
	body, err := stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	defer context.AfterFunc(ctx, func() { _ = body.Close() })()
	now := table.Sections{}
	for in := json.NewDecoder(body); ; {
		var c table.Change
		if err := in.Decode(&c); err != nil {
			return err
		}
		if !c.Commit {
			now.Apply(c)
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case tables <- maps.Clone(now):
		}
	}
}

// word is what the Node says of a process.
func (p *process) word() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.record.Ports)) {
		out = append(out, name+"="+strconv.Itoa(p.record.Ports[name]))
	}
	return strings.Join(out, ",")
}
