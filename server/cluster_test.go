// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	testclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestServerServesAndRestarts takes one server through its life: first start, use, stop, second start.
func TestServerServesAndRestarts(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole server; -short leaves it out")
	}
	o := options(t.TempDir())
	// Its certificates are as of 250 days ago: due for renewal when the clock comes to the present.
	now := time.Now()
	clock := testclock.NewFakeClock(now.AddDate(0, 0, -250))
	o.Clock, o.BuildTime = clock, now.AddDate(-2, 0, 0)
	o.Board = status.NewBoard(time.Now)
	o.DisableAgent = false
	writeManifest(t, o, "widgets.yaml", crd)
	s, stop := start(t, o)
	c := newClients(t, o)

	t.Run("own objects", func(t *testing.T) { c.testBootstrap(t) })
	t.Run("encryption", func(t *testing.T) { testEncryption(t, o, c) })
	t.Run("manifests", func(t *testing.T) { testManifests(t, o, c) })
	t.Run("store's socket", func(t *testing.T) { testStoreSocket(t, o) })
	t.Run("tokens", func(t *testing.T) { testTokens(t, c) })
	t.Run("node's role", func(t *testing.T) { testNodeRole(t, c) })
	t.Run("node's identities", func(t *testing.T) { testIdentities(t, s, c) })
	t.Run("joins at once", func(t *testing.T) { testJoinsAtOnce(t, s, c, clock.Now()) })
	t.Run("address pools", c.testAddressPools)
	t.Run("renewal", func(t *testing.T) { testRenewal(t, o, c, clock, now) })
	c.lastManifests = c.recordsAndObjects(t)
	stop()
	checkStopOrder(t, o.Board)

	versions, manifests := c.versions, c.lastManifests
	// While it is down a manifest goes.
	testenv.NoError(t, os.Remove(filepath.Join(o.ManifestsDir, "kept.yaml")))
	_, stop = start(t, o)
	c = newClients(t, o)
	waitFor(t, "what the removed manifest applied to go", func() bool {
		_, err := c.kube.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	// That round applied all files again, and wrote nothing of it.
	want := slices.DeleteFunc(strings.Split(manifests, "\n"), func(line string) bool { return strings.Contains(line, "kept") })
	waitFor(t, "the removed manifest's record to go", func() bool { return !strings.Contains(c.recordsAndObjects(t), "kept.yaml") })
	if got := c.recordsAndObjects(t); got != strings.Join(want, "\n") {
		t.Errorf("the second start left\n%s\nand the first had\n%s", got, manifests)
	}
	testenv.Check(t, testenv.Err(c.kube.CoreV1().Secrets("default").Get(t.Context(), "treasure", metav1.GetOptions{})), "a Secret from before the restart")
	svc, err := c.kube.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	testenv.True(t, err == nil && svc.ResourceVersion == versions["kube-dns"],
		"the second start wrote the DNS Service again: %v, %v", svc.ResourceVersion, err)
	stop()
}

// checkStopOrder checks that a server that has stopped ended its term first, then the API server, then the store.
func checkStopOrder(t *testing.T, board *status.Board) {
	t.Helper()
	ended := map[string]status.Component{}
	for _, c := range board.Components() {
		ended[c.Name] = c
	}
	term, api, store := ended["load balancer"], ended["API server"], ended["store"]
	if term.State != status.Waiting || api.State != status.Stopped || store.State != status.Stopped {
		t.Errorf("the server has stopped: %+v, %+v, %+v", term, api, store)
	}
	if api.Since.Before(term.Since) || store.Since.Before(api.Since) {
		t.Errorf("the term ended at %v, the API server at %v, the store at %v", term.Since, api.Since, store.Since)
	}
}

// clients reach the API server as a person would: over TLS, with the administrator's kubeconfig.
type clients struct {
	config   *rest.Config
	kube     kubernetes.Interface
	dynamic  dynamic.Interface
	versions map[string]string

	lastManifests string
}

func newClients(t *testing.T, o Options) *clients {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig.Path)
	testenv.NoError(t, err)
	config.QPS = -1
	c := &clients{config: config, versions: map[string]string{}}
	c.kube, err = kubernetes.NewForConfig(config)
	testenv.NoError(t, err)
	c.dynamic, err = dynamic.NewForConfig(config)
	testenv.NoError(t, err)
	return c
}

