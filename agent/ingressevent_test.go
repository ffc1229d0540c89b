// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLeftOutNamespaceHasOneEvent: several nodes, and restarts of one, record one event on the object, and another one
// when they say something else.
func TestLeftOutNamespaceHasOneEvent(t *testing.T) {
	client := fake.NewClientset()
	of := table.Charge{Namespace: "tb", Object: table.Object{APIVersion: "networking.k8s.io/v1", Kind: "Ingress", Name: "web", UID: "u1"}}
	for _, node := range []string{"node-1", "node-2", "node-1"} {
		testenv.NoError(t, recordLeftOut(t.Context(), client.CoreV1(), node, of, "it takes 60 MiB"))
	}
	list := testenv.Must(client.CoreV1().Events("tb").List(t.Context(), metav1.ListOptions{}))(t)
	testenv.Equal(t, len(list.Items), 1, "events:")
	e := list.Items[0]
	testenv.True(t, e.InvolvedObject.UID == "u1" && e.InvolvedObject.Name == "web" && e.Message == "it takes 60 MiB" && e.Type == "Warning", "the event is %+v", e)
	testenv.NoError(t, recordLeftOut(t.Context(), client.CoreV1(), "node-1", of, "it takes 70 MiB"))
	list = testenv.Must(client.CoreV1().Events("tb").List(t.Context(), metav1.ListOptions{}))(t)
	testenv.Equal(t, len(list.Items), 2, "events after a change:")
}
