// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestTrimKeepsWhatControllersRead(t *testing.T) {
	managed := metav1.ObjectMeta{Name: "a", UID: "u", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}
	bare := metav1.ObjectMeta{Name: "a", UID: "u"}
	claims := corev1.PodStatus{
		Phase: corev1.PodRunning, ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "gpu"}}, ExtendedResourceClaimStatus: &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "x"},
		NodeAllocatableResourceClaimStatuses: []corev1.NodeAllocatableResourceClaimStatus{{}},
	}
	status := *claims.DeepCopy()
	status.PodIP, status.Conditions, status.ContainerStatuses = "10.42.0.2", []corev1.PodCondition{{Type: corev1.PodReady}}, []corev1.ContainerStatus{{Name: "c"}}
	spec := corev1.PodSpec{NodeName: "n1", ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Command: []string{"sh"}}}}
	for _, c := range []struct{ in, want any }{
		{&corev1.Pod{ObjectMeta: managed, Spec: spec, Status: status}, &corev1.Pod{ObjectMeta: bare, Spec: spec, Status: claims}},
		{
			&corev1.Node{ObjectMeta: managed, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "192.0.2.1"}}, Images: []corev1.ContainerImage{{Names: []string{"web"}}}}},
			&corev1.Node{ObjectMeta: bare, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "192.0.2.1"}}}},
		},
		{&corev1.Secret{ObjectMeta: managed, Data: map[string][]byte{"k": nil}}, &corev1.Secret{ObjectMeta: bare, Data: map[string][]byte{"k": nil}}},
	} {
		got, err := trim(c.in)
		testenv.False(t, err != nil || !reflect.DeepEqual(got, c.want), "%T: %v, %v, want %v", c.in, got, err, c.want)
	}
}
