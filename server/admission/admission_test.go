// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	testclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/protocol"
	joiningserver "github.com/coracle-k8s/coracle/joining/server"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/netbackend"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func newAdmission(clock *testclock.FakeClock) *Admission {
	return New(Options{
		NodeName: "server", Clock: clock,
		Networks:   []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
		Serving:    pki.Leaf{DNSNames: []string{"localhost", "kubernetes", "server", "cluster.example.org", "API.example.org", "*.wild.example.org"}, IPs: []net.IP{net.IPv4(10, 0, 0, 1)}},
		Servers:    func() []netip.Addr { return nil },
		Backend:    (*netbackend.Setting)(nil).ForJoining,
		GossipKeys: func() *clusterconfig.GossipKeys { return nil },
	})
}

func machine(name, password string, ips ...string) joiningserver.Machine {
	n := protocol.Node{Name: name, Password: password}
	for _, ip := range ips {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(ip))
	}
	return joiningserver.Machine{Request: &protocol.Request{Node: n}}
}

const password, otherPassword = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"

// TestNodesThatPassForOthers: names and addresses for which no node gets a certificate.
func TestNodesThatPassForOthers(t *testing.T) {
	a := newAdmission(testclock.NewFakeClock(time.Now()))
	for _, tt := range []struct {
		name string
		m    joiningserver.Machine
		code protocol.Code
	}{
		{"good", machine("n", password, "10.0.0.2"), ""},
		{"both families", machine("n", password, "10.0.0.2", "fd00::2"), ""},
		{"upper case", machine("N", password, "10.0.0.2"), protocol.CodeName},
		{"path", machine("../n", password, "10.0.0.2"), protocol.CodeName},
		{"the API's name", machine("kubernetes", password, "10.0.0.2"), protocol.CodeName},
		{"a name of the operator's for the API", machine("cluster.example.org", password, "10.0.0.2"), protocol.CodeName},
		{"a name below the operator's", machine("k8s.wild.example.org", password, "10.0.0.2"), protocol.CodeName},
		{"a name of the operator's in capitals", machine("api.example.org", password, "10.0.0.2"), protocol.CodeName},
		{"two addresses of one family", machine("n", password, "10.0.0.2", "10.0.0.3"), protocol.CodeAddress},
		{"short password", machine("n", "x", "10.0.0.2"), protocol.CodeRequest},
		{"no address", machine("n", password), protocol.CodeAddress},
		{"three addresses", machine("n", password, "10.0.0.2", "10.0.0.3", "10.0.0.4"), protocol.CodeAddress},
		{"the server's address", machine("n", password, "10.0.0.1"), protocol.CodeAddress},
		{"the server's address in another form", machine("n", password, "::ffff:10.0.0.1"), protocol.CodeAddress},
		{"the API's Service", machine("n", password, "10.43.0.1"), protocol.CodeAddress},
		{"the API's Service in another form", machine("n", password, "::ffff:10.43.0.1"), protocol.CodeAddress},
		{"a pod's", machine("n", password, "10.42.0.7"), protocol.CodeAddress},
		{"loopback", machine("n", password, "127.0.0.1"), protocol.CodeAddress},
		{"none", machine("n", password, "0.0.0.0"), protocol.CodeAddress},
		{"multicast", machine("n", password, "224.0.0.1"), protocol.CodeAddress},
		{"link-local", machine("n", password, "169.254.0.1"), protocol.CodeAddress},
	} {
		testenv.Equal(t, code(a.checkNode(tt.m.Node, nil)), tt.code, "%s:", tt.name)
	}
}

func code(err error) protocol.Code {
	var r *protocol.Refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r):
		return r.Code
	}
	return protocol.Code(err.Error())
}

