// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

// OwnCheck is the operator's own check. It decides by its exit code.
const OwnCheck = "/etc/coracle/upgrade-check"

const (
	// bootIDFile has the kernel's id of this boot (random(4)).
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	// apiTimeout is how long one question to the API server, the cluster DNS or a Service may take.
	apiTimeout = 5 * time.Second
	// ownTimeout is how long the operator's own check may take.
	ownTimeout = 30 * time.Second
	// reasonMost is how many bytes of a reason are kept.
	reasonMost = 300
	// lagMost is by how many log entries a server may be behind the newest one: some are always on their way.
	lagMost = 1000
	// steadyAfter is how long a container has to run after a restart until it is not expected to be restarted again:
	// one that ends by itself every hour would do so in one of fifty trials.
	steadyAfter = time.Hour
)

// Conditions that Observe looks at. Those of parts have the part's name behind condPart.
const (
	condProcess = "process"
	condPart    = "part "
	condMembers = "members"
	condStore   = "store"
	condAPI     = "API server"
	condNode    = "node"
	condDNS     = "cluster DNS"
	condService = "Services"
	condOwn     = OwnCheck
)

// Observer observes a machine from outside of the process that runs there, so that a candidate is judged by the same
// means as the version before it.
type Observer struct {
	// AdminSocket is the running coracle's.
	AdminSocket string
	// Kubeconfig is a client configuration for the API with at least the rights of this machine's node.
	Kubeconfig string
	// Check is the operator's own check. It need not exist.
	Check string
}

// findings collects what fails.
type findings struct {
	mu  sync.Mutex
	out Facts
}

func (f *findings) fail(condition, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := truncate.Text(truncate.Printable(fmt.Sprintf(format, args...), ""), reasonMost)
	if f.out.Failing[condition] == "" {
		f.out.Failing[condition] = text
	}
}

// Observe returns what holds on the machine now. It returns when ctx is done at the latest.
func (o Observer) Observe(ctx context.Context) Facts {
	boot, _ := os.ReadFile(bootIDFile) // the kernel has it always
	f := &findings{out: Facts{Failing: map[string]string{}, Boot: strings.TrimSpace(string(boot))}}
	var asking sync.WaitGroup
	asking.Go(func() { o.observeOwnCheck(ctx, f) })
	if r := o.observeProcess(ctx, f); r != nil {
		asking.Go(func() { o.observeStore(ctx, r, f) })
		o.observeAPI(ctx, r, f)
	}
	asking.Wait()
	return f.out
}

// observeProcess observes what the process says of itself. It returns nil when the process does not reply.
func (o Observer) observeProcess(ctx context.Context, f *findings) *status.Report {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	r, err := status.NewClient(o.AdminSocket).Status(ctx)
	if err != nil {
		f.fail(condProcess, "it does not answer: %v", err)
		return nil
	}
	if r.Ready.IsZero() {
		f.fail(condProcess, "it is not ready yet")
	}
	if r.Memory != nil {
		f.out.Memory = r.Memory.Anonymous
	}
	f.out.FailedShims = r.FailedShims
	for _, c := range r.Components {
		// What a part does not do that never starts, such as writing rules, may be there from the version before.
		if c.State.Trouble() || c.State == status.Starting {
			f.fail(condPart+c.Name, "%s: %s", c.State, c.Message)
		}
	}
	alive := func(m status.Member) bool { return !m.Self && m.State == "alive" }
	if len(r.Members) > 1 && !slices.ContainsFunc(r.Members, alive) {
		f.fail(condMembers, "this machine is in contact with no other machine of the cluster")
	}
	return r
}

// observeStore observes a server's store, and whether it is one of the cluster's servers.
func (o Observer) observeStore(ctx context.Context, r *status.Report, f *findings) {
	if r.Role != "server" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout)
	defer cancel()
	var s status.Servers
	if err := status.NewClient(o.AdminSocket).Do(ctx, http.MethodGet, status.ServersPath, &s); err != nil {
		f.fail(condStore, "its state is not known: %v", err)
		return
	}
	self := slices.IndexFunc(s.Servers, func(s status.ClusterServer) bool { return s.Self })
	leads := func(s status.ClusterServer) bool { return s.Role == status.Leader && s.Answers }
	switch {
	case self < 0:
		f.fail(condStore, "this server is none of the cluster's servers")
	case !slices.ContainsFunc(s.Servers, leads):
		f.fail(condStore, "no leader answers this server")
	case s.Servers[self].Full:
		f.fail(condStore, "its disk is full")
	case s.Servers[self].Stalled:
		f.fail(condStore, "its disk is stalled")
	case s.Servers[self].Refusing != "":
		f.fail(condStore, "it refuses writes: %s", s.Servers[self].Refusing)
	case s.Servers[self].Lag > lagMost:
		f.fail(condStore, "it is %d entries behind", s.Servers[self].Lag)
	}
}

// client returns a client of the API. It is made each time: the credentials may not exist yet, or be renewed.
func (o Observer) client() (*rest.Config, *kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the credentials: %w", err)
	}
	config.Timeout, config.ContentType = apiTimeout, runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("making a client: %w", err)
	}
	return config, client, nil
}

