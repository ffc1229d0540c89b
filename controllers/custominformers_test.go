// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var boats = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "boats"}

// monitor runs an informer's controller as the garbage collector and the quota controller do.
func monitor(t *testing.T, f *customInformers) (informer cache.SharedIndexInformer, end func()) {
	t.Helper()
	generic := testenv.Must(f.ForResource(boats))(t)
	controller, stop, ended := generic.Informer().GetController(), make(chan struct{}), make(chan struct{})
	f.Start(nil)
	go func() { controller.Run(stop); close(ended) }()
	return generic.Informer(), func() { close(stop); <-ended }
}

func customInformersOf(ctx context.Context) *customInformers {
	client := metadatafake.NewSimpleMetadataClient(metadatafake.NewTestScheme())
	return newCustomInformers(ctx, &term.Term{
		Metadata:          client,
		Informers:         informers.NewSharedInformerFactory(fake.NewClientset(), 0),
		MetadataInformers: metadatainformer.NewSharedInformerFactory(client, 0),
	})
}

func TestInformerOfCustomResourcesEndsWithItsLastMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := customInformersOf(ctx)
		informer, endFirst := monitor(t, f)
		if again, endSecond := monitor(t, f); again != informer {
			t.Error("two monitors of a resource do not share an informer")
		} else {
			endFirst()
			sleep(2 * unusedFor)
			testenv.Require(t, !informer.IsStopped(), "the informer has ended while a monitor ran")
			endSecond()
		}
		sleep(unusedFor / 2)
		again, endThird := monitor(t, f)
		sleep(2 * unusedFor)
		testenv.Require(t, again == informer && !informer.IsStopped(), "the informer has ended although it was asked for again in time")
		endThird()
		sleep(unusedFor)
		testenv.True(t, informer.IsStopped(), "an informer without monitors still runs")
		fresh, end := monitor(t, f)
		sleep(unusedFor)
		testenv.True(t, fresh != informer && !fresh.IsStopped() && fresh.HasSynced(), "a resource that came back has no informer that runs")
		cancel()
		end()
		f.Wait()
		testenv.True(t, fresh.IsStopped(), "an informer outlived its term")
	})
}

func TestBuiltInInformersAreTheTerms(t *testing.T) {
	f := customInformersOf(t.Context())
	for _, gvr := range append(apiSources, schema.GroupVersionResource{Version: "v1", Resource: "pods"}) {
		generic := testenv.Must(f.ForResource(gvr))(t)
		if _, ok := generic.(*customInformer); ok {
			t.Errorf("%s has an informer beside the term's", gvr)
		}
	}
}

// sleep passes fake time and lets everything that it woke finish.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