func (c *clients) testBootstrap(t *testing.T) {
	ctx := t.Context()
	svc, err := c.kube.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	testenv.Require(t, err == nil && svc.Spec.ClusterIP == "10.43.0.10", "%+v, %v", svc.Spec, err)
	c.versions["kube-dns"] = svc.ResourceVersion
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "boat"}}
	_, err = c.kube.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	testenv.NoError(t, err)
	status := []byte(`{"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}`)
	_, err = c.kube.CoreV1().Nodes().Patch(ctx, "boat", types.MergePatchType, status, metav1.PatchOptions{}, "status")
	testenv.NoError(t, err)
	waitFor(t, "the node's DNS endpoint", func() bool {
		s, err := c.kube.DiscoveryV1().EndpointSlices("kube-system").Get(ctx, "kube-dns-boat", metav1.GetOptions{})
		return err == nil && s.Endpoints[0].Addresses[0] == "192.0.2.1"
	})
	// The controllers run: a namespace has its account.
	waitFor(t, "the default ServiceAccount", func() bool {
		_, err := c.kube.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	})
}

// testAddressPools: the kind is there, what is no address is refused with what is wrong, and the leader says how a pool
// is.
func (c *clients) testAddressPools(t *testing.T) {
	pool := func(name string, addresses ...any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "coracle.dev/v1alpha1", "kind": "AddressPool",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"addresses": addresses}}}
	}
	pools := c.dynamic.Resource(addresspool.Resource())
	for _, good := range []string{"192.0.2.10", "192.0.2.20-192.0.2.29", "192.0.2.64/28", "2001:db8::10 - 2001:db8::20", "2001:db8:1::/120"} {
		waitFor(t, good+" to be taken", func() bool {
			_, err := pools.Create(t.Context(), pool("p", good), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err == nil
		})
	}
	for _, bad := range []string{"192.0.2.300", "192.0.2.10-", "192.0.2.1-192.0.2.2-192.0.2.3", "192.0.2.0/33", "fd00::g", "office", ""} {
		if _, err := pools.Create(t.Context(), pool("p", bad), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || bad != "" && !strings.Contains(err.Error(), "is neither an address, nor a range") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	testenv.Must(pools.Create(t.Context(), pool("backwards", "192.0.2.9-192.0.2.1", "192.0.2.2"), metav1.CreateOptions{}))(t)
	waitFor(t, "the pool to say what is wrong", func() bool {
		u, err := pools.Get(t.Context(), "backwards", metav1.GetOptions{})
		if err != nil {
			return false
		}
		p, err := addresspool.From(u)
		return err == nil && p.Status.Total == 1 && len(p.Status.Conditions) == 1 && strings.Contains(p.Status.Conditions[0].Message, `"192.0.2.9-192.0.2.1" is no range`)
	})
	testenv.Check(t, pools.Delete(t.Context(), "backwards", metav1.DeleteOptions{}))
}

// testEncryption looks at the bytes in the store.
func testEncryption(t *testing.T, o Options, c *clients) {
	ctx, store := t.Context(), storeClient(t, o)
	create := func(name string) {
		t.Helper()
		testenv.Must(c.kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name},
			StringData: map[string]string{"where": "under the palm"}}, metav1.CreateOptions{}))(t)
	}
	create("treasure")
	stored := func(name string) []byte {
		t.Helper()
		r, err := store.Get(ctx, "/registry/secrets/default/"+name)
		testenv.Require(t, err == nil && len(r.Kvs) == 1, "%+v, %v", r, err)
		return r.Kvs[0].Value
	}
	before := stored("treasure")
	testenv.Require(t, bytes.HasPrefix(before, []byte("k8s:enc:secretbox:v1:key1:")) && !bytes.Contains(before, []byte("palm")),
		"stored as %.60q", before)
	testenv.NoError(t, encryption.Rotation{Shared: testenv.Must(secrets.SharedEncryption(store, o.ServerDir))(t), Client: c.config,
		Servers: func(ctx context.Context) ([]string, error) {
			list, err := store.MemberList(ctx)
			if err != nil {
				return nil, err
			}
			return []string{list.Members[0].Name}, nil
		}}.Run(ctx))
	create("later")
	for _, name := range []string{"treasure", "later"} {
		if b := stored(name); !bytes.HasPrefix(b, []byte("k8s:enc:secretbox:v1:key2:")) {
			t.Errorf("after the rotation %s is stored as %.60q", name, b)
		}
		got, err := c.kube.CoreV1().Secrets("default").Get(ctx, name, metav1.GetOptions{})
		testenv.False(t, err != nil || string(got.Data["where"]) != "under the palm", "%s: %v", name, err)
	}
	if st, err := encryption.ReadStatus(o.CredDir); err != nil || st.Key != "key2" || len(st.Readable) != 1 {
		t.Errorf("%+v, %v", st, err)
	}
}

