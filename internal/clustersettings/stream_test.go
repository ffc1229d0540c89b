// SPDX-License-Identifier: Apache-2.0

package clustersettings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	errGone    = errors.New("connection refused")
	errOlder   = apierrors.NewNotFound(schema.GroupResource{}, Path)
	errNoRight = apierrors.NewForbidden(schema.GroupResource{}, Path, nil)
)

// bed is a Together before a cluster that the test plays.
type bed struct {
	*testing.T
	*Together

	mu      sync.Mutex
	cluster map[string]Data
	changed chan struct{} // closed at the next change of anything here
	answer  error         // of who asks for a stream; nil: it has one
	epoch   int           // streams and watches of before end
	streams int           // how many were begun
	apartly int           // how many ConfigMaps are watched one by one
	lag     time.Duration // what is told comes at most so much later
	heard   map[string][]string
	silent  bool // streams say nothing
}

// newBed is to be called in a bubble. Its goroutines end with the test.
func newBed(t *testing.T, names ...string) *bed {
	b := &bed{T: t, cluster: map[string]Data{}, changed: make(chan struct{}), heard: map[string][]string{}}
	b.Together = &Together{names: names, log: slog.New(slog.DiscardHandler), known: map[string]Data{}, changed: make(chan struct{}), open: b.stream, apart: b.watch}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { b.Together.Run(ctx) })
	for _, name := range names {
		running.Go(func() {
			b.Follow(ctx, name, func(d Data) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.heard[name] = append(b.heard[name], text(d))
			})
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return b
}

func text(d Data) string {
	if d == nil {
		return "none"
	}
	return d["v"]
}

// does changes the cluster.
func (b *bed) does(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

// stream plays a server: it reads the cluster as it is when it is asked, and tells what changes a while later.
func (b *bed) stream(ctx context.Context) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answer != nil {
		return nil, b.answer
	}
	b.streams++
	epoch := b.epoch
	r, w := io.Pipe()
	go func() {
		defer w.Close()
		told := map[string]string{}
		b.follow(ctx, epoch, func(now map[string]Data) error {
			for _, name := range b.names {
				if had, ok := told[name]; ok && had == text(now[name]) {
					continue
				}
				told[name] = text(now[name])
				if err := json.NewEncoder(w).Encode(Word{name, now[name]}); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	return r, nil
}

// watch plays Each's Follow, with None.
func (b *bed) watch(ctx context.Context, name string, tell func(Data)) {
	b.does(func() { b.apartly++ })
	defer b.does(func() { b.apartly-- })
	first, had := true, ""
	b.follow(ctx, -1, func(now map[string]Data) error {
		d := now[name]
		if ctx.Err() != nil || !first && text(d) == had {
			return nil
		}
		tell(d)
		first, had = false, text(d)
		return nil
	})
}

func (b *bed) follow(ctx context.Context, epoch int, tell func(map[string]Data) error) {
	for {
		b.mu.Lock()
		now, changed, over, silent, lag := maps.Clone(b.cluster), b.changed, epoch >= 0 && b.epoch != epoch, epoch >= 0 && b.silent, b.lag
		b.mu.Unlock()
		if lag > 0 {
			time.Sleep(rand.N(lag)) // by the fake clock
		}
		if over || !silent && tell(now) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (b *bed) set(name, value string) { b.does(func() { b.cluster[name] = Data{"v": value} }) }

func (b *bed) remove(name string) { b.does(func() { delete(b.cluster, name) }) }

// breaks ends all streams, and has those who ask from now on hear answer.
func (b *bed) breaks(answer error) { b.does(func() { b.epoch, b.answer = b.epoch+1, answer }) }

func (b *bed) hears(name string, want ...string) {
	b.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.heard[name], want) {
		b.Errorf("of %s it heard %q, want %q", name, b.heard[name], want)
	}
}

func (b *bed) watches(want int) {
	b.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.apartly != want {
		b.Errorf("%d are watched one by one, want %d", b.apartly, want)
	}
}

// TestTogether: one stream tells everything at once, each only what it follows, and takes nothing for news that is none.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a", "b")
		b.set("a", "1")
		b.hears("a", "1")
		b.hears("b")
		b.set("b", "1")
		b.set("a", "")
		b.hears("a", "1", "")
		b.hears("b", "1")
		b.remove("a")
		b.hears("a", "1", "", "none")
		b.breaks(nil)                // as at its end, or when the server goes
		time.Sleep(10 * time.Second) // the fake clock's: it asks again
		b.hears("b", "1")
		b.set("b", "2")
		b.hears("b", "1", "2")
		b.watches(0)
		if b.streams != 2 {
			t.Errorf("%d streams", b.streams)
		}
	})
}

// TestEndsOfStreams: a stream that ends when it is time is asked for again at once.
func TestEndsOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a")
		time.Sleep(5 * time.Minute) // the fake clock's, as long as a stream lasts
		b.breaks(nil)
		b.set("a", "1")
		b.hears("a", "1")
	})
}

