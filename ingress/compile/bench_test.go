// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/test/testca"
)

// BenchmarkOneChange compiles 1,000 hosts with 3,000 routes and a certificate each, of which one has changed since the
// last time.
func BenchmarkOneChange(b *testing.B) {
	ca, err := testca.New(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	files, err := ca.Issue("h", "h.example")
	if err != nil {
		b.Fatal(err)
	}
	chain, key := read(b, files.Cert), read(b, files.Key)
	s := State{Secrets: map[types.NamespacedName]*corev1.Secret{}, Memory: &Memory{}}
	for k := range 1000 {
		i := ingress(fmt.Sprintf("a/x%d", k), k, fmt.Sprintf("h%d/=s:80", k), fmt.Sprintf("h%d/a=s:80", k), fmt.Sprintf("h%d/b=s:80", k))
		name := fmt.Sprintf("cert%d", k)
		i.Spec.TLS = []networkingv1.IngressTLS{{SecretName: name}}
		s.Ingresses = append(s.Ingresses, i)
		s.Secrets[types.NamespacedName{Namespace: "a", Name: name}] = &corev1.Secret{Data: map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key}}
	}
	before := processorTime(b)
	for b.Loop() {
		s.Ingresses[7] = s.Ingresses[7].DeepCopy()
		r, err := Desired(s)
		if err != nil || len(r.Sections) != 2000 {
			b.Fatal(len(r.Sections), err)
		}
	}
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// processorTime is what this process has used, which other programs on the machine do not change.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
