// SPDX-License-Identifier: Apache-2.0

package virtualip

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/vip"
)

func TestAddressesAreParsedAndChecked(t *testing.T) {
	reserved := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	for text, want := range map[string]string{
		"": "", "10.0.0.100": "10.0.0.100", " fd00::0100 , 10.0.0.100": "fd00::100,10.0.0.100", "boat": "not an IP address", "10.42.0.1": "cluster uses",
		"10.0.0.1,10.0.0.2": "at most one", "224.0.0.1": "not an address", "::ffff:10.42.0.1": "not an address",
	} {
		got, err := Parse(text, reserved)
		said := Format(got)
		if err != nil {
			said = err.Error()
		}
		testenv.False(t, !strings.Contains(said, want) || (want == "") != (said == ""), "%q: %s, want %s", text, said, want)
	}
}

func vipMap(text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.VIPConfigMap, Namespace: metav1.NamespaceSystem}, Data: map[string]string{clusterconfig.VIPData: text}}
}

// TestAddressesAreFollowedFromAList: a watch from the revision of a ConfigMap that was written long ago is refused, for
// it is in no history any more.
func TestAddressesAreFollowedFromAList(t *testing.T) {
	old := vipMap("192.0.2.100")
	old.ResourceVersion = "7"
	client, from := fake.NewClientset(), ""
	client.PrependReactor("list", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "900"}, Items: []corev1.ConfigMap{*old}}, nil
	})
	client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) { return true, old, nil })
	client.PrependWatchReactor("configmaps", func(a clienttesting.Action) (bool, watch.Interface, error) {
		from = a.(clienttesting.WatchActionImpl).ListOptions.ResourceVersion
		w := watch.NewFake()
		w.Stop()
		return true, w, nil
	})
	v, _ := newAddresses(t)
	testenv.NoError(t, v.Watch(t.Context(), client))
	if kept, known, err := clusterconfig.ReadVIPs(v.o.Dir); from != "900" || !known || err != nil {
		t.Errorf("watched from %q, want the list's 900; kept is %v, %v, %v", from, kept, known, err)
	}
}

// TestFailedUseIsRepeated: a disk without room keeps a server from writing the cluster's address once.
func TestFailedUseIsRepeated(t *testing.T) {
	v, _ := newAddresses(t)
	file, full := filepath.Join(v.o.Dir, "vip.json"), errors.New("no space left on device")
	used := 0
	v.o.Use = func() error { used++; return full }
	testenv.NoError(t, errors.Join(os.RemoveAll(file), os.MkdirAll(filepath.Join(file, "x"), 0o700))) // a folder is in the file's place
	for range 2 {
		if err := v.apply(t.Context(), fake.NewClientset(), vipMap("192.0.2.100")); err == nil ||
			!strings.Contains(err.Error(), full.Error()) || !strings.Contains(err.Error(), file) {
			t.Fatalf("of what cannot be written it says: %v", err)
		}
	}
	full = nil
	testenv.NoError(t, os.RemoveAll(file))
	if err := v.apply(t.Context(), fake.NewClientset(), vipMap("192.0.2.100")); err != nil || used != 3 {
		t.Fatal(err, used)
	}
	if kept, known, err := clusterconfig.ReadVIPs(v.o.Dir); err != nil || !known || Format(kept) != "192.0.2.100" {
		t.Errorf("kept is %v, %v, %v", kept, known, err)
	}
}

// TestFlagThatDiffersFromTheCluster: a server that was given another address than the cluster's says so, goes by the
// cluster's, and goes on to follow it.
func TestFlagThatDiffersFromTheCluster(t *testing.T) {
	v, _ := newAddresses(t, netip.MustParseAddr("192.0.2.1"))
	m := vipMap("192.0.2.100")
	client := fake.NewClientset(m)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1) // one: its goroutine need not wait
	go func() { ended <- v.Watch(ctx, client) }()
	for _, address := range []string{"192.0.2.100", "192.0.2.200"} {
		testenv.Eventually(t, 2*time.Minute, "the cluster's address", func() error {
			m.Data = map[string]string{clusterconfig.VIPData: address} // again, if the watch has not begun
			if _, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, m, metav1.UpdateOptions{}); err != nil {
				return err
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			if has := Format(v.addresses); has != address || !strings.Contains(v.problem, address) || !strings.Contains(v.problem, "192.0.2.1") {
				return errors.New("it has " + has + " and says: " + v.problem)
			}
			return nil
		})
	}
	cancel()
	testenv.Check(t, <-ended)
}

