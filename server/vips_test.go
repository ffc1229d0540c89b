// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/vip"
)

func TestParseVIPs(t *testing.T) {
	reserved := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	for text, want := range map[string]string{
		"": "", "10.0.0.100": "10.0.0.100", " fd00::0100 , 10.0.0.100": "fd00::100,10.0.0.100", "boat": "not an IP address", "10.42.0.1": "cluster uses",
		"10.0.0.1,10.0.0.2": "at most one", "224.0.0.1": "not an address", "::ffff:10.42.0.1": "not an address",
	} {
		got, err := ParseVIPs(text, reserved)
		said := JoinAddrs(got)
		if err != nil {
			said = err.Error()
		}
		if !strings.Contains(said, want) || (want == "") != (said == "") {
			t.Errorf("%q: %s, want %s", text, said, want)
		}
	}
}

func vipMap(text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.VIPConfigMap, Namespace: metav1.NamespaceSystem}, Data: map[string]string{clusterconfig.VIPData: text}}
}

// TestWhatFailedIsDoneLater: a disk without room keeps a server from writing down the cluster's address once.
func TestWhatFailedIsDoneLater(t *testing.T) {
	v, o := newTestVIPs(t)
	blocked := []string{filepath.Join(o.ServerDir, "vip.json"), o.Kubeconfigs[0].Path}
	for _, path := range blocked { // a folder is in the file's place
		if err := errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := v.take(t.Context(), fake.NewClientset(), vipMap("192.0.2.100")); err == nil {
			t.Fatal("nothing is said of files that cannot be written")
		}
	}
	for _, path := range blocked {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.take(t.Context(), fake.NewClientset(), vipMap("192.0.2.100")); err != nil {
		t.Fatal(err)
	}
	if kept, known, err := clusterconfig.ReadVIPs(o.ServerDir); err != nil || !known || JoinAddrs(kept) != "192.0.2.100" {
		t.Errorf("kept is %v, %v, %v", kept, known, err)
	}
	if _, err := os.Stat(o.Kubeconfigs[0].Path); err != nil {
		t.Error(err)
	}
}

// TestOtherFlag: a server that was given another address than the cluster's says so, goes by the cluster's, and goes on
// to follow it.
func TestOtherFlag(t *testing.T) {
	v, _ := newTestVIPs(t, netip.MustParseAddr("192.0.2.1"))
	m := vipMap("192.0.2.100")
	client := fake.NewClientset(m)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1) // one: its goroutine need not wait
	go func() { ended <- v.watch(ctx, client) }()
	for _, address := range []string{"192.0.2.100", "192.0.2.200"} {
		testenv.Eventually(t, 2*time.Minute, "the cluster's address", func() error {
			m.Data = map[string]string{clusterconfig.VIPData: address} // again, if the watch has not begun
			if _, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, m, metav1.UpdateOptions{}); err != nil {
				return err
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			if has := JoinAddrs(v.addresses); has != address || !strings.Contains(v.trouble, address) || !strings.Contains(v.trouble, "192.0.2.1") {
				return errors.New("it has " + has + " and says: " + v.trouble)
			}
			return nil
		})
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestAddressesOfOthersAreRefused: whoever may write the ConfigMap cannot have the leader answer for a router or a
// node, on or off. What the cluster had before is not asked about.
func TestAddressesOfOthersAreRefused(t *testing.T) {
	v, o := newTestVIPs(t)
	router, node := netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("192.0.2.7")
	var routers []netip.Addr
	v.routers = func() ([]netip.Addr, error) { return routers, nil }
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "off"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "off"}, {Type: corev1.NodeInternalIP, Address: node.String()}}}})
	take := func(text, want string) {
		t.Helper()
		err := v.take(t.Context(), client, vipMap(text))
		if (want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	take("192.0.2.100", "")
	routers = []netip.Addr{router, netip.MustParseAddr("192.0.2.100")}
	take(router.String(), "router")
	take(node.String(), "node off")
	take("fd00::1,"+node.String(), "node off")
	if kept, known, err := clusterconfig.ReadVIPs(o.ServerDir); err != nil || !known || JoinAddrs(kept) != "192.0.2.100" || JoinAddrs(v.kept()) != "192.0.2.100" {
		t.Errorf("it has %v and keeps %v, %v, %v", v.kept(), kept, known, err)
	}
	take("192.0.2.100", "")
}

// TestNewAddressesAreProven: what the cluster is given while this server runs is to be looked for on the network; what
// it had before, or this server looked for, is not.
func TestNewAddressesAreProven(t *testing.T) {
	before, own, later := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	v, _ := newTestVIPs(t)
	v.addresses, v.known, v.probed = []netip.Addr{before}, true, []netip.Addr{own}
	set := func(want bool, a netip.Addr) {
		t.Helper()
		if err := v.set([]netip.Addr{a}, true); err != nil {
			t.Fatal(err)
		}
		if v.toProve(a) != want {
			t.Errorf("%s is to be looked for: %v", a, !want)
		}
	}
	set(false, before)
	set(false, own)
	set(true, later)
	set(true, later)
	v.proven(later)
	set(false, later)
	set(true, before) // the cluster had given it up
}

// slowStore confirms a term, slowly.
type slowStore struct {
	takes time.Duration
	err   error
}

func (s slowStore) ConfirmTerm(context.Context) error {
	time.Sleep(s.takes) // what is measured is that this counts
	return s.err
}

// TestLeaseCountsFromTheQuestion: while a majority is asked the time of the permission runs already, or two servers
// could have one.
func TestLeaseCountsFromTheQuestion(t *testing.T) {
	const takes = 50 * time.Millisecond
	began := vip.Now()
	until, err := confirmLead(t.Context(), slowStore{takes: takes}, 7)
	if err != nil || until < began.After(vipLease) || until > vip.Now().After(vipLease-takes) {
		t.Errorf("until %d, asked at %d: %v", until, began, err)
	}
	if _, err := confirmLead(t.Context(), slowStore{err: errors.New("another term")}, 7); err == nil {
		t.Error("a leader that is none got a permission")
	}
	if vipWait <= vipLease {
		t.Error("a new leader does not wait until its predecessor's permissions are over")
	}
}

// newTestVIPs is a server, not running, that was told addresses.
func newTestVIPs(t *testing.T, told ...netip.Addr) (*vips, Options) {
	t.Helper()
	o := options(t, t.TempDir())
	o.VIPs = told
	s, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.vips, o
}

// covered says whether the API server's certificate is valid for an address.
func covered(t *testing.T, s *Server, a netip.Addr) bool {
	t.Helper()
	c, err := s.pki.Serving()
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf.VerifyHostname(a.String()) == nil
}

// TestVIPsFollowTheCluster: what the ConfigMap says is taken over with certificate, kubeconfig and file, while the
// server runs, and what no address can be is not.
func TestVIPsFollowTheCluster(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("fd00::100")
	v, o := newTestVIPs(t)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.VIPConfigMap, Namespace: metav1.NamespaceSystem, ResourceVersion: "1"},
		Data: map[string]string{clusterconfig.VIPData: one.String()}}
	client := fake.NewClientset(m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := v.watch(ctx, client); err != nil {
				v.fail(err)
			}
		}
	}()
	defer func() { cancel(); <-done }()
	is := func(what string, want ...netip.Addr) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, what, func() error {
			kept, known, err := clusterconfig.ReadVIPs(o.ServerDir)
			if err == nil && (!known || !slices.Equal(kept, want) || !slices.Equal(v.kept(), want)) {
				err = errors.New("has " + JoinAddrs(v.kept()) + ", keeps " + JoinAddrs(kept))
			}
			for _, a := range []netip.Addr{one, two} {
				if covered(t, v.s, a) != slices.Contains(want, a) {
					err = errors.Join(err, errors.New("the certificate and "+a.String()))
				}
			}
			return err
		})
	}
	is("the address of before", one)
	put := func(text string) {
		t.Helper()
		m.Data = map[string]string{clusterconfig.VIPData: text}
		if _, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put("fd00::100,192.0.2.100")
	is("another address", two, one)
	testenv.Eventually(t, 2*time.Minute, "the kubeconfig names the address", func() error {
		data, err := os.ReadFile(o.Kubeconfigs[0].Path)
		if err == nil && !strings.Contains(string(data), "https://[fd00::100]:") {
			err = errors.New(string(data))
		}
		return err
	})
	put("127.0.0.1")
	testenv.Eventually(t, 2*time.Minute, "the complaint", func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		if !strings.Contains(v.trouble, "127.0.0.1") || !strings.Contains(v.trouble, "coracle vip set") {
			return errors.New(v.trouble)
		}
		return nil
	})
	is("what it was before", two, one)
	put("")
	is("none")
}