// TestNodeNameBelongsToItsMachine follows a name through machines that want it.
func TestNodeNameBelongsToItsMachine(t *testing.T) {
	ctx := context.Background()
	clock := testclock.NewFakeClock(time.Now())
	a, api := newAdmission(clock), fake.NewClientset()
	claim := func(what string, m joiningserver.Machine, want protocol.Code) {
		t.Helper()
		testenv.Equal(t, code(a.register(ctx, api, m)), want, "%s:", what)
	}
	ready := func(name, ip string, status corev1.ConditionStatus) {
		t.Helper()
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}},
		}}
		if err := api.Tracker().Add(n); err != nil {
			testenv.NoError(t, api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), n, ""))
		}
	}
	ready("server", "10.0.0.1", corev1.ConditionTrue)
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other-server", Labels: map[string]string{roster.RoleLabel: roster.RoleValue}}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}},
	}}
	testenv.NoError(t, api.Tracker().Add(other))
	claim("the name of another server, which is down", machine("other-server", password, "10.0.0.9"), protocol.CodeName)
	first := machine("other-server", password, "10.0.0.9")
	first.Role = token.RoleServer
	claim("a server in the place of one that started the cluster, and is down", first, "")
	claim("the name of that one, to be an agent", machine("other-server", otherPassword, "10.0.0.9"), protocol.CodeName)
	b := machine("server-b", password, "10.0.0.8")
	b.Role = token.RoleServer
	claim("a server that joins", b, "")
	clock.Step(time.Hour)
	silent := other.DeepCopy()
	silent.Name = "server-b"
	testenv.NoError(t, api.Tracker().Add(silent))
	claim("an agent under the name of a server that is silent", machine("server-b", otherPassword, "10.0.0.9"), protocol.CodeName)
	wiped := machine("server-b", otherPassword, "10.0.0.9")
	wiped.Role = token.RoleServer
	claim("a server in the place of one that is silent", wiped, "")
	claim("the server's own name", machine("server", password, "10.0.0.9"), protocol.CodeName)
	claim("a new node", machine("n", password, "10.0.0.2"), "")
	claim("another machine at the same moment", machine("n", otherPassword, "10.0.0.3"), protocol.CodeName)
	claim("the same one again", machine("n", password, "10.0.0.2"), "")
	ready("n", "10.0.0.2", corev1.ConditionTrue)
	claim("another machine, soon after", machine("n", otherPassword, "10.0.0.3"), protocol.CodeName)
	clock.Step(time.Hour)
	claim("another machine, while it lives", machine("n", otherPassword, "10.0.0.3"), protocol.CodeName)
	claim("itself at a new address", machine("n", password, "10.0.0.4"), "")
	ready("n", "10.0.0.2", corev1.ConditionFalse) // it is sick, and lives
	claim("another machine, while it is sick", machine("n", otherPassword, "10.0.0.3"), protocol.CodeName)
	claim("another node at a live one's address", machine("m", otherPassword, "10.0.0.2"), protocol.CodeAddress)
	ready("n", "10.0.0.2", corev1.ConditionUnknown)
	claim("another node at a dead one's address", machine("m", otherPassword, "10.0.0.2"), "")
	claim("the machine wiped, when it has just joined at a new address", machine("n", otherPassword, "10.0.0.2"), protocol.CodeName)
	clock.Step(time.Hour)
	claim("the machine wiped, and the node dead", machine("n", otherPassword, "10.0.0.2"), "")
	lost := machine("n", password, "10.0.0.2")
	lost.Joined = true
	claim("by certificate, with another password", lost, "")
	testenv.NoError(t, api.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("nodes"), "", "n"))
	joined := machine("n", password, "10.0.0.2")
	joined.Joined = true
	claim("by certificate, after the node was deleted", joined, protocol.CodeCertificate)
	clock.Step(time.Hour)
	moved := machine("m", otherPassword, "10.0.0.1")
	moved.Joined = true
	ready("m", "10.0.0.7", corev1.ConditionTrue)
	claim("by certificate, at another live node's address", moved, protocol.CodeBusy)
	claim("another machine, after the node was deleted", machine("n", otherPassword, "10.0.0.2"), "")
}

// TestNodeClaimsOnlyItsNewestAddress: what a node may claim follows what it asked for last, also when its Node has
// another address in between.
func TestNodeClaimsOnlyItsNewestAddress(t *testing.T) {
	ctx := context.Background()
	a, api := newAdmission(testclock.NewFakeClock(time.Now())), fake.NewClientset()
	want := func(addresses, external string) {
		t.Helper()
		s := testenv.Must(api.CoreV1().Secrets("kube-system").Get(ctx, "n"+roster.RegistrationSuffix, metav1.GetOptions{}))(t)
		testenv.Equal(t, string(s.Data[roster.RegistrationAddresses]), addresses, "addresses")
		testenv.Equal(t, string(s.Data[roster.RegistrationExternal]), external, "external addresses")
		r := roster.New(roster.Options{API: func() (kubernetes.Interface, error) { return api, nil }})
		testenv.EqualSlices(t, testenv.Must(r.JoinedAddresses(ctx))(t), append(roster.ParseAddresses([]byte(addresses)), roster.ParseAddresses([]byte(external))...), "machines have joined with:")
	}
	ask := func(external string, ips ...string) {
		t.Helper()
		m := machine("n", password, ips...)
		if external != "" {
			m.Node.External = []netip.Addr{netip.MustParseAddr(external)}
		}
		testenv.NoError(t, a.register(ctx, api, m))
	}
	ask("", "10.0.0.2")
	n := nodeNamed("n")
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.2"}}
	testenv.NoError(t, api.Tracker().Add(n))
	want("10.0.0.2", "")
	ask("", "10.0.0.3")
	want("10.0.0.3", "")
	ask("", "10.0.0.2") // its Node still has it
	want("10.0.0.2", "")
	ask("198.51.100.2", "10.0.0.2")
	want("10.0.0.2", "198.51.100.2")
	inside := machine("n", password, "10.0.0.2")
	inside.Node.External = []netip.Addr{netip.MustParseAddr("10.43.0.1")}
	testenv.Equal(t, code(a.checkNode(inside.Node, nil)), protocol.CodeAddress, "an external address in the cluster's networks:")
}

