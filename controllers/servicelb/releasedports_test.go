// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// limit is how large an object may be in a test's store.
const limit = 8 << 10

// storing is what Controller.round does, over a store that refuses what is too large, and patches if it refuses those.
func storing(s *State, refusesPatches bool) {
	plan := Plan(s)
	for _, svc := range byAge(s.Services) {
		want, changed := StatusOf(svc, plan[serviceKey(svc)])
		if !changed {
			continue
		}
		now := svc.DeepCopy()
		now.Status = *want
		if now.Size() <= limit {
			svc.Status = *want
		} else if less := StatusWithoutReleased(svc, plan[serviceKey(svc)]); less != nil && !refusesPatches {
			svc.Status = *less
		}
	}
}

// fill makes a Service as large as it can be.
func fill(s *corev1.Service) {
	for s.Size() < limit {
		s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, "198.51.100.0/24")
	}
	s.Spec.LoadBalancerSourceRanges = s.Spec.LoadBalancerSourceRanges[1:]
}

// TestGivenUpByOneThatCannotBeWritten: a Service has a port, gives it up in a way that its status does not fit beside
// its spec any more, others ask for the port, and it takes it back. The one that has got it keeps it.
func TestGivenUpByOneThatCannotBeWritten(t *testing.T) {
	for name, c := range map[string]struct {
		gives          func(*corev1.Service)
		kept           bool // it is not served when it gives the ports up
		refusesPatches bool
	}{
		"other ports":                        {gives: lb.OnPorts("81/TCP", "82/TCP", "83/TCP", "84/TCP", "85/TCP", "86/TCP", "87/TCP", "88/TCP")},
		"other ports, and no patch succeeds": {gives: lb.OnPorts("81/TCP", "82/TCP", "83/TCP", "84/TCP", "85/TCP", "86/TCP", "87/TCP", "88/TCP"), refusesPatches: true},
		"another type": {gives: func(s *corev1.Service) {
			s.Spec.Type, s.Status.LoadBalancer = corev1.ServiceTypeClusterIP, corev1.LoadBalancerStatus{} // as the API server does
		}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			other := lb.Service("old", 0, lb.OnPorts("443/TCP", "30080/TCP"), func(s *corev1.Service) { s.Namespace = "other" })
			s := &State{Services: []*corev1.Service{other}, Nodes: lb.TwoNodes()}
			storing(s, false)
			if c.kept {
				lb.LocalOnly(other)
				storing(s, false)
			}
			small := other.Spec.DeepCopy()
			c.gives(other)
			fill(other)
			web := lb.Service("web", 100, lb.OnPorts("443/TCP"))
			ports := lb.NodePortService("ports", 100, 30080)
			s.Services = append(s.Services, web, ports)
			for range 3 {
				storing(s, c.refusesPatches)
			}
			has, opened := ingressText(web.Status.LoadBalancer), meta.FindStatusCondition(ports.Status.Conditions, NodePortCondition) == nil
			testenv.Equal(t, has, map[bool]string{false: "10.0.0.1 10.0.0.2", true: "none"}[c.refusesPatches], "who waited for the port has")
			if held := slices.Contains(loadbalancer.Held(other), loadbalancer.PortOf(corev1.ProtocolTCP, 30080)); opened == held || opened == c.refusesPatches {
				t.Errorf("the node port is opened: %v; the proxies read that it is taken: %v", opened, held)
			}

			other.Spec = *small
			if held := fmt.Sprint(loadbalancer.Held(other)); opened && strings.Contains(held, "30080") {
				t.Errorf("the proxies close a node port that is open: they read %s", held)
			}
			for range 3 {
				storing(s, false)
			}
			if got := ingressText(web.Status.LoadBalancer); got != has {
				t.Errorf("another namespace's Service lost its port to one that had given it up: it has %s, the other one %s", got, ingressText(other.Status.LoadBalancer))
			}
			if got := meta.FindStatusCondition(ports.Status.Conditions, NodePortCondition) == nil; got != opened {
				t.Errorf("the node port was opened: %v, and is now: %v", opened, got)
			}
		})
	}
}

