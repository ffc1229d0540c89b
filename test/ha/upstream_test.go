//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// elected are upstream's programs of which one at a time works, by a Lease of that name.
var elected = []string{"kube-controller-manager", "kube-scheduler"}

// upstream is the same with upstream's programs: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on
// each of its machines, at their defaults (etcd: a heartbeat every 100 ms, an election after 1000 ms; Leases of 15 s,
// given up after 10 s, tried every 2 s). There is no agent: a node that is an object and no more is enough for pods to
// be bound.
type upstream struct {
	*subject
	bin  string // with the programs
	pki  string // with the certificates
	etcd testca.Files
}

// upstreamBin is the folder with upstream's programs.
func upstreamBin(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("CORACLE_UPSTREAM")
	testenv.Require(t, bin != "", "CORACLE_UPSTREAM is not set: run `make bench-ha`, which builds upstream's programs and says where they are")
	for _, name := range append([]string{"etcd", "kube-apiserver"}, elected...) {
		_, err := os.Stat(filepath.Join(bin, name))
		testenv.NoError(t, err, "one of upstream's programs is missing: run `make upstream`")
	}
	return bin
}

// newUpstream starts upstream's programs on machines of a site of their own, all at once, and waits until they are
// whole.
func newUpstream(t *testing.T, servers int, prepare func(*harness.Server)) *upstream {
	t.Helper()
	u := &upstream{bin: upstreamBin(t), pki: t.TempDir()}
	c := &Cluster{T: t, Site: harness.NewSite(t), store: u.atEtcd}
	c.Site.Needs = []string{u.bin}
	u.subject = &subject{Cluster: c, name: "upstream: ", pick: u.pickLeader, wait: u.waitWhole, bound: boundTimes()}
	for range servers {
		m := c.Site.NewMachine()
		s := &harness.Server{Machine: m, DataDir: filepath.Join(m.Dir, "data"), Log: filepath.Join(m.Dir, "upstream.log")}
		prepare(s)
		c.Servers = append(c.Servers, s)
	}
	u.certificates(t)
	for _, s := range c.Servers {
		// What a server is to coracle is one process: here the first one of a pid namespace, with which the others end
		// at once.
		s.Bin, s.Role, s.Args = "unshare", "--pid", []string{"--uts", "--fork", "--kill-child", "sh", "-c", u.script(s)}
		s.Start()
	}
	u.waitWhole()
	u.namespace(t)
	return u
}

// boundTimes is in how many rounds upstream's controllers and scheduler are waited for, which takes as long as their
// Leases last.
func boundTimes() int {
	if n, err := strconv.Atoi(os.Getenv("CORACLE_HA_BOUND_TIMES")); err == nil {
		return n
	}
	return min(times(), 5)
}

// certificates makes an authority, which all believe, and what it signs.
func (u *upstream) certificates(t *testing.T) {
	t.Helper()
	ca, err := testca.New(u.pki)
	testenv.NoError(t, err)
	hosts := []string{"127.0.0.1", "localhost", "10.96.0.1", "kubernetes.default.svc"}
	for _, s := range u.Servers {
		hosts = append(hosts, s.IP)
	}
	for _, name := range []string{"api", "sa", "etcd"} {
		u.etcd, err = ca.Issue(name, hosts...)
		testenv.NoError(t, err)
	}
	admin := testenv.Must(ca.IssueTo(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}))(t)
	u.config = &rest.Config{QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAFile: admin.CA, CertFile: admin.Cert, KeyFile: admin.Key}}
	testenv.NoError(t, clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"own": {Server: "https://" + own, CertificateAuthority: admin.CA}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"admin": {ClientCertificate: admin.Cert, ClientKey: admin.Key}},
		Contexts:       map[string]*clientcmdapi.Context{"own": {Cluster: "own", AuthInfo: "admin"}},
		CurrentContext: "own",
	}, u.file("kubeconfig")))
}

func (u *upstream) file(name string) string { return filepath.Join(u.pki, name) }