// TestAddressesOfOthersAreRefused: a user who may write the ConfigMap cannot have the leader answer for a router or a
// node, on or off. What the cluster had before is not asked about.
func TestAddressesOfOthersAreRefused(t *testing.T) {
	v, _ := newAddresses(t)
	router, node := netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("192.0.2.7")
	var routers []netip.Addr
	v.routers = func() ([]netip.Addr, error) { return routers, nil }
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "off"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "off"}, {Type: corev1.NodeInternalIP, Address: node.String()}}}})
	take := func(text, want string) {
		t.Helper()
		err := v.apply(t.Context(), client, vipMap(text))
		testenv.False(t, (want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), want)),
			"%s: %v, want %q", text, err, want)
	}
	take("192.0.2.100", "")
	routers = []netip.Addr{router, netip.MustParseAddr("192.0.2.100")}
	take(router.String(), "router")
	take(node.String(), "node off")
	take("fd00::1,"+node.String(), "node off")
	if kept, known, err := clusterconfig.ReadVIPs(v.o.Dir); err != nil || !known || Format(kept) != "192.0.2.100" || Format(v.ClusterAddresses()) != "192.0.2.100" {
		t.Errorf("it has %v and keeps %v, %v, %v", v.ClusterAddresses(), kept, known, err)
	}
	take("192.0.2.100", "")
}

// TestNewAddressesAreProven: what the cluster is given while this server runs is to be looked for on the network; what
// it had before, or this server looked for, is not.
func TestNewAddressesAreProven(t *testing.T) {
	before, own, later := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	v, _ := newAddresses(t)
	v.addresses, v.fromCluster, v.probed = []netip.Addr{before}, true, []netip.Addr{own}
	set := func(want bool, a netip.Addr) {
		t.Helper()
		testenv.NoError(t, v.applyAddresses([]netip.Addr{a}, true))
		testenv.True(t, v.needsProbe(a) == want, "%s is to be looked for: %v", a, !want)
	}
	set(false, before)
	set(false, own)
	set(true, later)
	set(true, later)
	v.setProbed(later)
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
	if err != nil || until < began.After(leaderLease) || until > vip.Now().After(leaderLease-takes) {
		t.Errorf("until %d, asked at %d: %v", until, began, err)
	}
	testenv.Fails(t, testenv.Err(confirmLead(t.Context(), slowStore{err: errors.New("another term")}, 7)), "a leader that is none got a permission")
	testenv.True(t, leaderWait > leaderLease, "a new leader does not wait until its predecessor's permissions are over")
}

// newAddresses are those of a server with these addresses in its flag. used are those that certificate and
// kubeconfigs have.
func newAddresses(t *testing.T, own ...netip.Addr) (v *Addresses, used *[]netip.Addr) {
	t.Helper()
	used = new([]netip.Addr)
	v = testenv.Must(New(Options{
		Dir: t.TempDir(), Configured: own, Logger: slog.New(slog.DiscardHandler), Machines: func() []gossip.Info { return nil },
		Use: func() error { *used = v.Current(); return nil },
	}))(t)
	return v, used
}

// TestFlagCountsUntilTheClusterHasSpoken: a flag counts until the cluster has spoken. The certificate covers its
// address from the start; no machine announces it.
func TestFlagCountsUntilTheClusterHasSpoken(t *testing.T) {
	own, others := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.200")
	v, used := newAddresses(t, own)
	if !slices.Equal(v.Current(), []netip.Addr{own}) || len(v.ClusterAddresses()) != 0 {
		t.Errorf("certified: %v; announced: %v", v.Current(), v.ClusterAddresses())
	}
	err := v.apply(t.Context(), fake.NewClientset(), &corev1.ConfigMap{Data: map[string]string{clusterconfig.VIPData: others.String()}})
	if err != nil || !strings.Contains(v.problem, own.String()) || !strings.Contains(v.problem, others.String()) {
		t.Errorf("another address than the cluster's: %v, %s", err, v.problem)
	}
	testenv.False(t, !slices.Equal(v.ClusterAddresses(), []netip.Addr{others}) || !slices.Equal(*used, v.ClusterAddresses()),
		"it has %v", v.ClusterAddresses())
	kept, known, err := clusterconfig.ReadVIPs(v.o.Dir)
	testenv.False(t, err != nil || !known || !slices.Equal(kept, v.ClusterAddresses()), "it keeps %v, %v, %v", kept, known, err)
	testenv.NoError(t, v.applyAddresses(nil, false))
	if _, known, err := clusterconfig.ReadVIPs(v.o.Dir); known || err != nil {
		t.Errorf("it keeps what the cluster has forgotten: %v", err)
	}
	damaged := filepath.Join(v.o.Dir, "vip.json")
	testenv.NoError(t, os.WriteFile(damaged, []byte("{"), 0o600))
	if _, _, err := clusterconfig.ReadVIPs(v.o.Dir); err == nil || !strings.Contains(err.Error(), damaged) {
		t.Errorf("a damaged file: %v", err)
	}
}
