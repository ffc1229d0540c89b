//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// patience is how long a page may take for what takes a moment, on a machine that has much else to do.
const patience = time.Minute

// page is a tab of a browser.
type page struct {
	T      testing.TB
	ctx    context.Context
	origin string // of the console: each request of the page goes there
	// pressed counts the keys that were pressed, a combination as one.
	pressed int

	mu         sync.Mutex
	violations []string // reports of the content security policy, and errors of the page
	away       []string // requests to anywhere else than origin
}

// do runs steps one after the other.
func (p *page) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.fail("%s: %v", what, err)
	}
}

// fail ends the test with what the page has.
func (p *page) fail(format string, args ...any) {
	p.T.Helper()
	p.shot("failed")
	p.T.Fatalf("%s; the page has:\n%s", fmt.Sprintf(format, args...), p.text())
}

// eval is the value of an expression in the page; a promise is waited for.
func eval[T any](p *page, expression string) T {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	out, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	testenv.NoError(p.T, err, "evaluating %.200s", expression)
	return out
}

// text is what the page shows, and what its editor has.
func (p *page) text() string {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	out, err := chromedp.Run(ctx, chromedp.Evaluate[string](
		`document.body.innerText + "\n" + [...document.querySelectorAll(".editor")].map((e) => e.shadowRoot?.querySelector(".cm-content")?.innerText ?? "").join("\n")`))
	if err != nil {
		return err.Error()
	}
	return out
}

