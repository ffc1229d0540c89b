// SPDX-License-Identifier: Apache-2.0

package gatewayuse

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// keyStore has keys alone, and one watch.
type keyStore struct {
	clientv3.KV
	clientv3.Watcher

	mu       sync.Mutex
	keys     []string
	revision int64
	reads    int
	watch    chan clientv3.WatchResponse
	fail     error
}

func (s *keyStore) Get(_ context.Context, prefix string, _ ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	out := &clientv3.GetResponse{Header: &pb.ResponseHeader{Revision: s.revision}}
	for _, k := range s.keys {
		if strings.HasPrefix(k, prefix) {
			out.Kvs = append(out.Kvs, &mvccpb.KeyValue{Key: []byte(k)})
		}
	}
	return out, s.fail
}

func (s *keyStore) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = make(chan clientv3.WatchResponse)
	return s.watch
}

// event adds a key, or removes it.
func (s *keyStore) event(key string, add bool) {
	s.mu.Lock()
	s.revision++
	e := &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{Key: []byte(key)}}
	s.keys = slices.DeleteFunc(s.keys, func(k string) bool { return k == key })
	if add {
		s.keys = append(s.keys, key)
	} else {
		e.Type = clientv3.EventTypeDelete
	}
	watch := s.watch
	s.mu.Unlock()
	watch <- clientv3.WatchResponse{Events: []*clientv3.Event{e}}
}

func TestGatewayUseFollowsStoredKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const route, class = gatewayKeys + "httproutes/shop/web", gatewayKeys + "gatewayclasses/other"
		s := &keyStore{keys: []string{"/registry/pods/shop/web", gatewayClassKey}, revision: 7}
		u := testenv.Must(New(t.Context(), s, s))(t)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { u.Run(ctx) })
		is := func(when string, want bool) {
			t.Helper()
			synctest.Wait()
			testenv.Equal(t, u.Used(), want, "%s: used is", when)
			if got := u.UnusedNow(ctx); got == want {
				t.Errorf("%s: unused is %v", when, got)
			}
		}
		is("with the class that every cluster has", false)
		changed := u.Changed()
		s.event(route, true)
		is("with a route", true)
		select {
		case <-changed:
		default:
			t.Error("no one is notified")
		}
		before := s.reads
		s.event(route, true) // its status, say
		synctest.Wait()
		testenv.False(t, s.reads != before, "%d reads for a change of an object", s.reads-before)
		s.event(class, true)
		s.event(route, false)
		is("with another class", true)
		s.event(class, false)
		is("without", false)

		// What happens while there is no watch is seen afterwards, and an error is no answer.
		s.fail = errors.New("no leader")
		close(s.watch)
		synctest.Wait()
		s.keys, s.revision = append(s.keys, route), s.revision+1
		testenv.False(t, u.UnusedNow(ctx), "what cannot be read is called unused")
		s.fail = nil
		time.Sleep(3 * time.Second)
		is("after a gap", true)
		cancel()
		close(s.watch)
		running.Wait()
	})
}
