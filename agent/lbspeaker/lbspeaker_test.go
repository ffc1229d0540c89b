// SPDX-License-Identifier: Apache-2.0

package lbspeaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/vip"
)

var first, second = netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201")

// bed is a speaker on a node "here" that has the network 10.0.0.0/24.
type bed struct {
	*testing.T
	client   *fake.Clientset
	settings *clustersettings.Cache
	s        *Speaker

	mu  sync.Mutex
	now map[netip.Addr]vip.Announcement // what is announced
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{
		T: t, client: fake.NewClientset(), settings: clustersettings.NewCache(), now: map[netip.Addr]vip.Announcement{},
	}
	link := vip.Link{Interface: net.Interface{Name: "eth0", Index: 2, Flags: net.FlagUp, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}
	a := testenv.Must(New(Options{
		Client: b.client, Settings: b.settings, NodeName: "here", Now: vip.Now,
		Links: func() ([]vip.Link, error) { return []vip.Link{link}, nil },
		Announce: func(ctx context.Context, n vip.Announcement) error {
			b.mu.Lock()
			b.now[n.Address] = n
			b.mu.Unlock()
			<-ctx.Done()
			b.mu.Lock()
			delete(b.now, n.Address)
			b.mu.Unlock()
			return nil
		},
	}))(t)
	b.s = a
	return b
}

// publish writes who answers.
func (b *bed) publish(r loadbalancer.Holders) {
	b.Helper()
	data, err := r.Write()
	testenv.NoError(b, err)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: loadbalancer.ConfigMap}, Data: data}
	maps := b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	if _, err = maps.Update(b.Context(), m, metav1.UpdateOptions{}); err != nil {
		_, err = maps.Create(b.Context(), m, metav1.CreateOptions{})
	}
	testenv.NoError(b, err)
	b.settings.Set(loadbalancer.ConfigMap, data)
}

func (b *bed) announces(want ...netip.Addr) {
	b.Helper()
	testenv.Eventually(b, 2*time.Minute, fmt.Sprintf("it announces %v", want), func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		var have []netip.Addr
		for a := range b.now {
			have = append(have, a)
		}
		slices.SortFunc(have, netip.Addr.Compare)
		if !slices.Equal(have, want) {
			return fmt.Errorf("it announces %v", have)
		}
		return nil
	})
}

func TestOwnAddressesAreAnnounced(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	b := newBed(t)
	stop := testenv.Run(t, b.s.Run)
	b.publish(loadbalancer.Holders{first: {Node: "here", Term: 1}, second: {Node: "there", Term: 1}, netip.MustParseAddr("10.9.0.1"): {Node: "here", Term: 1}})
	b.announces(first)
	b.publish(loadbalancer.Holders{first: {Node: "here", Term: 1}, second: {Node: "here", Term: 2}})
	b.announces(first, second)
	b.publish(loadbalancer.Holders{first: {Node: "there", Term: 3}, second: {Node: "here", Term: 2}})
	b.announces(second)
	stop()
	b.announces()
}

// TestKernelDoesNotAnswerForAnnouncedAddresses: where the kernel has the addresses itself it is kept from answering,
// also for those of other nodes; and an address is not announced before that.
func TestKernelDoesNotAnswerForAnnouncedAddresses(t *testing.T) {
	b := newBed(t)
	var asked []string
	fail := errors.New("it cannot be set")
	b.s.o.RestrictARP = func(device string) error {
		asked = append(asked, device)
		return fail
	}
	now := map[netip.Addr]running{}
	b.s.follow(t.Context(), now, loadbalancer.Holders{first: {Node: "here", Term: 1}, second: {Node: "there", Term: 1}})
	testenv.False(t, len(asked) != 2 || asked[0] != "eth0" || len(now) != 0, "asked %v, announced %v", asked, now)
	fail = nil
	b.s.follow(t.Context(), now, loadbalancer.Holders{first: {Node: "here", Term: 1}})
	testenv.True(t, len(now) == 1, "announced %v", now)
	for _, r := range now {
		r.stop()
	}
}

// TestHolderAnswersWhileTheStoreSaysSo: a node answers as long as the store says that it is the holder, counted from
// before the question.
func TestHolderAnswersWhileTheStoreSaysSo(t *testing.T) {
	b := newBed(t)
	now := vip.Moment(time.Hour)
	b.s.o.Now = func() vip.Moment { return now }
	mine := loadbalancer.Holder{Node: "here", Term: 5}
	b.publish(loadbalancer.Holders{first: mine})
	if until, err := b.s.confirm(t.Context(), first, mine); err != nil || until != now.After(loadbalancer.Lease) {
		t.Fatalf("until %v, %v", until, err)
	}
	b.publish(loadbalancer.Holders{first: {Node: "there", Term: 6}})
	asked := now
	testenv.Equal(t, testenv.Must(b.s.confirm(t.Context(), first, mine))(t), asked.After(loadbalancer.Lease), "a word of just now: until")
	now = now.After(loadbalancer.Lease / 2)
	if until, err := b.s.confirm(t.Context(), first, mine); err == nil {
		t.Errorf("another node is the holder, and it may answer until %v", until)
	}
	b.publish(loadbalancer.Holders{first: {Node: "here", Term: 7}}) // it has not waited for the end of the one in between
	now = now.After(loadbalancer.Lease)
	if until, err := b.s.confirm(t.Context(), first, mine); err == nil {
		t.Errorf("there was another holder in between, and it may answer until %v", until)
	}
	testenv.NoError(t,
		b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Delete(t.Context(), loadbalancer.ConfigMap, metav1.DeleteOptions{}))
	now = now.After(loadbalancer.Lease)
	if until, err := b.s.confirm(t.Context(), first, loadbalancer.Holder{Node: "here", Term: 7}); err == nil {
		t.Errorf("nothing is known, and it may answer until %v", until)
	}
}

