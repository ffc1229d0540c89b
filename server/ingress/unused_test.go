// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnusedNamesAreNotKept: of tens of thousands of hosts in spec.tls the cache keeps those that the table may use.
func TestUnusedNamesAreNotKept(t *testing.T) {
	large := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}}
	for i := range 380 {
		entry := networkingv1.IngressTLS{SecretName: fmt.Sprintf("s%d", i)}
		for h := range 100 {
			entry.Hosts = append(entry.Hosts, fmt.Sprintf("h%d.s%d.example", h, i))
		}
		large.Spec.TLS = append(large.Spec.TLS, entry)
	}
	o := newObjects(Options{Client: fake.NewClientset(large)})
	ingresses := o.core.Networking().V1().Ingresses()
	ingresses.Informer() // asks the factory for one
	o.core.Start(t.Context().Done())
	o.core.WaitForCacheSync(t.Context().Done())
	kept := testenv.Must(ingresses.Lister().Ingresses("a").Get("x"))(t).Spec.TLS
	if len(kept) == 0 || cap(kept) >= 100 || kept[0].Hosts[99] != "h99.s0.example" {
		t.Errorf("of %d Secrets %d are kept, in an array of %d", len(large.Spec.TLS), len(kept), cap(kept))
	}
}