// TestOlderServer: where the server has no stream, or the right to it is not there yet, each is watched, at once; and no more when a stream is to be had.
func TestOlderServer(t *testing.T) {
	for _, answer := range []error{errOlder, errNoRight} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "a", "b")
			b.breaks(answer)
			time.Sleep(time.Second) // fake time
			b.watches(2)
			b.set("a", "1")
			b.hears("a", "1")
			time.Sleep(time.Hour) // fake time
			b.watches(2)
			b.does(func() { b.answer = nil })
			time.Sleep(2 * refusedPause) // fake time
			b.watches(0)
			b.set("a", "2")
			b.remove("b")
			b.hears("a", "1", "2")
			b.breaks(answer)        // a server of before has taken its place
			time.Sleep(time.Second) // fake time
			b.watches(2)
			b.set("b", "1")
			b.hears("b", "1")
		})
	}
}

// TestNoStreamForAWhile: what has been told stays while no server answers. After a while each is watched, which shows what has been deleted meanwhile, too.
func TestNoStreamForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a", "b")
		b.set("a", "1")
		b.set("b", "1")
		synctest.Wait()
		b.breaks(errGone)
		b.remove("a")
		time.Sleep(patience / 2) // fake time
		b.watches(0)
		b.hears("a", "1")
		time.Sleep(patience + longestPause) // fake time
		b.watches(2)
		b.hears("a", "1", "none")
		b.hears("b", "1")
		b.does(func() { b.answer = nil })
		time.Sleep(2 * longestPause) // fake time
		b.watches(0)
		b.set("a", "2")
		b.hears("a", "1", "none", "2")
	})
}

// TestSilentServer: a stream that says nothing is none.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a")
		b.does(func() { b.silent = true })
		b.breaks(nil)
		b.set("a", "1")
		time.Sleep(3 * patience) // fake time
		b.watches(1)
		b.hears("a", "1")
	})
}

// TestNothingIsTakenBack: whatever becomes of servers and streams, what is told goes on to newer states only, and the last one arrives.
func TestNothingIsTakenBack(t *testing.T) {
	seed := testenv.Seed(t)
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 0))
		b := newBed(t, "a", "b", "c")
		b.does(func() { b.lag = time.Second })
		for i := 1; i <= 500; i++ {
			name := b.names[r.IntN(len(b.names))]
			switch r.IntN(10) {
			case 0:
				b.remove(name)
			case 1:
				b.breaks([]error{nil, nil, errGone, errOlder, errNoRight}[r.IntN(5)])
			case 2:
				b.does(func() { b.answer = nil })
			case 3:
				b.does(func() { b.silent = r.IntN(3) == 0 })
			default:
				b.set(name, strconv.Itoa(i))
			}
			time.Sleep(time.Duration(r.Int64N(int64([]time.Duration{time.Millisecond, time.Second, time.Minute}[r.IntN(3)])))) // fake time
		}
		b.does(func() { b.answer, b.silent = nil, false })
		time.Sleep(3 * refusedPause) // fake time
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, name := range b.names {
			last, heard := 0, b.heard[name]
			for _, text := range heard {
				if n, err := strconv.Atoi(text); err == nil {
					if n <= last {
						t.Errorf("of %s %d was heard after %d", name, n, last)
					}
					last = n
				}
			}
			if want := text(b.cluster[name]); len(heard) > 0 && heard[len(heard)-1] != want || len(heard) == 0 && want != "none" {
				t.Errorf("of %s it heard %q, and it is %s", name, heard, want)
			}
		}
	})
}

