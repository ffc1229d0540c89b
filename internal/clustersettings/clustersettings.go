// SPDX-License-Identifier: Apache-2.0

// Package clustersettings follows what a cluster says of itself in ConfigMaps of kube-system: its virtual addresses, its network back end, who answers for the load balancer's addresses, the operator's
// configuration of the DNS. It reads only.
//
// A node follows all of them in one stream of a server's (Together), where its server has one, which costs the server less than a watch for each (docs/adr/0128).
package clustersettings

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// DNS is the name of the ConfigMap with the operator's configuration of the cluster's DNS, as k3s calls it.
const DNS = "coredns-custom"

// Names are the ConfigMaps, in kube-system, of which servers have a stream. The network's identity may read these and no others.
func Names() []string {
	return []string{clusterconfig.BackendConfigMap, clusterconfig.VIPConfigMap, loadbalancer.ConfigMap, DNS}
}

// Data are a ConfigMap's; nil where there is none.
type Data map[string]string

// Follower tells what stands in a ConfigMap of kube-system.
type Follower interface {
	// Follow tells what stands in the ConfigMap of that name, and when that changes, until ctx is done; nil when the ConfigMap is deleted. Where there has been none nothing is told. It calls
	// tell from one goroutine at a time, and not any more when it has returned.
	Follow(ctx context.Context, name string, tell func(Data))
}

// Key follows one key of a ConfigMap: the empty text when the ConfigMap is deleted.
func Key(ctx context.Context, f Follower, name, key string, tell func(string)) {
	f.Follow(ctx, name, func(d Data) { tell(d[key]) })
}

// Each follows each ConfigMap by a watch of its own.
type Each struct {
	Client kubernetes.Interface
	// None has nil told, too, when the first look has found no ConfigMap.
	None bool
}

// Follow implements Follower. It has the goroutines of one watch, and begins with what a majority of the servers knows.
func (e Each) Follow(ctx context.Context, name string, tell func(Data)) {
	var telling sync.Mutex
	put := func(o any) {
		if m, ok := o.(*corev1.ConfigMap); ok {
			telling.Lock()
			defer telling.Unlock()
			tell(dataOf(m))
		}
	}
	maps := e.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				// Where it cannot watch, a reflector asks for a list of any state at first. A server that is cut off has an old one, and who follows may come from another server and know better.
				if o.ResourceVersion == "0" {
					o.ResourceVersion = ""
				}
				return maps.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return maps.Watch(ctx, o)
			},
		}, e.Client),
		ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: put, UpdateFunc: func(_, o any) { put(o) }, DeleteFunc: func(any) {
				telling.Lock()
				defer telling.Unlock()
				tell(nil)
			},
		},
	})
	var looking sync.WaitGroup
	defer looking.Wait()
	if e.None {
		looking.Go(func() {
			select {
			case <-ctx.Done():
			case <-informer.HasSyncedChecker().Done():
				telling.Lock()
				defer telling.Unlock()
				if len(store.ListKeys()) == 0 {
					tell(nil)
				}
			}
		})
	}
	informer.RunWithContext(ctx)
}

// dataOf are a ConfigMap's data, which are not nil.
func dataOf(m *corev1.ConfigMap) Data {
	if m.Data == nil {
		return Data{}
	}
	return m.Data
}