// script runs a server's programs, each again when it has ended, as a service manager does.
func (u *upstream) script(s *harness.Server) string {
	etcds := []string{"https://127.0.0.1:2379"} // as kubeadm does it
	var members []string
	for _, o := range u.Servers {
		members = append(members, o.NodeName()+"=https://"+o.IP+":2380")
		if o != s && os.Getenv("CORACLE_HA_ETCD") == "all" { // etcd's client takes turns among them, and waits for seconds for one that does not answer
			etcds = append(etcds, "https://"+o.IP+":2379")
		}
	}
	peer := "https://" + s.IP + ":2380"
	programs := [][]string{
		{"etcd", "--name", s.NodeName(), "--data-dir", filepath.Join(s.DataDir, "etcd"), "--log-level", "warn",
			"--listen-client-urls", "https://127.0.0.1:2379,https://" + s.IP + ":2379", "--advertise-client-urls", "https://" + s.IP + ":2379",
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(members, ","),
			"--cert-file", u.etcd.Cert, "--key-file", u.etcd.Key, "--trusted-ca-file", u.etcd.CA, "--client-cert-auth",
			"--peer-cert-file", u.etcd.Cert, "--peer-key-file", u.etcd.Key, "--peer-trusted-ca-file", u.etcd.CA, "--peer-client-cert-auth"},
		{"kube-apiserver", "--etcd-servers", strings.Join(etcds, ","), "--etcd-cafile", u.etcd.CA, "--etcd-certfile", u.etcd.Cert, "--etcd-keyfile", u.etcd.Key,
			"--secure-port", "6443", "--advertise-address", s.IP, "--tls-cert-file", u.file("api.crt"), "--tls-private-key-file", u.file("api.key"),
			"--client-ca-file", u.etcd.CA, "--authorization-mode", "Node,RBAC", "--service-cluster-ip-range", "10.96.0.0/16",
			"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", u.file("sa.crt"), "--service-account-signing-key-file", u.file("sa.key")},
		{"kube-controller-manager", "--kubeconfig", u.file("kubeconfig"), "--service-account-private-key-file", u.file("sa.key"), "--use-service-account-credentials",
			"--root-ca-file", u.etcd.CA, "--bind-address", "127.0.0.1"},
		{"kube-scheduler", "--kubeconfig", u.file("kubeconfig"), "--bind-address", "127.0.0.1"},
	}
	script := "echo " + s.NodeName() + " > /proc/sys/kernel/hostname\nagain() { while :; do \"$@\"; echo \"$1 ended: $?\"; sleep 1; done; }\n"
	for _, p := range programs {
		script += "again " + filepath.Join(u.bin, p[0]) + " " + strings.Join(p[1:], " ") + " &\n"
	}
	return script + "wait"
}

// atEtcd calls the etcd of a server's machine.
func (u *upstream) atEtcd(ctx context.Context, s *harness.Server, within time.Duration, call func(ctx context.Context, c *clientv3.Client, address string) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	const address = "127.0.0.1:2379"
	tls, err := u.etcd.MutualTLS()
	if err != nil {
		return err
	}
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.Dial(ctx, "tcp", address) })
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + address}, TLS: tls, Context: ctx, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{dial}})
	if err != nil {
		return err
	}
	defer client.Close()
	return call(ctx, client, address)
}

// pickLeader is the server that goes in a round, made the one that leads etcd. Where pods are to be bound it is the one
// whose kube-controller-manager works; kube-scheduler may work on another one. Else neither works there, so that what
// their successors do at their start is no part of the next round.
func (u *upstream) pickLeader(bound bool) *harness.Server {
	u.T.Helper()
	var picked *harness.Server
	harness.Eventually(u.T, soon, "the Leases have holders", func() error {
		var holders []string
		for _, name := range elected {
			l, err := u.lease(u.T.Context(), name)
			if err != nil {
				return err
			}
			node, _, _ := strings.Cut(*l.HolderIdentity, "_") // the rest is drawn by each process
			holders = append(holders, node)
		}
		for _, s := range u.Servers {
			if bound && s.NodeName() == holders[0] || !bound && !slices.Contains(holders, s.NodeName()) {
				picked = s
				return nil
			}
		}
		return fmt.Errorf("%v have them", holders)
	})
	u.Lead(picked)
	return picked
}