// TestNewAddressIsProven: an address that is new to the cluster is not announced while another machine has it, and the
// cluster hears of that.
func TestNewAddressIsProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var asked atomic.Int32
		other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		b.s.o.Probe = func(_ context.Context, p vip.Interface, a netip.Addr) error {
			if asked.Add(1) < 3 {
				return &vip.InUseError{Address: a, By: other}
			}
			return nil
		}
		var reported []string
		b.s.o.Report = func(c loadbalancer.Conflicts, _ loadbalancer.Proven) { reported = append(reported, c.String()) }
		now := map[netip.Addr]running{}
		record := loadbalancer.Holders{first: {Node: "here", Term: 1, New: true}, second: {Node: "here", Term: 2}}
		look := func() {
			synctest.Wait()
			b.s.follow(t.Context(), now, record)
		}
		look()
		time.Sleep(loadbalancer.Wait) // fake time, in which a new holder is silent
		look()
		if asked.Load() != 1 || len(reported) != 1 || reported[0] != first.String()+"="+other.String() {
			t.Errorf("asked %d times, said %q", asked.Load(), reported)
		}
		b.announces(second)
		time.Sleep(2 * probeAgain)
		look()
		record[first] = loadbalancer.Holder{Node: "here", Term: 1}
		look()
		if asked.Load() != 3 || len(reported) != 3 || reported[1] != "" || reported[2] != "" {
			t.Errorf("asked %d times, said %q", asked.Load(), reported)
		}
		b.announces(first, second)
		b.mu.Lock()
		conflict := b.now[first].Conflict
		b.mu.Unlock()
		conflict(other)
		look()
		time.Sleep(conflictShown + time.Second)
		look()
		testenv.False(t, len(reported) != 5 || reported[3] == "" || reported[4] != "", "a machine that came later: said %q", reported)
		for _, r := range now {
			r.stop()
		}
	})
}

// TestProofIsReported: the cluster hears that an address was proven until the record has it, and the record's change
// disturbs no other machine.
func TestProofIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var asked atomic.Int32
		b.s.o.Probe = func(context.Context, vip.Interface, netip.Addr) error { asked.Add(1); return nil }
		var reported []string
		b.s.o.Report = func(_ loadbalancer.Conflicts, p loadbalancer.Proven) { reported = append(reported, p.String()) }
		now := map[netip.Addr]running{}
		look := func(r loadbalancer.Holders) {
			b.publish(r)
			synctest.Wait()
			b.s.follow(t.Context(), now, r)
			synctest.Wait()
		}
		unproven, proven := loadbalancer.Holders{first: {Node: "here", Term: 5, New: true}}, loadbalancer.Holders{first: {Node: "here", Term: 5}}
		look(unproven)
		testenv.True(t, len(reported) == 0, "before it was asked, the cluster heard %q", reported)
		time.Sleep(loadbalancer.Wait) // fake time, in which a new holder is silent
		look(unproven)
		b.announces(first)
		testenv.False(t, len(reported) != 1 || reported[0] != first.String()+"=5", "the cluster heard %q", reported)
		running := now[first].holder
		look(proven)
		b.announces(first)
		if asked.Load() != 1 || len(reported) != 2 || reported[1] != "" {
			t.Errorf("asked %d times, the cluster heard %q", asked.Load(), reported)
		}
		testenv.Check(t, testenv.Err(b.s.confirm(t.Context(), first, running)), "the record has it as proven")
		look(loadbalancer.Holders{first: {Node: "here", Term: 6, New: true}})
		time.Sleep(loadbalancer.Wait) // fake time, in which a new holder is silent
		look(loadbalancer.Holders{first: {Node: "here", Term: 6, New: true}})
		if asked.Load() != 2 || len(reported) != 3 || reported[2] != first.String()+"=6" {
			t.Errorf("another holding: asked %d times, the cluster heard %q", asked.Load(), reported)
		}
		for _, r := range now {
			r.stop()
		}
	})
}

// TestRoutersKeepTheirAddresses: a pool that has the address of the network's router does not make a node answer for
// it.
func TestRoutersKeepTheirAddresses(t *testing.T) {
	b := newBed(t)
	b.s.o.Routers = func() ([]netip.Addr, error) { return []netip.Addr{first}, nil }
	now := map[netip.Addr]running{}
	b.s.follow(t.Context(), now, loadbalancer.Holders{first: {Node: "here", Term: 1}, second: {Node: "here", Term: 1}})
	if _, routers := now[first]; routers || len(now) != 1 {
		t.Errorf("it announces %v", now)
	}
	for _, r := range now {
		r.stop()
	}
}
