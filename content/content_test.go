// SPDX-License-Identifier: Apache-2.0

package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// randomBlob returns bytes that are the same for the same seed.
func randomBlob(seed uint64, size int) []byte {
	out := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

// inCluster runs a test in virtual time, in a cluster of a server and agents.
func inCluster(t *testing.T, agents int, f func(c *testCluster, agents []*testMachine)) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.add("server", true)
		var all []*testMachine
		for i := range agents {
			all = append(all, c.add(fmt.Sprintf("agent-%d", i), false))
		}
		f(c, all)
		c.end()
	})
}

// TestMachinesPullAtOnce: many machines that want a blob at the same time fetch it from outside once.
func TestMachinesPullAtOnce(t *testing.T) {
	inCluster(t, 200, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(1, 200<<10)
		d := digest.FromBytes(data)
		var pulls sync.WaitGroup
		for _, m := range agents {
			pulls.Go(func() { testenv.Check(t, m.pull(c.t.Context(), d, data)) })
		}
		pulls.Wait()
		testenv.Equal(t, c.outside.Load(), int64(len(data)), "bytes from outside are")
		for _, m := range agents {
			testenv.True(t, bytes.Equal(m.store.blobs[d], data), "%s has another blob", m.name)
		}
	})
}

// TestHostileMachines: a machine that claims to have a blob costs a pull little, whatever it does, and never gets
// anything else into it. Time is virtual.
func TestHostileMachines(t *testing.T) {
	data := randomBlob(2, 4<<20)
	size := int64(len(data))
	endless := func(chunk int, pause time.Duration, partial bool) func(context.Context, digest.Digest, int64) (*Blob, error) {
		return func(ctx context.Context, _ digest.Digest, offset int64) (*Blob, error) {
			return &Blob{Size: size, Partial: partial, Body: &trickle{ctx: ctx, chunk: chunk, pause: pause, left: size - offset}}, nil
		}
	}
	for name, serve := range map[string]func(context.Context, digest.Digest, int64) (*Blob, error){
		"has lost it": func(context.Context, digest.Digest, int64) (*Blob, error) { return nil, errdefs.ErrNotFound },
		"fails":       func(context.Context, digest.Digest, int64) (*Blob, error) { return nil, errors.New("I/O error") },
		"sends something else": func(_ context.Context, _ digest.Digest, offset int64) (*Blob, error) {
			return &Blob{Size: size, Body: io.NopCloser(bytes.NewReader(randomBlob(3, int(size-offset))))}, nil
		},
		"has another size": func(context.Context, digest.Digest, int64) (*Blob, error) {
			return &Blob{Size: 2 * size, Body: io.NopCloser(bytes.NewReader(randomBlob(3, int(2*size))))}, nil
		},
		"ends half-way": func(context.Context, digest.Digest, int64) (*Blob, error) {
			return &Blob{Size: size, Body: io.NopCloser(bytes.NewReader(data[:size/2]))}, nil
		},
		"trickles":           endless(1, time.Second, false),
		"trickles a part":    endless(1, time.Second, true),
		"sends nothing":      endless(0, time.Hour, false),
		"is slow, and lies":  endless(1<<20, time.Second, false),
		"is hung":            nil,
		"cannot be reached":  nil,
		"sends to few alone": nil,
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 4, func(c *testCluster, agents []*testMachine) {
				d := digest.FromBytes(data)
				for _, bad := range agents[:2] {
					bad.store.announced = []digest.Digest{d}
					bad.store.serve = serve
					switch name {
					case "is hung":
						bad.stuck = true
					case "cannot be reached":
						bad.unreachable = true
					case "sends to few alone":
						bad.store.serve = nil
						bad.store.put(data)
						for range maxUploads {
							bad.server.uploads <- struct{}{}
						}
					}
				}
				start := time.Now()
				testenv.NoError(t, agents[3].pull(c.t.Context(), d, data))
				alone := c.line * time.Duration(size/1024)
				testenv.True(t, time.Since(start) <= alone+budget+10*time.Millisecond, "the pull took %v, alone it takes %v", time.Since(start), alone)
				testenv.True(t, bytes.Equal(agents[3].store.blobs[d], data), "it has other bytes")
			})
		})
	}
}

