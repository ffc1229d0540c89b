// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
)

// serveUntil answers each connection with a name until stop, which returns when the one that is being answered is.
func serveUntil(t *testing.T, in netns.Doer, name, addr string) (stop func()) {
	t.Helper()
	var l net.Listener
	if err := in.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s somebody\n", name)
			c.Close()
		}
	}()
	return func() {
		l.Close()
		<-done
	}
}

const (
	// askerPace is how long after one connection of an asker's the next one begins: the processor is for what is
	// tested.
	askerPace = 20 * time.Millisecond
	// askerWindow is how many answers tell who may be asked. IPVS gives the connections of an address to two endpoints
	// in turn, from whichever client they come, so that of any two that follow one another each endpoint has one; one
	// client may get the same endpoint each time where another one connects as often, so what counts is the answers of
	// all. nftables draws: with three askers it passes over an endpoint by chance once in 2^30.
	askerWindow = 10
)

// asker connects to an address again and again, one connection after the other, and keeps who answered.
type asker struct {
	from netns.Doer
	addr string

	mu      sync.Mutex
	answers []string // empty: there was no answer
	failed  []error
}

// run ends with stop. A connection is given up when it is refused, or after a minute, which no machine is busy for.
func (a *asker) run(stop <-chan struct{}) {
	pace := time.NewTicker(askerPace)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return
		case <-pace.C:
		}
		server := ""
		err := a.from.Do(func() error {
			c, err := net.DialTimeout("tcp", a.addr, time.Minute)
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
			line, err := bufio.NewReader(c).ReadString('\n')
			server, _, _ = strings.Cut(line, " ")
			return err
		})
		a.mu.Lock()
		a.answers = append(a.answers, server)
		if err != nil {
			a.failed = append(a.failed, err)
		}
		a.mu.Unlock()
	}
}

// asked is how many connections have ended.
func (a *asker) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answers)
}

// latest are the last answers, as many as a window has.
func (a *asker) latest() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.answers[max(0, len(a.answers)-askerWindow):])
}

// askers are all who connect to a Service.
type askers []*asker

// hear waits until the latest answers at each address are as they should be.
func (all askers) hear(t *testing.T, what string, right func(latest []string) bool) {
	t.Helper()
	eventually(t, what, func() error {
		at := map[string][]string{}
		for _, a := range all {
			latest := a.latest()
			if len(latest) < askerWindow {
				return fmt.Errorf("at %s %q answered", a.addr, latest)
			}
			at[a.addr] = append(at[a.addr], latest...)
		}
		for addr, latest := range at {
			if !right(latest) {
				return fmt.Errorf("at %s %q answered", addr, latest)
			}
		}
		return nil
	})
}

// goOn waits until each has begun a connection, and ended it.
func (all askers) goOn(t *testing.T) {
	t.Helper()
	for _, a := range all {
		before := a.asked()
		eventually(t, "connections to "+a.addr+" go on", func() error {
			if now := a.asked(); now < before+2 {
				return fmt.Errorf("%d, and %d before", now, before)
			}
			return nil
		})
	}
}

// testRollingUpdate has one endpoint replaced by another one, again and again, each of which serves until all
// connections go to the other: none fails.
func testRollingUpdate(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.port = 9090
	b.service(t, nil)
	stopServing := map[string]func(){one: serveUntil(t, b.pods[one], one, ":9090")}
	defer func() {
		for _, stop := range stopServing {
			stop()
		}
	}()
	b.put(services.At(one, "n1", "rs"))
	all := askers{{from: b.outside, addr: clusterIP + ":80"}, {from: b.outside, addr: nodeAddr + ":30080"}, {from: here{}, addr: clusterIP + ":80"}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	for _, a := range all {
		only(t, a.from, a.addr, one)
		wg.Go(func() { a.run(stop) })
	}
	old, next := one, two
	for range 6 {
		stopServing[next] = serveUntil(t, b.pods[next], next, ":9090")
		b.put(services.At(old, "n1", "rs"), services.At(next, "n1", "rs"))
		all.hear(t, next+" answers, too", func(latest []string) bool { return slices.Contains(latest, next) })
		b.put(services.At(old, "n1", "nst"), services.At(next, "n1", "rs"))
		all.hear(t, next+" alone answers", func(latest []string) bool { return len(slices.Compact(latest)) == 1 && latest[0] == next })
		stopServing[old]()
		delete(stopServing, old)
		b.put(services.At(next, "n1", "rs"))
		all.goOn(t)
		old, next = next, old
	}
	end()
	for _, a := range all {
		t.Logf("%d connections to %s", len(a.answers), a.addr)
		if n := len(a.failed); n > 0 {
			t.Errorf("%d connections of %d to %s failed, the first one: %v", n, len(a.answers), a.addr, a.failed[0])
		}
	}
}
