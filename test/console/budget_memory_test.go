//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestBudgetAtRest measures servers in pairs, one with the console's port and one without, side by side: what they
// take, and what they do in a minute.
func TestBudgetAtRest(t *testing.T) {
	byHand(t, "rest")
	for range setting("PAIRS", 5) {
		var pair [2]*harness.Server
		for i, args := range [][]string{{"--disable-agent"}, {"--disable-agent", "--console-listen", ":" + consolePort}} {
			pair[i] = harness.NewMachine(t).NewServer(args...)
			pair[i].StartAPI()
		}
		time.Sleep(90 * time.Second) // a measurement: until both have settled
		var before, after [2]sample
		for i, s := range pair {
			before[i] = sampleOf(s, 1)
		}
		time.Sleep(time.Minute)  // a measurement
		for i, s := range pair { // both at once: what follows takes seconds
			after[i] = sampleOf(s, 1)
		}
		for i, name := range []string{"without", "with   "} {
			t.Logf("%s: %v; in a minute %v of a processor, %d KB written; load %s", name, sampleOf(pair[i], 5).withHeap(pair[i]),
				after[i].cpu-before[i].cpu, (after[i].written-before[i].written)>>10, load())
		}
		for _, s := range pair {
			testenv.Check(t, s.Stop())
		}
	}
}

// viewers are tabs without a browser.
type viewers struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	address string // ws://HOST:PORT or wss://HOST:PORT
	token   string
}

// watch lists all pods, and reads what changes. It returns when the list is whole.
func (v *viewers) watch(t *testing.T) (leave func()) {
	t.Helper()
	began := time.Now()
	d := websocket.Dialer{
		NetDialContext: v.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a measurement
		Subprotocols: []string{"coracle.console.v1", "coracle.token." + base64.RawURLEncoding.EncodeToString([]byte(v.token))},
	}
	conn, response, err := d.DialContext(t.Context(), v.address+"/ws", nil)
	testenv.NoError(t, err)
	_ = response.Body.Close()
	testenv.NoError(t, conn.WriteJSON(map[string]any{"id": 1, "op": "list", "path": "/api/v1/pods"}))
	whole, done := make(chan int, 1), make(chan struct{})
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
	select {
	case rows := <-whole:
		testenv.True(t, rows >= manyPods, "a viewer has %d rows", rows)
	case <-done:
		t.Fatal("a viewer's connection has ended")
	}
	t.Logf("a viewer has all after %v", time.Since(began).Round(time.Millisecond))
	return func() {
		_ = conn.Close()
		<-done
	}
}

// lines counts what is written to it, and is closed once there are so many.
type lines struct {
	missing int
	whole   chan struct{}
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	if n := bytes.Count(p, []byte("\n")); l.missing > 0 {
		if l.missing -= n; l.missing <= 0 {
			close(l.whole)
		}
	}
	return len(p), nil
}

// kubectlWatch is kubectl in place of a viewer: it lists the same tables, and reads what changes.
func kubectlWatch(t *testing.T, s *harness.Server) (leave func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	cmd := s.KubectlCommand(ctx, "get", "pods", "--all-namespaces", "--watch")
	l := &lines{missing: manyPods, whole: make(chan struct{})}
	cmd.Stdout = l
	testenv.NoError(t, cmd.Start())
	<-l.whole
	return func() {
		stop()
		_ = cmd.Wait() // it was ended
	}
}

// TestBudgetViewers measures a server of 5,000 pods: with the console at rest, with one viewer of all pods, with ten,
// and a minute after they left; and the same with kubectl in the viewers' place, which is the API's own part.
func TestBudgetViewers(t *testing.T) {
	byHand(t, "viewers")
	s := harness.NewMachine(t).NewServer("--disable-agent", "--console-listen", ":"+consolePort)
	s.StartAPI()
	c := client(t, s)
	addPods(t, s, c)
	v := viewers{dial: s.Dial, address: "wss://" + net.JoinHostPort(s.IP, consolePort), token: newToken(s.In(t), "--role", "view")}
	settle := time.Duration(setting("SETTLE", 150)) * time.Second
	trimmed := time.Duration(setting("TRIMMED", 300)) * time.Second // a server gives garbage back every five minutes
	watch := map[string]func() func(){
		"viewers": func() func() { return v.watch(t) },
		"kubectl": func() func() { return kubectlWatch(t, s) },
	}
	for round := range 2 * setting("ROUNDS", 2) {
		who := []string{"viewers", "kubectl"}[round%2]
		time.Sleep(settle) // a measurement
		measure := func(what string) {
			x := sampleOf(s, 10)
			t.Logf("round %d, %-28s %v; load %s", round, what+":", x.withHeap(s), load())
		}
		measure("at rest")
		var leave []func()
		for _, n := range []int{1, 10} {
			for len(leave) < n {
				leave = append(leave, watch[who]())
			}
			measure(fmt.Sprintf("%d %s, at once", n, who))
			time.Sleep(time.Minute) // a measurement
			measure(fmt.Sprintf("%d %s, a minute later", n, who))
			if n == 1 {
				time.Sleep(trimmed) // a measurement
				measure(fmt.Sprintf("%d %s, trimmed", n, who))
			}
		}
		for _, l := range leave {
			l()
		}
		time.Sleep(time.Minute) // a measurement
		measure("a minute after they left")
	}
}

// consolePid is the process of coracle console on a machine.
func consolePid(t *testing.T, m *harness.Machine) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !m.Owns(file) || !strings.HasPrefix(string(text), m.Coracle()+"\x00console\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			return pid
		}
	}
	t.Fatal("coracle console does not run")
	return 0
}

// TestBudgetHandler measures coracle console, a process that has the handler alone: at rest, with one viewer of 5,000
// pods that change, with ten, and a minute after they left. In a server the API's own part comes on top, as for
// kubectl.
func TestBudgetHandler(t *testing.T) {
	byHand(t, "handler")
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent")
	s.StartAPI()
	c := client(t, s)
	addPods(t, s, c)
	ctx, stop := context.WithCancel(t.Context())
	var failed atomic.Int64
	wait := churn(ctx, c, &failed)
	defer wait()
	defer stop()

	address, code, _ := strings.Cut(openConsole(m, s.In(t)), "/#code=")
	web := http.Client{Transport: &http.Transport{DialContext: m.Dial}}
	defer web.CloseIdleConnections()
	response := testenv.Must(web.Post(address+"/login", "application/json", strings.NewReader(`{"code":"`+code+`"}`)))(t)
	defer response.Body.Close()
	var login struct{ Token string }
	testenv.NoError(t, json.NewDecoder(response.Body).Decode(&login))
	v := viewers{dial: m.Dial, address: strings.Replace(address, "http", "ws", 1), token: login.Token}
	pid := consolePid(t, m)
	measure := func(what string) {
		var rss, anonymous []float64
		for range 20 {
			rss = append(rss, proc.StatusMB(pid, "VmRSS:"))
			anonymous = append(anonymous, proc.StatusMB(pid, "RssAnon:"))
			time.Sleep(time.Second) // a measurement
		}
		t.Logf("%-30s RSS %.1f MB (%.1f to %.1f), anonymous %.1f MB; processor %v; load %s", what+":", quantile(rss, 0.5), quantile(rss, 0), quantile(rss, 1), quantile(anonymous, 0.5), cpuOf(pid), load())
	}
	for range setting("ROUNDS", 2) {
		measure("at rest")
		var leave []func()
		for _, n := range []int{1, 10} {
			for len(leave) < n {
				leave = append(leave, v.watch(t))
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
