// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/test/testenv"
)

type answers struct{}

func (answers) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{Body: http.NoBody}, nil
}

// TestOpenAPIIndexWaitsForPolicies: what asks for the index of OpenAPI documents waits while there is no policy that
// needs it. One that waits is answered when a policy comes, and nothing waits from then on.
func TestOpenAPIIndexWaitsForPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		all := informers.NewSharedInformerFactory(client, 0)
		way := testenv.Must(newIndexForPolicies(answers{}, all.Admissionregistration().V1().MutatingAdmissionPolicies().Informer()))(t)
		stop := make(chan struct{})
		all.Start(stop)
		all.WaitForCacheSync(stop)
		ask := func(path string, want time.Duration) {
			t.Helper()
			began := time.Now()
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://server"+path, nil)
			answer := testenv.Must(way.RoundTrip(r))(t)
			_ = answer.Body.Close()
			if took := time.Since(began); took < want || took > want+time.Second {
				t.Errorf("%s was answered after %v, want %v", path, took, want)
			}
		}
		ask("/openapi/v3", 0)
		ask("/openapi/v3", indexPause)
		ask("/openapi/v3/apis/apps/v1", 0)
		time.AfterFunc(10*time.Second, func() {
			policy := &admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
			testenv.Check(t, testenv.Err(client.AdmissionregistrationV1().MutatingAdmissionPolicies().Create(t.Context(), policy,
				metav1.CreateOptions{})))
		})
		ask("/openapi/v3", 10*time.Second)
		ask("/openapi/v3", 0)
		close(stop)
		all.Shutdown()
	})
}
