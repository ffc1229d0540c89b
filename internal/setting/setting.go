// SPDX-License-Identifier: Apache-2.0

// Package setting follows what a cluster says of itself in a ConfigMap of kube-system: its virtual addresses, its network back end. It reads only.
package setting

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Follow tells what stands in the ConfigMap of that name at a key, and when that changes, until ctx is done: the empty text when the ConfigMap is deleted. Where
// there has been none nothing is told. It has the goroutines of one watch, and has ended them when it returns.
func Follow(ctx context.Context, client kubernetes.Interface, name, key string, tell func(string)) {
	put := func(o any) {
		if m, ok := o.(*corev1.ConfigMap); ok {
			tell(m.Data[key])
		}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "configmaps", metav1.NamespaceSystem,
			fields.OneTermEqualSelector(metav1.ObjectNameField, name)),
		ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: put, UpdateFunc: func(_, o any) { put(o) }, DeleteFunc: func(any) { tell("") },
		},
	})
	informer.RunWithContext(ctx)
}
