// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// soon is how long something may take that takes seconds on a machine that is not busy.
	soon = 3 * time.Minute
	// askTimeout bounds one question of the scenario's own.
	askTimeout = 10 * time.Second
	// balanced is where the parts of an agent's node, and programs on its machine, reach the API.
	balanced = "127.0.0.1:6444"
	own      = "127.0.0.1:6443"
)

// Cluster is servers and agents on one site.
type Cluster struct {
	T       testing.TB
	Site    *harness.Site
	Servers []*harness.Server // without nodes, unless nodes
	Agents  []*harness.Server
	nodes   bool                         // servers run pods too, as they do by default
	six     bool                         // all addresses are of IPv6
	program string                       // of each server and agent at its first start, "": the one under test
	prepare func(server *harness.Server) // before its first start
	config  *rest.Config                 // the admin's, without an address
	store   asks                         // the store of one server, coracle's or etcd
}

// asks calls the store of a server's own machine, within a time.
type asks func(ctx context.Context, s *harness.Server, within time.Duration, call func(ctx context.Context, c *clientv3.Client, address string) error) error

// New starts a cluster and waits until as many servers vote as should and every node is ready.
func New(t testing.TB, servers, agents int) *Cluster {
	t.Helper()
	return NewPrepared(t, servers, agents, func(*harness.Server) {})
}

// NewPrepared is New, and does something to each server before its first start.
func NewPrepared(t testing.TB, servers, agents int, prepare func(server *harness.Server)) *Cluster {
	t.Helper()
	c := &Cluster{T: t, prepare: prepare}
	c.start(servers, agents)
	return c
}

// NewOfNodes is New with servers that run pods too, as they do by default.
func NewOfNodes(t testing.TB, servers, agents int) *Cluster {
	t.Helper()
	c := &Cluster{T: t, nodes: true, prepare: (*harness.Server).AddBoxImage}
	c.start(servers, agents)
	return c
}

// NewOfIPv6 is NewOfNodes on machines that have no other addresses than those of IPv6.
func NewOfIPv6(t testing.TB, servers, agents int) *Cluster {
	t.Helper()
	c := &Cluster{T: t, nodes: true, six: true, prepare: (*harness.Server).AddBoxImage}
	c.start(servers, agents)
	return c
}

// NewOfProgram is New with servers and agents of another program than the one under test.
func NewOfProgram(t testing.TB, program string, servers, agents int) *Cluster {
	t.Helper()
	c := &Cluster{T: t, program: program, prepare: func(*harness.Server) {}}
	c.start(servers, agents)
	return c
}

// NewOfNodesOfProgram is NewOfProgram with servers that run pods too, and no agents.
func NewOfNodesOfProgram(t testing.TB, program string, servers int) *Cluster {
	t.Helper()
	c := &Cluster{T: t, program: program, nodes: true, prepare: (*harness.Server).AddBoxImage}
	c.start(servers, 0)
	return c
}

// machine is a new one.
func (c *Cluster) machine() *harness.Machine {
	c.T.Helper()
	m := c.Site.NewMachine()
	if c.six {
		m.OnlyIPv6(fmt.Sprintf("fd77::%d", m.Number+1))
	}
	return m
}

func (c *Cluster) start(servers, agents int) {
	t := c.T
	t.Helper()
	began := time.Now()
	c.Site, c.store = harness.NewSite(t), atStore
	first := c.machine().NewServer(c.flags()...)
	first.Bin = c.program
	c.prepare(first)
	first.Start()
	harness.Eventually(t, soon, "the first server's API", func() error {
		_, err := first.TryKubectl("get", "--raw", "/readyz")
		return errors.Join(first.Alive(), err)
	})
	config := testenv.Must(clientcmd.BuildConfigFromFlags("", first.Kubeconfig))(t)
	config.QPS = -1
	c.config, c.Servers = config, []*harness.Server{first}
	for range servers - 1 {
		c.Join()
	}
	for range agents {
		a := c.machine().NewAgent(first)
		a.Bin = c.program
		a.AddBoxImage()
		a.Start()
		c.Agents = append(c.Agents, a)
	}
	c.WaitWhole()
	t.Logf("%d servers and %d agents are one cluster %v after their site was begun, which took building the image of the tests too where that was not there yet", servers, agents, time.Since(began).Round(100*time.Millisecond))
}