// storeClient is a client of the store's socket until the end of the test.
func storeClient(t *testing.T, o Options) *clientv3.Client {
	t.Helper()
	etcd := testenv.Must(clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + o.StoreSocket}, DialTimeout: 2 * time.Minute}))(t)
	t.Cleanup(func() { _ = etcd.Close() }) // the server may be gone by then
	return etcd
}

// testStoreSocket asks the store as etcdctl would.
func testStoreSocket(t *testing.T, o Options) {
	if fi, err := os.Stat(o.StoreSocket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", fi, err)
	}
	testenv.Equal(t, len(testenv.Must(storeClient(t, o).Get(t.Context(), "/registry/namespaces/default"))(t).Kvs), 1, "")
}

// testRenewal lets time pass and watches the running server.
func testRenewal(t *testing.T, o Options, c *clients, clock *testclock.FakeClock, now time.Time) {
	shown := func() *x509.Certificate {
		t.Helper()
		address := strings.TrimPrefix(c.config.Host, "https://")
		// Whether it is to be trusted the clients of this test check all the time; here it is only looked at.
		conn := testenv.Must(tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}))(t)
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0]
	}
	read := func() string {
		t.Helper()
		data := testenv.Must(os.ReadFile(o.Kubeconfig.Path))(t)
		return string(data)
	}
	certificate, kubeconfig := shown(), read()
	waitFor(t, "the renewer to wait", clock.HasWaiters)
	clock.SetTime(now)
	waitFor(t, "the port to show another certificate", func() bool { return !shown().Equal(certificate) })
	testenv.True(t, !shown().NotAfter.Before(now.AddDate(0, 11, 0)), "the new certificate is valid until %s", shown().NotAfter)
	waitFor(t, "the administrator's kubeconfig", func() bool { return read() != kubeconfig })
	for who, clients := range map[string]*clients{"old": c, "new": newClients(t, o)} {
		testenv.Check(t, testenv.Err(clients.kube.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})), "with the %s kubeconfig", who)
	}
}

func testTokens(t *testing.T, c *clients) {
	ctx := t.Context()
	b := testenv.Must(token.Create(ctx, c.kube, token.CreateOptions{Description: "test"}))(t)
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = b.ID + "." + b.Secret
	joining := testenv.Must(kubernetes.NewForConfig(config))(t)
	// The API knows who that is, and gives them nothing: a machine joins by another way (server/admission).
	known := func() error {
		_, err := joining.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		return err
	}
	waitFor(t, "the token to be known", func() bool { return known() == nil })
	if _, err := joining.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a joining machine may read Secrets: %v", err)
	}
	request := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "boat"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: []byte("x"), SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
	}}
	if _, err := joining.CertificatesV1().CertificateSigningRequests().Create(ctx, request, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a joining machine may ask for a certificate of any node: %v", err)
	}
	testenv.NoError(t, token.Delete(ctx, c.kube, b.ID))
	waitFor(t, "the token to end", func() bool { return apierrors.IsUnauthorized(known()) })
}