// TestAddressGivenUpByOneThatCannotBeWritten is the same with an address of a pool.
func TestAddressGivenUpByOneThatCannotBeWritten(t *testing.T) {
	for _, refusesPatches := range []bool{false, true} {
		other := lb.Service("old", 0, func(s *corev1.Service) { s.Namespace = "other" })
		s := &State{Services: []*corev1.Service{other}, Nodes: lb.TwoNodes(), Pools: flagged("10.0.0.200-10.0.0.200")}
		storing(s, false)
		small := other.DeepCopy()
		lb.Annotated(NodesAnnotation, "true")(other)
		lb.OnPorts("81/TCP", "82/TCP", "83/TCP", "84/TCP")(other)
		fill(other)
		web := lb.Service("web", 100)
		s.Services = append(s.Services, web)
		for range 3 {
			storing(s, refusesPatches)
		}
		has := ingressText(web.Status.LoadBalancer)
		testenv.Equal(t, has, map[bool]string{false: "10.0.0.200", true: "none"}[refusesPatches], "who waited for the address has")
		other.Spec, other.Annotations = small.Spec, nil
		storing(s, false)
		if got := ingressText(web.Status.LoadBalancer); got != has {
			t.Errorf("it had %s, and has %s since the other one takes it back; that has %s", has, got, ingressText(other.Status.LoadBalancer))
		}
	}
}

// TestTakesAwayWhatDoesNotFit: the controller patches the status of a Service that it cannot write, and only that of
// the very Service that it saw.
func TestTakesAwayWhatDoesNotFit(t *testing.T) {
	old := lb.Service("old", 0, lb.OnPorts("443/TCP", "80/TCP"))
	client := fake.NewClientset(old, lb.Node("a", "10.0.0.1"))
	var full, patched atomic.Bool
	client.PrependReactor("update", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s := a.(clienttesting.UpdateAction).GetObject().(*corev1.Service)
		return full.Load() && a.GetSubresource() == "status" && s.Name == "old", nil, errors.New("etcdserver: request is too large")
	})
	client.PrependReactor("patch", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		patched.Store(true)
		return false, nil, nil
	})
	_, stop := run(t, client, false)
	defer stop()
	awaitAddresses(t, client, "old", "10.0.0.1")
	testenv.False(t, patched.Load(), "a status that could be written was patched")
	services := client.CoreV1().Services("default")
	full.Store(true)
	testenv.Must(services.Create(t.Context(), lb.Service("web", 1), metav1.CreateOptions{}))(t)
	now, err := services.Get(t.Context(), "old", metav1.GetOptions{})
	testenv.NoError(t, err)
	lb.OnPorts("80/TCP", "81/TCP")(now)
	testenv.Must(services.Update(t.Context(), now, metav1.UpdateOptions{}))(t)
	awaitAddresses(t, client, "web", "10.0.0.1")
	now, err = services.Get(t.Context(), "old", metav1.GetOptions{})
	if want := []Port{loadbalancer.PortOf(corev1.ProtocolTCP, 80)}; err != nil || !slices.Equal(loadbalancer.Held(now), want) {
		t.Errorf("it has %v, want %v: %v", loadbalancer.Held(now), want, err)
	}

	// One that was deleted and made again has another UID, and one that the leader has written since another status.
	for what, change := range map[string]func(*corev1.Service){
		"made again":    func(s *corev1.Service) { s.UID = "another" },
		"written since": func(s *corev1.Service) { s.Status.LoadBalancer.Ingress[0].IP = "10.0.0.9" },
	} {
		seen := now.DeepCopy()
		change(seen)
		c := &Controller{o: Options{Client: client, Logger: slog.New(slog.DiscardHandler)}, uncertain: uncertainWrites{}}
		c.shrinkStatus(t.Context(), seen, Allocation{released: statusPorts(seen)})
		if is, err := services.Get(t.Context(), "old", metav1.GetOptions{}); err != nil || !slices.Equal(loadbalancer.Held(is), loadbalancer.Held(now)) {
			t.Errorf("%s: it lost what it has: %v, %v", what, is.Status, err)
		}
	}
}

