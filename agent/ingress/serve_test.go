// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// agentRun is a whole Node, with a stream that sends the table, and what send gives.
type agentRun struct {
	*testNode
	client  *fake.Clientset
	node    *Node
	board   *status.Board
	mu      sync.Mutex
	written string // the Node's annotation
	stop    func()
	more    chan table.Sections
	ends    chan struct{}
}

func startAgent(n *testNode) *agentRun {
	n.t.Helper()
	return startAgentWith(n, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: table.Service}})
}

// cut ends the stream.
func (a *agentRun) cut() { a.ends <- struct{}{} }

// send has the server send another table.
func (a *agentRun) send(t table.Sections) { a.more <- t }

func startAgentWith(n *testNode, service *corev1.Service) *agentRun {
	n.t.Helper()
	a := &agentRun{testNode: n, board: status.NewBoard(time.Now), more: make(chan table.Sections), ends: make(chan struct{})}
	a.client = fake.NewClientset(append(n.objects, service)...)
	a.client.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return n.offline.Load(), nil, errOffline })
	factory := informers.NewSharedInformerFactory(a.client, 0)
	o := n.o
	o.Nodes, o.Services, o.EndpointSlices = factory.Core().V1().Nodes(), factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
	o.Part = a.board.Part("ingress")
	o.Stream = func(ctx context.Context) (io.ReadCloser, error) {
		if err := n.streamFails.Load(); err != nil {
			return nil, *err
		}
		out, in := io.Pipe()
		go func() {
			for have, now := (table.Sections)(nil), n.table; ; {
				for _, c := range append(table.Diff(have, now), table.Change{Commit: true}) {
					_ = json.NewEncoder(in).Encode(c) // an error is the reader's end
				}
				have = now
				select {
				case <-ctx.Done():
					return
				case <-a.ends:
					_ = in.Close()
					return
				case now = <-a.more:
				}
			}
		}()
		return out, nil
	}
	o.Annotate = func(_ context.Context, value string) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.written = value
		return nil
	}
	o.Annotation = func(context.Context) (string, error) { return a.annotation(), nil }
	node := testenv.Must(New(o))(n.t)
	a.node = node
	ctx, cancel := context.WithCancel(n.t.Context())
	factory.Start(ctx.Done())
	ended := make(chan error, 1) // its only result
	go func() { ended <- node.Run(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		testenv.Check(n.t, <-ended, "Run")
		factory.Shutdown()
	})
	n.t.Cleanup(func() {
		a.stop()
		testenv.Check(n.t, nft.Delete(NFTable())) // it would guard the ports of later tests, too
	})
	return a
}

func (a *agentRun) annotation() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.written
}

// TestNodeServesUntilTheLastIngressGoes: a node's ingress through the end of its proxy, a deleted table of the kernel,
// an upgrade, and the end of the last Ingress.
func TestNodeServesUntilTheLastIngressGoes(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(machineIP)}
	// The endpoints are those of the table, and not those of a Service: the host is answered by itself.
	n.table = table.Sections{}
	testenv.NoError(t,
		n.table.Put(table.HostKey(table.SiteIngress, ""), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix}}}))
	url := fmt.Sprintf("http://%s:%d/", machineIP, table.NodeHTTPPort)
	answered := func() error {
		res, err := fresh().Get(url)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("%s", res.Status)
		}
		return nil
	}
	a := startAgent(n)
	eventually(t, "the node says where it serves", func() bool { return a.annotation() == "http=10054,https=10055" })
	testenv.NoError(t, answered())
	first := n.processes()[0]

	testenv.NoError(t, syscall.Kill(first, syscall.SIGKILL))
	began := time.Now()
	for range 10 {
		testenv.Check(t, answered(), "after the proxy was killed")
	}
	t.Logf("ten requests right after its end took %s", time.Since(began))
	eventually(t, "the board says which process serves, and that another one has ended", func() bool {
		c := a.board.Components()[0]
		return c.State == status.Degraded && !strings.Contains(c.Message, fmt.Sprint("process ", first)) &&
			strings.Contains(c.Message, "it has ended 1 times and was started again")
	})

	testenv.NoError(t, nft.Delete(NFTable()))
	eventually(t, "the kernel's table is written again", func() bool {
		c, err := nft.Count(NFTable())
		return err == nil && len(c.Rules) > 0
	})

	before := n.processes()
	a.stop()
	n.install("next")
	testenv.Check(t, answered(), "without an agent")
	a = startAgent(n)
	eventually(t, "another version has taken over", func() bool {
		now := n.listening()
		return len(now) == 1 && !slices.Contains(before, now[0])
	})
	testenv.Check(t, answered())
	testenv.NoError(t, a.client.CoreV1().Services(metav1.NamespaceSystem).Delete(t.Context(), table.Service, metav1.DeleteOptions{}))
	eventually(t, "no process is left", func() bool { return len(n.processes()) == 0 })
	eventually(t, "no table is left", func() bool {
		there, err := nft.Exists(NFTable())
		return err == nil && !there
	})
	testenv.Equal(t, a.annotation(), "", "the Node says")
}
