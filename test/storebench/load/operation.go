// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"go.etcd.io/etcd/client/v3/kubernetes"
)

// An operation is done by one worker again and again. No two operations of a
// load that is bounded by their number have the same n; it starts at 0.
type operation func(ctx context.Context, n int64) error

// newOp returns what the worker with this number does.
func newOp(c *kubernetes.Client, s Spec, number int) operation {
	switch s.Kind {
	case APIWrite:
		return newWriter(c, s, number).apiWrite
	case Get:
		return newReader(c, s, number).get
	case Fill:
		return newFiller(c, s, number)
	}
	return func(context.Context, int64) error { return fmt.Errorf("there is no load %q", s.Kind) }
}

// newValue returns a value: an object as the API server stores it, or bytes that do not compress, so that nothing is
// gained by trying.
func newValue(s Spec, number int) []byte {
	if s.Objects {
		return newObject(number)
	}
	value := bytes.Repeat([]byte("v"), max(s.ValueBytes, 1))
	_, _ = rand.NewChaCha8([32]byte{byte(number), byte(number >> 8)}).Read(value)
	return value
}

// writer writes its share of a fixed set of objects in turn: the first time
// round it creates them. So the store does not grow with its speed.
type writer struct {
	c         *kubernetes.Client
	prefix    string
	value     []byte
	revisions []int64 // what the API server read before it updates; 0: there is no object
	n         int
}

func newWriter(c *kubernetes.Client, s Spec, number int) *writer {
	return &writer{
		c: c, value: newValue(s, number), revisions: make([]int64, max(1, s.Keys/s.Clients)),
		prefix: fmt.Sprintf("%swriter-%08x-%04d-", s.Prefix, rand.Uint32(), number), // two runs must not meet
	}
}

func (w *writer) apiWrite(ctx context.Context, _ int64) error {
	i := w.n % len(w.revisions)
	w.n++
	key := fmt.Sprintf("%s%08d", w.prefix, i)
	revision, err := optimisticPut(ctx, w.c, key, w.value, w.revisions[i])
	if err != nil { // what happened is open
		resp, getErr := w.c.Kubernetes.Get(ctx, key, kubernetes.GetOptions{})
		if getErr == nil && resp.KV != nil {
			w.revisions[i] = resp.KV.ModRevision
		}
		return errors.Join(err, getErr)
	}
	w.revisions[i] = revision
	return nil
}

// optimisticPut is what storage/etcd3 does to create (revision 0) and to
// update an object.
func optimisticPut(ctx context.Context, c *kubernetes.Client, key string, value []byte, revision int64) (int64, error) {
	resp, err := c.Kubernetes.OptimisticPut(ctx, key, value, revision, kubernetes.PutOptions{GetOnFailure: revision != 0})
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("%s is not at revision %d", key, revision)
	}
	return resp.Revision, nil
}

func objectKey(prefix string, n int64) string { return fmt.Sprintf("%sobject-%08d", prefix, n) }

// newFiller creates the objects that readers find. One that was refused is
// tried again: readers count on it.
func newFiller(c *kubernetes.Client, s Spec, number int) operation {
	value := newValue(s, number)
	return func(ctx context.Context, n int64) error {
		key := objectKey(s.ReadPrefix, n)
		_, err := optimisticPut(ctx, c, key, value, 0)
		for range 3 {
			if err == nil {
				return nil
			}
			var resp kubernetes.GetResponse
			if resp, err = c.Kubernetes.Get(ctx, key, kubernetes.GetOptions{}); err == nil && resp.KV == nil {
				_, err = optimisticPut(ctx, c, key, value, 0)
			}
		}
		return err
	}
}

// reader gets filled objects.
type reader struct {
	c      *kubernetes.Client
	s      Spec
	random *rand.Rand
}

func newReader(c *kubernetes.Client, s Spec, number int) *reader {
	return &reader{c: c, s: s, random: rand.New(rand.NewPCG(uint64(number), 1))}
}

func (r *reader) get(ctx context.Context, _ int64) error {
	key := objectKey(r.s.ReadPrefix, r.random.Int64N(int64(r.s.Keys)))
	resp, err := r.c.Kubernetes.Get(ctx, key, kubernetes.GetOptions{})
	if err == nil && (resp.KV == nil || len(resp.KV.Value) != r.s.ValueBytes) {
		err = fmt.Errorf("%s is not there or not whole", key)
	}
	return err
}