// TestEach: a watch of one ConfigMap tells what stands in it, and when it is gone.
func TestEach(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	c := fake.NewClientset()
	maps := c.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var mu sync.Mutex
	var heard []string
	hears := func(want ...string) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, "it hears that", func() error {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(heard, want) {
				return fmt.Errorf("it heard %q, want %q", heard, want)
			}
			return nil
		})
	}
	say := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, text)
	}
	running.Go(func() { Each{Client: c, None: true}.Follow(ctx, "a", func(d Data) { say(text(d)) }) })
	hears("none")
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: metav1.NamespaceSystem}, Data: map[string]string{"v": "1"}}
	if _, err := maps.Create(ctx, m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	hears("none", "1")
	m.Data = nil
	if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	hears("none", "1", "")
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	hears("none", "1", "", "none")
}

// trickle gives a byte at a time, by the fake clock, until it is closed.
type trickle struct {
	io.Reader
	each   time.Duration
	closed atomic.Bool
}

func (r *trickle) Read(to []byte) (int, error) {
	time.Sleep(r.each) // fake time
	if r.closed.Load() {
		return 0, errGone
	}
	return r.Reader.Read(to[:1])
}

func (r *trickle) Close() error {
	r.closed.Store(true)
	return nil
}

// begins is a Together in a bubble whose only stream is r, and which follows a alone. The others cannot be had, and what is watched one by one is not there.
func begins(t *testing.T, r io.ReadCloser) (heard func() []string) {
	b := &bed{T: t, cluster: map[string]Data{}, changed: make(chan struct{}), heard: map[string][]string{}}
	asked := false
	to := &Together{
		names: []string{"a"}, log: slog.New(slog.DiscardHandler), known: map[string]Data{}, changed: make(chan struct{}), apart: b.watch,
		open: func(context.Context) (io.ReadCloser, error) {
			if asked {
				return nil, errGone
			}
			asked = true
			return r, nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { to.Run(ctx) })
	running.Go(func() {
		to.Follow(ctx, "a", func(d Data) { b.does(func() { b.heard["a"] = append(b.heard["a"], text(d)) }) })
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func() []string {
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Clone(b.heard["a"])
	}
}

// TestSlowNetwork: large settings take as long as they take. Else a node would have them sent to it again and again, and never have them.
func TestSlowNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := `{"name": "a", "data": {"v": "1"}}` + "\n"
		heard := begins(t, &trickle{Reader: strings.NewReader(text), each: patience / 2})
		time.Sleep(time.Duration(len(text)) * patience / 2) // fake time
		if words := heard(); !slices.Equal(words, []string{"1"}) {
			t.Errorf("it heard %q", words)
		}
	})
}

// TestWordsOfALaterVersion: what a node has not asked for it takes for no part of the first words, so a stream that says nothing else is given up.
func TestWordsOfALaterVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		closed := false
		begins(t, closer{r, func() { closed = true }})
		fmt.Fprintln(w, `{"version": 2}`)
		fmt.Fprintln(w, `{"name": "b", "data": null}`)
		time.Sleep(patience + time.Second) // fake time
		synctest.Wait()
		if !closed {
			t.Error("it takes that for what stands in a")
		}
	})
}

// closer says when it is closed.
type closer struct {
	io.ReadCloser
	said func()
}

func (c closer) Close() error {
	c.said()
	return c.ReadCloser.Close()
}
