//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestBudgetAtRest measures servers in pairs, one with the console's port and one without, side by side: what they
// take, and what they do in a minute.
func TestBudgetAtRest(t *testing.T) {
	byHand(t, "rest")
	for range setting("PAIRS", 5) {
		var pair [2]*harness.Server
		for i, args := range [][]string{{"--disable-agent"}, {"--disable-agent", "--console-listen", ":" + consolePort}} {
			pair[i] = harness.NewMachine(t).NewServer(args...)
			pair[i].Start()
			pair[i].WaitAPI()
		}
		time.Sleep(90 * time.Second) // a measurement: until both have settled
		var before, after [2]sample
		for i, s := range pair {
			before[i] = sampleOf(s, 1)
		}
		time.Sleep(time.Minute) // a measurement
		for i, s := range pair {
			after[i] = sampleOf(s, 5).withHeap(s)
		}
		for i, name := range []string{"without", "with   "} {
			t.Logf("%s: %v; in a minute %v of a processor, %d KB written; load %s", name, after[i], after[i].cpu-before[i].cpu,
				(after[i].written-before[i].written)>>10, load())
		}
		for _, s := range pair {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
}

// watchPods is a tab without a browser: it lists all pods, reads what changes, and says when the list is whole.
func watchPods(t *testing.T, s *harness.Server, token string, whole chan<- int) (leave func()) {
	t.Helper()
	d := websocket.Dialer{
		NetDialContext: s.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a measurement
		Subprotocols: []string{"coracle.console.v1", "coracle.token." + base64.RawURLEncoding.EncodeToString([]byte(token))},
	}
	conn, response, err := d.DialContext(t.Context(), "wss://"+net.JoinHostPort(s.IP, consolePort)+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if err := conn.WriteJSON(map[string]any{"id": 1, "op": "list", "path": "/api/v1/pods"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		rows := 0
		for {
			_, text, err := conn.ReadMessage()
			if err != nil {
				return
			}
			var m struct {
				Type string
				Rows []json.RawMessage
			}
			if json.Unmarshal(text, &m) == nil && m.Type == "rows" {
				rows += len(m.Rows)
			} else if m.Type == "synced" {
				whole <- rows
			}
		}
	}()
	return func() {
		_ = conn.Close()
		<-done
	}
}

// TestBudgetViewers measures a server of 5,000 pods: with the console at rest, with one viewer of all pods, with ten,
// and a minute after they left.
func TestBudgetViewers(t *testing.T) {
	byHand(t, "viewers")
	s := harness.NewMachine(t).NewServer("--disable-agent", "--console-listen", ":"+consolePort)
	s.Start()
	s.WaitAPI()
	c := client(t, s)
	addPods(t, s, c)
	token := newToken(s.In(t), "--role", "view")
	settle := time.Duration(setting("SETTLE", 150)) * time.Second
	for round := range setting("ROUNDS", 3) {
		time.Sleep(settle) // a measurement
		measure := func(what string) {
			x := sampleOf(s, 10)
			t.Logf("round %d, %-28s %v; load %s", round, what+":", x.withHeap(s), load())
		}
		measure("at rest")
		time.Sleep(20 * time.Second) // what measuring took
		whole := make(chan int, 10)
		var leave []func()
		for _, n := range []int{1, 10} {
			for len(leave) < n {
				began := time.Now()
				leave = append(leave, watchPods(t, s, token, whole))
				if rows := <-whole; rows < manyPods {
					t.Errorf("a viewer has %d rows", rows)
				}
				t.Logf("viewer %d has all after %v", len(leave), time.Since(began).Round(time.Millisecond))
			}
			measure(fmt.Sprintf("%d viewers, at once", n))
			time.Sleep(time.Minute) // a measurement
			measure(fmt.Sprintf("%d viewers, a minute later", n))
		}
		for _, l := range leave {
			l()
		}
		time.Sleep(time.Minute) // a measurement
		measure("a minute after they left")
	}
}
