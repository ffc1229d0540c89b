//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// quiet is a namespace of objects that start nothing.
const quiet = `
apiVersion: v1
kind: Namespace
metadata: {name: quiet}
---
apiVersion: v1
kind: Namespace
metadata: {name: many}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: quiet, labels: {app: web, tier: front}}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: box, image: none.example/none}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: old-web, namespace: quiet, labels: {app: web}}
spec:
  replicas: 0
  selector: {matchLabels: {app: old}}
  template: {metadata: {labels: {app: old}}, spec: {containers: [{name: box, image: none.example/none}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: db, namespace: quiet, labels: {app: db}}
spec:
  replicas: 0
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: box, image: none.example/none}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: waits, namespace: quiet}
spec: {nodeSelector: {disk: none}, containers: [{name: box, image: none.example/none}]}
`

// cursor is the name at the cursor of a list, and how far it is scrolled.
func (p *page) cursor() string {
	p.T.Helper()
	return eval[string](p, `{ const t = document.querySelector(".table"), a = document.querySelector(".table .line.active a");
  t && a ? a.textContent + " at " + Math.round(t.scrollTop) : "" }`)
}

// off is why each button of a list's actions is off.
func (p *page) off() []string {
	p.T.Helper()
	return eval[[]string](p, `[...document.querySelectorAll(".tools button[aria-disabled=true]")].map((b) => b.title)`)
}

// quietly fails when a key has asked or opened something.
func (p *page) quietly(key string) {
	p.T.Helper()
	if eval[bool](p, `!!document.querySelector("dialog")`) || !strings.HasPrefix(eval[string](p, `location.hash`), "#/list/") {
		p.fail("%q does something", key)
	}
}

// TestListIsWhatIsSeen: keys and buttons of a list act on rows that are shown, and the list is found again as it was
// left.
func TestListIsWhatIsSeen(t *testing.T) {
	k := newServer(t)
	objects := quiet
	for i := range 60 {
		objects += fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: row-%02d, namespace: many}\n", i)
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		objects += fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: victim-%s, namespace: quiet}\ndata: {a: b}\n", name)
	}
	k.Apply(objects)
	p := newBrowser(t, k.Machine.Site).admin(k)
	for _, part := range []struct {
		name string
		run  func(p *page)
	}{
		{"no row shown", noRowShown},
		{"marks that a filter hides", hiddenMarks},
		{"one object at a time", oneAtATime},
		{"a row that goes", func(p *page) {
			p.find("cm quiet", "victim-d")
			p.keys("x")
			p.shows("kubectl delete configmap victim-d")
			k.Kubectl("-n", "quiet", "delete", "configmap", "victim-d")
			p.until("the row has gone", func(string) bool { return eval[bool](p, `!document.querySelector(".table .line")`) })
			p.shows("kubectl delete configmap victim-d")
			p.keys(kb.Escape)
		}},
		{"the cursor stays", cursorStays},
		{"a filter that was just typed", quickFilter},
		{"sort and columns are in the address", sortInAddress},
		{"the focus after the line of commands", focusAfterCommand},
		{"the filter is what is seen", filterIsSeen},
		{"map and events", mapAndEvents},
		{"names are copied", namesCopied},
		{"the actions that fit", actionsThatFit},
		{"the widths of columns", widths},
		{"the foot", foot},
	} {
		t.Run(part.name, func(t *testing.T) {
			p.T = t
			eval[any](p, `document.querySelector("dialog")?.dispatchEvent(new Event("cancel", {cancelable: true})); document.activeElement?.blur(); location.hash = "#/"`)
			p.shows("nodes ready")
			part.run(p)
		})
	}
	p.T = t
	p.saysNothing("metrics.k8s.io") // of pods without any
}

func noRowShown(p *page) {
	for _, list := range []string{"cm quiet", "deploy quiet"} {
		p.list(list)
		p.keys("j", "/", "nothing-like-this", kb.Enter)
		p.shows("Nothing matches")
		off := p.off()
		buttons := eval[int](p, `document.querySelectorAll(".tools button[aria-disabled]").length`)
		if len(off) == 0 || len(off) != buttons || slices.ContainsFunc(off, func(why string) bool { return !strings.Contains(why, "Nothing is selected") }) {
			p.T.Errorf("of %d buttons of %s over no row, those that are off say %q", buttons, list, off)
		}
		for _, key := range []string{"x", "e", "S", "R"} {
			if list == "cm quiet" && strings.Contains("SR", key) {
				continue
			}
			eval[any](p, `document.querySelectorAll(".message button").forEach((b) => b.click())`)
			p.without("Nothing is selected")
			p.keys(key)
			p.shows("Nothing is selected")
			p.quietly(key)
		}
		for _, key := range []string{"d", "y", kb.Enter, " "} {
			p.keys(key)
			p.quietly(key)
		}
		p.keys(kb.Escape)
		p.without("Nothing matches")
	}
}

