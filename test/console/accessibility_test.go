//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// axeScript is axe-core. The test gives it to the page by the browser's own door, which the content security policy
// does not close.
func axeScript(t testing.TB) string {
	t.Helper()
	script, err := os.ReadFile(os.Getenv("CORACLE_TEST_AXE"))
	if err != nil {
		testenv.Missing(t, testenv.Axe, "%v", err)
	}
	return string(script)
}

// violation is what axe-core finds.
type violation struct {
	ID, Impact, Help string
	Nodes            []struct {
		HTML           string
		FailureSummary string
	}
}

// accessible fails for what keeps people from using the page: each rule of WCAG A and AA, dark and light.
func (p *page) accessible(view, axe string) {
	p.T.Helper()
	if !eval[bool](p, `!!window.axe`) {
		eval[any](p, axe+"\n;undefined")
	}
	for _, dark := range []bool{false, true} {
		p.dark(dark)
		found := eval[[]violation](p, `axe.run(document, {resultTypes: ["violations"], runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}).then((r) =>
  r.violations.map((v) => ({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map((n) => ({html: n.html, failureSummary: n.failureSummary}))})))`)
		for _, v := range found {
			var nodes strings.Builder
			for _, n := range v.Nodes[:min(len(v.Nodes), 4)] {
				fmt.Fprintf(&nodes, "\n  %.300s\n    %s", n.HTML, strings.ReplaceAll(n.FailureSummary, "\n", "\n    "))
			}
			p.T.Errorf("%s (dark: %v): %s, %s: %s; %d elements%s", view, dark, v.ID, v.Impact, v.Help, len(v.Nodes), nodes.String())
		}
	}
	p.dark(false)
}

// TestViewsAreAccessible has axe-core look at each view.
func TestViewsAreAccessible(t *testing.T) {
	axe := axeScript(t)
	k := newServer(t)
	addWorkload(k)
	b := newBrowser(t, k.Machine.Site)

	login := b.open("https://" + k.IP + ":" + consolePort + "/")
	login.shows("Log in with a token")
	login.accessible("login", axe)
	login.keys("abc", kb.Tab, kb.Enter)
	login.shows("does not accept this token")
	login.accessible("login that was refused", axe)
	login.saysNothing("status of 401")

	p := b.admin(k)
	p.shows("broken", "ErrImageNeverPull")
	p.accessible("overview", axe)
	p.keys(":", "po")
	p.shows("pods")
	p.accessible("line of commands", axe)
	p.keys(kb.Escape)
	p.list("po default")
	p.shows("Running")
	p.accessible("list", axe)
	p.keys("g", " ")
	p.shows("1 marked")
	p.accessible("list with a mark", axe)
	p.keys(kb.Escape, ".")
	p.focused(".menu [role=menuitem]")
	p.accessible("menu of actions", axe)
	p.keys(kb.Escape, "?")
	p.shows("A text or regular expression")
	p.accessible("help", axe)
	p.keys(kb.Escape, "n")
	p.focused("dialog input")
	p.accessible("choice of a namespace", axe)
	p.keys(kb.Escape, "x")
	p.shows("Delete pod default/")
	p.accessible("question", axe)
	p.keys(kb.Escape)
	p.keys("/", "no such pod", kb.Enter)
	p.shows("Nothing matches")
	p.accessible("empty list", axe)
	p.keys(kb.Escape)
	p.list("events default")
	p.shows("ErrImageNeverPull")
	p.accessible("events", axe)

	p.find("po default", "talker-")
	p.keys("l")
	p.shows("a line of talker-")
	p.accessible("log", axe)
	p.keys("/", "line", kb.Enter)
	p.accessible("log with a filter", axe)
	p.keys("n")
	p.shows("1 of ")
	p.accessible("log with a match", axe)
	p.keys(kb.Escape)
	p.back()
	p.only("talker-")
	p.keys("s")
	p.shows("#")
	p.accessible("shell", axe)
	p.keys("exit", kb.Enter)
	p.shows("exit code 0")
	p.accessible("shell that has ended", axe)
	p.keys(kb.Escape)
	for _, o := range [][2]string{{"po default", "talker-"}, {"deploy default", "talker"}, {"cm default", "words"}, {"secrets default", "hidden"}, {"svc default", "talker"}, {"no", "node-1"}, {"cj default", "nightly"}} {
		p.find(o[0], o[1])
		p.details()
		p.shows("Created")
		p.accessible("details of "+o[0], axe)
		p.keys("y")
		p.until("the YAML", func(now string) bool {
			return strings.Contains(now, "kind: ") || strings.Contains(now, "hidden until you ask")
		})
		p.accessible("YAML of "+o[0], axe)
		p.keys("v")
		p.accessible("events of "+o[0], axe)
	}

	p.find("svc default", "talker")
	p.details()
	p.keys("m")
	p.shows("What the map shows", "2 endpoints are ready")
	p.accessible("map", axe)
	p.keys(":", "helm", kb.Enter)
	p.shows("No releases.")
	p.accessible("Helm", axe)
	p.keys("Q")
	p.focused(".bar input")
	p.keys("talker")
	p.shows("services", "deployments")
	p.accessible("search", axe)
	p.keys(kb.Escape)

	for _, o := range []struct{ list, name, key, shows string }{
		{"po default", "talker-", "f", "It names no ports of TCP."}, {"po default", "talker-", "b", "Debug container"},
		{"deploy default", "talker", "u", "talker"}, {"deploy default", "talker", "P", "Pause this rollout?"}, {"no", "node-1", "D", "Drain node"},
	} {
		p.find(o.list, o.name)
		p.keys(o.key)
		p.shows(o.shows)
		p.until("the question", func(string) bool { return eval[bool](p, `!!document.querySelector("dialog")`) })
		p.accessible("question of "+o.key, axe)
		p.keys(kb.Escape)
	}

	p.find("po default", "talker-")
	p.keys("A")
	p.shows("Attached to", "reads no input")
	p.accessible("attached", axe)
	p.keys(kb.Escape)

	p.find("cm default", "words")
	p.keys("e")
	p.editor("greeting: hello")
	p.accessible("editor", axe)
	p.replace("greeting: hello", "greeting: good day")
	k.Kubectl("patch", "configmap", "words", "-p", `{"data":{"greeting":"good night","other":"x"}}`)
	p.ctrl(ctrlEnter)
	p.shows("another client has changed the same fields", "Your text as it was")
	p.accessible("conflict", axe)
	p.ctrl(ctrlEnter)
	p.shows("What will change")
	p.accessible("difference", axe)
	p.focused("#edit-apply")
	p.keys(kb.Enter)
	p.shows("words is changed")
	p.accessible("message", axe)
	p.keys("a")
	p.editor("")
	p.keys(`{apiVersion: v1, kind: ConfigMap, metadata: {name: two}}`)
	p.ctrl(ctrlEnter)
	p.shows("The server would accept this")
	p.accessible("create", axe)
	p.keys(kb.Enter)
	p.shows("is applied")
	p.accessible("created", axe)
	p.saysNothing("status of 409", "metrics.k8s.io")
}
