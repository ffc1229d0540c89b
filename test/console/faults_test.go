//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/ha"
	"github.com/coracle-k8s/coracle/test/harness"
)

// counting is a pod whose log has a number on each line.
const counting = `
apiVersion: v1
kind: Pod
metadata: {name: counter, namespace: default, labels: {app: counter}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command: [sh, -c, 'i=0; while true; do i=$((i+1)); echo number $i; usleep 20000; done']
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: default}
data: {a: b, c: d}
`

// tabs are a list, a log and an edit that are open while a server dies.
type tabs struct {
	name            string
	list, log, edit *page
	before          map[string]int
}

// openTabs opens them by a way to log in.
func openTabs(name string, open func() *page) *tabs {
	x := &tabs{name: name, list: open(), log: open(), edit: open()}
	x.list.list("cm default")
	x.list.shows("words")
	x.log.list("po default")
	x.log.only("counter")
	x.log.keys("l")
	x.log.shows("number ")
	x.edit.list("cm default")
	x.edit.only("words")
	x.edit.keys("e")
	x.edit.editor("a: b")
	x.before = eval[map[string]int](x.list, `__types`)
	return x
}

var number = regexp.MustCompile(`number (\d+)\n`)

// whole fails unless the log is one of consecutive numbers, up to one that came after.
func (x *tabs) whole(t *testing.T, k *harness.Server, folder string) {
	t.Helper()
	last := func(k *harness.Server) int {
		out, err := k.TryKubectl("logs", "counter", "--tail=1")
		if err != nil {
			return 0
		}
		n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(out), "number ")))
		return n
	}
	var want int
	harness.Eventually(t, harness.Soon, "kubectl reads the log", func() error {
		if want = last(k); want == 0 {
			return fmt.Errorf("no line")
		}
		return nil
	})
	// The browser counts in the name when it has not let go of the file before: "counter (1).log".
	saved := func() string {
		found, _ := filepath.Glob(filepath.Join(folder, "counter*.log"))
		return strings.Join(found, "")
	}
	harness.Eventually(t, harness.Soon, x.name+": the log has gone on", func() error {
		if err := os.RemoveAll(saved()); err != nil {
			return err
		}
		x.log.keys("D")
		harness.Eventually(t, harness.Soon, "the log is saved", func() error { _, err := os.Stat(saved()); return err })
		text, err := os.ReadFile(saved())
		if err != nil {
			return err
		}
		found := number.FindAllSubmatch(text, -1)
		if len(found) == 0 {
			return fmt.Errorf("the file has %.200q", text)
		}
		at := 0
		for i, f := range found {
			n, _ := strconv.Atoi(string(f[1]))
			if i > 0 && n != at+1 {
				t.Fatalf("%s: number %d comes after %d, of %d lines", x.name, n, at, len(found))
			}
			at = n
		}
		if at < want {
			return fmt.Errorf("the last of %d lines is %d, want %d", len(found), at, want)
		}
		return nil
	})
}

// apply applies the edit that was open, by the server that the tab has.
func (x *tabs) apply(t *testing.T) {
	t.Helper()
	x.edit.replace("a: b", "a: "+x.name)
	harness.Eventually(t, harness.Soon, x.name+": the dry run is answered", func() error {
		x.edit.ctrl(ctrlEnter)
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // between two tries: no event says that a leader is there
			if now := x.edit.text(); strings.Contains(now, "What will change") {
				return nil
			} else if strings.Contains(now, "problem") {
				break
			}
		}
		return fmt.Errorf("it has:\n%s", x.edit.text())
	})
	x.edit.focused("#edit-apply")
	x.edit.keys(kb.Enter)
	x.edit.shows("words is changed")
}