// TestAddressOfASilentNode: a node does not take it, unless it asks from there. A machine that takes a dead one's place
// does.
func TestAddressOfASilentNode(t *testing.T) {
	for what, tt := range map[string]struct {
		name, from string
		joined     bool
		want       protocol.Code
	}{
		"a live node, by its certificate":   {"live", "10.0.0.2", true, protocol.CodeBusy},
		"a live node, with a token":         {"live", "10.0.0.2", false, protocol.CodeBusy},
		"a live node that has moved there":  {"live", "10.0.0.3", true, ""},
		"another machine, in its place":     {"new", "10.0.0.9", false, ""},
		"the silent one itself, through us": {"silent", "10.0.0.1", true, ""},
	} {
		a, api := newAdmission(testclock.NewFakeClock(time.Now())), fake.NewClientset()
		for _, n := range []struct {
			name, ip string
			ready    corev1.ConditionStatus
		}{{"live", "10.0.0.2", corev1.ConditionTrue}, {"silent", "10.0.0.3", corev1.ConditionUnknown}} {
			node := nodeNamed(n.name)
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: n.ready}}
			node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.ip}}
			testenv.NoError(t, api.Tracker().Add(node))
		}
		if !tt.joined && tt.name == "live" { // it knows its password
			testenv.NoError(t, api.Tracker().Add(a.newRegistration(machine("live", password, "10.0.0.2").Node)))
		}
		m := machine(tt.name, password, "10.0.0.3")
		m.Joined, m.From = tt.joined, netip.MustParseAddr(tt.from)
		testenv.Equal(t, code(a.register(t.Context(), api, m)), tt.want, "%s:", what)
	}
}

// TestForeignAddressesAreRefused: a node that shows its certificate alone does not get one that is not its own. The
// cluster would send it what is for that address.
func TestForeignAddressesAreRefused(t *testing.T) {
	for what, tt := range map[string]struct {
		ip, external, from string
		joined             bool
		want               protocol.Code
	}{
		"as before, through another machine":         {"10.0.0.2", "198.51.100.2", "10.0.0.9", true, ""},
		"a resolver of the internet":                 {"8.8.8.8", "", "10.0.0.2", true, protocol.CodeCertificate},
		"the same from outside":                      {"10.0.0.2", "8.8.8.8", "10.0.0.2", true, protocol.CodeCertificate},
		"an address of a Service":                    {"10.0.0.200", "", "10.0.0.2", true, protocol.CodeCertificate},
		"it has moved, and asks from there":          {"10.0.0.7", "198.51.100.2", "10.0.0.7", true, ""},
		"it has moved, and shows its token":          {"10.0.0.7", "", "10.0.0.9", false, ""},
		"it has moved, and its request is forwarded": {"10.0.0.7", "", "10.0.0.9", true, protocol.CodeCertificate},
	} {
		a, api := newAdmission(testclock.NewFakeClock(time.Now())), fake.NewClientset()
		was := machine("n", password, "10.0.0.2")
		was.Node.External = []netip.Addr{netip.MustParseAddr("198.51.100.2")}
		testenv.NoError(t, api.Tracker().Add(a.newRegistration(was.Node)))
		testenv.NoError(t, api.Tracker().Add(registeredAt("n", "10.0.0.2")))
		m := machine("n", password, tt.ip)
		if tt.external != "" {
			m.Node.External = []netip.Addr{netip.MustParseAddr(tt.external)}
		}
		m.Joined, m.From = tt.joined, netip.MustParseAddr(tt.from)
		testenv.Equal(t, code(a.register(t.Context(), api, m)), tt.want, "%s:", what)
	}
}

func registeredAt(name, ip string) *corev1.Node {
	n := nodeNamed(name)
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	return n
}

// TestKeysBeforeTheNode: a machine that has joined and is no Node yet is not called deleted.
func TestKeysBeforeTheNode(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	a, api := newAdmission(clock), fake.NewClientset()
	testenv.Equal(t, code(a.noNode(t.Context(), api, "n")), protocol.CodeCertificate, "a machine that never joined:")
	testenv.NoError(t, a.register(t.Context(), api, machine("n", password, "10.0.0.2")))
	testenv.Equal(t, code(a.noNode(t.Context(), api, "n")), protocol.CodeStarting, "right after it has joined:")
	clock.Step(roster.RegistrationTime + time.Second)
	testenv.Equal(t, code(a.noNode(t.Context(), api, "n")), protocol.CodeCertificate, "later:")
}

