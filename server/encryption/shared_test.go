// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/testkv"
)

// memory is a store with what a rotation uses of one.
type memory struct {
	clientv3.KV
	mu       sync.Mutex
	revision int64
	data     map[string]*mvccpb.KeyValue
	lose     bool // the answer to the next write
}

func (m *memory) Get(_ context.Context, k string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix := len(clientv3.OpGet(k, opts...).RangeBytes()) > 0
	out := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: m.revision}}
	for name, kv := range m.data {
		if name == k || prefix && strings.HasPrefix(name, k) {
			out.Kvs = append(out.Kvs, kv)
		}
	}
	return out, nil
}

func (m *memory) put(k string, v []byte) {
	m.revision++
	m.data[k] = &mvccpb.KeyValue{Key: []byte(k), Value: bytes.Clone(v), ModRevision: m.revision}
}

func (m *memory) Put(_ context.Context, k, v string, _ ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(k, []byte(v))
	return &clientv3.PutResponse{}, nil
}

func (m *memory) Txn(context.Context) clientv3.Txn { return &memoryTxn{m: m} }

type memoryTxn struct {
	m    *memory
	cmps []clientv3.Cmp
	ops  []clientv3.Op
}

func (t *memoryTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.cmps = c; return t }
func (t *memoryTxn) Then(o ...clientv3.Op) clientv3.Txn { t.ops = o; return t }
func (t *memoryTxn) Else(...clientv3.Op) clientv3.Txn   { return t }
func (t *memoryTxn) Commit() (*clientv3.TxnResponse, error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	out := &clientv3.TxnResponse{Succeeded: true}
	for _, c := range t.cmps {
		want := c.GetCompare().TargetUnion.(*etcdserverpb.Compare_ModRevision).ModRevision
		var has int64
		if kv := t.m.data[string(c.KeyBytes())]; kv != nil {
			has = kv.ModRevision
		}
		out.Succeeded = out.Succeeded && want == has
	}
	if out.Succeeded {
		for _, o := range t.ops {
			t.m.put(string(o.KeyBytes()), o.ValueBytes())
		}
	}
	out.Header = &etcdserverpb.ResponseHeader{Revision: t.m.revision}
	if t.m.lose {
		t.m.lose = false
		return nil, errors.New("the leader has changed")
	}
	return out, nil
}

// several are servers with a store in common. Each takes the keys over by itself while it runs.
type several struct {
	t     *testing.T
	kv    *memory
	api   *cluster
	mu    sync.Mutex
	dirs  []string
	off   map[int]bool
	wrong []string // what must never be
	end   func()   // what the servers do by themselves
}

