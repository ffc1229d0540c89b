//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/fleet"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// number is a whole number from the environment, or as given.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

const (
	// replicas is how many pods a Deployment of the fleet's has.
	replicas = 50
	// fleetPatience bounds what a whole fleet takes.
	fleetPatience = time.Hour
)

// TestFleet measures what a cluster's servers take that has many nodes with ten pods each
// (CORACLE_FLEET_NODES=10,100,1000; CORACLE_FLEET_PODS=10; CORACLE_FLEET_SERVERS=1; CORACLE_FLEET_MEMBERS bounds how
// many of the nodes are members of the gossip; CORACLE_FLEET_BATCH=500, a multiple of 50, makes so many pods at a
// time). The nodes are of test/fleet, all in one process.
func TestFleet(t *testing.T) {
	for text := range strings.SplitSeq(cmp.Or(os.Getenv("CORACLE_FLEET_NODES"), "10,100,1000"), ",") {
		nodes := testenv.Must(strconv.Atoi(text))(t)
		t.Run(text, func(t *testing.T) {
			f := newFleet(t, number("CORACLE_FLEET_SERVERS", 1), fleet.Options{Nodes: nodes, Members: min(nodes, number("CORACLE_FLEET_MEMBERS", nodes))})
			f.rest("joined, no pods")
			f.create(nodes * number("CORACLE_FLEET_PODS", 10))
			f.rest("with its pods")
			f.remove()
			fmt.Printf("load at the end: %s\n", load())
		})
	}
}

// fleetCluster is servers without nodes of their own, and a fleet.
type fleetCluster struct {
	*Cluster
	t     *testing.T
	api   *kubernetes.Clientset
	nodes int
	pods  int
	fleet *harness.Server
}

// newFleet starts servers and a fleet, and waits until all nodes are Ready, members, and watch.
func newFleet(t *testing.T, servers int, o fleet.Options) *fleetCluster {
	t.Helper()
	// A node has 24 bits of the pods' network: the default's are for 256 nodes.
	c := &Cluster{T: t, prepare: func(s *harness.Server) { s.Args = append(s.Args, "--cluster-cidr", "10.128.0.0/12") }}
	c.start(servers, 0)
	nodes := o.Nodes
	f := &fleetCluster{Cluster: c, t: t, nodes: nodes, api: c.Client(c.Servers[0].Machine, own, 0)}
	began := time.Now()
	f.fleet = startFleet(t, c, o)
	f.report(fleet.Registered)
	registered := time.Since(began)
	f.report(fleet.Watching)
	fmt.Printf("\n%d nodes: registered after %.0f s, all watch after %.0f s\n", nodes, registered.Seconds(), time.Since(began).Seconds())
	harness.Eventually(t, fleetPatience, "all nodes are Ready", func() error {
		list, err := f.api.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if n := &list.Items[i]; Ready(n) == corev1.ConditionTrue && len(n.Spec.Taints) == 0 {
				ready++
			}
		}
		if ready != nodes {
			return fmt.Errorf("%d of %d are", ready, nodes)
		}
		return nil
	})
	harness.Eventually(t, fleetPatience, "the leader hears of all members", func() error {
		alive, err := members(c.MustLeader())
		if err == nil && alive != o.Members+servers {
			err = fmt.Errorf("%d are alive", alive)
		}
		if err != nil {
			pauseFor(t.Context(), 2*time.Second) // each look is a process
		}
		return err
	})
	return f
}

