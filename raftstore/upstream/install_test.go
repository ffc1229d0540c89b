// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"

	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUpstreamTakesClientFromInstall fails if upstream no longer takes its clients from the variable that Install sets:
// the storage that its factory builds must write to our store, and its health check must read from it.
func TestUpstreamTakesClientFromInstall(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s := openStore(t, 0)
	made := 0
	upstream.Install(func() *kubernetes.Client { made++; return s.Client() })

	config := exampleConfig()
	build, destroy, err := factory.Create(*config, func() runtime.Object { return &example.Pod{} },
		func() runtime.Object { return &example.PodList{} }, "/pods/")
	testenv.NoError(t, err)
	defer destroy()
	testenv.Require(t, made != 0, "upstream's factory built a storage without asking for our client")
	pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "ns"}}
	testenv.NoError(t, build.Create(ctx, "/pods/ns/a", pod, &example.Pod{}, 0))
	got, err := s.Client().Kubernetes.Get(ctx, "/registry/pods/ns/a", kubernetes.GetOptions{})
	testenv.Require(t, err == nil && got.KV != nil, "the object is not in our store: %v, %v", got.KV, err)

	stop := make(chan struct{})
	defer close(stop)
	check := testenv.Must(factory.CreateHealthCheck(config.Config, stop))(t)
	eventually(t, ctx, "healthy", func() bool { return check() == nil })
	eventually(t, ctx, "watch progress supported", func() bool {
		return feature.DefaultFeatureSupportChecker.Supports(storage.RequestWatchProgress)
	})
}

func exampleConfig() *storagebackend.ConfigForResource {
	codec := codecs.LegacyCodec(examplev1.SchemeGroupVersion)
	config := storagebackend.NewDefaultConfig("/registry", codec)
	config.Transport.ServerList = []string{"unix:///nowhere"}
	return config.ForResource(schema.GroupResource{Resource: "pods"})
}

func eventually(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	err := wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, func(context.Context) (bool, error) { return ok(), nil })
	testenv.Require(t, err == nil, "never %s", what)
}