// lease is the Lease of one of the elected programs, which has been held once.
func (u *upstream) lease(ctx context.Context, name string) (coordinationv1.LeaseSpec, error) {
	l, err := u.Ask(u.Servers[0]).CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return coordinationv1.LeaseSpec{}, err
	}
	if l.Spec.HolderIdentity == nil || l.Spec.RenewTime == nil {
		return l.Spec, fmt.Errorf("no client has the Lease of %s", name)
	}
	return l.Spec, nil
}

// waitWhole waits until all etcds have what was written and all API servers are ready, a client has renewed each Lease
// since this was called, and the node is Ready.
func (u *upstream) waitWhole() {
	u.T.Helper()
	since := time.Now()
	harness.Eventually(u.T, harness.Longer, "upstream's cluster is whole", func() error {
		ctx, cancel := context.WithTimeout(u.T.Context(), 3*askTimeout) // many questions
		defer cancel()
		if err := u.whole(ctx); err != nil {
			return err
		}
		for _, s := range u.Servers {
			if err := u.store(ctx, s, askTimeout, func(ctx context.Context, c *clientv3.Client, _ string) error {
				_, err := c.Get(ctx, "whatever") // has to wait for what was written before
				return err
			}); err != nil {
				return fmt.Errorf("etcd of machine %d: %w", s.Number, err)
			}
		}
		for _, name := range elected {
			l, err := u.lease(ctx, name)
			if err == nil && l.RenewTime.Time.Before(since) {
				err = fmt.Errorf("the Lease of %s is of %v", name, l.RenewTime)
			}
			if err != nil {
				return err
			}
		}
		return u.node(ctx, u.Ask(u.Servers[0]))
	})
}

// node renews the Lease of a node without a kubelet as a kubelet does, and makes both if they are not there. Until the
// node is Ready and has no taint it is an error.
func (u *upstream) node(ctx context.Context, api kubernetes.Interface) error {
	const name = "fake"
	now := metav1.NowMicro()
	leases := api.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: new(name), LeaseDurationSeconds: new(int32(40))}}
		lease, err = leases.Create(ctx, lease, metav1.CreateOptions{})
	}
	if err == nil {
		lease.Spec.RenewTime = &now
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	n, err := api.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("1Ti"), corev1.ResourcePods: resource.MustParse("1000")}
		n, err = api.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}},
		}}, metav1.CreateOptions{})
	}
	if err == nil && (Ready(n) != corev1.ConditionTrue || len(n.Spec.Taints) > 0) {
		err = fmt.Errorf("the node is ready: %s, and has the taints %v", Ready(n), n.Spec.Taints)
	}
	return err
}

// TestUpstreamFailover is TestFailover with upstream's programs.
func TestUpstreamFailover(t *testing.T) {
	u := newUpstream(t, 3, func(*harness.Server) {})
	heading()
	u.failovers(t, "its processes are killed", kill(new([]time.Duration)))
	u.failovers(t, "its machine vanishes", u.vanish)
	fmt.Printf("load at the end: %s\n", load())
}

// TestUpstreamStalledDiskFailover is TestStalledDiskFailover with upstream's programs: etcd's data are on the disk that
// stalls.
func TestUpstreamStalledDiskFailover(t *testing.T) {
	u := newUpstream(t, 3, (*harness.Server).AddDisk)
	heading()
	u.failovers(t, "its disk stalls", (*harness.Server).StallDisk)
	fmt.Printf("load at the end: %s\n", load())
}

// TestUpstreamWrites is TestWrites with upstream's programs.
func TestUpstreamWrites(t *testing.T) {
	one := newUpstream(t, 1, func(*harness.Server) {})
	writesHeading()
	one.writes(t, "upstream: one server", one.Servers[0])
	one.Servers[0].Kill()
	three := newUpstream(t, 3, func(*harness.Server) {})
	leader := three.MustLeader()
	three.writes(t, "upstream: three servers, through the one whose etcd leads", leader)
	three.writes(t, "upstream: three servers, through another one", Without(three.Servers, leader)[0])
	fmt.Printf("load at the end: %s\n", load())
}
