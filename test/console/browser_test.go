//go:build e2e

// SPDX-License-Identifier: Apache-2.0

// Package console drives the web console by keys alone, in Debian's chromium, against a real cluster.
package console

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { harness.Main(m) }

// consolePort is where servers of these tests have the console for browsers of other machines.
const consolePort = "8443"

// newServer starts a server with pods and with a console for browsers of other machines, and waits for it.
func newServer(t testing.TB, args ...string) *harness.Kube {
	t.Helper()
	s := harness.NewMachine(t).NewServer(append([]string{"--console-listen", ":" + consolePort}, args...)...)
	s.AddBoxImage()
	s.StartNode()
	k := s.In(t)
	k.Await(harness.Soon, "serviceaccount/default", "{.metadata.name}", "default")
	return k
}

var link = regexp.MustCompile(`http://127\.0\.0\.1:\d+/#code=\S+`)

// openConsole starts coracle console on a machine of the site, for a user of the server, and returns its link.
func openConsole(m *harness.Machine, k *harness.Kube, args ...string) string {
	config := testenv.Must(os.ReadFile(k.Kubeconfig))(m.T)
	local, remote := "https://127.0.0.1:6443", "https://"+net.JoinHostPort(k.IP, "6443")
	testenv.Require(m.T, strings.Contains(string(config), local), "%s does not name %s", k.Kubeconfig, local)
	kubeconfig := filepath.Join(m.T.TempDir(), "kubeconfig")
	testenv.NoError(m.T, os.WriteFile(kubeconfig, []byte(strings.ReplaceAll(string(config), local, remote)), 0o600))
	cmd := m.Command(m.T.Context(), m.Coracle(), append([]string{"console", "--no-open", "--kubeconfig", kubeconfig}, args...)...)
	out := testenv.Must(cmd.StdoutPipe())(m.T)
	testenv.NoError(m.T, cmd.Start())
	m.T.Cleanup(func() { _ = cmd.Wait() }) // the context has ended it
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if found := link.FindString(lines.Text()); found != "" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return found
		}
	}
	m.T.Fatal("coracle console printed no link")
	return ""
}

// browser is a browser on a machine of its own.
type browser struct {
	t       testing.TB
	machine *harness.Machine
	ctx     context.Context // its first tab's
	// used is whether a page has the first tab.
	used bool
}

// newBrowser starts a browser on a machine of its own, on the site of others. It would give pages up whenever an
// address of its machine comes or goes, which pods of a node do.
func newBrowser(t testing.TB, site *harness.Site, more ...chromedp.ExecAllocatorOption) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		testenv.Missing(t, testenv.Chromium, "chromium-headless-shell is not installed: packaging/deps.sh browser")
	}
	m := site.NewMachine()
	testenv.Until(t, time.Minute, "no address of the browser's machine is tentative", func() bool {
		out, err := m.Command(t.Context(), "ip", "-6", "-o", "address", "show", "tentative").CombinedOutput()
		return err == nil && len(out) == 0
	})
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.UserDataDir(filepath.Join(m.Dir, "browser")), chromedp.WindowSize(1280, 800),
		chromedp.IgnoreCertErrors, // the cluster's authority is not the browser's
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			c := m.Command(context.Background(), cmd.Path, cmd.Args[1:]...)
			cmd.Path, cmd.Args, cmd.Env = c.Path, c.Args, c.Env
		}),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(options, more...)...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("closing the browser: %v", err)
		}
		cancel()
		stop()
	})
	return &browser{t: t, machine: m, ctx: ctx}
}

// watchSockets counts the messages of the page's WebSockets by their types, in __types, before the page sees them.
const watchSockets = `window.__types = {};
window.WebSocket = new Proxy(WebSocket, { construct(target, args) {
  const ws = new target(...args);
  ws.addEventListener("message", (e) => { const t = JSON.parse(e.data).type; __types[t] = (__types[t] ?? 0) + 1; });
  return ws;
} });`

// open opens an address in a tab of its own.
func (b *browser) open(address string) *page {
	b.t.Helper()
	u := testenv.Must(url.Parse(address))(b.t)
	p := &page{T: b.t, ctx: b.ctx, origin: u.Scheme + "://" + u.Host}
	if b.used {
		ctx, cancel := chromedp.NewContext(b.ctx)
		b.t.Cleanup(cancel)
		p.ctx = ctx
	}
	b.used = true
	testenv.NoError(b.t, chromedp.Listen(p.ctx, p.recordEvent))
	p.do("preparing a tab", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := cdp.Call(ctx, t, network.Enable, network.EnableParams{}); err != nil {
			return err
		}
		if _, err := cdp.Call(ctx, t, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: watchSockets}); err != nil {
			return err
		}
		// Each tab is as if it was the one in front.
		_, err := cdp.Call(ctx, t, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
		return err
	}), chromedp.EmulateViewport(1280, 800), chromedp.Navigate(address))
	return p
}

// recordEvent keeps what the browser says of a page.
func (p *page) recordEvent(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if strings.Contains(e.Entry.Text, "Content Security Policy") || e.Entry.Level == "error" {
			p.violations = append(p.violations, e.Entry.Text+" "+e.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		p.violations = append(p.violations, fmt.Sprintf("%s %+v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception))
	case *network.EventRequestWillBeSent:
		p.asked(e.Request.URL)
	case *network.EventWebSocketCreated:
		p.asked(strings.Replace(e.URL, "ws", "http", 1))
	}
}

// asked keeps requests to anywhere else. Data and blobs are of the page itself.
func (p *page) asked(url string) {
	if !strings.HasPrefix(url, p.origin+"/") && !strings.HasPrefix(url, "data:") && !strings.HasPrefix(url, "blob:"+p.origin+"/") {
		p.away = append(p.away, url)
	}
}

// admin opens the console of a machine with its admin's kubeconfig.
func (b *browser) admin(k *harness.Kube, args ...string) *page {
	b.t.Helper()
	p := b.open(openConsole(b.machine, k, args...))
	p.shows("nodes ready")
	return p
}

// newToken makes a token of the console of servers.
func newToken(k *harness.Kube, args ...string) string {
	k.T.Helper()
	cmd := k.Machine.Command(k.T.Context(), k.Machine.Coracle(), append([]string{"console", "token", "--kubeconfig", k.Kubeconfig}, args...)...)
	token := testenv.Must(harness.Output(cmd))(k.T)
	return strings.TrimSpace(token)
}

// login opens the console of a server, and logs in with a token.
func (b *browser) login(s *harness.Server, token string) *page {
	b.t.Helper()
	p := b.open("https://" + net.JoinHostPort(s.IP, consolePort) + "/")
	p.focused("textarea")
	p.keys(token, kb.Tab, kb.Enter)
	p.shows("live")
	p.becomes("the menu has kinds, which ':' knows from then on", `!!document.querySelector("nav a[href^='#/list/']")`)
	return p
}

// downloads lets a tab save files, and returns the folder that they go to.
func (b *browser) downloads(p *page) string {
	p.T.Helper()
	folder := filepath.Join(b.machine.Dir, "downloads")
	testenv.NoError(p.T, os.MkdirAll(folder, 0o755))
	p.do("allowing downloads", chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.CallBrowser(ctx, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{
			Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: folder,
		})
		return err
	}))
	return folder
}
