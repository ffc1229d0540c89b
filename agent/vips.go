// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/cluster"
)

// followVIPs tells the cluster's virtual addresses, which no Service may take, whenever they change, until ctx is done. Where the cluster says nothing of them
// nothing is told.
func followVIPs(ctx context.Context, client kubernetes.Interface, tell func([]netip.Addr)) {
	followSetting(ctx, client, cluster.VIPConfigMap, cluster.VIPData, func(text string) { tell(parseVIPs(text)) })
}

// followSetting tells what stands in a ConfigMap of kube-system at a key, and when that changes, until ctx is done: the empty text when the ConfigMap is deleted. Where
// there has been none nothing is told.
func followSetting(ctx context.Context, client kubernetes.Interface, name, key string, tell func(string)) {
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

// parseVIPs leaves out what is no address: the servers say so, and take over nothing then.
func parseVIPs(text string) []netip.Addr {
	var out []netip.Addr
	for word := range strings.SplitSeq(text, ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(word)); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