// startFleet starts one on a machine of its own.
func startFleet(t *testing.T, c *Cluster, o fleet.Options) *harness.Server {
	t.Helper()
	m := c.Site.NewMachine()
	token := testenv.Must(os.ReadFile(c.Servers[0].Seen("server", "agent-token")))(t)
	o.Token = strings.TrimSpace(string(token))
	for _, s := range c.Servers {
		o.Servers = append(o.Servers, net.JoinHostPort(s.IP, "6443"))
		if out, err := s.Run("ip", "route", "add", fleet.Network.String(), "via", m.IP); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	f := fleet.Start(t, m, o)
	t.Cleanup(func() {
		if text := f.LogTail(30); t.Failed() || strings.Count(text, "\n") > 2 {
			fmt.Printf("what the fleet said last:\n%s\n", text)
		}
	})
	return f
}

// report waits until the fleet says something.
func (f *fleetCluster) report(what string) {
	f.t.Helper()
	harness.Eventually(f.t, fleetPatience, what, func() error {
		if err := f.fleet.Alive(); err != nil {
			return err
		}
		text, err := os.ReadFile(f.fleet.Log)
		if err == nil && !strings.Contains(string(text), what) {
			err = fmt.Errorf("not yet: %s", f.fleet.LogTail(1))
		}
		return err
	})
}

// members is how many live ones a server knows, itself among them.
func members(s *harness.Server) (alive int, err error) {
	out, err := s.Run(s.Coracle(), "status", "-o", "json", "--data-dir", s.DataDir)
	if err != nil {
		return 0, err
	}
	var r struct{ Members []status.Member }
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return 0, err
	}
	for _, m := range r.Members {
		if m.State == "alive" {
			alive++
		}
	}
	return alive, nil
}

// create makes Deployments with that many pods in all, waits until all of them run, and prints what each took.
func (f *fleetCluster) create(pods int) {
	t := f.t
	t.Helper()
	f.pods = pods
	leader := f.MustLeader()
	before, fleetBefore, began := used(t, leader), used(t, f.fleet), time.Now()
	batch := number("CORACLE_FLEET_BATCH", pods)
	for i := 0; i*replicas < pods; i++ {
		if made := i * replicas; made > 0 && made%batch == 0 {
			f.ready(made)
		}
		testenv.Must(
			f.api.AppsV1().Deployments("default").Create(t.Context(), fleetDeployment(i, min(replicas, pods-i*replicas)), metav1.CreateOptions{}))(t)
	}
	f.ready(pods)
	took, now, fleetNow := time.Since(began), used(t, leader), used(t, f.fleet)
	each := func(d time.Duration) float64 { return ms(d) / float64(pods) }
	fmt.Printf("\n| %d nodes: pods made | all run after s | a second | leader's CPU ms for each | its disk KB for each | fleet's CPU ms for each |\n| --- | --- | --- | --- | --- | --- |\n", f.nodes)
	fmt.Printf("| %d | %.1f | %.1f | %.2f | %.1f | %.2f |\n", pods, took.Seconds(), float64(pods)/took.Seconds(), each(now.cpu-before.cpu),
		float64(now.written-before.written)/1024/float64(pods), each(fleetNow.cpu-fleetBefore.cpu))
}

// ready waits until that many pods are.
func (f *fleetCluster) ready(pods int) {
	f.t.Helper()
	harness.Eventually(f.t, fleetPatience, "all pods run", func() error {
		list, err := f.api.AppsV1().Deployments("default").List(f.t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			ready += int(list.Items[i].Status.ReadyReplicas)
		}
		if ready != pods {
			return fmt.Errorf("%d of %d do", ready, pods)
		}
		return nil
	})
}

func fleetDeployment(i, replicas int) *appsv1.Deployment {
	name := fmt.Sprintf("d-%d", i)
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(replicas)), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "web", Image: "registry.example/team/web:1.2.3", Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			Env: []corev1.EnvVar{{Name: "A", Value: "one"}, {Name: "B", Value: "two"}},
		}}}},
	}}
}

// remove deletes all Deployments, waits until no pod is left, and prints what each took.
func (f *fleetCluster) remove() {
	t := f.t
	t.Helper()
	leader := f.MustLeader()
	before, began := used(t, leader), time.Now()
	testenv.NoError(t, f.api.AppsV1().Deployments("default").DeleteCollection(t.Context(), metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}, metav1.ListOptions{}))
	harness.Eventually(t, fleetPatience, "no pod is left", func() error {
		list, err := f.api.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{Limit: 1})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%s is", list.Items[0].Name)
		}
		return err
	})
	took := time.Since(began)
	fmt.Printf("| deleted again: %d | %.1f | %.1f | %.2f | | |\n", f.pods, took.Seconds(), float64(f.pods)/took.Seconds(), ms(used(t, leader).cpu-before.cpu)/float64(f.pods))
}

