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

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/coracle-k8s/coracle/internal/nodestream"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	errRefused = errors.New("connection refused")
	errOlder   = apierrors.NewNotFound(schema.GroupResource{}, Path)
	errNoRight = apierrors.NewForbidden(schema.GroupResource{}, Path, nil)
)

// bed is a StreamClient of a cluster that the test plays.
type bed struct {
	*testing.T
	*StreamClient
	names []string

	mu      sync.Mutex
	cluster map[string]Data
	changed chan struct{} // closed at the next change of anything here
	answer  error         // to a request for a stream; nil: there is a stream
	epoch   int           // streams of an earlier epoch end
	streams int           // how many were begun
	lag     time.Duration // what is sent comes at most so much later
	heard   map[string][]string
	silent  bool // streams say nothing
}

// newBed is to be called in a bubble. Its goroutines end with the test.
func newBed(t *testing.T, names ...string) *bed {
	b := &bed{T: t, names: names, cluster: map[string]Data{}, changed: make(chan struct{}), heard: map[string][]string{}}
	b.StreamClient = newStreamClient(names, slog.New(slog.DiscardHandler), b.stream)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { b.StreamClient.Run(ctx) })
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
		received := map[string]string{}
		b.follow(ctx, epoch, func(now map[string]Data) error {
			for _, name := range b.names {
				if had, ok := received[name]; ok && had == text(now[name]) {
					continue
				}
				received[name] = text(now[name])
				if err := json.NewEncoder(w).Encode(Event{name, now[name]}); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	return r, nil
}

func (b *bed) follow(ctx context.Context, epoch int, apply func(map[string]Data) error) {
	for {
		b.mu.Lock()
		now, changed, over, silent, lag := maps.Clone(b.cluster), b.changed, b.epoch != epoch, b.silent, b.lag
		b.mu.Unlock()
		if lag > 0 {
			time.Sleep(rand.N(lag)) // by the fake clock
		}
		if over || !silent && apply(now) != nil {
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
	testenv.EqualSlices(b, b.heard[name], want, "of %s it heard", name)
}

// TestStreamClientFollowsAll: one stream serves the followers of all ConfigMaps, each with its own one's changes alone.
func TestStreamClientFollowsAll(t *testing.T) {
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
		testenv.Equal(t, b.streams, 2, "streams:")
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

// TestRefusedStreamIsRequestedAgain: a server without the stream, or without the right to it as when a cluster has just
// begun, is asked again soon, since a node has no other way to the settings.
func TestRefusedStreamIsRequestedAgain(t *testing.T) {
	for _, answer := range []error{errOlder, errNoRight, errRefused} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "a", "b")
			b.breaks(answer)
			b.set("a", "1")
			time.Sleep(time.Hour) // fake time
			b.hears("a")
			b.does(func() { b.answer = nil })
			time.Sleep(2 * nodestream.MaxPause) // fake time
			b.hears("a", "1")
			b.hears("b")
		})
	}
}

// TestSettingsStayWithoutStream: what has been received stays in force while no server has a stream, and the next
// stream shows what has been deleted meanwhile.
func TestSettingsStayWithoutStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a", "b")
		b.set("a", "1")
		b.set("b", "1")
		synctest.Wait()
		b.breaks(errRefused)
		b.remove("a")
		time.Sleep(time.Hour) // fake time
		b.hears("a", "1")
		b.does(func() { b.answer = nil })
		time.Sleep(2 * nodestream.MaxPause) // fake time
		b.hears("a", "1", "none")
		b.hears("b", "1")
		b.set("a", "2")
		b.hears("a", "1", "none", "2")
	})
}

// TestStreamWithoutEventIsGivenUp: a stream that has begun and sends nothing is given up, and requested again.
func TestStreamWithoutEventIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a")
		b.does(func() { b.silent = true })
		b.breaks(nil)
		time.Sleep(3 * (nodestream.MessageTimeout + 2*nodestream.MaxPause)) // fake time
		b.mu.Lock()
		defer b.mu.Unlock()
		testenv.False(t, b.streams < 4, "%d streams", b.streams)
	})
}

// TestNothingIsTakenBack: whatever becomes of servers and streams, what is sent goes on to newer states only, and the
// last one arrives.
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
				b.breaks([]error{nil, nil, errRefused, errOlder, errNoRight}[r.IntN(5)])
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
		time.Sleep(3 * nodestream.MessageTimeout) // fake time
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, name := range b.names {
			last, heard := 0, b.heard[name]
			for _, text := range heard {
				if n, err := strconv.Atoi(text); err == nil {
					testenv.True(t, n > last, "of %s %d was heard after %d", name, n, last)
					last = n
				}
			}
			if want := text(b.cluster[name]); len(heard) > 0 && heard[len(heard)-1] != want || len(heard) == 0 && want != "none" {
				t.Errorf("of %s it heard %q, and it is %s", name, heard, want)
			}
		}
	})
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
		return 0, errRefused
	}
	return r.Reader.Read(to[:1])
}

func (r *trickle) Close() error {
	r.closed.Store(true)
	return nil
}

// begins runs a StreamClient of the ConfigMap a, in a bubble, whose first stream is r and whose others cannot be had.
func begins(t *testing.T, r io.ReadCloser) (heard func() []string) {
	var mu sync.Mutex
	var updates []string
	requested := false
	to := newStreamClient([]string{"a"}, slog.New(slog.DiscardHandler), func(context.Context) (io.ReadCloser, error) {
		if requested {
			return nil, errRefused
		}
		requested = true
		return r, nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { to.Run(ctx) })
	running.Go(func() {
		to.Follow(ctx, "a", func(d Data) {
			mu.Lock()
			defer mu.Unlock()
			updates = append(updates, text(d))
		})
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(updates)
	}
}

// TestLargeSettingsArriveOverSlowNetwork: large settings take as long as they take. Else a node would have them sent to
// it again and again, and never have them.
func TestLargeSettingsArriveOverSlowNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := `{"name": "a", "data": {"v": "1"}}` + "\n"
		heard := begins(t, &trickle{Reader: strings.NewReader(text), each: nodestream.MessageTimeout / 2})
		time.Sleep(time.Duration(len(text)) * nodestream.MessageTimeout / 2) // fake time
		testenv.EqualSlices(t, heard(), []string{"1"}, "it heard")
	})
}

// TestEventsOfALaterVersion: an event that a node has not asked for is no sign of a working stream, so a stream with
// nothing else is given up.
func TestEventsOfALaterVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		closed := false
		begins(t, closer{r, func() { closed = true }})
		fmt.Fprintln(w, `{"version": 2}`)
		fmt.Fprintln(w, `{"name": "b", "data": null}`)
		time.Sleep(nodestream.MessageTimeout + time.Second) // fake time
		synctest.Wait()
		testenv.True(t, closed, "it takes that for what stands in a")
	})
}

// closer says when it is closed.
type closer struct {
	io.ReadCloser
	onSent func()
}

func (c closer) Close() error {
	c.onSent()
	return c.ReadCloser.Close()
}
