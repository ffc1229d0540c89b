// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// before is what claims mean, said plainly: each two Services are compared. It names those that have an address before a Service that has it among its external IPs.
func (c *rivals) before(svc *corev1.Service, a netip.Addr) (names []string) {
	if unserved(svc) {
		return nil
	}
	gives := func(namespace string) bool {
		for _, other := range c.services {
			if !unserved(other) && other.Namespace == namespace && slices.Contains(ingressIPs(other), a) {
				return true
			}
		}
		return false
	}
	own := gives(svc.Namespace)
	for name, other := range c.services {
		switch {
		case other.Namespace == svc.Namespace || unserved(other):
		case slices.Contains(ingressIPs(other), a) && (!own || commonPort(other, svc)),
			own == gives(other.Namespace) && slices.Contains(externalIPs(other), a) && older(other, svc) && commonPort(other, svc):
			names = append(names, name)
		}
	}
	return names
}

// unserved says that no proxy serves a Service at any address.
func unserved(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone
}

func older(a, b *corev1.Service) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name)) < 0
}

func commonPort(a, b *corev1.Service) bool {
	have := map[lbports.Port]bool{}
	for _, p := range a.Spec.Ports {
		have[lbports.Of(p.Protocol, p.Port)] = true
	}
	return slices.ContainsFunc(b.Spec.Ports, func(p corev1.ServicePort) bool { return have[lbports.Of(p.Protocol, p.Port)] })
}

// TestRandomClaims: what is refused is what comparing each two Services refuses, whatever becomes of them; who is named has it; and each Service is named of which
// something else is refused.
func TestRandomClaims(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range uint64(40) {
		c, k := &rivals{r: rand.New(rand.NewPCG(seed, round)), services: map[string]*corev1.Service{}}, newClaims()
		type place struct {
			name string
			at   netip.Addr
		}
		was := map[place]bool{}
		for step := range 300 {
			name := fmt.Sprintf("%c-%d", 'a'+rune(c.r.IntN(3)), c.r.IntN(1+int(round)%4))
			svc := c.next(name, c.services[name])
			if c.services[name] = svc; svc == nil {
				delete(c.services, name)
			}
			changed := map[string]bool{}
			for _, key := range k.put(types.NamespacedName{Namespace: name[:1], Name: name}, svc) {
				changed[key.Name] = true
			}
			is := map[place]bool{}
			for _, s := range c.services {
				for _, a := range externalIPs(s) {
					at, want, got := place{s.Name, a}, c.before(s, a), k.refused(nameOf(s), a)
					if is[at] = len(want) > 0; is[at] != (got != refusal{}) || is[at] && !slices.Contains(want, got.by.key.Name) {
						t.Fatalf("round %d, step %d, %s: the external IP %v of %s %q, and %v have it before", round, step, name, a, s.Name, got, want)
					}
					if got.port != (lbports.Port{}) && !(slices.Contains(portsOf(s), got.port) && slices.Contains(portsOf(c.services[got.by.key.Name]), got.port)) {
						t.Fatalf("round %d, step %d, %s: the external IP %v of %s %q: not both have that port", round, step, name, a, s.Name, got)
					}
					if is[at] != was[at] && !changed[s.Name] && s.Name != name {
						t.Fatalf("round %d, step %d, %s: nobody says that something else is refused to %s", round, step, name, s.Name)
					}
				}
			}
			was = is
		}
	}
}

// BenchmarkClaims is what the front does with Services of two namespaces that have one external IP and the same thousands of ports.
func BenchmarkClaims(b *testing.B) {
	const ports = 8000
	service := func(i, last int) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: string('a' + rune(i%2)), Name: fmt.Sprint("s", i), CreationTimestamp: metav1.Unix(int64(i), 0)}}
		s.Spec.ExternalIPs = []string{"203.0.113.9"}
		for n := range ports {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", n), Protocol: corev1.ProtocolTCP, Port: int32(1000 + n)})
		}
		s.Spec.Ports[ports-1].Port = int32(last)
		return s
	}
	for _, n := range []int{2, 4, 16} {
		for _, c := range []struct {
			name string
			i    int
			gone bool
		}{{"a port of the oldest", 0, false}, {"a port of the youngest", n - 1, false}, {"the oldest goes or comes", 0, true}, {"the youngest goes or comes", n - 1, true}} {
			b.Run(fmt.Sprintf("%d Services: %s", n, c.name), func(b *testing.B) {
				h := &hearing{now: map[string]*corev1.Service{}}
				o := Options{}
				o.externals = newExternals(o, o.Logger)
				p := &Proxy{o: o, backend: h, wake: make(chan struct{}, 1)}
				for i := range n {
					p.services(nil, service(i, 60000))
				}
				was, is := service(c.i, 60000), service(c.i, 60001)
				if c.gone {
					is = nil
				}
				b.ResetTimer()
				for range b.N {
					p.services(was, is)
					was, is = is, was
				}
			})
		}
	}
}