// TestShrunkStatusKeepsTheRest: what is left of a status is what was there.
func TestShrunkStatusKeepsTheRest(t *testing.T) {
	s := lb.Service("web", 0, lb.OnPorts("443/TCP", "80/TCP"), lb.Having("10.0.0.1", "10.0.0.2"), lb.WithPorts)
	s.Status.Conditions = append(s.Status.Conditions, metav1.Condition{Type: loadbalancer.Kept, Message: "443/TCP,80/TCP at 10.0.0.3"})
	testenv.True(t, StatusWithoutReleased(s, Allocation{}) == nil, "it has given up nothing, and is shrunk")
	for _, c := range []struct {
		released []addressPort
		want     string
	}{
		{[]addressPort{at("10.0.0.1", "443/TCP"), at("10.0.0.2", "443/TCP"), at("10.0.0.3", "443/TCP")},
			"10.0.0.1:[80] 10.0.0.2:[80] kept v1; 80/TCP at 10.0.0.3"},
		{[]addressPort{at("10.0.0.1", "443/TCP"), at("10.0.0.1", "80/TCP")}, "10.0.0.2:[443 80] kept v1; 443/TCP,80/TCP at 10.0.0.3"},
		{[]addressPort{at("10.0.0.3", "443/TCP"), at("10.0.0.3", "80/TCP")}, "10.0.0.1:[443 80] 10.0.0.2:[443 80]"},
		{[]addressPort{{Address: at("10.0.0.1", "443/TCP").Address}}, "10.0.0.2:[443 80] kept v1; 443/TCP,80/TCP at 10.0.0.3"},
	} {
		status := StatusWithoutReleased(s, Allocation{released: c.released})
		var words []string
		for _, in := range status.LoadBalancer.Ingress {
			var numbers []int32
			for _, p := range in.Ports {
				numbers = append(numbers, p.Port)
			}
			words = append(words, fmt.Sprint(in.IP, ":", numbers))
		}
		if k := meta.FindStatusCondition(status.Conditions, loadbalancer.Kept); k != nil {
			words = append(words, "kept "+k.Message)
		}
		testenv.Equal(t, strings.Join(words, " "), c.want, "without %v:", c.released)
		if before, after := s.Status.Size(), status.Size(); after >= before {
			t.Errorf("without %v it is %d bytes, and was %d", c.released, after, before)
		}
	}
}

// TestDeletedGivesUpWithItsStatus: a Service that is being deleted, and that a finalizer keeps, has what its status
// says until that was written. Proxies serve it so long.
func TestDeletedGivesUpWithItsStatus(t *testing.T) {
	for name, pools := range map[string][]Pool{"a port at nodes' addresses": nil, "an address of a pool": flagged("10.0.0.200-10.0.0.200")} {
		t.Run(name, func(t *testing.T) {
			old := lb.Service("old", 0, lb.OnPorts("443/TCP"))
			s := &State{Services: []*corev1.Service{old}, Nodes: lb.TwoNodes(), Pools: pools}
			storing(s, false)
			testenv.Require(t, len(statusPorts(old))+len(poolAddresses(old)) != 0, "it got nothing")
			now := metav1.Now()
			old.DeletionTimestamp = &now
			web := lb.Service("web", 100, lb.OnPorts("443/TCP"))
			s.Services = append(s.Services, web)
			plan := Plan(s)
			if want, _ := StatusOf(web, plan[serviceKey(web)]); len(want.LoadBalancer.Ingress) > 0 {
				t.Errorf("the other one gets %s at once", ingressText(want.LoadBalancer))
			}
			if less := StatusWithoutReleased(old, plan[serviceKey(old)]); less == nil || len(less.LoadBalancer.Ingress) > 0 {
				t.Errorf("what it gives up is not taken from its status by a patch: %v", less)
			}
			storing(s, false) // the first round takes it from the one, the next gives it to the other
			storing(s, false)
			if len(statusPorts(old))+len(poolAddresses(old)) > 0 || len(statusPorts(web))+len(poolAddresses(web)) == 0 {
				t.Errorf("in the end it has %s, and the other one %s", ingressText(old.Status.LoadBalancer), ingressText(web.Status.LoadBalancer))
			}
		})
	}
}
