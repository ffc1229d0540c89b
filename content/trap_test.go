// SPDX-License-Identifier: Apache-2.0

package content

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestBadMachineCostsAPullOnce: a machine that does not answer, or answers slowly, claims all layers of an image. It
// costs the first one time, and the others none.
func TestBadMachineCostsAPullOnce(t *testing.T) {
	for name, prepare := range map[string]func(*testMachine){
		"is stuck": func(m *testMachine) { m.stuck = true },
		"trickles": func(m *testMachine) {
			m.store.serve = func(ctx context.Context, _ digest.Digest, offset int64) (*Blob, error) {
				return &Blob{Size: 1 << 20, Body: &trickle{ctx: ctx, chunk: 1000, pause: time.Second, left: 1<<20 - offset}}, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
				bad, asker := agents[0], agents[1]
				var layers [][]byte
				for i := range 10 {
					layers = append(layers, randomBlob(uint64(100+i), 1<<20))
					bad.store.announced = append(bad.store.announced, digest.FromBytes(layers[i]))
				}
				asker.pullsOutside(t, randomBlob(99, 1000)) // the server learns what there is
				prepare(bad)
				start := time.Now()
				for _, data := range layers {
					asker.pullsOutside(t, data)
				}
				alone := 10 * c.line * (1 << 10)
				testenv.True(t, time.Since(start) <= alone+budget, "ten layers took %v, alone they take %v", time.Since(start), alone)
			})
		})
	}
}

// pullsOutside pulls a blob that no machine has in truth.
func (m *testMachine) pullsOutside(t *testing.T, data []byte) {
	t.Helper()
	before := m.c.outside.Load()
	testenv.NoError(t, m.pull(m.c.t.Context(), digest.FromBytes(data), data))
	testenv.Equal(t, m.c.outside.Load()-before, int64(len(data)), "bytes from outside are")
}

// pullsInside pulls a blob that another machine sends.
func (m *testMachine) pullsInside(t *testing.T, data []byte) {
	t.Helper()
	before := m.c.outside.Load()
	testenv.NoError(t, m.pull(m.c.t.Context(), digest.FromBytes(data), data))
	testenv.Equal(t, m.c.outside.Load()-before, int64(0), "bytes from outside are")
}

// impersonate lets another handler answer at a machine.
func (m *testMachine) impersonate(h http.HandlerFunc) {
	m.stop()
	m.listener = make(pipeListener)
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(&plainListener{Listener: m.listener, open: connlimit.Table{Max: maxConns}}) // it ends with the test
	}()
	m.stop = func() { cancel(); close(m.listener); <-ended; _ = server.Close() }
}

// TestAnswersOfAFalseMachine: no response to a request for a blob takes more of a pull's time than others, or more than
// the blob's size.
func TestAnswersOfAFalseMachine(t *testing.T) {
	data := randomBlob(20, 1<<20)
	wait := func(r *http.Request, d time.Duration) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"leads to itself, slowly": func(w http.ResponseWriter, r *http.Request) {
			testenv.Equal(t, r.URL.RawQuery, "", "a redirection is followed:")
			wait(r, 1900*time.Millisecond)
			http.Redirect(w, r, r.URL.Path+"?again", http.StatusFound)
		},
		"an interim response after the other": func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				w.WriteHeader(http.StatusEarlyHints)
				wait(r, time.Second)
			}
		},
		"no length": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
		"another status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
		"busy for ever":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"unknown here":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"long headers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", string(bytes.Repeat([]byte("x"), 64<<10)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
				agents[0].store.announced = []digest.Digest{digest.FromBytes(data)}
				agents[1].pullsOutside(t, randomBlob(21, 1000)) // the server learns what there is
				agents[0].impersonate(answer)
				start := time.Now()
				agents[1].pullsOutside(t, data)
				alone := c.line * (1 << 10)
				testenv.True(t, time.Since(start) <= alone+budget+10*time.Millisecond, "it took %v, alone %v", time.Since(start), alone)
			})
		})
	}
}