func newSeveral(t *testing.T, n int) *several {
	s := &several{t: t, kv: &memory{data: map[string]*mvccpb.KeyValue{}}, off: map[int]bool{}}
	for i := range n {
		dir := t.TempDir()
		if i == 0 {
			ensure(t, Options{Dir: dir, Resources: secrets})
		} else { // it joined
			data, err := os.ReadFile(filepath.Join(s.dirs[0], configFile))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, configFile), data, 0o600)
			}
			testenv.NoError(t, err)
		}
		s.dirs = append(s.dirs, dir)
	}
	s.api = newCluster(t, s.dirs[0])
	s.api.secrets = map[string]string{"a": "key1", "b": "key1", "c": "key1"}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			for ctx.Err() == nil {
				s.take(ctx, i)
				select {
				case <-ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	s.end = func() { cancel(); running.Wait() }
	t.Cleanup(s.end)
	return s
}

func (s *several) shared(i int) Shared {
	return Shared{KV: s.kv, Secret: []byte("of the cluster"), Dir: s.dirs[i]}
}

// take is one look of a server, and a check of all: what one of them may write all of them can read, those that are off
// too.
func (s *several) take(ctx context.Context, i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off[i] {
		return
	}
	generation, err := s.shared(i).Pull(ctx)
	if err == nil && generation > 0 {
		err = s.shared(i).Confirm(ctx, fmt.Sprint("server", i), generation)
	}
	if err != nil && ctx.Err() == nil {
		s.wrong = append(s.wrong, err.Error())
	}
	all := make([]layout, len(s.dirs))
	for j, dir := range s.dirs {
		if all[j], err = readLayout(filepath.Join(dir, configFile)); err != nil {
			s.wrong = append(s.wrong, err.Error())
			return
		}
	}
	for j, writes := range all {
		for k, reads := range all {
			if !slices.Contains(reads.keys, writes.keys[0]) {
				s.wrong = append(s.wrong, fmt.Sprintf("server %d writes with %s, and server %d reads with %v", j, writes.keys[0].Name, k, reads.keyNames()))
			}
		}
	}
}

func (s *several) rotation(i int) Rotation {
	return Rotation{
		Shared: s.shared(i), Client: &rest.Config{Host: s.api.URL}, Poll: time.Millisecond, Patience: time.Minute,
		Servers: func(context.Context) ([]string, error) {
			var out []string
			for j := range s.dirs {
				out = append(out, fmt.Sprint("server", j))
			}
			return out, nil
		},
	}
}

// done says that every server has this key and no other.
func (s *several) done(key string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.wrong {
		s.t.Error(w)
	}
	first := ""
	for i, dir := range s.dirs {
		l, err := readLayout(filepath.Join(dir, configFile))
		if err != nil || !slices.Equal(l.keyNames(), []string{key}) {
			s.t.Errorf("server %d has the keys %v, want %s: %v", i, l.keyNames(), key, err)
		}
		print, err := Fingerprint(dir)
		if first == "" {
			first = print
		}
		testenv.False(s.t, err != nil || print != first, "server %d has another key of the same name: %v", i, err)
	}
	s.api.mu.Lock()
	defer s.api.mu.Unlock()
	for name, has := range s.api.secrets {
		testenv.Equal(s.t, has, key, "%s is written with", name)
	}
}

// TestKeyIsDistributedBeforeItsFirstUse: all servers get a new key before any writes with it, and lose the old one when
// nothing needs it.
func TestKeyIsDistributedBeforeItsFirstUse(t *testing.T) {
	s := newSeveral(t, 3)
	testenv.NoError(t, s.rotation(0).Run(t.Context()))
	s.done("key2")
	if r, err := s.shared(2).read(t.Context()); r.revision == 0 || err != nil {
		t.Errorf("the store has no keys: %v", err)
	}
	for _, kv := range s.kv.data {
		testenv.False(t, bytes.Contains(kv.Value, []byte("secret")), "the store has %q", kv.Value)
	}
	testenv.NoError(t, s.rotation(0).Run(t.Context()))
	s.done("key3")
	foreign := s.shared(0)
	foreign.Secret = []byte("of another cluster")
	testenv.Fails(t, testenv.Err(foreign.Pull(t.Context())), "another cluster's secret opens the keys")
}

// clockAhead is the machine's clock, set forward.
type clockAhead struct {
	clock.RealClock
	by time.Duration
}

func (c *clockAhead) Now() time.Time                  { return c.RealClock.Now().Add(c.by) }
func (c *clockAhead) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

// TestSharedRotationWaitsForAll: a server that is off keeps the others from writing with a key that it does not have;
// when it is back, the rotation goes on, from any server.
func TestSharedRotationWaitsForAll(t *testing.T) {
	s := newSeveral(t, 3)
	s.mu.Lock()
	s.off[1] = true
	s.mu.Unlock()
	r := s.rotation(0)
	ahead := &clockAhead{}
	r.Clock = ahead
	var waited []string
	r.Progress = func(_ Stage, _ int, names []string) {
		waited = append(waited, names...)
		if slices.Equal(names, []string{"server1"}) { // the others have the key
			ahead.by = r.Patience
		}
	}
	err := r.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "server1") || !strings.Contains(err.Error(), string(StagePrepare)) {
		t.Fatalf("with a server that is off: %v", err)
	}
	testenv.True(t, slices.Contains(waited, "server1"), "it said that it waits for %v", waited)
	testenv.Equal(t, s.api.secrets["a"], "key1", "something was written with the new key:")
	testenv.ErrorIs(t, testenv.Err(LockRotation(s.dirs[0])), errChanging, "a server may join meanwhile")
	s.mu.Lock()
	s.off[1] = false
	s.mu.Unlock()
	testenv.NoError(t, s.rotation(0).Run(t.Context()))
	s.done("key2")
	s.take(t.Context(), 0) // which is how the server learns that the rotation is done
	release, err := LockRotation(s.dirs[0])
	testenv.NoError(t, err, "no server may join afterwards")
	release()
}

// TestSharedRotationGoesOn: cut off at the beginning of each stage, in the middle of the work, and with an answer of
// the store lost, it is brought to its end by the next one.
func TestSharedRotationGoesOn(t *testing.T) {
	for _, stop := range []Stage{StagePrepare, StageReencrypt, StageDrop} {
		for _, objects := range []int{0, 2} {
			if objects > 0 && stop != StageReencrypt {
				continue
			}
			s := newSeveral(t, 3)
			ctx, cancel := context.WithCancel(t.Context())
			r := s.rotation(0)
			r.Progress = func(stage Stage, n int, waiting []string) {
				if stage == stop && n == objects && len(waiting) == 0 {
					cancel()
				}
			}
			if err := r.Run(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), string(stop)) {
				t.Fatalf("%s: %v", stop, err)
			}
			s.kv.mu.Lock()
			s.kv.lose = true
			s.kv.mu.Unlock()
			testenv.NoError(t, s.rotation(0).Run(t.Context()), "%s", stop)
			s.done("key2")
		}
	}
}

