// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStopAndStartAgain runs server after server in one process on one store.
// What a client wrote is there the next time, a watch ends when its server
// does, and goroutines do not pile up.
func TestStopAndStartAgain(t *testing.T) {
	f := newFixture(t)
	counts := []int{}
	var stacks []map[string]int
	for i := range 3 {
		s := f.start(t, f.options(t))
		c := testenv.Must(kubernetes.NewForConfig(s.LoopbackConfig()))(t)
		name := fmt.Sprintf("round-%d", i)
		testenv.NoError(t, testenv.Err(c.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})))
		list := testenv.Must(c.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{}))(t)
		for j := range i + 1 {
			testenv.True(t, slices.ContainsFunc(list.Items, func(m corev1.ConfigMap) bool { return m.Name == fmt.Sprintf("round-%d", j) }), "round %d: what round %d wrote is gone", i, j)
		}
		tls := testenv.Must(kubernetes.NewForConfig(s.admin()))(t)
		var watches []watch.Interface
		for _, c := range []kubernetes.Interface{c, tls} {
			w := testenv.Must(c.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{}))(t)
			watches = append(watches, w)
		}
		s.stop()
		for _, w := range watches {
			for open := true; open; {
				select {
				case _, open = <-w.ResultChan():
				case <-time.After(patience):
					t.Fatal("a watch outlives its server")
				}
			}
		}
		testenv.Fails(t, testenv.Err(c.CoreV1().ConfigMaps("default").Get(context.Background(), name, metav1.GetOptions{})), "a stopped server answers")
		want := 0 // not known yet
		if len(counts) == 2 {
			want = counts[1] + allowedLeak
		}
		counts = append(counts, settled(want))
		stacks = append(stacks, goroutines())
	}
	// The first round leaves what a process has once; after that a round may leave little.
	perRound := counts[2] - counts[1]
	t.Logf("goroutines after each round: %v", counts)
	if perRound > allowedLeak {
		t.Errorf("a round leaves %d goroutines behind, %d are known:\n%s", perRound, allowedLeak, difference(stacks[1], stacks[2]))
	}
}

// noExit keeps upstream from ending the process, and fails the test if it wants to.
func noExit(t *testing.T) {
	exits := make(chan int, 1) // the first is enough
	exit := klog.OsExit
	klog.OsExit = func(code int) {
		select {
		case exits <- code:
		default:
		}
		runtime.Goexit()
	}
	t.Cleanup(func() {
		klog.OsExit = exit
		select {
		case code := <-exits:
			t.Errorf("upstream asked the process to exit with %d", code)
		default:
		}
	})
}

// TestStopWhileStarting wants a stop at any time to be an orderly one: upstream ends the process when some of its
// start-up hooks are stopped half-way.
func TestStopWhileStarting(t *testing.T) {
	noExit(t)
	f := newFixture(t)
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 200 * time.Millisecond} {
		s := testenv.Must(New(t.Context(), f.options(t)))(t)
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		testenv.Check(t, s.Run(ctx), "stopped after %v", delay)
		cancel()
	}
}

// TestStartWaitsForUnresponsiveStore wants a server whose store does not answer to begin nothing, however long that
// takes: upstream's start-up hooks give the store a minute and end the process then. One that waits is stopped at once
// and leaves the port, and one whose store answers in the end becomes ready.
func TestStartWaitsForUnresponsiveStore(t *testing.T) {
	noExit(t)
	f := newFixture(t)
	never := errors.New("the store is damaged")
	for name, tt := range map[string]struct {
		await func(ctx context.Context, stop func()) error
		want  error
	}{
		"stopped while it waits": {func(ctx context.Context, stop func()) error {
			stop()
			<-ctx.Done()
			return ctx.Err()
		}, nil},
		"a store that will never answer": {func(context.Context, func()) error { return never }, never},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			o := f.options(t)
			o.Await = func(ctx context.Context) error { return tt.await(ctx, stop) }
			s := testenv.Must(New(t.Context(), o))(t)
			testenv.ErrorIs(t, s.Run(ctx), tt.want, "it ended with")
			select {
			case <-s.Ready():
				t.Error("it was ready")
			default:
			}
			testenv.ErrorIs(t, testenv.Err(o.Listener.Accept()), net.ErrClosed, "its port is still open")
		})
	}
	t.Run("it answers in the end", func(t *testing.T) {
		o := f.options(t)
		asked, answers := make(chan struct{}), make(chan struct{})
		o.Await = func(ctx context.Context) error {
			close(asked)
			select {
			case <-answers:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		begun := make(chan struct{})
		go func() {
			<-asked
			close(begun)
			close(answers)
		}()
		f.start(t, o)
		select {
		case <-begun:
		default:
			t.Error("it was ready before the store answered")
		}
	})
}

// leaderlessKV is a store that has no leader for some reads of Services, after the first read of the node ports in use.
type leaderlessKV struct {
	clientv3.KV
	ports *atomic.Bool
	left  *atomic.Int32 // reads that fail
}

func (l leaderlessKV) Get(ctx context.Context, k string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if strings.HasPrefix(k, "/registry/services/specs") && l.ports.Load() && l.left.Add(-1) >= 0 {
		return nil, rpctypes.ErrNoLeader
	}
	out, err := l.KV.Get(ctx, k, opts...)
	if k == "/registry/ranges/servicenodeports" && err == nil {
		l.ports.Store(true)
	}
	return out, err
}

// TestStartSurvivesElectionInNodePortsCheck: the store loses its leader for a moment between two reads of upstream's
// check of the node ports in use. Upstream begins that check again after three minutes, and ends the process after one.
func TestStartSurvivesElectionInNodePortsCheck(t *testing.T) {
	noExit(t)
	f := newFixture(t)
	var ports atomic.Bool
	var left atomic.Int32
	left.Store(3)
	upstream.Install(func() *etcdkubernetes.Client {
		c := f.store.Client()
		c.KV = leaderlessKV{c.KV, &ports, &left}
		return c
	})
	f.start(t, f.options(t))
	testenv.True(t, left.Load() < 0, "no read of Services failed")
}

// allowedLeak is how many goroutines upstream leaves for each server that ends.
const allowedLeak = 0

// settled waits until the number of goroutines no longer falls, and where so many are wanted has patience until there
// are no more. client-go ends those of a transport when the garbage collector finds that it is not referenced any more
// (transport/cache.go).
func settled(want int) int {
	still := 2 * time.Second
	if want > 0 {
		still = patience
	}
	last, since := runtime.NumGoroutine(), time.Now()
	for last > want && time.Since(since) < still {
		runtime.GC()
		time.Sleep(100 * time.Millisecond) // goroutines that are ending have no event to wait for
		if n := runtime.NumGoroutine(); n < last {
			last, since = n, time.Now()
		}
	}
	return last
}

var addresses = regexp.MustCompile(`0x[0-9a-f]+ ?`)

// goroutines counts them by stack.
func goroutines() map[string]int {
	var b bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	counts := map[string]int{}
	for block := range strings.SplitSeq(b.String(), "\n\n") {
		var n int
		if _, err := fmt.Sscanf(block, "%d @", &n); err == nil {
			_, stack, _ := strings.Cut(block, "\n")
			counts[addresses.ReplaceAllString(stack, "")] += n
		}
	}
	return counts
}

func difference(before, after map[string]int) string {
	var out []string
	for stack, n := range after {
		if n > before[stack] {
			out = append(out, fmt.Sprintf("%d more:\n%s", n-before[stack], stack))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
