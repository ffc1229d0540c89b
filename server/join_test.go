// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	testclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/internal/cluster"
	"github.com/coracle-k8s/coracle/internal/join"
	"github.com/coracle-k8s/coracle/internal/token"
	"github.com/coracle-k8s/coracle/server/joining"
	"github.com/coracle-k8s/coracle/server/pki"
)

func newAdmission(clock *testclock.FakeClock) *admission {
	return &admission{s: &Server{
		o: Options{NodeName: "server", Clock: clock, Cluster: cluster.Settings{
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		}},
		files: files{serving: pki.Leaf{DNSNames: []string{"localhost", "kubernetes", "server", "cluster.example.org", "API.example.org", "*.wild.example.org"}, IPs: []net.IP{net.IPv4(10, 0, 0, 1)}}},
	}}
}

func machine(name, password string, ips ...string) joining.Machine {
	n := join.Node{Name: name, Password: password}
	for _, ip := range ips {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(ip))
	}
	return joining.Machine{Request: &join.Request{Node: n}}
}

const password, otherPassword = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"

// TestNodesThatPassForOthers: names and addresses for which no node gets a certificate.
func TestNodesThatPassForOthers(t *testing.T) {
	a := newAdmission(testclock.NewFakeClock(time.Now()))
	for _, tt := range []struct {
		name string
		m    joining.Machine
		code join.Code
	}{
		{"good", machine("n", password, "10.0.0.2"), ""},
		{"both families", machine("n", password, "10.0.0.2", "fd00::2"), ""},
		{"upper case", machine("N", password, "10.0.0.2"), join.CodeName},
		{"path", machine("../n", password, "10.0.0.2"), join.CodeName},
		{"the API's name", machine("kubernetes", password, "10.0.0.2"), join.CodeName},
		{"a name of the operator's for the API", machine("cluster.example.org", password, "10.0.0.2"), join.CodeName},
		{"a name below the operator's", machine("k8s.wild.example.org", password, "10.0.0.2"), join.CodeName},
		{"a name of the operator's in capitals", machine("api.example.org", password, "10.0.0.2"), join.CodeName},
		{"two addresses of one family", machine("n", password, "10.0.0.2", "10.0.0.3"), join.CodeAddress},
		{"short password", machine("n", "x", "10.0.0.2"), join.CodeRequest},
		{"no address", machine("n", password), join.CodeAddress},
		{"three addresses", machine("n", password, "10.0.0.2", "10.0.0.3", "10.0.0.4"), join.CodeAddress},
		{"the server's address", machine("n", password, "10.0.0.1"), join.CodeAddress},
		{"the server's address in another form", machine("n", password, "::ffff:10.0.0.1"), join.CodeAddress},
		{"the API's Service", machine("n", password, "10.43.0.1"), join.CodeAddress},
		{"the API's Service in another form", machine("n", password, "::ffff:10.43.0.1"), join.CodeAddress},
		{"a pod's", machine("n", password, "10.42.0.7"), join.CodeAddress},
		{"loopback", machine("n", password, "127.0.0.1"), join.CodeAddress},
		{"none", machine("n", password, "0.0.0.0"), join.CodeAddress},
		{"multicast", machine("n", password, "224.0.0.1"), join.CodeAddress},
		{"link-local", machine("n", password, "169.254.0.1"), join.CodeAddress},
	} {
		if got := code(a.checkNode(tt.m.Node)); got != tt.code {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.code)
		}
	}
}

func code(err error) join.Code {
	var r *join.Refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r):
		return r.Code
	}
	return join.Code(err.Error())
}

