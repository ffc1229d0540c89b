// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// builder counts how often a controller is built: each asks for a discovery client once.
type builder struct {
	clientbuilder.ControllerClientBuilder
	client *fake.Clientset
	built  int
}

func (b *builder) Client(string) (kubernetes.Interface, error) { return b.client, nil }
func (b *builder) ClientOrDie(string) kubernetes.Interface     { return b.client }
func (b *builder) DiscoveryClient(string) (discovery.DiscoveryInterface, error) {
	b.built++
	return b.client.Discovery(), nil
}

// TestPolicyStatusBeginsWithTheFirstPolicy: the controller is built when the first policy comes, and once.
func TestPolicyStatusBeginsWithTheFirstPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := &builder{client: fake.NewClientset()}
		shared := informers.NewSharedInformerFactory(b.client, 0)
		cc := app.ControllerContext{
			ClientBuilder: b, InformerFactory: shared, ResyncPeriod: func() time.Duration { return 0 },
		}
		cc.ComponentConfig.ValidatingAdmissionPolicyStatusController.ConcurrentPolicySyncs = 1
		l := newLazyController(app.NewControllerDescriptors()[names.ValidatingAdmissionPolicyStatusController], cc)
		shared.StartWithContext(ctx)
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()

		if sleep(time.Hour); b.built != 0 {
			t.Fatalf("%d controllers built without a policy", b.built)
		}
		policies := b.client.AdmissionregistrationV1().ValidatingAdmissionPolicies()
		for round := range 3 {
			policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Generation: 1}}
			testenv.Must(policies.Create(ctx, policy, metav1.CreateOptions{}))(t)
			sleep(time.Hour)
			got, err := policies.Get(ctx, "p", metav1.GetOptions{})
			if err != nil || got.Status.ObservedGeneration != 1 || b.built != 1 {
				t.Fatalf("round %d, %d built: status %+v, %v", round, b.built, got.Status, err)
			}
			testenv.NoError(t, policies.Delete(ctx, "p", metav1.DeleteOptions{}))
		}
		cancel()
		<-ended
		shared.Shutdown()
	})
}