// observeAPI observes the API server, this machine's node and its pods, the cluster DNS and the Services.
func (o Observer) observeAPI(ctx context.Context, r *status.Report, f *findings) {
	config, client, err := o.client()
	if err != nil {
		f.fail(condAPI, "%v", err)
		return
	}
	if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); apierrors.IsInternalError(err) {
		f.fail(condAPI, "it says that it is not ready") // with a long list of its checks
		return
	} else if err != nil {
		f.fail(condAPI, "%v", err)
		return
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { observeNode(ctx, client, r.Node, f) })
	kubernetesIPs, err := serviceIPs(ctx, client, metav1.NamespaceDefault, "kubernetes")
	if err != nil {
		f.fail(condService, "%v", err)
		return
	}
	for _, ip := range kubernetesIPs {
		asking.Go(func() {
			if err := callService(ctx, config, ip); err != nil {
				f.fail(condService, "the kubernetes Service does not answer at %s: %v", ip, err)
			}
		})
	}
	dnsIPs, err := serviceIPs(ctx, client, metav1.NamespaceSystem, "kube-dns")
	if err != nil {
		f.fail(condDNS, "%v", err)
	}
	for _, ip := range dnsIPs {
		asking.Go(func() {
			err := askDNS(ctx, ip, kubernetesIPs[0])
			if failed, ok := errors.AsType[*net.DNSError](err); ok {
				err = errors.New(failed.Err) // its text names another server
			}
			if err != nil {
				f.fail(condDNS, "%s: %v", ip, err)
			}
		})
	}
}

// observeNode observes a node and its pods. A server without a node has no such Node, before the switch and after it.
func observeNode(ctx context.Context, client kubernetes.Interface, name string, f *findings) {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		f.fail(condNode, "%v", err)
		return
	}
	ready := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if ready < 0 {
		f.fail(condNode, "it has not reported its state")
	} else if c := node.Status.Conditions[ready]; c.Status != corev1.ConditionTrue {
		f.fail(condNode, "it is not Ready: %s", c.Message)
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name, ResourceVersion: "0"})
	if err != nil {
		f.fail(condPods, "they cannot be listed: %v", err)
		return
	}
	found := map[string]Pod{}
	for _, p := range pods.Items {
		found[string(p.UID)] = Pod{Name: p.Namespace + "/" + p.Name, Ready: serves(&p), Containers: containersOf(&p)}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out.Pods, f.out.Tolerated = found, tolerated(pods.Items)
}

// tolerated returns for how long all pods stay on a node that is not Ready, 0 if they all stay for ever. Pods that do
// not stay at all do not count.
func tolerated(pods []corev1.Pod) (least time.Duration) {
	for _, p := range pods {
		for _, t := range p.Spec.Tolerations {
			if t.Key != corev1.TaintNodeNotReady && t.Key != "" || t.Effect != corev1.TaintEffectNoExecute || t.TolerationSeconds == nil {
				continue
			}
			if d := time.Duration(*t.TolerationSeconds) * time.Second; d > 0 && (least == 0 || d < least) {
				least = d
			}
		}
	}
	return least
}

// containersOf returns the containers of a pod by name.
func containersOf(p *corev1.Pod) map[string]Container {
	out := map[string]Container{}
	for _, c := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses) {
		running := c.State.Running
		out[c.Name] = Container{ID: c.ContainerID, Restarts: c.RestartCount,
			Steady: running != nil && (c.RestartCount == 0 || time.Since(running.StartedAt.Time) > steadyAfter)}
	}
	return out
}

// serves says whether a pod is ready, or has finished its work, or is being deleted.
func serves(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.DeletionTimestamp != nil {
		return true
	}
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// serviceIPs returns the cluster IPs of a Service.
func serviceIPs(ctx context.Context, client kubernetes.Interface, namespace, name string) ([]string, error) {
	s, err := client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if len(s.Spec.ClusterIPs) == 0 {
		return nil, fmt.Errorf("the Service %s has no address", name)
	}
	return s.Spec.ClusterIPs, nil
}

// callService connects to the API by the address of its Service: that needs the Service's rules on this machine, a
// server behind them, and its certificate.
func callService(ctx context.Context, config *rest.Config, ip string) error {
	trust, err := rest.TLSConfigFor(config)
	if err != nil {
		return err
	}
	trust.ServerName = ip
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: trust}).DialContext(ctx, "tcp", net.JoinHostPort(ip, "443"))
	if err != nil {
		return err
	}
	return conn.Close()
}

// askDNS asks the cluster DNS at the address of its Service for the name of the kubernetes Service, which says the
// cluster's domain, and for the address of that name.
func askDNS(ctx context.Context, at, service string) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(at, "53"))
	}}
	names, err := r.LookupAddr(ctx, service)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, "kubernetes.default.") })
	if i < 0 {
		return fmt.Errorf("the name of %s is %s, and not kubernetes.default", service, joined(names))
	}
	addresses, err := r.LookupHost(ctx, names[i])
	if err != nil {
		return err
	}
	if !slices.Contains(addresses, service) {
		return fmt.Errorf("the address of %s is %s, and not %s", names[i], joined(addresses), service)
	}
	return nil
}

// observeOwnCheck runs the operator's own check, if there is one.
func (o Observer) observeOwnCheck(ctx context.Context, f *findings) {
	if _, err := os.Stat(o.Check); err != nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	c := exec.CommandContext(limited, o.Check)
	c.WaitDelay = time.Second // for a child of it that keeps its output open
	out, err := c.CombinedOutput()
	said := strings.TrimSpace(string(out))
	switch {
	case err == nil:
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		f.fail(condOwn, "it did not end within %s", ownTimeout)
	case said == "":
		f.fail(condOwn, "%v", err)
	default:
		f.fail(condOwn, "%v: %s", err, said)
	}
}

func joined(names []string) string { return strings.Join(names, ", ") }