// TestClaimName follows a name through machines that want it.
func TestClaimName(t *testing.T) {
	ctx := context.Background()
	clock := testclock.NewFakeClock(time.Now())
	a, api := newAdmission(clock), fake.NewClientset()
	claim := func(what string, m joining.Machine, want join.Code) {
		t.Helper()
		if got := code(a.claimName(ctx, api, m)); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	ready := func(name, ip string, status corev1.ConditionStatus) {
		t.Helper()
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}},
		}}
		if err := api.Tracker().Add(n); err != nil {
			if err := api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), n, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	ready("server", "10.0.0.1", corev1.ConditionTrue)
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other-server", Labels: map[string]string{roleLabel: roleValue}}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}},
	}}
	if err := api.Tracker().Add(other); err != nil {
		t.Fatal(err)
	}
	claim("the name of another server, which is down", machine("other-server", password, "10.0.0.9"), join.CodeName)
	b := machine("server-b", password, "10.0.0.8")
	b.Role = token.RoleServer
	claim("a server that joins", b, "")
	clock.Step(time.Hour)
	silent := other.DeepCopy()
	silent.Name = "server-b"
	if err := api.Tracker().Add(silent); err != nil {
		t.Fatal(err)
	}
	claim("an agent under the name of a server that is silent", machine("server-b", otherPassword, "10.0.0.9"), join.CodeName)
	wiped := machine("server-b", otherPassword, "10.0.0.9")
	wiped.Role = token.RoleServer
	claim("a server in the place of one that is silent", wiped, "")
	claim("the server's own name", machine("server", password, "10.0.0.9"), join.CodeName)
	claim("a new node", machine("n", password, "10.0.0.2"), "")
	claim("another machine at the same moment", machine("n", otherPassword, "10.0.0.3"), join.CodeName)
	claim("the same one again", machine("n", password, "10.0.0.2"), "")
	ready("n", "10.0.0.2", corev1.ConditionTrue)
	claim("another machine, soon after", machine("n", otherPassword, "10.0.0.3"), join.CodeName)
	clock.Step(time.Hour)
	claim("another machine, while it lives", machine("n", otherPassword, "10.0.0.3"), join.CodeName)
	claim("itself at a new address", machine("n", password, "10.0.0.4"), "")
	ready("n", "10.0.0.2", corev1.ConditionFalse) // it is sick, and lives
	claim("another machine, while it is sick", machine("n", otherPassword, "10.0.0.3"), join.CodeName)
	claim("another node at a live one's address", machine("m", otherPassword, "10.0.0.2"), join.CodeAddress)
	ready("n", "10.0.0.2", corev1.ConditionUnknown)
	claim("another node at a dead one's address", machine("m", otherPassword, "10.0.0.2"), "")
	claim("the machine wiped, when it has just joined at a new address", machine("n", otherPassword, "10.0.0.2"), join.CodeName)
	clock.Step(time.Hour)
	claim("the machine wiped, and the node dead", machine("n", otherPassword, "10.0.0.2"), "")
	lost := machine("n", password, "10.0.0.2")
	lost.Joined = true
	claim("by certificate, with another password", lost, "")
	if err := api.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("nodes"), "", "n"); err != nil {
		t.Fatal(err)
	}
	joined := machine("n", password, "10.0.0.2")
	joined.Joined = true
	claim("by certificate, after the node was deleted", joined, join.CodeCertificate)
	clock.Step(time.Hour)
	moved := machine("m", otherPassword, "10.0.0.1")
	moved.Joined = true
	ready("m", "10.0.0.7", corev1.ConditionTrue)
	claim("by certificate, at another live node's address", moved, join.CodeBusy)
	claim("another machine, after the node was deleted", machine("n", otherPassword, "10.0.0.2"), "")
}

// TestAddressesAreReserved: between a machine's joining and its Node, nobody else is let in with its addresses, whichever
// server is asked.
func TestAddressesAreReserved(t *testing.T) {
	ctx := context.Background()
	clock := testclock.NewFakeClock(time.Now())
	one, two, api := newAdmission(clock), newAdmission(clock), fake.NewClientset()
	claim := func(a *admission, what string, m joining.Machine, want join.Code) {
		t.Helper()
		if got := code(a.claimName(ctx, api, m)); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	// The fake API has one revision for all, so that the earlier name counts as the earlier claim.
	claim(one, "a machine", machine("a", password, "10.0.0.2", "fd00::2"), "")
	claim(two, "another machine with its address", machine("b", otherPassword, "10.0.0.2"), join.CodeBusy)
	claim(two, "another machine with its other address", machine("b", otherPassword, "10.0.0.3", "fd00::2"), join.CodeBusy)
	claim(two, "another machine with its own address", machine("b", otherPassword, "10.0.0.3"), "")
	claim(one, "the first one again, which the other did not keep out", machine("a", password, "10.0.0.2", "fd00::2"), "")
	clock.Step(registration + time.Second)
	claim(two, "another machine, when the first has not registered", machine("b", otherPassword, "10.0.0.2"), "")
	claim(two, "once more", machine("b", otherPassword, "10.0.0.2"), "")
}
