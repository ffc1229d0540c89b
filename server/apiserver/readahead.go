// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"

	"github.com/coracle-k8s/coracle/server/apiserver/watchbuffer"
)

// newStore returns the store as upstream's storage interface. Its watches decode no more than their readers take (ADR
// 0072).
func newStore(config *storagebackend.ConfigForResource, newObject, newList func() runtime.Object,
	prefix string) (storage.Interface, factory.DestroyFunc, error) {
	c := *config
	c.Transformer = cmp.Or(c.Transformer, identity.NewEncryptCheckTransformer()) // upstream's own choice
	c.Transformer = waitingTransformer{c.Transformer}
	return apigeneric.NewRawStorage(&c, newObject, newList, prefix)
}

// waitingTransformer is a transformer that waits until a watch's reader has taken the events decoded before. Upstream
// calls it for each value, just before decoding the value.
type waitingTransformer struct{ value.Transformer }

// TransformFromStorage implements value.Transformer. It does not fail when the watch ends while it waits: a client that
// still reads would get that error.
func (u waitingTransformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) (out []byte, stale bool,
	err error) {
	if b := watchbuffer.From(ctx); b != nil {
		b.Decode(ctx, data)
	}
	return u.Transformer.TransformFromStorage(ctx, data, dataCtx)
}
