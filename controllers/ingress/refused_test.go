// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRefusedStatusIsNotWrittenEachSecond: by the controller, with an admission policy that refuses the status of an
// Ingress.
func TestRefusedStatusIsNotWrittenEachSecond(t *testing.T) {
	var attempts atomic.Int64
	refuse := func(client *fake.Clientset) {
		client.PrependReactor("update", "ingresses", func(clienttesting.Action) (bool, runtime.Object, error) {
			attempts.Add(1)
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "ingresses"}, "web", nil)
		})
	}
	runPrepared(t, refuse, func(b bed) {
		b.create(web())
		b.settle()
		svc := b.service()
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.7"}}
		testenv.Must(b.client.CoreV1().Services(svc.Namespace).UpdateStatus(b.Context(), svc, metav1.UpdateOptions{}))(b)
		time.Sleep(time.Hour) // fake time
		synctest.Wait()
		if n := attempts.Load(); n < 12 || n > 25 {
			t.Errorf("%d attempts within an hour", n)
		}
	})
}
