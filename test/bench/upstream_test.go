//go:build bench

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/kubeproxy"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// upstreamPrograms are what coracle is one process of, and what they start. make upstream builds them.
var upstreamPrograms = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "runc"}

// upstream is one node with upstream's programs at their defaults, each a process.
type upstream struct {
	*harness.Machine
	t          *testing.T
	bin        string // with the programs
	dir        string // with everything that they read and write
	kubeconfig string
	config     *rest.Config
	processes  []*process
}

// process is one of upstream's programs.
type process struct {
	name, log string
	pid       int
	ended     chan struct{}
}

func benchUpstream(t *testing.T, bin, load string, out *figures) {
	var size float64
	for _, name := range upstreamPrograms {
		info, err := os.Stat(filepath.Join(bin, name))
		testenv.NoError(t, err, "one of upstream's programs is missing: run `make upstream`")
		size += float64(info.Size()) / 1e6
	}
	out.add("binary", "MB", size)
	u := newUpstream(t, bin)
	x := &subject{Machine: u.Machine, t: t, load: load, kubeconfig: u.kubeconfig, out: out, pids: u.pids}
	x.kubectl = func(args ...string) (string, error) {
		return u.Run(u.Coracle(), append([]string{"kubectl", "--kubeconfig", u.kubeconfig}, args...)...)
	}
	began := time.Now()
	u.certificates()
	u.controlPlane()
	u.waitReadyz()
	out.add("empty directory → /readyz", "ms", float64(time.Since(began).Milliseconds()))
	u.node()
	var r readiness
	x.run(&r, "ready", "-seconds", "180")
	out.add("empty directory → node Ready", "ms", float64(time.Since(began).Milliseconds()))
	u.images()
	x.measure()
	u.pids() // all of them still run
	for _, p := range u.processes {
		out.add("RSS of "+p.name+" at the end", "MB", proc.StatusMB(p.pid, "VmRSS:"))
	}
}

func newUpstream(t *testing.T, bin string) *upstream {
	site := harness.NewSite(t)
	site.Needs = []string{bin}
	u := &upstream{Machine: site.NewMachine(), t: t, bin: bin}
	u.dir, u.kubeconfig = u.Dir, filepath.Join(u.Dir, "kubeconfig")
	nft := filepath.Join(u.dir, "nft") // a machine has none, and kube-proxy starts one
	if err := embedded.UnpackNFT(nft); err != nil {
		testenv.Missing(t, testenv.Embedded, "%v", err)
	}
	u.Env = []string{"PATH=" + bin + ":" + nft + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return u
}

func (u *upstream) file(name string) string { return filepath.Join(u.dir, name) }

// certificates makes an authority and what it signs, and the administrator's kubeconfig, which all programs use.
func (u *upstream) certificates() {
	u.t.Helper()
	ca := testenv.Must(testca.New(u.dir))(u.t)
	for _, name := range []string{"api", "sa", "front"} {
		testenv.Must(ca.Issue(name, "127.0.0.1", "localhost", u.IP, "10.96.0.1", "kubernetes.default.svc"))(u.t)
	}
	admin := testenv.Must(ca.IssueTo(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}))(u.t)
	c := clientcmdapi.NewConfig()
	c.Clusters["a"] = &clientcmdapi.Cluster{Server: "https://" + u.IP + ":6443", CertificateAuthority: admin.CA}
	c.AuthInfos["a"] = &clientcmdapi.AuthInfo{ClientCertificate: admin.Cert, ClientKey: admin.Key}
	c.Contexts["a"] = &clientcmdapi.Context{Cluster: "a", AuthInfo: "a"}
	c.CurrentContext = "a"
	testenv.NoError(u.t, clientcmd.WriteToFile(*c, u.kubeconfig))
	u.config = testenv.Must(clientcmd.BuildConfigFromFlags("", u.kubeconfig))(u.t)
	u.config.Dial = u.Dial
}

// start starts one of the programs. One that ends before the test fails it.
func (u *upstream) start(name string, args ...string) {
	u.t.Helper()
	p := &process{name: name, log: u.file(name + ".log"), ended: make(chan struct{})}
	log := testenv.Must(os.Create(p.log))(u.t)
	defer log.Close()
	ctx, cancel := context.WithCancel(context.Background())
	c := u.Command(ctx, filepath.Join(u.bin, name), args...)
	c.Dir, c.Stdout, c.Stderr = u.dir, log, log
	testenv.NoError(u.t, c.Start(), "start %s", name)
	go func() {
		_ = c.Wait() // it is ended by cancel, or its log says why not
		close(p.ended)
	}()
	u.t.Cleanup(func() {
		cancel()
		<-p.ended
	})
	p.pid = childOf(u.t, c.Process.Pid, p.ended)
	u.processes = append(u.processes, p)
	u.pids()
}

// pids returns the processes that are measured, and fails the test when one has ended: what is left would be measured
// as if it were upstream.
func (u *upstream) pids() []int {
	u.t.Helper()
	var out []int
	for _, p := range u.processes {
		select {
		case <-p.ended:
			log, _ := os.ReadFile(p.log)
			u.t.Fatalf("upstream's %s has ended, so this is no comparison. Its log:\n%s", p.name, log[max(0, len(log)-4000):])
		default:
			out = append(out, p.pid)
		}
	}
	return out
}

