// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	nodeutil "k8s.io/kubernetes/pkg/util/node"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// gatherDelay is how long a round waits for further changes.
	gatherDelay = 50 * time.Millisecond
	// retryDelay is the wait after a failed write before all objects are compared again.
	retryDelay = time.Second
	// unusedFor is the time for which the Service is kept after the last Ingress, so that a user who replaces the only
	// Ingress keeps the address.
	unusedFor = 10 * time.Minute
	// yieldAfter is the same time where another Service waits for one of its ports.
	yieldAfter = 30 * time.Second
)

// Component is the source of the events.
const Component = "ingress"

// ReasonPortInUse is the reason of events of a Service or a Gateway about nodes on which other programs use its ports.
const ReasonPortInUse = "PortInUse"

// All fields of Options are required, except Rules, Disabled, PodCIDRs, ServiceCIDRs, ReservedNodePorts,
// Certificates, Built, Part and Logger.
type Options struct {
	// Client writes objects. Informers are the term's, and are started after New.
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Recorder  record.EventRecorder
	// Rules are the same as those of the servers that compile the table.
	Rules compile.Rules
	// Disabled removes the Service.
	Disabled bool
	// PodCIDRs and ServiceCIDRs are the cluster's networks, and ReservedNodePorts the ports of nodes that are the
	// cluster's. Of them the proxies connect to pods alone, and only as to endpoints.
	PodCIDRs, ServiceCIDRs []netip.Prefix
	ReservedNodePorts      []uint16
	// Certificates, when set, is called in each round with the certificates to request by ACME. nil requests none. It
	// must not block.
	Certificates func([]compile.Order)
	// Built is the build time of this program. While the clock shows an earlier time, no certificate is made. It is
	// zero if unknown.
	Built time.Time
	// Part is the status line.
	Part   *status.Part
	Logger *slog.Logger
}

// Controller syncs the ingress' objects for one term.
type Controller struct {
	o         Options
	ingresses networkinglisters.IngressLister
	classes   networkinglisters.IngressClassLister
	services  corelisters.ServiceLister
	secrets   corelisters.SecretLister
	configs   corelisters.ConfigMapLister
	nodes     corelisters.NodeLister
	slices    discoverylisters.EndpointSliceLister
	synced    []cache.InformerSynced
	wake      timers.Signal // an object has changed

	warnings *Warnings
	memory   compile.Memory
	refusals *refusals
	busy     map[string]string // ports that other programs use, by the node's name
	unused   time.Time         // since when no Ingress is served; zero while there is one
	// defaultNext is when a warning about the end of a user's default certificate changes; zero for never
	defaultNext time.Time
}

// New adds handlers to the informers, which must not run yet.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Informers == nil || o.Recorder == nil {
		return nil, errors.New("ingress: Client, Informers and Recorder are required")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	core, networking, discovery := o.Informers.Core().V1(), o.Informers.Networking().V1(), o.Informers.Discovery().V1()
	c := &Controller{
		o: o, ingresses: networking.Ingresses().Lister(), classes: networking.IngressClasses().Lister(), services: core.Services().Lister(),
		secrets: core.Secrets().Lister(), configs: core.ConfigMaps().Lister(), nodes: core.Nodes().Lister(),
		slices: discovery.EndpointSlices().Lister(),
		wake:   timers.NewSignal(), refusals: newRefusals(), warnings: NewWarnings(o.Client, o.Recorder, Component),
	}
	var err error
	c.synced, err = netinformers.Follow(func(any) { c.wake.Send() }, []netinformers.Source{
		{Informer: networking.Ingresses().Informer()}, {Informer: networking.IngressClasses().Informer()},
		{Informer: core.Services().Informer(), Matters: c.serviceMatters},
		{Informer: core.ConfigMaps().Informer(), Matters: c.configMatters},
		{Informer: core.Secrets().Informer(), Matters: c.secretMatters},
		{Informer: core.Nodes().Informer(), Matters: NodeMatters},
		{Informer: discovery.EndpointSlices().Informer(), Matters: c.sliceMatters},
	}...)
	if err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	return c, nil
}

// used reports whether the cluster has Ingresses at all. If it has none, changes of Services, Secrets and nodes do not
// wake the controller.
func (c *Controller) used() bool {
	all, _ := c.ingresses.List(labels.Everything()) // a lister of a cache returns no error
	return len(all) > 0
}