// testNodeRole looks for the label that makes a server of a node, also when the node registers again.
func testNodeRole(t *testing.T, c *clients) {
	ctx, nodes := t.Context(), c.kube.CoreV1().Nodes()
	labelled := func() bool {
		n, err := nodes.Get(ctx, "boat", metav1.GetOptions{})
		return err == nil && n.Labels["node-role.kubernetes.io/control-plane"] == "true"
	}
	waitFor(t, "the node's role", labelled)
	n := testenv.Must(nodes.Get(ctx, "boat", metav1.GetOptions{}))(t)
	testenv.NoError(t, nodes.Delete(ctx, "boat", metav1.DeleteOptions{}))
	// The leader looks first whether a server has to leave the store with it.
	waitFor(t, "the node is gone", func() bool {
		_, err := nodes.Get(ctx, "boat", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	for _, name := range []string{"boat", "other"} {
		testenv.Must(nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: n.Status}, metav1.CreateOptions{}))(t)
	}
	waitFor(t, "the role of the node that registered again", labelled)
	if other, err := nodes.Get(ctx, "other", metav1.GetOptions{}); err != nil || len(other.Labels) > 0 {
		t.Errorf("another node: %v, %v", other.Labels, err)
	}
}

// testIdentities uses the credentials of a node's parts.
func testIdentities(t *testing.T, s *Server, c *clients) {
	cred := testenv.Must(s.AgentCredentials("boat", s.o.Node.IPs))(t)
	as := func(path string) kubernetes.Interface {
		t.Helper()
		config := testenv.Must(clientcmd.BuildConfigFromFlags("", path))(t)
		return testenv.Must(kubernetes.NewForConfig(config))(t)
	}
	ctx := t.Context()
	kubelet, network := as(cred.KubeletKubeconfig), as(cred.NetworkKubeconfig)
	testenv.Check(t, testenv.Err(kubelet.CoreV1().Nodes().Get(ctx, "boat", metav1.GetOptions{})), "the kubelet cannot read its node")
	label := []byte(`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":null}}}`)
	if _, err := kubelet.CoreV1().Nodes().Patch(ctx, "boat", types.MergePatchType, label, metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the kubelet may take the role of servers from its node: %v", err)
	}
	if _, err := kubelet.CoreV1().Secrets("default").Get(ctx, "treasure", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the kubelet may read a Secret that no pod of its has: %v", err)
	}
	for what, list := range map[string]func(context.Context, metav1.ListOptions) error{
		"pods": func(ctx context.Context, o metav1.ListOptions) error {
			_, err := network.CoreV1().Pods("").List(ctx, o)
			return err
		},
		"services": func(ctx context.Context, o metav1.ListOptions) error {
			_, err := network.CoreV1().Services("").List(ctx, o)
			return err
		},
		"slices": func(ctx context.Context, o metav1.ListOptions) error {
			_, err := network.DiscoveryV1().EndpointSlices("").List(ctx, o)
			return err
		},
		"policies": func(ctx context.Context, o metav1.ListOptions) error {
			_, err := network.NetworkingV1().NetworkPolicies("").List(ctx, o)
			return err
		},
		"cidrs": func(ctx context.Context, o metav1.ListOptions) error {
			_, err := network.NetworkingV1().ServiceCIDRs().List(ctx, o)
			return err
		},
	} {
		testenv.Check(t, list(ctx, metav1.ListOptions{}), "the network identity cannot list %s", what)
	}
	if _, err := network.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the network identity may read Secrets: %v", err)
	}
	testNetworkRules(t, network, c.config)
	anonymous := testenv.Must(kubernetes.NewForConfig(rest.AnonymousClientConfig(c.config)))(t)
	if _, err := anonymous.Discovery().ServerVersion(); !apierrors.IsUnauthorized(err) {
		t.Errorf("an anonymous request for the version: %v", err)
	}
}