// TestVIPsOfAServerThatWasTold: a flag counts until the cluster has spoken. The certificate covers its address from the
// start; nobody announces it.
func TestVIPsOfAServerThatWasTold(t *testing.T) {
	own, others := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.200")
	v, o := newTestVIPs(t, own)
	if !covered(t, v.s, own) || len(v.kept()) != 0 {
		t.Errorf("covered: %v; announced: %v", covered(t, v.s, own), v.kept())
	}
	err := v.take(t.Context(), fake.NewClientset(), &corev1.ConfigMap{Data: map[string]string{clusterconfig.VIPData: others.String()}})
	if err != nil || !strings.Contains(v.trouble, own.String()) || !strings.Contains(v.trouble, others.String()) {
		t.Errorf("another address than the cluster's: %v, %s", err, v.trouble)
	}
	if !slices.Equal(v.kept(), []netip.Addr{others}) || !covered(t, v.s, others) || covered(t, v.s, own) {
		t.Errorf("it has %v", v.kept())
	}
	kept, known, err := clusterconfig.ReadVIPs(o.ServerDir)
	if err != nil || !known || !slices.Equal(kept, v.kept()) {
		t.Errorf("it keeps %v, %v, %v", kept, known, err)
	}
	if err := v.set(nil, false); err != nil {
		t.Fatal(err)
	}
	if _, known, err := clusterconfig.ReadVIPs(o.ServerDir); known || err != nil {
		t.Errorf("it keeps what the cluster has forgotten: %v", err)
	}
	if _, err := os.Stat(filepath.Join(o.TLSDir, string(pki.ServerCA)+".crt")); err != nil {
		t.Error(err)
	}
	damaged := filepath.Join(o.ServerDir, "vip.json")
	if err := os.WriteFile(damaged, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := clusterconfig.ReadVIPs(o.ServerDir); err == nil || !strings.Contains(err.Error(), damaged) {
		t.Errorf("a damaged file: %v", err)
	}
}
