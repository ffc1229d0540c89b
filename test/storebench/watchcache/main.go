// SPDX-License-Identifier: Apache-2.0

// Watchcache is upstream's watch cache of one resource as a process, for the store's benchmark: what an API server
// holds of each object besides the store behind it. It caches the ConfigMaps of an etcd, and prints one line of JSON
// when it has them and is at rest; or it fills that etcd with them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	prefix  = "/registry-cached"
	folder  = "/configmaps"
	timeout = 3 * time.Minute
)

func main() {
	endpoint := flag.String("etcd", "", "URL of the etcd")
	fill := flag.Int("fill", 0, "create so many ConfigMaps of about 1 KB, and end")
	from := flag.Int("from", 0, "number of the first one")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := errors.New("-etcd is missing")
	switch {
	case *endpoint == "":
	case *fill > 0:
		err = create(ctx, *endpoint, *from, *fill)
	default:
		err = hold(ctx, *endpoint)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "watchcache:", err)
		os.Exit(1)
	}
}

func open(endpoint string, decorate generic.StorageDecorator) (storage.Interface, factory.DestroyFunc, error) {
	proto := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	codec := scheme.Codecs.CodecForVersions(proto, scheme.Codecs.UniversalDeserializer(), corev1.SchemeGroupVersion, corev1.SchemeGroupVersion)
	config := storagebackend.NewDefaultConfig(prefix, codec)
	config.Transport.ServerList = []string{endpoint}
	resource := config.ForResource(schema.GroupResource{Resource: "configmaps"})
	return decorate(resource, folder,
		func(o runtime.Object) (string, error) { return key(o.(*corev1.ConfigMap).Name), nil },
		func() runtime.Object { return &corev1.ConfigMap{} },
		func() runtime.Object { return &corev1.ConfigMapList{} },
		attributes, nil, nil)
}

func key(name string) string { return folder + "/default/" + name }

func attributes(o runtime.Object) (labels.Set, fields.Set, error) {
	c, ok := o.(*corev1.ConfigMap)
	if !ok {
		return nil, nil, fmt.Errorf("%T is no ConfigMap", o)
	}
	return labels.Set(c.Labels), fields.Set{"metadata.name": c.Name, "metadata.namespace": c.Namespace}, nil
}

// create stores ConfigMaps with values that differ.
func create(ctx context.Context, endpoint string, from, n int) error {
	s, destroy, err := open(endpoint, generic.UndecoratedStorage)
	if err != nil {
		return err
	}
	defer destroy()
	const workers = 64
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := from + w; i < from+n && errs[w] == nil; i += workers {
				text := make([]byte, 900)
				for j := range text {
					text[j] = byte('a' + rand.IntN(26))
				}
				c := &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("object-%08d", i), Namespace: "default", Labels: map[string]string{"app": "bench"}},
					Data:       map[string]string{"value": string(text)},
				}
				errs[w] = s.Create(ctx, key(c.Name), c, nil, 0)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// hold caches what is there, says how many objects these are, and waits to be killed.
func hold(ctx context.Context, endpoint string) error {
	s, _, err := open(endpoint, registry.StorageWithCacher())
	if err != nil {
		return err
	}
	for s.ReadinessCheck() != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cache is not ready: %w", s.ReadinessCheck())
		case <-time.After(10 * time.Millisecond):
		}
	}
	stats, err := s.Stats(ctx)
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // what filling the cache left over is not its size
	if err := json.NewEncoder(os.Stdout).Encode(map[string]int64{"Objects": stats.ObjectCount}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