// TestSharedRotationsAtOnce: of two rotations one ends without harm.
func TestSharedRotationsAtOnce(t *testing.T) {
	s := newSeveral(t, 3)
	first := s.rotation(0)
	var other error
	once := sync.OnceFunc(func() { other = s.rotation(1).Run(t.Context()) }) // from the first stage to the end
	first.Progress = func(stage Stage, n int, waiting []string) {
		if stage == StagePrepare && n == 0 && len(waiting) == 0 {
			once()
		}
	}
	testenv.ErrorIs(t, first.Run(t.Context()), errOtherRotation, "the first")
	testenv.True(t, other == nil, "the other: %v", other)
	s.done("key2")
}

// TestTakeKeepsUnknownKeys: a key that the store does not speak of may be one that something needs; it is kept for
// reading.
func TestTakeKeepsUnknownKeys(t *testing.T) {
	s := newSeveral(t, 1)
	testenv.NoError(t, s.rotation(0).Run(t.Context()))
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dirs[0], configFile)
	l, err := readLayout(path)
	testenv.NoError(t, err)
	own := l.keys[0]
	l.keys = []key{{Name: "key9", Secret: own.Secret}, {Name: "key1", Secret: own.Secret}}
	testenv.Must(l.write(t.Context(), path))(t)
	testenv.Must(s.shared(0).Pull(t.Context()))(t)
	if l, err = readLayout(path); err != nil || !slices.Equal(l.keyNames(), []string{"key2", "key9"}) || l.keys[0] != own {
		t.Errorf("it has %v, %v", l.keyNames(), err)
	}
}

// heldKV is a store whose answer to a read comes when it is released.
type heldKV struct {
	clientv3.KV
	read, release chan struct{}
}

func (h heldKV) Get(ctx context.Context, k string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	out, err := h.KV.Get(ctx, k, opts...)
	close(h.read)
	<-h.release
	return out, err
}

// TestOlderKeysDoNotReplaceNewer: a command and the server itself take the keys over at the same time, and the command
// has read them before the other server began the next stage.
func TestOlderKeysDoNotReplaceNewer(t *testing.T) {
	dir, kv := t.TempDir(), &memory{data: map[string]*mvccpb.KeyValue{}}
	ensure(t, Options{Dir: dir, Resources: secrets})
	path := filepath.Join(dir, configFile)
	l := testenv.Must(readLayout(path))(t)
	server := Shared{KV: kv, Secret: []byte("of the cluster"), Dir: dir}
	second := newKey(l.keyNames())
	r := testenv.Must(server.writeRecord(t.Context(), sharedKeys{Keys: []key{l.keys[0], second}, State: state{Stage: StagePrepare, NewKey: second.Name}}))(t)

	held := heldKV{KV: kv, read: make(chan struct{}), release: make(chan struct{})}
	command := server
	command.KV = held
	var both sync.WaitGroup
	both.Go(func() { testenv.Check(t, testenv.Err(command.Pull(t.Context()))) })
	<-held.read
	r.Keys, r.State.Stage = []key{second, l.keys[0]}, StageReencrypt
	testenv.Must(server.writeRecord(t.Context(), r))(t)
	done := make(chan struct{})
	both.Go(func() {
		defer close(done)
		testenv.Check(t, testenv.Err(server.Pull(t.Context())))
	})
	select {
	case <-done:
	case <-time.After(100 * time.Millisecond): // it may wait for the command
	}
	close(held.release)
	both.Wait()
	if l, err := readLayout(path); err != nil || !slices.Equal(l.keyNames(), []string{second.Name, "key1"}) {
		t.Errorf("the server has the keys %v, %v", l.keyNames(), err)
	}
}

// TestSharedRotationLeaderDies: the store's leader dies at each call of a rotation in turn, before it has done what it
// was asked for or after it. The rotation ends all the same, or it is run again on another server: then no server has
// ever written with a key that another one lacks, and everything is written with the newest.
func TestSharedRotationLeaderDies(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			s := newSeveral(t, 3)
			r := s.rotation(0)
			r.Poll = 20 * time.Millisecond // few calls that only ask whether the others have the keys
			kv := &testkv.Mortal{KV: s.kv, Dies: n, After: after}
			r.KV = kv
			want := "key2"
			if err := r.Run(t.Context()); err != nil {
				now := testenv.Must(s.shared(1).read(t.Context()))(t)
				if now.revision > 0 && now.State.Stage == StageDone { // only the last answer was lost
					want = "key3"
				}
				testenv.NoError(t, s.rotation(1).Run(t.Context()), "at call %d, after it: %t", n, after)
			}
			s.done(want)
			s.end()
			testenv.Require(t, !t.Failed(), "at call %d, after it: %t", n, after)
			if !kv.Died() {
				testenv.False(t, n < 8, "a rotation had %d calls only", n-1)
				break
			}
		}
	}
}
