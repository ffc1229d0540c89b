// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	nodeutil "k8s.io/kubernetes/pkg/util/node"

	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// gatherDelay is how long a round waits for further changes: a rolling update consists of many changes.
	gatherDelay = 50 * time.Millisecond
	// retryDelay is the wait after a failed write before all objects are checked again.
	retryDelay = time.Second
)

// All fields of Options are required, except Pool, Dynamic, Networks, Barred, Alive, Joined, Disabled, Part and Logger.
type Options struct {
	// Client writes objects. Informers are the term's, and are started after New.
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Recorder  record.EventRecorder
	// Reserved are the ports at nodes' addresses that the cluster itself needs, with their purposes.
	Reserved map[Port]string
	// NodePorts is the range from which the API server allocates node ports.
	NodePorts utilnet.PortRange
	// Pool are addresses that Services get instead of nodes' addresses, beside those of AddressPools. Dynamic reads and
	// writes AddressPools; if nil, there are none. Networks are the cluster's own networks, in which no pool may be.
	Pool     []loadbalancer.Range
	Dynamic  dynamic.Interface
	Networks []netip.Prefix
	// Barred returns addresses that have an owner; nil is for none. Alive reports whether a node responds. It is called
	// several times a second while an address of a pool is in use, and is required where there are pools.
	Barred func() []netip.Addr
	Alive  func(node string) bool
	// JoinedAddresses reads from the API the addresses with which machines have joined, including those without a Node.
	// It is called when a Service would get a new address of a pool. nil is for none.
	JoinedAddresses func(ctx context.Context) ([]netip.Addr, error)
	// Disabled removes the allocated addresses.
	Disabled bool
	// Part is the status line.
	Part   *status.Part
	Logger *slog.Logger
}

// Controller syncs the Services' status for one term.
type Controller struct {
	o         Options
	services  corelisters.ServiceLister
	nodes     corelisters.NodeLister
	pods      corelisters.PodLister
	slices    discoverylisters.EndpointSliceLister
	synced    []cache.InformerSynced
	wake      timers.Signal // an object has changed
	holders   holders
	written   statusWrites
	uncertain uncertainWrites

	namespaces corelisters.NamespaceLister
	objects    *poolObjects // nil if there are no AddressPools
	byLabels   atomic.Bool  // a pool is only for some namespaces
}

// New adds handlers to the informers, which must not run yet.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Informers == nil || o.Recorder == nil {
		return nil, errors.New("servicelb: Client, Informers and Recorder are required")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	core, discovery := o.Informers.Core().V1(), o.Informers.Discovery().V1().EndpointSlices()
	c := &Controller{
		o: o, services: core.Services().Lister(), nodes: core.Nodes().Lister(), pods: core.Pods().Lister(), slices: discovery.Lister(),
		wake: timers.NewSignal(), namespaces: core.Namespaces().Lister(), written: statusWrites{}, uncertain: uncertainWrites{},
	}
	changed := func(any) { c.wake.Send() }
	var err error
	if o.Dynamic != nil && !o.Disabled {
		if c.objects, err = newPoolObjects(o.Dynamic, o.Logger, netinformers.Source{Matters: objectMatters}.Handler(changed)); err != nil {
			return nil, fmt.Errorf("servicelb: listening to AddressPools: %w", err)
		}
	}
	c.synced, err = netinformers.Follow(changed, []netinformers.Source{
		{Informer: core.Services().Informer()}, {Informer: core.Nodes().Informer(), Matters: nodeMatters},
		{Informer: core.Pods().Informer(), Matters: podMatters},
		{Informer: discovery.Informer(), Matters: c.sliceMatters},
		{Informer: core.Namespaces().Informer(), Matters: c.namespaceMatters},
	}...)
	if err != nil {
		return nil, fmt.Errorf("servicelb: %w", err)
	}
	return c, nil
}

// Nodes change all the time, by their heartbeats. Pods rarely have host ports.

func nodeMatters(old, now any) bool {
	a, was := old.(*corev1.Node)
	b, is := now.(*corev1.Node)
	if !was || !is {
		return true
	}
	return nodeText(a) != nodeText(b)
}

func nodeText(n *corev1.Node) string {
	_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
	return fmt.Sprint(excluded, hasNodeLabel(n), nodeutil.IsNodeReady(n), n.DeletionTimestamp != nil, nodeAddresses(n),
		n.Annotations[loadbalancer.NetworksAnnotation], n.Labels,
		n.Annotations[loadbalancer.ConflictsAnnotation], n.Annotations[loadbalancer.ProvenAnnotation])
}