// flags are those of its servers.
func (c *Cluster) flags() []string {
	switch {
	case c.six:
		return []string{"--cluster-cidr", "fd42::/56", "--service-cidr", "fd43::/112"}
	case c.nodes:
		return nil
	}
	return []string{"--disable-agent"}
}

// Nodes are its members that run pods.
func (c *Cluster) Nodes() []*harness.Server {
	if !c.nodes {
		return c.Agents
	}
	return append(slices.Clone(c.Servers), c.Agents...)
}

// Join adds a server on a new machine. It does not wait.
func (c *Cluster) Join() *harness.Server {
	c.T.Helper()
	return c.JoinOn(c.machine())
}

// JoinOn adds a server on a machine. It does not wait.
func (c *Cluster) JoinOn(m *harness.Machine) *harness.Server {
	c.T.Helper()
	s := m.NewPeer(c.Servers[0], c.flags()...)
	s.Bin = c.program
	c.prepare(s)
	s.Start()
	c.Servers = append(c.Servers, s)
	return s
}

// Client makes a client on a machine for the API at host:port, with connections of its own. timeout bounds each
// request, watches too; 0: none.
func (c *Cluster) Client(from *harness.Machine, address string, timeout time.Duration) *kubernetes.Clientset {
	c.T.Helper()
	config := rest.CopyConfig(c.config)
	config.Host = "https://" + address
	config.Timeout = timeout
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return from.Dial(ctx, network, address)
	}
	client := testenv.Must(kubernetes.NewForConfig(config))(c.T)
	return client
}

// Ask is a client of a server, for the scenario's own questions.
func (c *Cluster) Ask(s *harness.Server) *kubernetes.Clientset {
	at := own
	if slices.Contains(s.Args, "--bind-address") {
		at = net.JoinHostPort(s.IP, "6443")
	}
	return c.Client(s.Machine, at, askTimeout)
}

// storeStatus asks the store of one server, which answers without a majority.
func (c *Cluster) storeStatus(ctx context.Context, s *harness.Server) (status *clientv3.StatusResponse, err error) {
	err = c.store(ctx, s, 2*time.Second, func(ctx context.Context, c *clientv3.Client, address string) (err error) {
		status, err = c.Status(ctx, address)
		return err
	})
	return status, err
}

// Lead makes a server lead.
func (c *Cluster) Lead(s *harness.Server) {
	c.T.Helper()
	harness.Eventually(c.T, soon, fmt.Sprintf("machine %d leads", s.Number), func() error {
		leader, _, err := c.Leader(c.T.Context(), c.Servers)
		if err != nil || leader == s {
			return err
		}
		to, err := c.storeStatus(c.T.Context(), s)
		if err != nil {
			return err
		}
		err = c.store(c.T.Context(), leader, askTimeout, func(ctx context.Context, c *clientv3.Client, _ string) error {
			_, err := c.MoveLeader(ctx, to.Header.MemberId)
			return err
		})
		return errors.Join(err, fmt.Errorf("machine %d led", leader.Number))
	})
}

// atStore calls the store of a server's own process of coracle.
func atStore(ctx context.Context, s *harness.Server, within time.Duration, call func(ctx context.Context, c *clientv3.Client, address string) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	socket := s.Seen("run", "store.sock")
	if c, err := net.Dial("unix", socket); err != nil { // gRPC would try again and again
		return err
	} else if err := c.Close(); err != nil {
		return err
	}
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	})
	const address = "127.0.0.1:1" // not used
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Context: ctx, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{dial}})
	if err != nil {
		return err
	}
	defer client.Close()
	return call(ctx, client, address)
}