func (c *Controller) serviceMatters(_, now any) bool {
	svc, ok := now.(*corev1.Service)
	// beside the Service at rest another one may wait for its ports
	return ok && (svc.Namespace == metav1.NamespaceSystem && svc.Name == table.Service || c.used() || c.ownService() != nil)
}

// configMatters reports whether a change of a ConfigMap matters while there are Ingresses. Of those in kube-system only
// compile.Defaults does: some others change all the time.
func (c *Controller) configMatters(_, now any) bool {
	m, ok := now.(*corev1.ConfigMap)
	return ok && c.used() && (m.Namespace != metav1.NamespaceSystem || m.Name == compile.Defaults.Name)
}

func (c *Controller) secretMatters(_, now any) bool {
	s, ok := now.(*corev1.Secret)
	return ok && s.Type != "helm.sh/release.v1" && c.used()
}

// NodeMatters reports whether the change of a node changes the address or the ports of its proxy. Heartbeats do not.
// old is nil for a node that is new or deleted.
func NodeMatters(old, now any) bool {
	a, was := old.(*corev1.Node)
	b, is := now.(*corev1.Node)
	if !was || !is {
		return is && b.Annotations[table.NodeAnnotation] != ""
	}
	return a.Annotations[table.NodeAnnotation] != b.Annotations[table.NodeAnnotation] || b.Annotations[table.NodeAnnotation] != "" &&
		(nodeutil.IsNodeReady(a) != nodeutil.IsNodeReady(b) || !equality.Semantic.DeepEqual(internalIPs(a), internalIPs(b)) ||
			(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil))
}

// sliceMatters reports whether a change of an EndpointSlice matters: of the controller's own, and of a hand-written one
// while there are Ingresses.
func (c *Controller) sliceMatters(_, now any) bool {
	s, ok := now.(*discoveryv1.EndpointSlice)
	return ok && (s.Namespace == metav1.NamespaceSystem && s.Labels[discoveryv1.LabelManagedBy] == sliceManager ||
		s.Labels[discoveryv1.LabelManagedBy] != upstreamSlices && c.used())
}

// Run syncs the objects until ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return nil
	}
	c.wake.Rounds(ctx, gatherDelay, func() time.Duration { return c.reconcileAll(ctx) })
	return nil
}

// reconcileAll compares all objects once. It returns the time after which to do so again without a change; 0 for never.
func (c *Controller) reconcileAll(ctx context.Context) (again time.Duration) {
	r, err := c.compile()
	if err != nil { // writing JSON failed, which no object can cause
		c.o.Logger.Error("ingress: the objects cannot be compiled", "error", err)
		return retryDelay
	}
	wait, err := c.syncService(ctx, len(r.Served) > 0)
	refused, statuses := c.syncStatus(ctx, r)
	err = errors.Join(err, c.syncSlices(ctx), statuses, c.syncCertificate(ctx, len(r.Served) > 0))
	if c.o.Certificates != nil {
		c.o.Certificates(r.Orders)
	}
	c.warn(r)
	c.warnWaiting(r.Served)
	more, failed := c.warnings.End(ctx)
	err = errors.Join(err, failed)
	c.showStatus(r)
	if err != nil && ctx.Err() == nil {
		c.o.Logger.Warn("ingress: not everything could be written; it is tried again", "error", err)
		return retryDelay
	}
	for _, at := range []time.Time{r.Next, c.defaultNext} {
		if !at.IsZero() {
			wait = timers.ShorterWait(wait, max(time.Until(at), time.Millisecond))
		}
	}
	return timers.ShorterWait(timers.ShorterWait(wait, refused), more)
}