func hiddenMarks(p *page) {
	p.list("cm quiet")
	p.keys("/", "victim", kb.Enter)
	p.without("kube-root-ca")
	p.keys("g", "  ")
	p.shows("2 marked")
	p.keys("/")
	p.focused("#filter")
	p.ctrl('a')
	p.keys("victim-c", kb.Enter)
	p.shows("2 marked, 2 hidden by the filter")
	p.keys("x")
	p.shows("Nothing is selected")
	p.quietly("x")
	p.keys("/")
	p.focused("#filter")
	p.ctrl('a')
	p.keys("victim-[bc]", kb.Enter)
	p.shows("2 marked, 1 hidden by the filter")
	p.keys("x")
	p.shows("kubectl delete configmap victim-b")
	p.without("configmap victim-a", "victim-b victim-c")
	p.keys(kb.Escape)
	p.until("no question", func(string) bool { return eval[bool](p, `!document.querySelector("dialog")`) })
	p.keys(kb.Escape)
	p.without("marked")
}

func oneAtATime(p *page) {
	p.list("cm quiet")
	p.keys("g", "  ")
	p.shows("2 marked")
	p.keys("e")
	p.shows("One object at a time")
	p.quietly("e")
	off := p.off()
	if len(off) == 0 || slices.ContainsFunc(off, func(why string) bool { return !strings.Contains(why, "One object at a time") }) {
		p.T.Errorf("with two rows marked, the buttons that are off say %q", off)
	}
	p.keys(kb.Escape)
}

func cursorStays(p *page) {
	p.list("cm many")
	p.shows("row-00")
	p.keys("g", " ")
	p.shows("1 marked") // the note makes the table lower
	p.keys(strings.Repeat("j", 40))
	there := ""
	p.until("the cursor is far down, and the table has stopped to scroll", func(string) bool {
		before := there
		there = p.cursor() // none while the rows below are drawn
		return there == before && there != "" && !strings.HasSuffix(there, " at 0")
	})
	same := func() {
		p.T.Helper()
		p.until("the cursor is again at "+there, func(string) bool { return p.cursor() == there })
		p.shows("1 marked")
	}
	p.details()
	p.back()
	same()
	p.details()
	eval[any](p, `history.back()`)
	same()
	p.list("cm quiet")
	p.shows("victim-a")
	p.list("cm many")
	same()
	p.keys(kb.Escape)
	p.without("1 marked")
}

// quickFilter opens a row at once after a filter was typed: the way back leads to the filtered list. The line of
// commands takes a namespace for Helm, too.
func quickFilter(p *page) {
	p.list("cm quiet")
	p.only("victim-c") // the cursor is on it, also while the list is still read
	p.keys(kb.Escape)
	p.shows("victim-a")
	p.keys("/", "victim-c", kb.Enter, kb.Enter)
	p.until("the object is there", func(string) bool { return eval[bool](p, `location.hash.startsWith("#/object/")`) })
	p.shows("Escape Back") // the page has its keys
	p.back()
	testenv.Equal(p.T, eval[string](p, `document.querySelector("#filter").value`), "victim-c", "the filter is")
	p.list("cm quiet")
	p.keys(":", "helm many", kb.Enter)
	p.shows("in namespace many")
}

func sortInAddress(p *page) {
	p.list("cm many")
	p.keys("O", "w")
	p.becomes("the address has the order and the columns", `/sort=-Name/.test(location.hash) && /wide=1/.test(location.hash)`)
	eval[any](p, `location.hash = location.hash.replace("sort=-Name", "sort=Age")`)
	sorted := func(column, order string) {
		p.T.Helper()
		p.becomes("the list is sorted by "+column, fmt.Sprintf(`document.querySelector(".table [aria-sort=%s]")?.innerText.startsWith(%q) ?? false`, order, column))
	}
	sorted("Age", "ascending")
	p.list("cm quiet")
	sorted("Name", "ascending")
	p.list("cm many")
	sorted("Age", "ascending")
	p.becomes("the address has the order and the columns again", `/sort=Age/.test(location.hash) && /wide=1/.test(location.hash)`)
}

func focusAfterCommand(p *page) {
	for _, list := range []string{"cm quiet", "cm quiet", "cm many"} {
		eval[any](p, `document.querySelector("nav a").focus()`)
		p.list(list)
		p.focused(".table")
	}
	eval[any](p, `document.querySelector("nav a").focus()`)
	p.keys(":")
	p.focused(".command-bar input")
	p.keys(kb.Escape)
	p.focused("nav a")
}