// TestAnswersOfAFalseServer: what a server says about who has a blob costs a pull no more than a bad machine does.
func TestAnswersOfAFalseServer(t *testing.T) {
	data := randomBlob(22, 1<<20)
	for name, answer := range map[string]string{
		"the asker itself":                 `{"nodes":["agent-1"]}`,
		"machines of no name":              `{"nodes":["", "/", "a/b?c", "agent-0:1", "[::1]"]}`,
		"unknown machines":                 `{"nodes":["x1","x2","x3","x4","x5","x6","x7","x8","x9","x10","x11"]}`,
		"a machine without it":             `{"nodes":["agent-0","agent-0","agent-0"]}`,
		"no JSON":                          `{"nodes":`,
		"another form":                     `{"nodes":{"agent-0":true}}`,
		"nothing":                          ``,
		"other unknown machines each time": `{"nodes":["COUNT"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
				asked := 0
				c.machines["server"].impersonate(func(w http.ResponseWriter, _ *http.Request) {
					asked++
					_, _ = io.WriteString(w, strings.ReplaceAll(answer, "COUNT", fmt.Sprint("x", asked)))
				})
				start := time.Now()
				agents[1].pullsOutside(t, data)
				alone := c.line * (1 << 10)
				testenv.True(t, time.Since(start) <= alone+budget+10*time.Millisecond, "it took %v, alone %v", time.Since(start), alone)
			})
		})
	}
}

// TestNodeIsNoServer: a node that answers in the place of a server is not asked who has a blob.
func TestNodeIsNoServer(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		c.servers = []string{"agent-0"}
		asked := false
		agents[0].impersonate(func(w http.ResponseWriter, _ *http.Request) {
			asked = true
			_, _ = io.WriteString(w, `{"nodes":["agent-0"]}`)
		})
		_, err := agents[1].client.ask(c.t.Context(), "agent-0", findTimeout, []byte("{}"))
		testenv.True(t, err != nil && asked, "a node's answer counts as a server's")
	})
}

// TestServerThatDoesNotAnswerIsAskedLast: it costs the first of many layers time, where another server answers.
func TestServerThatDoesNotAnswerIsAskedLast(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		c.add("second", true)
		var layers [][]byte
		for i := range 20 {
			layers = append(layers, randomBlob(uint64(200+i), 1000))
			agents[0].store.put(layers[i])
		}
		c.machines["server"].stuck = true
		start := time.Now()
		for _, data := range layers {
			agents[1].pullsInside(t, data)
		}
		testenv.True(t, time.Since(start) <= findTimeout, "20 layers took %v", time.Since(start))
	})
}

// TestUnreachableMachineCostsOneDial: a machine that does not take connections from here is asked through a server, and
// its other layers at once.
func TestUnreachableMachineCostsOneDial(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		dials := 0
		dial := agents[1].client.o.Dial
		agents[1].client.direct = newHTTPClient(func(ctx context.Context, node string) (net.Conn, error) {
			if node == "agent-0" {
				dials++
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, node)
		})
		start := time.Now()
		for i := range 10 {
			data := randomBlob(uint64(300+i), 1000)
			agents[0].store.put(data)
			if i == 0 {
				agents[1].pullsInside(t, data)
				continue
			}
			time.Sleep(learnedFor) // in virtual time
			start = start.Add(learnedFor)
			agents[1].pullsInside(t, data)
		}
		testenv.True(t, dials == 1 && time.Since(start) <= dialTimeout, "%d dials, %v", dials, time.Since(start))
		agents[1].client.Close()
	})
}

// TestContentThatComesLater: what a machine gets by an import, and not by a pull, is found a moment later.
func TestContentThatComesLater(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		agents[1].pullsOutside(t, randomBlob(30, 1000)) // the server learns what there is
		data := randomBlob(31, 1000)
		agents[0].store.put(data)
		time.Sleep(learnedFor) // in virtual time
		agents[1].pullsInside(t, data)
	})
}

// TestLostContentIsFetchedFromLaterOnes: the first machine that had a blob has deleted it. It gets it from those that
// got it from it.
func TestLostContentIsFetchedFromLaterOnes(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(32, 1000)
		agents[0].pullsOutside(t, data)
		agents[1].pullsInside(t, data)
		delete(agents[0].store.blobs, digest.FromBytes(data))
		time.Sleep(positionFor + time.Second) // in virtual time
		agents[0].pullsInside(t, data)
	})
}

// TestHoldersThatLostABlobWaitForNoLaterOne: a machine is known to have a blob, has deleted it and asks for it. One
// that asked before it must not get its name any more: both would wait.
func TestHoldersThatLostABlobWaitForNoLaterOne(t *testing.T) {
	d := digest.FromString("blob")
	nodes := map[string]any{"a": 1, "b": 2, "c": 3}
	tr := newTracker(func() map[string]any { return nodes }, func(_ context.Context, node string) ([]uint64, error) {
		if node == "a" {
			return []uint64{prefix(d)}, nil
		}
		return nil, nil
	})
	find := func(asker string, exclude ...string) []string { return tr.find(t.Context(), asker, d, exclude) }
	testenv.Equal(t, fmt.Sprint(find("b")), "[a]", "who has it")
	testenv.Equal(t, fmt.Sprint(find("a")), "[b]", "it is lost, and b has asked earlier")
	testenv.Equal(t, fmt.Sprint(find("b")), "[]", "a waits for b")
	found := find("c")
	slices.Sort(found)
	testenv.Equal(t, fmt.Sprint(found), "[a b]", "a later one may wait for both")
	testenv.Equal(t, fmt.Sprint(find("c", "b")), "[a]", "without an excluded one")
}

// TestMachineThatDoesNotSayWhatItHas: it delays one question, and not those of the next minute.
func TestMachineThatDoesNotSayWhatItHas(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		agents[0].stuck = true
		start := time.Now()
		for i := range 10 {
			agents[1].pullsOutside(t, randomBlob(uint64(400+i), 1000))
		}
		testenv.True(t, time.Since(start) <= learnTimeout+time.Second, "ten questions took %v", time.Since(start))
	})
}

// TestServerStartsAgain: a server that has lost its record learns again what machines have.
func TestServerStartsAgain(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(33, 1000)
		agents[0].pullsOutside(t, data)
		c.machines["server"].stop()
		c.servers = nil
		c.add("server", true)
		agents[1].client.Close() // its connections have ended
		agents[1].pullsInside(t, data)
	})
}

// TestSlowDiskIsNotThePeersFault: a sink that takes long leaves the machine that sends in use.
func TestSlowDiskIsNotThePeersFault(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(34, 2<<20)
		d := agents[0].store.put(data)
		w := agents[1].store.open(d, int64(len(data)))
		defer w.close()
		testenv.NoError(t, agents[1].client.Fetch(c.t.Context(), d, int64(len(data)), slowSink{w}))
		testenv.True(t, bytes.Equal(w.bytes(), data), "it has other bytes")
	})
}

type slowSink struct{ *memoryWriter }

func (s slowSink) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / (100 << 10)) // slower than a machine has to send
	return s.memoryWriter.Write(p)
}

// TestFullDiskEndsAFetch: the error of the sink ends it. No other machine is asked then.
func TestFullDiskEndsAFetch(t *testing.T) {
	inCluster(t, 3, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(35, 2<<20)
		d := agents[0].store.put(data)
		agents[1].store.put(data)
		w := agents[2].store.open(d, int64(len(data)))
		defer w.close()
		err := agents[2].client.Fetch(c.t.Context(), d, int64(len(data)), fullSink{w})
		testenv.True(t, errors.Is(err, errFull) && !errors.Is(err, ErrOutside), "the error is %v", err)
		testenv.Equal(t, len(w.bytes()), 0, "bytes that are left in the sink are")
		testenv.Equal(t, len(agents[2].client.barredNow()), 0, "barred machines are")
	})
}

var errFull = errors.New("no space left on device")

type fullSink struct{ *memoryWriter }

func (s fullSink) Write(p []byte) (int, error) {
	n, _ := s.memoryWriter.Write(p[:len(p)/2])
	return n, errFull
}

// TestMixOfALiarAndOthers: a liar sends a part, and an honest machine the rest. The whole comes from the honest one
// then.
func TestMixOfALiarAndOthers(t *testing.T) {
	inCluster(t, 3, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(36, 4<<20)
		honest, liar, asker := agents[0], agents[1], agents[2]
		d := digest.FromBytes(data)
		honest.store.announced = []digest.Digest{d}
		liar.store.announced = []digest.Digest{d}
		first := true
		for _, m := range []*testMachine{honest, liar} {
			m.store.serve = func(_ context.Context, _ digest.Digest, offset int64) (*Blob, error) {
				from := data
				if m == liar {
					from = randomBlob(37, len(data))
				}
				end := int64(len(data))
				if m == liar || first { // so that both send a part, in either order
					end = min(offset+1<<20, end)
				}
				first = false
				return &Blob{Size: int64(len(data)), Body: io.NopCloser(newBytesFrom(from[:end], offset))}, nil
			}
		}
		testenv.NoError(t, asker.pull(c.t.Context(), d, data))
		testenv.True(t, bytes.Equal(asker.store.blobs[d], data), "it has other bytes")
		testenv.True(t, slices.Contains(asker.client.barredNow(), "agent-1"), "the liar is not barred: %v", asker.client.barredNow())
	})
}

// TestPassedOnLieBarsForAMinute: a machine passed on what it was receiving from a liar. It is innocent, and asked again
// after a minute.
func TestPassedOnLieBarsForAMinute(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(38, 1<<20)
		d := digest.FromBytes(data)
		agents[0].store.announced = []digest.Digest{d}
		agents[0].store.serve = func(_ context.Context, _ digest.Digest, offset int64) (*Blob, error) {
			return &Blob{Size: 1 << 20, Partial: true, Body: io.NopCloser(newBytesFrom(randomBlob(39, 1<<20), offset))}, nil
		}
		agents[1].pullsOutside(t, data)
		testenv.Equal(t, fmt.Sprint(agents[1].client.barredNow()), "[agent-0]", "barred at first")
		time.Sleep(brokenFor) // in virtual time
		testenv.Equal(t, len(agents[1].client.barredNow()), 0, "barred after a minute are")
	})
}

// TestConnectionsOfOneMachineMakeRoom: a machine that holds all connections loses its oldest ones, and others are
// served.
func TestConnectionsOfOneMachineMakeRoom(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(40, 1<<20)
		agents[0].store.put(data)
		var held []net.Conn
		for range maxConns + 50 {
			conn := testenv.Must(c.dial(c.t.Context(), agents[1], "agent-0", false))(t)
			held = append(held, conn)
		}
		agents[1].pullsInside(t, data)
		open := 0
		for _, conn := range held {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				open++
			}
			_ = conn.Close()
		}
		testenv.True(t, open <= maxConns, "%d connections are open", open)
	})
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// TestMachinesThatAreRefused: a machine that is not served gets nothing at all, and the set of digests is for servers.
func TestMachinesThatAreRefused(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(41, 1<<20)
		d := agents[0].store.put(data)
		get := func(path string) int {
			req := testenv.Must(http.NewRequestWithContext(c.t.Context(), http.MethodGet, "https://agent-0"+path, nil))(t)
			answer := testenv.Must(agents[1].client.direct.Do(req))(t)
			testenv.NoError(t, answer.Body.Close())
			return answer.StatusCode
		}
		testenv.Equal(t, get(havePath), http.StatusNotFound, "a node that asks for a set gets")
		testenv.Equal(t, get(blobsPath+d.String()), http.StatusOK, "a node that asks for a blob gets")
		agents[0].server.o.Refuses = func(s *tls.ConnectionState) error {
			if nodeOf(s) == "agent-1" {
				return errors.New("revoked")
			}
			return nil
		}
		testenv.Equal(t, get(blobsPath+d.String()), http.StatusForbidden, "over a connection of before, a revoked node gets")
		agents[1].pullsInside(t, data) // through the server, which does not refuse it
	})
}

// TestWhoIsRefused: a server refuses revoked nodes, an agent those that are no live members.
func TestWhoIsRefused(t *testing.T) {
	inCluster(t, 1, func(c *testCluster, agents []*testMachine) {
		state := func(m *testMachine) *tls.ConnectionState {
			conn := testenv.Must(c.dial(c.t.Context(), agents[0], m.name, false))(t)
			defer conn.Close()
			s := conn.(*tls.Conn).ConnectionState()
			return &s
		}
		node, server := state(agents[0]), state(c.machines["server"])
		members := []gossip.Info{{Name: "agent-0", State: gossip.Alive}}
		agent := NewMachine(MachineOptions{Node: "x", Members: func() []gossip.Info { return members }})
		testenv.NoError(t, agent.refuses(node))
		members[0].State = gossip.Unresponsive
		testenv.True(t, agent.refuses(node) != nil, "a node that is no live member is served")
		testenv.NoError(t, agent.refuses(server))
		members = append(members, gossip.Info{Name: "server", Meta: gossip.Meta{Role: gossip.RoleServer}, State: gossip.Alive})
		for _, own := range []string{"agent-0", "server"} { // a server asks itself, too
			m := NewMachine(MachineOptions{Node: own, Members: func() []gossip.Info { return members }})
			testenv.NoError(t, errors.Join(m.standsFor(server, "server"), m.standsFor(node, "agent-0")))
			testenv.True(t, m.standsFor(server, "agent-0") != nil, "a server is taken for an agent")
		}
		testenv.True(t, agent.refuses(nil) != nil && agent.refuses(&tls.ConnectionState{}) != nil, "a machine without a certificate is served")
	})
}

// TestRateIsForAllUploads: a limit holds for all machines together, and is no reason for a receiver to leave.
func TestRateIsForAllUploads(t *testing.T) {
	inCluster(t, 3, func(c *testCluster, agents []*testMachine) {
		data := randomBlob(42, 4<<20)
		agents[0].store.put(data)
		limited := NewServer(ServerOptions{Source: func() Source { return agents[0].store }, Counters: &agents[0].counters, Rate: 512 << 10})
		agents[0].stop()
		agents[0].listener = make(pipeListener)
		ctx, cancel := context.WithCancel(c.t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = limited.Run(ctx, agents[0].listener) // it ends with the test
		}()
		agents[0].stop = func() { cancel(); close(agents[0].listener); <-ended }
		start := time.Now()
		agents[1].pullsInside(t, data)
		testenv.True(t, time.Since(start) >= 7*time.Second, "4 MiB at 512 KiB/s took %v", time.Since(start))
		testenv.Equal(t, cap(limited.sending), 2, "uploads at a time are")
	})
}

// FuzzAnswers: no message of another machine makes this one panic, or keeps more than its limit.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte("12345678abc"), "bytes=5-", "sha256:00")
	f.Fuzz(func(t *testing.T, set []byte, header, name string) {
		have, err := readHave(&http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(set))})
		testenv.True(t, err == nil && len(have) <= maxHave && len(have) == min(len(set)/8, maxHave), "%d digests of %d bytes, %v", len(have), len(set), err)
		if n, err := parseRange(header); err == nil {
			testenv.True(t, n >= 0, "the offset %d of %q", n, header)
		}
		if d, err := parseDigest(name); err == nil {
			testenv.True(t, d.Validate() == nil && len(d.Encoded()) == 64, "%q is accepted", name)
		}
	})
}
