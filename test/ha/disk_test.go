//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStalledDisk: the disk of the server that leads stalls, so that nothing which it writes comes to an end, nor
// fails. Another one leads, writes through the others go on, and requests through an agent too. When the disk works
// again the server follows, and nothing is lost.
func TestStalledDisk(t *testing.T) {
	harness.ByHand(t)
	c := NewPrepared(t, 3, 1, (*harness.Server).AddDisk)
	x := startClients(t, c, "load", "")
	x.some(t)
	agent := c.Agents[0]
	times, lasts := 1, 12*time.Second
	if whole {
		times, lasts = 5, time.Minute
	}
	excused := map[*harness.Server][]window{}
	for range times {
		leader := c.usedBy(t, agent) // the worst case: no connection of the agent's ends by itself
		c.Lead(leader)
		began := time.Now()
		release := leader.StallDisk()
		x.writesGoOn(t, time.Now(), leader)
		gap := x.longestGap(began, leader)
		harness.Eventually(t, soon, "another server leads", func() error {
			next, term, err := c.Leader(t.Context(), c.Servers)
			if err == nil && next == leader {
				err = fmt.Errorf("machine %d still leads, in term %d", next.Number, term)
			}
			return err
		})
		x.asksGoOn(t, began, nil)
		time.Sleep(lasts - time.Since(began)) // a stall has to last for a while, and no event ends that
		_, slowest := x.askers[agent].Answered(began)
		excused[agent] = append(excused[agent], window{began, time.Now()}) // that they go on is what counts
		release()
		back := time.Now()
		c.WaitWhole()
		harness.Eventually(t, soon, "writes at all servers go on", func() error { return errors.Join(x.all(back), leader.Alive()) })
		t.Logf("the disk of machine %d stalled, which the agent used: the others were without an acknowledged write for %v at most; a request through the agent waited "+
			"for %v at most; whole %v after the disk's return", leader.Number, gap.Round(time.Millisecond), slowest.Round(time.Millisecond), time.Since(back).Round(100*time.Millisecond))
	}
	x.verify(t, excused)
}

// probed is a pod whose readiness is that of a port of its node, and a Service that is made later.
const (
	probed = `
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  nodeName: %s
  containers:
  - name: c
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command: [testbox, serve]
    readinessProbe: {tcpSocket: {host: 127.0.0.1, port: 9999}, periodSeconds: 1, failureThreshold: 1}
`
	another = `
apiVersion: v1
kind: Service
metadata: {name: another-%d}
spec: {clusterIP: "%s", selector: {app: everywhere}, ports: [{port: 80, targetPort: 8080}]}
`
)

// TestStalledDiskOfNode: the disk of a server stalls, which leads or does not, and with it all that its node writes.
// What its kubelet finds out about its pods is reported through another server, what changes in the cluster reaches its
// proxy, and a program of this machine that knows only its loopback address has answers. Its node stays ready.
func TestStalledDiskOfNode(t *testing.T) {
	harness.ByHand(t)
	c := &Cluster{T: t, nodes: true, prepare: func(s *harness.Server) { s.AddDisk(); s.AddBoxImage() }}
	c.start(3, 0)
	c.serveEverywhere()
	stalled, other := c.Servers[0], c.Servers[1]
	open := answer(t, stalled.Machine)
	stalled.Apply(fmt.Sprintf(probed, stalled.NodeName()))
	api := c.Ask(other)
	harness.Eventually(t, soon, "the pod is ready", func() error { return podReady(t, api, corev1.ConditionTrue) })

	times, lasts := 2, time.Duration(0)
	if whole {
		times, lasts = 10, time.Minute
	}
	for i := range times {
		leader := []*harness.Server{stalled, other}[i%2]
		c.Lead(leader)
		release := stalled.StallDisk()
		ip, made := fmt.Sprintf("10.43.99.%d", 100+i), time.Now()
		harness.Eventually(t, soon, "a Service is made", func() error {
			_, err := other.In(t).TryApply(fmt.Sprintf(another, i, ip))
			return err
		})
		goes := visit(stalled.Machine, net.JoinHostPort(ip, "80"))
		harness.Eventually(t, soon, "a Service that is new is reached from the machine", func() error { return goes(t.Context()) })
		reached := time.Since(made)
		_ = open.Close()
		closed := time.Now()
		harness.Eventually(t, soon, "the cluster has it that the pod is not ready", func() error { return podReady(t, api, corev1.ConditionFalse) })
		noticed := time.Since(closed)
		asked := time.Now()
		harness.Eventually(t, soon, "a program of the machine has an answer", func() error {
			_, err := c.Ask(stalled).CoreV1().Services(metav1.NamespaceDefault).Get(t.Context(), fmt.Sprintf("another-%d", i), metav1.GetOptions{})
			return err
		})
		answered := time.Since(asked)
		time.Sleep(lasts - time.Since(made)) // a stall has to last for a while, and no event ends that
		list := testenv.Must(api.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}))(t)
		for _, n := range list.Items {
			testenv.False(t, Ready(&n) != corev1.ConditionTrue, "node %s: %v", n.Name, n.Status.Conditions)
		}
		release()
		back := time.Now()
		c.WaitWhole()
		open = answer(t, stalled.Machine)
		harness.Eventually(t, soon, "the pod is ready again", func() error { return podReady(t, api, corev1.ConditionTrue) })
		t.Logf("the disk of machine %d stalled, machine %d led: a new Service was reached after %v; then that a pod was not ready was reported after %v; a program there had an answer after %v; all was as before %v after the "+
			"disk's return", stalled.Number, leader.Number, reached.Round(100*time.Millisecond), noticed.Round(100*time.Millisecond), answered.Round(100*time.Millisecond), time.Since(back).Round(100*time.Millisecond))
	}
}

// answer has the port that the pod's readiness is open on a machine.
func answer(t *testing.T, m *harness.Machine) net.Listener {
	t.Helper()
	l := testenv.Must(m.Listen("127.0.0.1:9999"))(t)
	go testenv.Accept(l, func(c net.Conn) { _ = c.Close() })
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// podReady is an error unless the pod that is probed is ready, or is not, as is wanted.
func podReady(t *testing.T, api kubernetes.Interface, want corev1.ConditionStatus) error {
	t.Helper()
	p, err := api.CoreV1().Pods(metav1.NamespaceDefault).Get(t.Context(), "probed", metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == want {
			return nil
		}
	}
	return fmt.Errorf("its conditions are %v", p.Status.Conditions)
}