func (c *Controller) compile() (compile.Result, error) {
	if c.o.Disabled {
		return compile.Result{}, nil
	}
	s := compile.State{Rules: c.o.Rules, Service: func(namespace, name string) *corev1.Service {
		svc, _ := c.services.Services(namespace).Get(name) // nil where there is none
		return svc
	}}
	s.Ingresses, _ = c.ingresses.List(labels.Everything()) // listers of caches return no error
	s.Classes, _ = c.classes.List(labels.Everything())
	if len(s.Ingresses) == 0 {
		return compile.Result{}, nil
	}
	if c.o.Certificates != nil { // the account may be registered later
		s.Account = &corev1.Secret{}
	}
	ofNode := c.nodeAddresses()
	barred := c.barred(ofNode)
	s.Barred = func(namespace, name string) []string {
		return barred[types.NamespacedName{Namespace: namespace, Name: name}]
	}
	s.OwnsAddress = func(a netip.Addr) bool {
		return ofNode[a] || isInNetworks(a, c.o.PodCIDRs) || isInNetworks(a, c.o.ServiceCIDRs)
	}
	s.Now, s.AtNodes = time.Now(), c.atNodes()
	s.Memory, s.Secrets = &c.memory, map[types.NamespacedName]*corev1.Secret{}
	s.Defaults, _ = c.configs.ConfigMaps(compile.Defaults.Namespace).Get(compile.Defaults.Name) // nil where there is none
	for name := range compile.Wanted(s) {
		if secret, err := c.secrets.Secrets(name.Namespace).Get(name.Name); err == nil {
			s.Secrets[name] = secret
		}
	}
	s.ConfigMaps = map[types.NamespacedName]*corev1.ConfigMap{}
	for name := range compile.WantedConfigMaps(s) {
		if m, err := c.configs.ConfigMaps(name.Namespace).Get(name.Name); err == nil {
			s.ConfigMaps[name] = m
		}
	}
	return compile.Desired(s)
}

// ownService returns the Service, or nil when there is none, or when another client has made it.
func (c *Controller) ownService() *corev1.Service {
	svc, err := c.services.Services(metav1.NamespaceSystem).Get(table.Service)
	if err != nil || svc.Labels[managedBy] != managerName {
		return nil
	}
	return svc
}

// syncService makes or removes the Service. It returns the time after which to check again.
func (c *Controller) syncService(ctx context.Context, wanted bool) (again time.Duration, err error) {
	services := c.o.Client.CoreV1().Services(metav1.NamespaceSystem)
	have := c.ownService()
	switch {
	case wanted:
		c.unused = time.Time{}
		if have != nil {
			return 0, nil
		}
		all, _ := c.services.List(labels.Everything()) // a lister of a cache returns no error
		taken := udpConflict(all)
		if taken != nil {
			c.o.Logger.Info("ingress: the Service is made without the port of HTTP/3, which another Service has", "port", "443/UDP",
				"service", taken.Namespace+"/"+taken.Name)
		}
		if _, err = services.Create(ctx, desiredService(taken == nil), metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			if _, missing := c.services.Services(metav1.NamespaceSystem).Get(table.Service); missing != nil {
				return 0, nil // the cache receives the Service
			}
			return 0,
				fmt.Errorf("a Service %s/%s exists that is not labelled %s=%s, so that no Ingress has an address: delete or rename it",
					metav1.NamespaceSystem, table.Service, managedBy, managerName)
		}
		if err == nil {
			c.o.Logger.Info("ingress: there are Ingresses, so their Service was made", "service", metav1.NamespaceSystem+"/"+table.Service)
		}
		return 0, err
	case have == nil:
		return 0, nil
	}
	if c.unused.IsZero() {
		c.unused = time.Now()
	}
	if rest := c.keepFor(have) - time.Since(c.unused); rest > 0 && !c.o.Disabled {
		return rest, nil
	}
	err = services.Delete(ctx, table.Service, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
	if err == nil {
		c.o.Logger.Info("ingress: there are no Ingresses any more, so their Service was deleted", "service", metav1.NamespaceSystem+"/"+
			table.Service)
	}
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return 0, err
}

// syncSlices writes the EndpointSlices with the nodes that serve Ingresses.
func (c *Controller) syncSlices(ctx context.Context) error {
	client, svc := c.o.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem), c.ownService()
	want := map[string]*discoveryv1.EndpointSlice{}
	if svc != nil && svc.DeletionTimestamp == nil {
		nodes, _ := c.nodes.List(labels.Everything())
		want = slicesOf(c.nodesWithFreePorts(svc, nodes))
	}
	have, _ := c.slices.EndpointSlices(metav1.NamespaceSystem).List(
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelManagedBy: sliceManager}))
	return WriteSlices(ctx, client, svc, have, want)
}