func filterIsSeen(p *page) {
	p.list("deploy quiet")
	for _, f := range []struct{ filter, names string }{
		{"^web", "web"},
		{"web$", "old-web web"},
		{"-l app=web old", "old-web"},
		{"-l app=web,tier ^w", "web"},
	} {
		p.keys("/")
		p.focused("#filter")
		p.ctrl('a')
		p.keys(f.filter, kb.Enter)
		p.until(f.filter+" leaves "+f.names, func(string) bool {
			return eval[string](p, `[...document.querySelectorAll(".table .line a")].map((a) => a.textContent).join(" ")`) == f.names
		})
	}
	p.keys("/")
	p.focused("#filter")
	p.ctrl('a')
	p.keys("-l app=web,tier=none db", kb.Enter)
	p.shows("app=web (2 rows)", "tier=none (none)", "“db” (1 row)")
	p.keys(kb.Escape)
	// What is not shown is not searched, and the page says so.
	p.keys("/", "none.example", kb.Enter)
	p.shows("in columns that are not shown")
	p.keys("w")
	p.shows("old-web", "none.example/none")
	p.keys("w", kb.Escape)
}

func mapAndEvents(p *page) {
	p.find("deploy quiet", "old-web")
	p.keys("m")
	p.becomes("the map is there", `location.hash.startsWith("#/map/deployments") && !!document.querySelector(".map")`)
	p.back()
	p.until("the cursor is in the list", func(string) bool { return strings.HasPrefix(p.cursor(), "old-web ") })
	p.keys("v")
	p.becomes("the events are there", `location.hash.startsWith("#/object/") && location.hash.includes("old-web?tab=events") && document.querySelector(".tabs [aria-selected=true]")?.textContent === "Events"`)
	p.back()
}

func foot(p *page) {
	p.size(1024, 768)
	defer p.size(1280, 800)
	for _, list := range []string{"deploy quiet", "cm quiet"} {
		p.list(list)
		p.until("the foot names the first keys", func(string) bool {
			keys := eval[[]string](p, `{ const foot = document.querySelector("footer").getBoundingClientRect();
  [...document.querySelectorAll("footer button")].filter((b) => { const r = b.getBoundingClientRect(); return r.bottom <= foot.bottom + 1 && r.right <= foot.right }).map((b) => b.querySelector("kbd").textContent) }`)
			return len(keys) >= 4 && slices.Equal(keys[:4], []string{"?", ":", "/", "n"})
		})
	}
}

func namesCopied(p *page) {
	// What the page puts into the clipboard: a browser without a screen may have none.
	eval[any](p, `navigator.clipboard.writeText = async (text) => { window.__copied = text }; undefined`)
	p.find("cm quiet", "victim-b")
	p.keys("c")
	p.until("the name is copied", func(string) bool { return eval[string](p, `window.__copied ?? ""`) == "victim-b" })
	p.keys(kb.Escape, "/", "victim-[ab]", kb.Enter)
	p.until("two rows", func(string) bool { return eval[int](p, `document.querySelectorAll(".table .line").length`) == 2 })
	p.keys("g", "  ", "c")
	p.until("both names are copied", func(string) bool { return eval[string](p, `window.__copied`) == "victim-a\nvictim-b" })
	p.keys(kb.Escape)
}

func actionsThatFit(p *page) {
	first := func() string {
		return eval[string](p, `[...document.querySelectorAll(".tools > button")].map((b) => b.textContent).join(" ")`)
	}
	p.find("po quiet", "waits")
	p.until("a pod that waits has its events and its YAML", func(string) bool { return first() == "Events Edit Delete" })
	p.keys(".")
	p.focused(".menu [role=menuitem]")
	p.shot("menu")
	if text := eval[string](p, `document.querySelector(".menu").innerText`); !strings.Contains(text, "Shell") || strings.Contains(text, "Delete") {
		p.T.Errorf("the menu has %q", text)
	}
	p.keys(kb.Escape)
	p.until("the menu is closed", func(string) bool { return eval[bool](p, `!!document.querySelector(".menu").hidden`) })
	p.focused(".tools [aria-haspopup=menu]")
	p.keys(kb.Enter)
	p.focused(".menu [role=menuitem]")
	for range 20 {
		if eval[bool](p, `document.activeElement.textContent.startsWith("Forward")`) {
			break
		}
		p.keys(kb.ArrowDown)
	}
	p.keys(kb.Enter)
	p.shows("Forward a port of waits")
	p.keys(kb.Escape)
	p.details()
	p.until("its page has the same", func(string) bool { return first() == "Edit Delete" })
	p.back()
	p.list("deploy quiet")
	p.until("a workload has its own", func(string) bool { return first() == "Logs Scale Restart Delete" })
}

// widths: an event's message gets the room, and names are no wider than they are where others need it.
func widths(p *page) {
	p.list("events quiet")
	p.shows("FailedScheduling")
	p.until("the message is the widest", func(string) bool {
		return eval[bool](p, `{ const wide = Object.fromEntries([...document.querySelectorAll(".table .head > *")].map((c) => [c.textContent.replace(/ .$/, ""), c.getBoundingClientRect()]));
  wide.Message.width > 0.45 * document.querySelector(".table").clientWidth && wide.Message.right <= window.innerWidth + 1 }`)
	})
	p.shot("events")
}