// TestAddressesAreReserved: between a machine's joining and its Node, no other machine is admitted with its addresses,
// whichever server is asked.
func TestAddressesAreReserved(t *testing.T) {
	ctx := context.Background()
	clock := testclock.NewFakeClock(time.Now())
	one, two, api := newAdmission(clock), newAdmission(clock), fake.NewClientset()
	claim := func(a *Admission, what string, m joiningserver.Machine, want protocol.Code) {
		t.Helper()
		testenv.Equal(t, code(a.register(ctx, api, m)), want, "%s:", what)
	}
	// The fake API has one revision for all, so that the earlier name counts as the earlier claim.
	claim(one, "a machine", machine("a", password, "10.0.0.2", "fd00::2"), "")
	claim(two, "another machine with its address", machine("b", otherPassword, "10.0.0.2"), protocol.CodeBusy)
	claim(two, "another machine with its other address", machine("b", otherPassword, "10.0.0.3", "fd00::2"), protocol.CodeBusy)
	claim(two, "another machine with its own address", machine("b", otherPassword, "10.0.0.3"), "")
	claim(one, "the first one again, which the other did not keep out", machine("a", password, "10.0.0.2", "fd00::2"), "")
	clock.Step(roster.RegistrationTime + time.Second)
	claim(two, "another machine, when the first has not registered", machine("b", otherPassword, "10.0.0.2"), "")
	claim(two, "once more", machine("b", otherPassword, "10.0.0.2"), "")
}

// TestNodeLabelsNeedJoinToken: a node has its labels from --node-label if it has shown a token, and not by its
// certificate, with which it can move, leave and register again.
func TestNodeLabelsNeedJoinToken(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	a, api := newAdmission(clock), fake.NewClientset()
	expect := func(what string, token, fresh bool) {
		t.Helper()
		s := testenv.Must(api.CoreV1().Secrets("kube-system").Get(t.Context(), "n"+roster.RegistrationSuffix, metav1.GetOptions{}))(t)
		if got := roster.Recent(s, roster.RegistrationToken, clock.Now()); got != token || a.fresh(s) != fresh {
			t.Errorf("%s: by a token %v, at all %v", what, got, a.fresh(s))
		}
	}
	m := machine("n", password, "10.0.0.2")
	testenv.NoError(t, a.register(t.Context(), api, m))
	expect("with a token", true, true)
	testenv.NoError(t, api.Tracker().Add(registeredAt("n", "10.0.0.2")))
	clock.Step(roster.RegistrationTime + time.Second)
	expect("later", false, false)
	m = machine("n", password, "10.0.0.3")
	m.Joined, m.From = true, netip.MustParseAddr("10.0.0.3")
	testenv.NoError(t, a.register(t.Context(), api, m))
	expect("it moves, with its certificate", false, true)
	testenv.NoError(t, a.register(t.Context(), api, machine("n", password, "10.0.0.4")))
	expect("with a token again", true, true)
}

// TestBackendOfWhoJoins: a machine that joins gets the back end to which the cluster has changed, and not what its
// server was started with. Nonsense is sent to no machine, nor anything where the pod network is another plugin's.
func TestBackendOfWhoJoins(t *testing.T) {
	for _, c := range []struct{ own, said, want string }{
		{"", "", ""}, {"", clusterconfig.NetworkWireGuard, clusterconfig.NetworkWireGuard}, {clusterconfig.NetworkHostGateway, clusterconfig.NetworkVXLAN, clusterconfig.NetworkVXLAN},
		{clusterconfig.NetworkHostGateway, "pigeons", clusterconfig.NetworkHostGateway}, {clusterconfig.NetworkNone, clusterconfig.NetworkVXLAN, clusterconfig.NetworkNone},
		{clusterconfig.NetworkVXLAN, clusterconfig.NetworkNone, clusterconfig.NetworkVXLAN},
	} {
		a, api := newAdmission(testclock.NewFakeClock(time.Now())), fake.NewClientset()
		a.o.Cluster.NetworkBackend = c.own
		if c.said != "" {
			testenv.NoError(t, api.Tracker().Add(&corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.BackendConfigMap, Namespace: metav1.NamespaceSystem}, Data: map[string]string{clusterconfig.BackendData: c.said},
			}))
		}
		testenv.Equal(t, testenv.Must(a.settings(t.Context(), api))(t).NetworkBackend, c.want, "%+v:", c)
	}
}

func nodeNamed(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}