// keys presses keys: text, or the names of kb.
func (p *page) keys(keys ...string) {
	p.T.Helper()
	for _, text := range keys {
		p.pressed += utf8.RuneCountInString(text)
		p.do(fmt.Sprintf("pressing %q", text), chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			for _, r := range text {
				if err := press(ctx, t, r, 0); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

// ctrl presses a key while Ctrl is held.
func (p *page) ctrl(key rune) {
	p.T.Helper()
	p.pressed++
	p.do("pressing Ctrl", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return press(ctx, t, key, int64(kb.ModifierCtrl))
	}))
}

// press presses a key as a person does: a page that takes the key keeps it from becoming text. (chromedp's own way
// sends the text apart.)
func press(ctx context.Context, t *chromedp.Target, r rune, modifiers int64) error {
	var text string
	events := kb.Encode(r)
	for _, e := range events {
		text += e.Text
	}
	for _, e := range events {
		e.Modifiers |= modifiers
		switch e.Type {
		case input.DispatchKeyEventTypeChar:
			continue
		case input.DispatchKeyEventTypeRawKeyDown, input.DispatchKeyEventTypeKeyDown:
			e.Type = input.DispatchKeyEventTypeKeyDown
			if modifiers == 0 {
				e.Text = text
			}
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
		p.until("the page shows "+text, func(now string) bool { return strings.Contains(now, text) })
	}
}

// without waits until the page shows none of some texts.
func (p *page) without(texts ...string) {
	p.T.Helper()
	for _, text := range texts {
		p.until("the page does not show "+text, func(now string) bool { return !strings.Contains(now, text) })
	}
}

// until waits until what the page shows is as it should be.
func (p *page) until(what string, ok func(now string) bool) {
	p.T.Helper()
	deadline := time.Now().Add(patience)
	for !ok(p.text()) {
		if time.Now().After(deadline) {
			p.fail("not within %v: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the page
	}
}

// becomes waits until an expression is true in the page.
func (p *page) becomes(what, expression string) {
	p.T.Helper()
	p.until(what, func(string) bool { return eval[bool](p, expression) })
}

// kindOf is what a list is called, by the short names that these tests use.
var kindOf = map[string]string{
	"po": "pods", "deploy": "deployments", "cm": "configmaps", "svc": "services", "no": "nodes", "ns": "namespaces", "cj": "cronjobs",
	"ev": "events", "crk": "crooks.example.com", "plains": "plains.example.com",
}

// list opens a kind by the line after ":", with a namespace, and waits until the list is there.
func (p *page) list(command string) {
	p.T.Helper()
	p.becomes("no question and no editor is open", `!document.querySelector("dialog, .editor") && !location.hash.startsWith("#/edit")`)
	p.keys(":")
	p.focused(".command-bar input")
	p.keys(command, kb.Enter)
	kind, namespace, _ := strings.Cut(command, " ")
	kind = cmp.Or(kindOf[kind], kind)
	if namespace == "*" {
		namespace = "all namespaces"
	}
	p.until("the list of "+command, func(string) bool {
		return eval[bool](p, fmt.Sprintf(`!document.querySelector(".command-bar") && document.querySelector(".bar h1")?.firstChild.textContent === %q &&
  document.querySelector("#filter").value === "" && document.querySelector("header").innerText.includes(%q) && !!document.querySelector(".problem, .empty, .table .line")`, kind, namespace))
	})
}

// only filters a list until each row has a name, and puts the cursor on the first one.
func (p *page) only(name string) {
	p.T.Helper()
	p.keys("/", name, kb.Enter)
	p.becomes("only "+name+" is in the list", fmt.Sprintf(`{ const rows = [...document.querySelectorAll(".table .line")]; rows.length > 0 && rows.every((r) => r.innerText.includes(%q)) }`, name))
	p.keys("g")
}

// find opens a list and has only one name in it.
func (p *page) find(list, name string) {
	p.T.Helper()
	p.list(list)
	p.only(name)
}

// details opens the object at the cursor.
func (p *page) details() {
	p.T.Helper()
	p.keys("d")
	p.becomes("the object is there", `location.hash.startsWith("#/object/") && !!document.querySelector(".object .facts")`)
}

// back goes back to a list.
func (p *page) back() {
	p.T.Helper()
	p.keys(kb.Escape)
	p.becomes("the list is there", `location.hash.startsWith("#/list/") && !!document.querySelector(".table")`)
}

// focused waits until an element has the keyboard's focus.
func (p *page) focused(selector string) {
	p.T.Helper()
	p.becomes(selector+" has the focus", fmt.Sprintf(`!!document.activeElement?.matches(%q)`, selector))
}

// editor waits until the editor has the focus and a text.
func (p *page) editor(text string) {
	p.T.Helper()
	p.until("the editor has "+text, func(now string) bool {
		return strings.Contains(now, text) && eval[bool](p, `!!document.activeElement?.matches(".editor")`)
	})
}

// replace makes another text of one in the editor, by its own search.
func (p *page) replace(text, with string) {
	p.T.Helper()
	p.ctrl('f')
	p.becomes("the editor's search is open", `!!document.querySelector(".editor").shadowRoot.querySelector(".cm-search")`)
	p.ctrl('a')
	p.keys(text, kb.Enter, kb.Escape)
	p.becomes("the editor's search is closed", `!document.querySelector(".editor").shadowRoot.querySelector(".cm-search")`)
	p.keys(with)
	p.shows(with)
}

// dark makes the system's colours dark or light.
func (p *page) dark(dark bool) {
	p.T.Helper()
	value := "light"
	if dark {
		value = "dark"
	}
	p.do("changing the colours", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}},
		})
		return err
	}))
}

// size makes the window that large.
func (p *page) size(width, height int64) {
	p.T.Helper()
	p.do("changing the size", chromedp.EmulateViewport(width, height))
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

// saysNothing fails for each report of the content security policy, each error of the page but those that are named,
// and each request to anywhere else.
func (p *page) saysNothing(but ...string) {
	p.T.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
said:
	for _, s := range p.violations {
		for _, b := range but {
			if strings.Contains(s, b) {
				continue said
			}
		}
		p.T.Errorf("the browser says: %s", s)
	}
	for _, url := range p.away {
		p.T.Errorf("the page asked for %s, which is not of %s", url, p.origin)
	}
}