// TestLeaderKilled: the server that leads is killed while lists, logs and edits are open, in the console of another
// server and in one whose kubeconfig names that. They go on without a new list, and no line is lost. Tabs of the dead
// server's own console say that the connection is lost, and go on when it is back.
func TestLeaderKilled(t *testing.T) {
	c := ha.NewPrepared(t, 3, 1, func(s *harness.Server) { s.Args = append(s.Args, "--console-listen", ":"+consolePort) })
	k := c.Servers[0].In(t)
	k.Await(harness.Soon, "serviceaccount/default", "{.metadata.name}", "default")
	k.InsistsOn(counting)
	k.Insists("wait", "--for=condition=Ready", "pod/counter", "--timeout=120s")
	c.Lead(c.Servers[0])
	dies, lives := c.Servers[0], c.Servers[1]
	token := newToken(lives.In(t), "--role", "edit")
	b := newBrowser(t, lives.Machine.Site)
	all := []*tabs{
		openTabs("remote", func() *page { return b.login(lives, token) }),
		openTabs("loopback", func() *page { return b.admin(lives.In(t)) }),
		openTabs("dead", func() *page { return b.login(dies, token) }),
	}
	folder := b.downloads(all[0].log)

	began := time.Now()
	dies.Kill()
	all[2].list.shows("connection lost")
	lives.Creates("configmap", "after-the-kill")
	t.Logf("a write is done %v after the kill", time.Since(began).Round(time.Millisecond))
	for _, x := range all[:2] {
		x.list.shows("after-the-kill")
		t.Logf("%s: the list has it %v after the kill", x.name, time.Since(began).Round(time.Millisecond))
	}
	for i, x := range all[:2] {
		if i > 0 { // both began with the same text, and the first has changed it
			lives.Insists("patch", "configmap", "words", "-p", `{"data":{"a":"b"}}`)
		}
		x.apply(t)
		if got := lives.Insists("get", "configmap", "words", "-o", "jsonpath={.data}"); got != `{"a":"`+x.name+`","c":"d"}` {
			t.Errorf("%s: the edit has made %s", x.name, got)
		}
	}
	lives.Insists("patch", "configmap", "words", "-p", `{"data":{"a":"b"}}`)
	dies.Start()
	all[2].list.shows("after-the-kill", "live")
	all[2].apply(t)
	for i, x := range all {
		x.whole(t, lives, folder)
		if i == 2 {
			continue // the server was restarted: how far back its watches go is its store's matter
		}
		after := eval[map[string]int](x.list, `__types`)
		if after["reset"] != 0 || after["rows"] != x.before["rows"] {
			t.Errorf("%s: the list was read again: before %v, after %v", x.name, x.before, after)
		}
		for _, p := range []*page{x.list, x.log, x.edit} {
			p.saysNothing("status of 5") // no leader
		}
	}
}

// TestOldTabSurvivesUpgrade: a tab from before an upgrade asks for parts of the page that the new program does not
// have. It says so, and nothing that was typed is lost.
func TestOldTabSurvivesUpgrade(t *testing.T) {
	k := newServer(t)
	addWorkload(k)
	p := newBrowser(t, k.Machine.Site).admin(k)
	p.find("cm default", "words")
	p.do("refusing parts of the page", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		refuse := func(event any) {
			if e, ok := event.(*fetch.EventRequestPaused); ok {
				go func() { // events wait for this function, and the answer for them
					refusal := fetch.FailRequestParams{RequestID: e.RequestID, ErrorReason: network.ErrorReasonFailed}
					_, _ = cdp.Call(ctx, t, fetch.FailRequest, refusal) // without it the page waits, which the test sees
				}()
			}
		}
		if err := chromedp.Listen(p.ctx, refuse); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, t, fetch.Enable, fetch.EnableParams{Patterns: []*fetch.RequestPattern{{URLPattern: "*/part-*"}}})
		return err
	}))
	p.keys("e")
	p.shows("A part of this page could not be loaded.", "Try again")
	p.shot("old-tab")
	p.saysNothing("ERR_FAILED", "Failed to load resource")
}