// rest measures what the servers use while nothing happens but what nodes do by themselves.
func (f *fleetCluster) rest(when string) {
	t := f.t
	t.Helper()
	time.Sleep(seconds("CORACLE_FLEET_SETTLE", 2*time.Minute)) // heaps come to rest
	leader, window := f.MustLeader(), seconds("CORACLE_FLEET_WINDOW", 2*time.Minute)
	all := append(append([]*harness.Server(nil), f.Servers...), f.fleet)
	before, datagrams := map[*harness.Server]usage{}, map[*harness.Server]int64{}
	for _, s := range all {
		before[s], datagrams[s] = used(t, s), udp(t, s)
	}
	began := time.Now()
	time.Sleep(window) // the length of a measurement
	took := time.Since(began)
	fmt.Printf("\n| %d nodes, %s | RSS MB | at most | anonymous MB | Go's heap MB | stacks MB | goroutines | connections | watches | CPU %% of a core | written KB/min | wire KB/s | gossip packets/s |\n"+
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", f.nodes, when)
	for _, s := range all {
		now, was, packets := used(t, s), before[s], udp(t, s)-datagrams[s]
		role, inside := "a server that does not lead", ""
		switch s {
		case leader:
			role = "the server that leads"
		case f.fleet:
			role, inside = "the fleet", "| | | | |"
		}
		if inside == "" {
			value, watches := f.metrics(s)
			inside = fmt.Sprintf("%.0f | %.0f | %.0f | %d | %d |", value["go_memstats_heap_inuse_bytes"]/1e6, value["go_memstats_stack_inuse_bytes"]/1e6, value["go_goroutines"],
				connections(t, s), watches)
		}
		fmt.Printf("| %s | %.0f | %.0f | %.0f | %s %.2f | %.1f | %.1f | %.0f |\n", role, proc.StatusMB(s.Pid(), "VmRSS:"), proc.StatusMB(s.Pid(), "VmHWM:"), proc.StatusMB(s.Pid(), "RssAnon:"), inside,
			100*(now.cpu-was.cpu).Seconds()/took.Seconds(), float64(now.written-was.written)/1024/took.Minutes(), float64(now.wire-was.wire)/1024/took.Seconds(), float64(packets)/took.Seconds())
	}
	fmt.Printf("load at the end: %s\n", load())
}

// udp is how many datagrams a machine has sent and received: those of the gossip, and no others.
func udp(t *testing.T, s *harness.Server) int64 {
	t.Helper()
	out := testenv.Must(s.Run("cat", "/proc/net/snmp"))(t)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); f[0] == "Udp:" && f[1] != "InDatagrams" {
			in, _ := strconv.ParseInt(f[1], 10, 64) // the kernel wrote them
			sent, _ := strconv.ParseInt(f[4], 10, 64)
			return in + sent
		}
	}
	t.Fatalf("no UDP: %s", out)
	return 0
}

// connections is how many other machines have open at a server's port.
func connections(t *testing.T, s *harness.Server) int {
	t.Helper()
	const established, port, loopback = "01", ":192B", "0100007F:"
	own := fmt.Sprintf("%08X:", binary.LittleEndian.Uint32(net.ParseIP(s.IP).To4())) // as the kernel writes it on amd64 and arm64
	count := 0
	for _, file := range []string{"tcp", "tcp6"} {
		out := testenv.Must(s.Run("cat", "/proc/net/"+file))(t)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); strings.HasSuffix(f[1], port) && f[3] == established && !strings.Contains(f[2], own) && !strings.Contains(f[2], loopback) {
				count++
			}
		}
	}
	return count
}

// metrics reads a server's own figures, and how many watches and streams of settings it serves.
func (c *Cluster) metrics(s *harness.Server) (values map[string]float64, watches int) {
	c.T.Helper()
	text := testenv.Must(c.Ask(s).Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(c.T.Context()))(c.T)
	values = map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		series, labels, labelled := strings.Cut(name, "{")
		v, _ := strconv.ParseFloat(value, 64) // what is none is not used
		switch {
		case strings.HasPrefix(name, "#"):
		case !labelled:
			values[series] = v
		case series == "apiserver_longrunning_requests" &&
			(strings.Contains(labels, `subresource="`+clustersettings.Path+`"`) || strings.Contains(labels, `verb="WATCH"`)):
			watches += int(v)
		}
	}
	return values, watches
}