// trickle sends zeros, chunk by chunk.
type trickle struct {
	ctx   context.Context
	chunk int
	pause time.Duration
	left  int64
}

func (r *trickle) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	timer := time.NewTimer(r.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
	n := min(r.chunk, len(p), int(r.left))
	clear(p[:n])
	r.left -= int64(n)
	return n, nil
}
func (r *trickle) Close() error { return nil }

// TestLiarIsBarred: a machine that sent something else is not asked for ten minutes, whatever it claims to have, and
// then it is asked again.
func TestLiarIsBarred(t *testing.T) {
	inCluster(t, 3, func(c *testCluster, agents []*testMachine) {
		first, second := randomBlob(4, 1<<20), randomBlob(5, 1<<20)
		liar, asker := agents[0], agents[1]
		asked := 0
		liar.store.announced = []digest.Digest{digest.FromBytes(first), digest.FromBytes(second)}
		liar.store.serve = func(_ context.Context, _ digest.Digest, offset int64) (*Blob, error) {
			asked++
			return &Blob{Size: 1 << 20, Body: io.NopCloser(bytes.NewReader(make([]byte, 1<<20-offset)))}, nil
		}
		testenv.NoError(t, asker.pull(c.t.Context(), digest.FromBytes(first), first))
		testenv.Equal(t, asker.counters.Refused.Load(), int64(1), "refused blobs are")
		testenv.NoError(t, asker.pull(c.t.Context(), digest.FromBytes(second), second))
		testenv.Equal(t, asked, 1, "a barred machine was asked")
		time.Sleep(barredFor) // in virtual time
		third := randomBlob(6, 1<<20)
		agents[2].store.put(third)
		testenv.NoError(t, asker.pull(c.t.Context(), digest.FromBytes(third), third))
		testenv.Equal(t, len(asker.client.barredNow()), 0, "barred machines are")
	})
}

// TestNextMachineGoesOn: where a machine ends in the middle, another one goes on from there.
func TestNextMachineGoesOn(t *testing.T) {
	inCluster(t, 3, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(7, 4<<20)
		d := agents[0].store.put(data)
		agents[1].store.announced = []digest.Digest{d}
		agents[1].store.serve = func(_ context.Context, _ digest.Digest, offset int64) (*Blob, error) {
			return &Blob{Size: int64(len(data)), Body: io.NopCloser(newBytesFrom(data[:min(offset+1<<20, int64(len(data)))], offset))}, nil
		}
		testenv.NoError(t, agents[2].pull(c.t.Context(), d, data))
		testenv.Equal(t, c.outside.Load(), int64(0), "bytes from outside are")
		testenv.Equal(t, agents[2].counters.Peers.Bytes.Load(), int64(len(data)), "bytes of peers are")
	})
}

// TestThroughServer: a machine that only servers reach passes its blobs on through one.
func TestThroughServer(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(8, 3<<20)
		agents[0].apart = true
		d := agents[0].store.put(data)
		testenv.NoError(t, agents[1].pull(c.t.Context(), d, data))
		testenv.Equal(t, c.outside.Load(), int64(0), "bytes from outside are")
	})
}

// TestServersThatDoNotAnswer: a pull goes on without servers, and with the one that answers.
func TestServersThatDoNotAnswer(t *testing.T) {
	for name, broken := range map[string]func(*testMachine){
		"hung":        func(m *testMachine) { m.stuck = true },
		"unreachable": func(m *testMachine) { m.unreachable = true },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
				data := randomBlob(9, 1<<20)
				d := agents[0].store.put(data)
				broken(c.machines["server"])
				start := time.Now()
				testenv.NoError(t, agents[1].pull(c.t.Context(), d, data))
				testenv.Equal(t, c.outside.Load(), int64(len(data)), "without servers, bytes from outside are")
				testenv.True(t, time.Since(start) <= c.line*(1<<10)+budget, "it took %v", time.Since(start))
				for _, name := range []string{"second", "third"} {
					c.add(name, true)
				}
				other := randomBlob(10, 1<<20)
				d = agents[0].store.put(other)
				agents[0].store.announced = nil
				testenv.NoError(t, agents[1].pull(c.t.Context(), d, other))
				testenv.Equal(t, c.outside.Load(), int64(len(data)), "with two more servers, bytes from outside are")
			})
		})
	}
}