func (c *Controller) namespaceMatters(old, now any) bool {
	a, was := old.(*corev1.Namespace)
	b, is := now.(*corev1.Namespace)
	return c.byLabels.Load() && (!was || !is || !maps.Equal(a.Labels, b.Labels))
}

func podMatters(old, now any) bool {
	pod, ok := now.(*corev1.Pod)
	if !ok || !holdsPorts(pod) {
		return false
	}
	before, was := old.(*corev1.Pod)
	return !was || before.Spec.NodeName != pod.Spec.NodeName || before.Status.Phase != pod.Status.Phase ||
		fmt.Sprint(before.Labels) != fmt.Sprint(pod.Labels)
}

func (c *Controller) sliceMatters(_, now any) bool {
	slice, ok := now.(*discoveryv1.EndpointSlice)
	return ok && c.localSlice(slice)
}

// localSlice reports whether a slice belongs to a load balancer's Service that uses local endpoints only.
func (c *Controller) localSlice(slice *discoveryv1.EndpointSlice) bool {
	svc, err := c.services.Services(slice.Namespace).Get(slice.Labels[discoveryv1.LabelServiceName])
	return err == nil && svc.Spec.Type == corev1.ServiceTypeLoadBalancer && isLocal(svc)
}

// Run allocates addresses to Services until ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	known := c.synced
	switch {
	case c.objects != nil:
		beside.Go(func() { c.objects.run(ctx) })
		known = append(known, c.objects.ready)
	case c.o.Dynamic != nil:
		beside.Go(func() { removeKind(ctx, c.o.Dynamic, c.o.Logger) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), known...) {
		return nil
	}
	for whole := true; ; {
		done := !whole || c.checkServices(ctx)
		done = c.assignHolders(ctx) && done
		pause := time.Duration(0)
		switch {
		case !done:
			pause = retryDelay
		case len(c.holders.candidates) > 0:
			pause = livenessPoll
		}
		var again <-chan time.Time
		if pause > 0 {
			again = time.After(pause)
		}
		due := time.Now().Add(pause)
		whole = true
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			whole = !c.holders.settled
			c.holders.noteDelay(time.Since(due))
		case <-c.wake:
			if !timers.Sleep(ctx, gatherDelay) {
				return nil
			}
		}
	}
}

// checkServices checks all objects once. It returns false if something could not be written.
func (c *Controller) checkServices(ctx context.Context) bool {
	if err := c.loadRecord(ctx); err != nil { // the holder of an address decides whose report about it counts
		return c.recordFailed(ctx, err)
	}
	if err := c.resolveUncertainWrites(ctx); err != nil {
		if ctx.Err() == nil {
			c.o.Logger.Warn("load balancer: nothing is given before it is tried again", "error", err)
		}
		return false
	}
	s, objects, flaws, err := c.readState()
	if err != nil { // never: it is a cache
		c.o.Logger.Warn("load balancer: reading the caches failed", "error", err)
		return false
	}
	plan, err := c.excludeJoined(ctx, s, Plan(s))
	if err != nil {
		if ctx.Err() == nil {
			c.o.Logger.Warn("load balancer: which machines have joined could not be read, so nothing is given before it is tried again",
				"error", err)
		}
		return false
	}
	done := true
	for _, svc := range byAge(s.Services) {
		v := plan[serviceKey(svc)]
		want, changed := StatusOf(svc, v)
		if !changed {
			continue
		}
		if err := c.writeStatus(ctx, svc, want, s.withoutPool(statusAddresses(svc), v.Addresses)); err != nil && ctx.Err() == nil {
			done = false
			if !isTransient(err) {
				c.o.Logger.Warn("load balancer: a Service's status could not be written; it is tried again", "service", serviceKey(svc), "error",
					err)
			}
			c.shrinkStatus(ctx, svc, v)
		}
	}
	if c.objects != nil {
		if err := c.objects.write(ctx, PoolStatus(s, plan, objects, flaws)); err != nil && ctx.Err() == nil {
			done = false
			if !isTransient(err) {
				c.o.Logger.Warn("load balancer: it is tried again", "error", err)
			}
		}
	}
	c.reportStatus(plan)
	c.holders.candidates, c.holders.reports = Candidates(s, plan), holderReports{inUse: s.InUse, proven: Proven(s.Nodes, c.holders.record)}
	c.holders.settled = done
	return done
}

// isTransient reports whether an error only says that the cache is outdated.
func isTransient(err error) bool { return apierrors.IsConflict(err) || apierrors.IsNotFound(err) }