// WriteSlices syncs the EndpointSlices of a Service with those that are wanted, by their names. The Service owns them.
// svc is nil where none is wanted.
func WriteSlices(
	ctx context.Context, client discoveryclient.EndpointSliceInterface, svc *corev1.Service, have []*discoveryv1.EndpointSlice,
	want map[string]*discoveryv1.EndpointSlice,
) error {
	var errs []error
	for _, s := range have {
		w := want[s.Name]
		delete(want, s.Name)
		switch {
		case w == nil:
			if err := client.Delete(ctx, s.Name,
				metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))}); !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
		case !equality.Semantic.DeepEqual(w.Endpoints, s.Endpoints) || !equality.Semantic.DeepEqual(w.Ports, s.Ports):
			changed := s.DeepCopy()
			changed.Endpoints, changed.Ports = w.Endpoints, w.Ports
			// the cache receives the newer object
			if _, err := client.Update(ctx, changed, metav1.UpdateOptions{}); !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	for _, s := range want {
		s.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))}
		if _, err := client.Create(ctx, s, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// nodesWithFreePorts returns the nodes on which no other program uses one of the Service's ports. For each other node
// there is a warning about the Service.
func (c *Controller) nodesWithFreePorts(svc *corev1.Service, nodes []*corev1.Node) []*corev1.Node {
	var out []*corev1.Node
	busy := map[string]string{}
	for _, n := range nodes {
		ports := BusyPorts(svc, n, nodes)
		if len(ports) == 0 {
			out = append(out, n)
			continue
		}
		busy[n.Name] = strings.Trim(strings.Join(strings.Fields(fmt.Sprint(ports)), ", "), "[]")
		c.warnings.Add(svc, ReasonPortInUse,
			"the node %s is no address of Ingresses: another program there listens at TCP %s and keeps it. "+
				"`coracle status` on that machine names it: stop it, or have it listen elsewhere", n.Name, busy[n.Name])
	}
	c.busy = busy
	return out
}

// syncStatus writes the Service's addresses into the Ingresses. again is the time after which to try a write that the
// API refused again; 0 for never.
func (c *Controller) syncStatus(ctx context.Context, r compile.Result) (again time.Duration, err error) {
	var errs []error
	svc, tried := c.ownService(), map[string]bool{}
	for _, ing := range r.Served {
		want := statusOf(ing, svc)
		if want == nil {
			continue
		}
		changed := ing.DeepCopy()
		changed.Status = *want
		key := ing.Namespace + "/" + ing.Name
		tried[key] = true
		err := c.refusals.writeUnlessRefused(key, string(ing.UID)+ing.ResourceVersion+want.String(), func() error {
			_, err := c.o.Client.NetworkingV1().Ingresses(ing.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
			return err
		})
		switch {
		case apierrors.IsConflict(err) || apierrors.IsNotFound(err): // the cache receives the newer object
		case isRefused(err):
			c.o.Logger.Warn("ingress: the API refuses the status of an Ingress; it is tried less often", "ingress", key, "error", err)
		default:
			errs = append(errs, err)
		}
	}
	return c.refusals.nextRetry(tried), errors.Join(errs...)
}

// warn adds the findings about the ConfigMap and about Ingresses to the warnings.
func (c *Controller) warn(r compile.Result) {
	if m, err := c.configs.ConfigMaps(compile.Defaults.Namespace).Get(compile.Defaults.Name); err == nil {
		for _, f := range r.OfDefaults {
			c.warnings.Add(m, f.Reason, "%s", f.Message)
		}
	}
	for _, ing := range r.Served {
		for _, f := range r.Findings[types.NamespacedName{Namespace: ing.Namespace, Name: ing.Name}] {
			c.warnings.Add(ing, f.Reason, "%s", f.Message)
		}
	}
}

// showStatus sets the status line: how many Ingresses are served.
func (c *Controller) showStatus(r compile.Result) {
	lacking := 0
	for _, all := range r.Findings {
		if slices.ContainsFunc(all, func(f compile.Finding) bool { return f.Reason != compile.ReasonIgnored }) {
			lacking++
		}
	}
	switch {
	case c.o.Disabled:
		c.o.Part.Set(status.Disabled, "")
	case len(c.busy) > 0:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d Ingresses, without addresses of the nodes %s, where other programs have the ports: "+
			"kubectl -n %s describe service %s", len(r.Served), strings.Join(slices.Sorted(maps.Keys(c.busy)), ", "),
			metav1.NamespaceSystem, table.Service))
	case lacking > 0:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d Ingresses, of which %d are not served as they ask: coracle ingress check -A says why",
			len(r.Served), lacking))
	case len(r.Served) > 0:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d Ingresses", len(r.Served)))
	default:
		c.o.Part.Set(status.Running, "")
	}
}