// Leader is the server that leads in the newest term that those have which are asked.
func (c *Cluster) Leader(ctx context.Context, asked []*harness.Server) (*harness.Server, uint64, error) {
	var leader *harness.Server
	var newest uint64
	var errs []error
	for _, s := range asked {
		st, err := c.storeStatus(ctx, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("machine %d: %w", s.Number, err))
			continue
		}
		if st.RaftTerm > newest {
			newest, leader = st.RaftTerm, nil
		}
		if st.RaftTerm == newest && st.Leader == st.Header.MemberId {
			leader = s
		}
	}
	if leader == nil {
		return nil, newest, errors.Join(append(errs, errors.New("no server leads"))...)
	}
	return leader, newest, nil
}

// MustLeader waits for a leader among all servers.
func (c *Cluster) MustLeader() *harness.Server {
	c.T.Helper()
	var leader *harness.Server
	harness.Eventually(c.T, soon, "a leader", func() (err error) {
		leader, _, err = c.Leader(context.Background(), c.Servers)
		return err
	})
	return leader
}

// Without are the servers but one.
func Without(servers []*harness.Server, one *harness.Server) []*harness.Server {
	return slices.DeleteFunc(slices.Clone(servers), func(s *harness.Server) bool { return s == one })
}

// voters is how many of so many servers vote: the largest odd number of them, and five at most.
func voters(servers int) int { return min((servers-1)|1, 5) }

// WaitWhole waits until every server serves and has applied what the others have, as many of them vote as should, all
// are behind the Service kubernetes, and every node is ready.
func (c *Cluster) WaitWhole() {
	c.T.Helper()
	harness.Eventually(c.T, harness.Longer, "the cluster is whole", func() error { return c.whole(context.Background()) })
}

func (c *Cluster) whole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, soon) // many questions, of which each has its own
	defer cancel()
	for _, s := range append(slices.Clone(c.Servers), c.Agents...) {
		if err := s.Alive(); err != nil {
			return err
		}
	}
	leader, _, err := c.Leader(ctx, c.Servers)
	if err != nil {
		return err
	}
	voting := 0
	for _, s := range c.Servers {
		st, err := c.storeStatus(ctx, s)
		if err != nil {
			return fmt.Errorf("machine %d: %w", s.Number, err)
		}
		if !st.IsLearner {
			voting++
		}
		if body, err := c.Ask(s).Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return fmt.Errorf("machine %d: %w %s", s.Number, err, body)
		}
	}
	if want := voters(len(c.Servers)); voting != want {
		return fmt.Errorf("%d of %d servers vote, want %d", voting, len(c.Servers), want)
	}
	api := c.Ask(leader)
	slice, err := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return err
	}
	var want, got []string
	for _, s := range c.Servers {
		want = append(want, s.IP)
	}
	for _, e := range slice.Endpoints {
		if *e.Conditions.Ready {
			got = append(got, e.Addresses...)
		}
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		return fmt.Errorf("behind the Service kubernetes are %v, want %v", got, want)
	}
	return c.nodesReady(ctx, api)
}

// nodesReady fails unless those that run pods are nodes, ready, and rid of the taints of nodes that are not: the
// leader's controllers remove these a moment after the condition is set.
func (c *Cluster) nodesReady(ctx context.Context, api kubernetes.Interface) error {
	list, err := api.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	nodes := map[string]*corev1.Node{}
	for i := range list.Items {
		nodes[list.Items[i].Name] = &list.Items[i]
	}
	for _, a := range c.Nodes() {
		n := nodes[a.NodeName()]
		if n == nil || Ready(n) != corev1.ConditionTrue {
			return fmt.Errorf("node %s is not ready, of %s", a.NodeName(), strings.Join(slices.Sorted(maps.Keys(nodes)), ", "))
		}
		for _, taint := range n.Spec.Taints {
			if taint.Key == corev1.TaintNodeNotReady || taint.Key == corev1.TaintNodeUnreachable {
				return fmt.Errorf("node %s is ready and still has the taint %s", n.Name, taint.ToString())
			}
		}
	}
	return nil
}

// Ready is a node's condition of that name.
func Ready(n *corev1.Node) corev1.ConditionStatus {
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status
		}
	}
	return ""
}