// controlPlane starts etcd and the API server, and containerd, which needs neither.
func (u *upstream) controlPlane() {
	u.t.Helper()
	const etcd, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	u.start("etcd", "--data-dir", u.file("etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peer)
	u.start("kube-apiserver", "--etcd-servers", etcd, "--secure-port", "6443", "--advertise-address", u.IP, "--allow-privileged",
		"--tls-cert-file", u.file("api.crt"), "--tls-private-key-file", u.file("api.key"), "--client-ca-file", u.file("ca.crt"), "--authorization-mode", "Node,RBAC",
		"--service-cluster-ip-range", "10.96.0.0/16", "--kubelet-preferred-address-types", "InternalIP",
		"--kubelet-client-certificate", u.file("admin.crt"), "--kubelet-client-key", u.file("admin.key"),
		"--requestheader-client-ca-file", u.file("ca.crt"), "--requestheader-allowed-names", "front", "--requestheader-username-headers", "X-Remote-User",
		"--requestheader-group-headers", "X-Remote-Group", "--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--proxy-client-cert-file", u.file("front.crt"), "--proxy-client-key-file", u.file("front.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", u.file("sa.crt"), "--service-account-signing-key-file", u.file("sa.key"))
	u.write("containerd.toml", `version = 3
root = "DIR/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "`+upstreamPause+`"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["`+filepath.Join(u.bin, "cni")+`"]
  conf_dir = "DIR/cni"
`)
	testenv.NoError(u.t, os.Mkdir(u.file("cni"), 0o755))
	u.write("cni/10-bridge.conflist", `{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.245.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`)
	u.start("containerd", "--config", u.file("containerd.toml"))
}

// upstreamPause is the sandbox' image, which is imported: there is no registry.
const upstreamPause = "registry.k8s.io/pause:3.10"

// node starts the programs that are clients of the API server.
func (u *upstream) node() {
	u.t.Helper()
	u.start("kube-controller-manager", "--kubeconfig", u.kubeconfig, "--service-account-private-key-file", u.file("sa.key"), "--use-service-account-credentials",
		"--root-ca-file", u.file("ca.crt"), "--cluster-signing-cert-file", u.file("ca.crt"), "--cluster-signing-key-file", u.file("ca.key"), "--bind-address", "127.0.0.1")
	u.start("kube-scheduler", "--kubeconfig", u.kubeconfig, "--bind-address", "127.0.0.1")
	u.write("kubelet.yaml", `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: DIR/ca.crt}}
authorization: {mode: AlwaysAllow}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
enforceNodeAllocatable: []
`)
	u.start("kubelet", "--config", u.file("kubelet.yaml"), "--kubeconfig", u.kubeconfig, "--root-dir", u.file("kubelet"), "--hostname-override", u.NodeName(), "--node-ip", u.IP)
	dir := u.file("kube-proxy")
	testenv.NoError(u.t, os.Mkdir(dir, 0o755))
	proxy := kubeproxy.Configuration{Kubeconfig: u.kubeconfig, NodeName: u.NodeName(), ClusterCIDR: "10.245.0.0/16"}
	u.start("kube-proxy", "--config", testenv.Must(proxy.Write(dir))(u.t))
}

// write writes one of the programs' files, in which DIR is their folder.
func (u *upstream) write(name, text string) {
	u.t.Helper()
	testenv.NoError(u.t, os.WriteFile(u.file(name), []byte(strings.ReplaceAll(text, "DIR", u.dir)), 0o600))
}

// waitReadyz waits until the API server is ready.
func (u *upstream) waitReadyz() {
	u.t.Helper()
	client := testenv.Must(rest.HTTPClientFor(u.config))(u.t)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) { // as often as command load asks
		answer, err := client.Get(u.config.Host + "/readyz")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("status %d", answer.StatusCode)
		}
		u.pids()
		testenv.True(u.t, time.Now().Before(deadline), "upstream's API server is not ready: %v", err)
	}
}

// images imports what the pods need.
func (u *upstream) images() {
	u.t.Helper()
	box, pause := u.file("box.tar"), u.file("pause.tar")
	harness.WriteBoxImage(u.t, box)
	harness.WritePauseImage(u.t, pause, upstreamPause)
	for _, archive := range []string{pause, box} {
		testenv.Must(u.Run(filepath.Join(u.bin, "ctr"), "-n", "k8s.io", "images", "import", archive))(u.t)
	}
	names := testenv.Must(u.Run(filepath.Join(u.bin, "ctr"), "-n", "k8s.io", "images", "ls", "-q"))(u.t)
	testenv.True(u.t, slices.Contains(strings.Fields(names), upstreamPause), "the images are %s", names)
}

// childOf waits for the program that nsenter starts in the machine's namespaces. It returns 0 if that has ended before.
func childOf(t *testing.T, pid int, ended <-chan struct{}) int {
	t.Helper()
	child := 0
	harness.Eventually(t, time.Minute, "nsenter starts the program", func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		if err == nil {
			child, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		select {
		case <-ended:
			return nil
		default:
		}
		return err
	})
	return child
}