// TestAskersGetOnlyEarlierOnes: an asker gets only machines that asked before it did, so no ring of machines waits.
func TestAskersGetOnlyEarlierOnes(t *testing.T) {
	nodes := map[string]any{}
	for i := range 20 {
		nodes[fmt.Sprint(i)] = i
	}
	tr := newTracker(func() map[string]any { return nodes }, func(context.Context, string) ([]uint64, error) { return nil, nil })
	r := rand.New(rand.NewPCG(1, 1))
	d := digest.FromString("blob")
	position := map[string]int{}
	for range 1000 {
		asker := fmt.Sprint(r.IntN(20))
		if _, asked := position[asker]; !asked {
			position[asker] = len(position)
		}
		for _, found := range tr.find(t.Context(), asker, d, nil) {
			at, asked := position[found]
			testenv.True(t, asked && at < position[asker], "%s, number %d, is to wait for %s, number %d", asker, position[asker], found, at)
		}
	}
}

// TestTrackerForgets: machines that are gone are not named, those that connect again are asked again, and the record of
// questions is bounded.
func TestTrackerForgets(t *testing.T) {
	d := digest.FromString("blob")
	nodes, learned := map[string]any{"a": 1}, 0
	tr := newTracker(func() map[string]any { return nodes }, func(context.Context, string) ([]uint64, error) {
		learned++
		return []uint64{prefix(d)}, nil
	})
	find := func() []string { return tr.find(t.Context(), "b", d, nil) }
	testenv.Equal(t, fmt.Sprint(find(), find(), learned), "[a] [a] 1", "a machine that has it")
	nodes = map[string]any{"a": 2}
	testenv.Equal(t, fmt.Sprint(find(), learned), "[a] 2", "it has connected again")
	nodes = map[string]any{}
	testenv.Equal(t, fmt.Sprint(find(), tr.machines["a"] == nil), "[] true", "it is gone")
	for i := range 2 * maxAsked {
		tr.find(t.Context(), "b", digest.FromString(fmt.Sprint(i)), nil)
	}
	testenv.Equal(t, len(tr.machines["b"].asked), maxAsked, "questions that are kept are")
}

// TestTrackerIsSmall: what a server keeps of 200 machines with 200 blobs each is less than a megabyte.
func TestTrackerIsSmall(t *testing.T) {
	nodes := map[string]any{}
	for i := range 200 {
		nodes[fmt.Sprintf("node-%d.example.org", i)] = i
	}
	tr := newTracker(func() map[string]any { return nodes }, func(context.Context, string) (have []uint64, _ error) {
		for range 200 {
			have = append(have, rand.Uint64())
		}
		return have, nil
	})
	heap := func() uint64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	tr.find(t.Context(), "asker", digest.FromString("blob"), nil)
	after := heap()
	runtime.KeepAlive(tr)
	testenv.True(t, after < before+1<<20, "it keeps %d bytes", after-before)
	t.Logf("%d bytes", after-before)
}

// TestRangesAreChecked: what is no range from an offset on is refused.
func TestRangesAreChecked(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "bytes=0-": 0, "bytes=17-": 17, "bytes=-5": -1, "bytes=5-9": -1, "bytes=--": -1, "17-": -1, "bytes=x-": -1} {
		got, err := parseRange(text)
		if want < 0 {
			testenv.True(t, err != nil, "%q is accepted as %d", text, got)
			continue
		}
		testenv.NoError(t, err)
		testenv.Equal(t, got, want, "%q", text)
	}
}