func (c *Controller) readState() (s *State, objects []*addresspool.AddressPool, flaws map[string]Flaw, err error) {
	s = &State{Reserved: c.o.Reserved, NodePorts: c.o.NodePorts, Disabled: c.o.Disabled, Namespaces: map[string]labels.Set{}}
	if c.o.Barred != nil {
		s.Barred = c.o.Barred()
	}
	var errs [6]error
	var pods []*corev1.Pod
	var all []*discoveryv1.EndpointSlice
	var namespaces []*corev1.Namespace
	s.Services, errs[0] = c.services.List(labels.Everything())
	s.Services = c.written.overlay(s.Services)
	s.Nodes, errs[1] = c.nodes.List(labels.Everything())
	pods, errs[2] = c.pods.List(labels.Everything())
	all, errs[3] = c.slices.List(labels.Everything())
	namespaces, errs[4] = c.namespaces.List(labels.Everything())
	if c.objects != nil {
		objects, errs[5] = c.objects.pools()
	}
	s.InUse = InUse(s.Nodes, c.holders.record)
	for _, p := range pods {
		if holdsPorts(p) {
			s.Pods = append(s.Pods, p)
		}
	}
	for _, slice := range all {
		if c.localSlice(slice) {
			s.Slices = append(s.Slices, slice)
		}
	}
	for _, n := range namespaces {
		s.Namespaces[n.Name] = n.Labels
	}
	s.Pools, flaws = Pools(c.o.Pool, objects, c.o.Networks)
	c.byLabels.Store(slices.ContainsFunc(s.Pools, func(p Pool) bool { return p.Namespaces != nil }))
	return s, objects, flaws, errors.Join(errs[:]...)
}

// writeStatus writes a Service's status, if the Service has not changed since it was read. lost are its former
// addresses that are in no pool any more.
func (c *Controller) writeStatus(ctx context.Context, svc *corev1.Service, want *corev1.ServiceStatus, lost []netip.Addr) error {
	changed := svc.DeepCopy()
	changed.Status = *want
	answer, err := c.o.Client.CoreV1().Services(svc.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	c.uncertain.record(svc, err)
	if err != nil {
		return err
	}
	c.written.record(answer)
	before, now := meta.FindStatusCondition(svc.Status.Conditions, Condition), meta.FindStatusCondition(want.Conditions, Condition)
	addresses := ingressText(want.LoadBalancer)
	if addresses != ingressText(svc.Status.LoadBalancer) {
		c.o.Logger.Info("load balancer: a Service has other addresses", "service", serviceKey(svc), "addresses", addresses)
		if now != nil {
			c.o.Recorder.Eventf(svc, corev1.EventTypeNormal, "LoadBalancerAddresses", "the addresses are now: %s", addresses)
		}
	}
	if now != nil && len(lost) > 0 {
		c.o.Recorder.Eventf(svc, corev1.EventTypeWarning, "AddressTakenAway", "%v: it is in no pool any more, and no node's. The "+
			"addresses are now: %s", lost, addresses)
	}
	refused := meta.FindStatusCondition(want.Conditions, NodePortCondition)
	if was := meta.FindStatusCondition(svc.Status.Conditions, NodePortCondition); refused != nil &&
		(was == nil || was.Message != refused.Message) {
		c.o.Recorder.Event(svc, corev1.EventTypeWarning, refused.Reason, refused.Message)
	}
	if now != nil && now.Reason != ReasonServed && (before == nil || before.Message != now.Message) {
		c.o.Recorder.Event(svc, corev1.EventTypeWarning, now.Reason, now.Message)
	}
	return nil
}

func ingressText(s corev1.LoadBalancerStatus) string {
	if len(s.Ingress) == 0 {
		return "none"
	}
	text := ""
	for i, in := range s.Ingress {
		if i > 0 {
			text += " "
		}
		text += in.IP + in.Hostname
	}
	return text
}

// reportStatus sets the status line: how many Services have no address.
func (c *Controller) reportStatus(plan map[types.NamespacedName]Allocation) {
	if c.o.Disabled {
		c.o.Part.Set(status.Disabled, "")
		return
	}
	lacking, served := 0, 0
	for _, v := range plan {
		switch {
		case !v.Ours:
			continue
		case len(v.Addresses) == 0:
			lacking++
		}
		served++
	}
	switch {
	case served == 0:
		c.o.Part.Set(status.Running, "")
	case lacking > 0:
		c.o.Part.Set(status.Running,
			fmt.Sprintf("%d of %d Services of type LoadBalancer have no address: kubectl describe service says why", lacking, served))
	default:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d Services of type LoadBalancer", served))
	}
}
