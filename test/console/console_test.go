//go:build e2e

// SPDX-License-Identifier: Apache-2.0

// Package console drives the web console by keys alone, in Debian's chromium, against a real cluster.
package console

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { harness.Main(m) }

const workload = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: talker, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: talker}}
  template:
    metadata: {labels: {app: talker}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: box
        image: ` + harness.BoxImage + `
        imagePullPolicy: Never
        command: [sh, -c, 'echo a line of $HOSTNAME; exec testbox hold']
---
apiVersion: v1
kind: Pod
metadata: {name: broken, namespace: default}
spec:
  containers: [{name: box, image: none.example/none, imagePullPolicy: Never}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: default}
data: {greeting: hello}
`

// page is a tab of a browser that runs on a machine.
type page struct {
	*harness.Kube
	ctx context.Context

	mu         sync.Mutex
	violations []string // of the content security policy, and errors of the page
}

// do runs steps one after the other.
func (p *page) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.shot("failed")
		p.T.Fatalf("%s: %v; the page has:\n%s", what, err, p.text())
	}
}

// text is what the page shows.
func (p *page) text() string {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	out, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
	if err != nil {
		return err.Error()
	}
	return out
}

// keys presses keys: text, or the names of kb.
func (p *page) keys(keys ...string) {
	p.T.Helper()
	for _, text := range keys {
		p.do("pressing "+text, chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			for _, r := range text {
				if err := press(ctx, t, r); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

// press presses a key as a person does: a page that takes the key keeps it from becoming text. (chromedp's own way
// sends the text apart.)
func press(ctx context.Context, t *chromedp.Target, r rune) error {
	var text string
	events := kb.Encode(r)
	for _, e := range events {
		text += e.Text
	}
	for _, e := range events {
		switch e.Type {
		case input.DispatchKeyEventTypeChar:
			continue
		case input.DispatchKeyEventTypeRawKeyDown, input.DispatchKeyEventTypeKeyDown:
			e.Type, e.Text = input.DispatchKeyEventTypeKeyDown, text
		}
		if _, err := cdp.Call(ctx, t, input.DispatchKeyEvent, *e); err != nil {
			return err
		}
	}
	return nil
}

// shows waits until the page shows each of some texts.
func (p *page) shows(texts ...string) {
	p.T.Helper()
	for _, text := range texts {
		harness.Eventually(p.T, time.Minute, "the page shows "+text, func() error {
			if now := p.text(); !strings.Contains(now, text) {
				return fmt.Errorf("it has:\n%s", now)
			}
			return nil
		})
	}
}

// without waits until the page does not show a text.
func (p *page) without(text string) {
	p.T.Helper()
	harness.Eventually(p.T, time.Minute, "the page does not show "+text, func() error {
		if now := p.text(); strings.Contains(now, text) {
			return fmt.Errorf("it has:\n%s", now)
		}
		return nil
	})
}

// shot keeps a picture of the page in the folder of CORACLE_TEST_SHOTS.
func (p *page) shot(name string) {
	folder := os.Getenv("CORACLE_TEST_SHOTS")
	if folder == "" {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, name+".png"), picture, 0o644)
	}
	if err != nil {
		p.T.Logf("no picture of %s: %v", name, err)
	}
}

var link = regexp.MustCompile(`http://127\.0\.0\.1:\d+/#code=\S+`)

// openConsole starts coracle console on the machine and returns its link.
func openConsole(k *harness.Kube) string {
	cmd := k.Machine.Command(k.T.Context(), k.Machine.Coracle(), "console", "--no-open", "--kubeconfig", k.Kubeconfig)
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.T.Fatal(err)
	}
	k.T.Cleanup(func() { _ = cmd.Wait() }) // the context has ended it
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if found := link.FindString(lines.Text()); found != "" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return found
		}
	}
	k.T.Fatal("coracle console printed no link")
	return ""
}

// browse opens a browser on the machine.
func browse(k *harness.Kube, url string, width, height int, more ...chromedp.ExecAllocatorOption) *page {
	k.T.Helper()
	program, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		testenv.Missing(k.T, testenv.Chromium, "chromium-headless-shell is not installed: packaging/deps.sh browser")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.UserDataDir(filepath.Join(k.Machine.Dir, "browser")), chromedp.WindowSize(width, height),
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) { // on the machine, beside its servers
			c := k.Machine.Command(context.Background(), cmd.Path, cmd.Args[1:]...)
			cmd.Path, cmd.Args, cmd.Env = c.Path, c.Args, c.Env
		}),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(options, more...)...)
	ctx, cancel := chromedp.NewContext(allocator)
	p := &page{Kube: k, ctx: ctx}
	k.T.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			k.T.Logf("closing the browser: %v", err)
		}
		cancel()
		stop()
	})
	if err := chromedp.Listen(ctx, func(event any) {
		if e, isLog := event.(*log.EventEntryAdded); isLog && (strings.Contains(e.Entry.Text, "Content Security Policy") || e.Entry.Level == "error") {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.violations = append(p.violations, e.Entry.Text)
		}
	}); err != nil {
		k.T.Fatal(err)
	}
	p.do("opening the console", chromedp.Navigate(url))
	return p
}

// TestKeysAlone goes through the console's views and actions without a mouse.
func TestKeysAlone(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer()
	images := filepath.Join(s.DataDir, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.WriteBoxImage(t, filepath.Join(images, "box.tar.gz"))
	s.Start()
	s.WaitReady()
	k := s.In(t)
	k.Await(harness.Soon, "serviceaccount/default", "{.metadata.name}", "default")
	k.Apply(workload)
	k.Kubectl("rollout", "status", "deployment/talker", "--timeout=120s")
	k.Await(harness.Soon, "pod/broken", "{.status.containerStatuses[0].state.waiting.reason}", "ErrImageNeverPull")

	p := browse(k, openConsole(k), 1280, 800)
	p.shows("broken", "ErrImageNeverPull")
	p.shot("overview")

	p.keys(":", "po default", kb.Enter)
	p.shows("talker-", "Running", "broken")
	p.shot("pods")
	p.keys("/", "talker", kb.Enter)
	p.without("broken")

	p.keys("g", "l")
	p.shows("a line of talker-")
	p.shot("log")
	p.keys(kb.Escape)
	p.shows("talker-")

	p.keys("g", "s")
	p.shows("#")
	p.keys("echo an$((40+2))swer", kb.Enter)
	p.shows("an42swer")
	p.shot("shell")
	p.keys("exit 3", kb.Enter)
	p.shows("exit code 3")
	p.keys(kb.Escape)
	p.shows("pods", "Ready")

	p.keys(":", "cm default", kb.Enter)
	p.shows("words")
	p.keys("/", "words", kb.Enter, "g", "y")
	p.shows("greeting: hello")
	p.shot("yaml")
	p.keys(kb.Escape)

	p.keys(":", "deploy default", kb.Enter)
	p.shows("talker", "2/2")
	p.keys("g", "d")
	p.shows("Conditions")
	p.keys(kb.Escape)

	// The server is killed and comes back: the list goes on by itself.
	p.keys(":", "po default", kb.Enter)
	p.shows("broken")
	s.Kill()
	s.Start()
	s.WaitReady()
	k.Kubectl("delete", "pod", "broken", "--wait=false")
	p.without("broken")

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.violations {
		if !strings.Contains(v, "Failed to load resource") { // the server was killed
			t.Errorf("the browser says: %s", v)
		}
	}
}
