// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/fake"
	"k8s.io/apiextensions-apiserver/pkg/client/informers/externalversions"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestInformersDoNotResync: handlers get an object once, those that were there before and those that came later.
// Upstream's informer would hand it to them every five minutes.
func TestInformersDoNotResync(t *testing.T) {
	for _, never := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			client := fake.NewClientset(&apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "boats.example.com"}})
			factory := externalversions.NewSharedInformerFactory(client, 5*time.Minute)
			informer := factory.Apiextensions().V1().CustomResourceDefinitions().Informer()
			resyncs := 0
			count := cache.ResourceEventHandlerFuncs{UpdateFunc: func(any, any) { resyncs++ }}
			add := func() {
				testenv.Must(informer.AddEventHandler(count))(t)
			}
			add()
			if never {
				testenv.NoError(t, neverResync(informer))
			}
			add()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go informer.RunWithContext(ctx)
			time.Sleep(time.Hour) // of the bubble's clock: twelve times upstream's period
			if resync := resyncs > 0; resync == never {
				t.Errorf("never %v: handed out %d times again", never, resyncs)
			}
			cancel()
			synctest.Wait()
		})
	}
}