// testNetworkRules: whatever binds them, the rules of the network identity are those in docs/security.md and no more,
// besides what everybody has who shows a certificate.
func testNetworkRules(t *testing.T, network kubernetes.Interface, admin *rest.Config) {
	t.Helper()
	other := rest.CopyConfig(admin)
	other.Impersonate = rest.ImpersonationConfig{UserName: "somebody", Groups: []string{"system:authenticated"}}
	authenticated := testenv.Must(kubernetes.NewForConfig(other))(t)
	common, inSystem := documentedNetworkRules(t)
	for namespace, want := range map[string][]string{"default": common, metav1.NamespaceSystem: slices.Concat(common, inSystem)} {
		everybodys := rulesOf(t, authenticated, namespace)
		got := slices.DeleteFunc(rulesOf(t, network, namespace), func(rule string) bool { return slices.Contains(everybodys, rule) })
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("in %s the network identity may\n%s\nand docs/security.md says\n%s", namespace, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// rulesOf are a client's own rules in a namespace: one line, "verb group/resource/name", for each verb, group, resource
// and name.
func rulesOf(t *testing.T, c kubernetes.Interface, namespace string) []string {
	t.Helper()
	review := testenv.Must(c.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}, metav1.CreateOptions{}))(t)
	var out []string
	for _, rule := range review.Status.ResourceRules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{"*"}
		}
		for _, verb := range rule.Verbs {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, name := range names {
						out = append(out, verb+" "+group+"/"+resource+"/"+name)
					}
				}
			}
		}
	}
	for _, rule := range review.Status.NonResourceRules {
		for _, verb := range rule.Verbs {
			for _, url := range rule.NonResourceURLs {
				out = append(out, verb+" "+url)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// documentedNetworkRules are the ones in docs/security.md, as rulesOf writes them, everywhere and in kube-system alone.
func documentedNetworkRules(t *testing.T) (common, inSystem []string) {
	t.Helper()
	doc := testenv.Must(os.ReadFile(filepath.Join("..", "docs", "security.md")))(t)
	_, row, found := strings.Cut(string(doc), "| user `system:coracle:network` | ")
	row, _, _ = strings.Cut(row, " |\n")
	said := strings.Split(row, "; ")
	path, isPath := "", false
	if len(said) == 4 {
		path, isPath = strings.CutPrefix(said[2], "get the path `")
	}
	testenv.Require(t, found && isPath && said[3] == "write events", "docs/security.md says of the network identity %q", row)
	read := func(what string) []string { return []string{"get " + what, "list " + what, "watch " + what} }
	kinds := map[string]string{"nodes": "/nodes", "services": "/services", "endpoints": "/endpoints", "namespaces": "/namespaces", "pods": "/pods",
		"endpoint slices": "discovery.k8s.io/endpointslices", "network policies": "networking.k8s.io/networkpolicies", "service CIDRs": "networking.k8s.io/servicecidrs"}
	for _, kind := range strings.Split(strings.TrimPrefix(said[0], "get, list, watch "), ", ") {
		common = append(common, read(cmp.Or(kinds[kind], kind)+"/*")...)
	}
	common = append(common, "get "+strings.TrimSuffix(path, "`"))
	for _, group := range []string{"", "events.k8s.io"} {
		for _, verb := range []string{"create", "patch", "update"} {
			common = append(common, verb+" "+group+"/events/*")
		}
	}
	names := strings.ReplaceAll(strings.TrimPrefix(said[1], "in kube-system the ConfigMaps "), " and ", ", ")
	for _, name := range strings.Split(names, ", ") {
		inSystem = append(inSystem, read("/configmaps/"+name)...)
	}
	return common, inSystem
}

// TestStartReportsTakenDNSAddress starts with a DNS address that a Service has: a person must be able to do something
// about it.
func TestStartReportsTakenDNSAddress(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole server; -short leaves it out")
	}
	o := options(t.TempDir())
	_, stop := start(t, o)
	c := newClients(t, o)
	taken := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "taken"}, Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.77",
		Ports: []corev1.ServicePort{{Port: 80}}}}
	testenv.Must(c.kube.CoreV1().Services("default").Create(t.Context(), taken, metav1.CreateOptions{}))(t)
	stop()
	o.Cluster.DNS = netip.AddrFrom4([4]byte{10, 43, 0, 77})
	o.Board = status.NewBoard(time.Now)
	start(t, o)
	components := o.Board.Components()
	i := slices.IndexFunc(components, func(c status.Component) bool { return c.State == status.Degraded })
	testenv.False(t, i < 0 || !strings.Contains(components[i].Message, "--cluster-dns"), "%+v", components)
	testenv.Equal(t, testenv.Must(newClients(t, o).kube.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{}))(t).Spec.ClusterIP, "10.43.0.10", "the DNS that pods know is gone:")
}

// TestStoreOfAnotherCluster puts the keys of one cluster beside the store of another.
func TestStoreOfAnotherCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole server; -short leaves it out")
	}
	o, other := options(t.TempDir()), options(t.TempDir())
	_, stop := start(t, o)
	stop()
	s, err := New(t.Context(), other)
	testenv.NoError(t, err)
	testenv.NoError(t, s.Close())
	o.TLSDir = other.TLSDir
	testenv.WantError(t, testenv.Err(New(t.Context(), o)), "two clusters are mixed")
	for _, name := range []string{token.ServerFile, token.AgentFile} {
		data := testenv.Must(os.ReadFile(filepath.Join(other.ServerDir, name)))(t)
		testenv.NoError(t, os.WriteFile(filepath.Join(o.ServerDir, name), data, 0o600))
	}
	s, err = New(t.Context(), o)
	testenv.NoError(t, err)
	err = s.Run(t.Context())
	testenv.WantError(t, err, "cluster")
	t.Log(err)
}
