//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
)

// menuText is what the menu of kinds shows.
func (p *page) menuText() string {
	p.T.Helper()
	return eval[string](p, `document.querySelector("nav")?.innerText ?? ""`)
}

// TestMenuIsGroupedAndPhoneIsLabelled: the menu has the kinds that the user may list, in groups; a phone has labels,
// sorting and the actions; and axe-core finds nothing at two widths.
func TestMenuIsGroupedAndPhoneIsLabelled(t *testing.T) {
	axe := axeScript(t)
	k := newServer(t)
	addWorkload(k)
	k.Kubectl("create", "namespace", "team")
	b := newBrowser(t, k.Machine.Site)
	p := b.admin(k)
	for _, part := range []struct {
		name string
		run  func(p *page)
	}{{"menu", menuInGroups}, {"events have no Edit and no Delete", eventsAreRead}, {"times", timesOfTheReader}, {"phone", onPhone}} {
		t.Run(part.name, func(t *testing.T) {
			p.T = t
			part.run(p)
		})
	}
	p.T = t
	for _, width := range []int64{390, 1024} {
		p.size(width, 844)
		for _, at := range []struct{ hash, shows string }{
			{"#/", "broken"}, {"#/list/pods.v1?ns=*", "Running"}, {"#/list/events.v1?ns=*", "ErrImageNeverPull"}, {"#/list/gears.v1", "gears"},
		} {
			eval[any](p, `location.hash = "`+at.hash+`"`)
			p.shows(at.shows)
			p.accessible(at.hash, axe)
			if n := eval[int](p, `document.querySelectorAll("h1").length`); n != 1 {
				t.Errorf("%s at %d px has %d headings of the first level", at.hash, width, n)
			}
		}
		p.keys("?")
		p.shows("A text or regular expression")
		p.accessible("help", axe)
		p.keys(kb.Escape)
	}
	t.Run("tenant", func(t *testing.T) { tenantMenu(t, b, newToken(k, "--role", "edit", "--namespace", "team"), k.IP) })
}

func menuInGroups(p *page) {
	heads := func() string {
		return eval[string](p, `[...document.querySelectorAll("nav .group")].map((b) => b.firstChild.textContent).join(" ")`)
	}
	p.until("the groups of the menu", func(string) bool { return heads() == "Workloads Network Storage Config Access Cluster" })
	p.until("kinds that the menu lacked", func(string) bool {
		menu := p.menuText()
		for _, kind := range []string{"replicasets", "persistentvolumeclaims", "persistentvolumes", "storageclasses", "horizontalpodautoscalers", "networkpolicies", "customresourcedefinitions"} {
			if !strings.Contains(menu, kind) {
				return false
			}
		}
		return !strings.Contains(menu, "clusterroles")
	})
	if cut := eval[[]string](p, `[...document.querySelectorAll("nav a, nav button")].filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.innerText)`); len(cut) > 0 {
		p.fail("names are cut: %q", cut)
	}
	p.until("the number of broken pods", func(string) bool {
		return eval[string](p, `document.querySelector("nav a[href$='pods.v1'] .bad")?.textContent ?? ""`) == "1"
	})
	eval[any](p, `[...document.querySelectorAll("nav .group")].find((b) => b.innerText.includes("Access")).focus()`)
	p.keys(kb.Enter)
	p.until("Access is unfolded", func(string) bool { return strings.Contains(p.menuText(), "clusterrolebindings") })
	eval[any](p, `document.querySelector("nav .group").focus()`)
	p.keys(kb.Enter)
	p.until("Workloads are folded, and say what is broken", func(string) bool {
		return !strings.Contains(p.menuText(), "deployments") && eval[bool](p, `!!document.querySelector("nav .group .bad")`)
	})
	eval[any](p, `location.reload()`)
	p.until("the groups are as they were", func(string) bool {
		menu := p.menuText()
		return strings.Contains(menu, "clusterrolebindings") && !strings.Contains(menu, "deployments")
	})
	p.shows("nodes ready")
}

func eventsAreRead(p *page) {
	p.list("events default")
	p.shows("ErrImageNeverPull")
	for _, key := range []string{"e", "x"} {
		p.keys(key)
		p.quietly(key)
	}
	if tools := eval[string](p, `document.querySelector(".tools")?.innerText ?? ""`); tools != "" {
		p.fail("events have the actions %q", tools)
	}
}

func timesOfTheReader(p *page) {
	p.find("cj default", "nightly")
	p.details()
	p.shows("Next run")
	p.until("how long it is until the next run", func(now string) bool { return strings.Contains(now, " (in ") })
}

func onPhone(p *page) {
	p.size(390, 844)
	p.list("po default")
	p.shows("Running")
	if label := eval[string](p, `getComputedStyle(document.querySelector(".line [data-label=Status]"), "::before").content`); !strings.Contains(label, "Status") {
		p.fail("a cell has the label %q", label)
	}
	// The first tap on a column's name sorts by it.
	eval[any](p, `[...document.querySelectorAll(".table .head button")].find((b) => b.offsetWidth && b.innerText.startsWith("Age")).click()`)
	p.until("the list is sorted", func(string) bool { return eval[bool](p, `location.hash.includes("sort=Age")`) })
	if out := eval[[]string](p, `[...document.querySelectorAll(".tools > *, .tools > div > button")].filter((e) => { const r = e.getBoundingClientRect();
  return r.left < 0 || r.right > innerWidth || r.bottom > innerHeight || r.top < innerHeight - 60; }).map((e) => e.innerText)`); len(out) > 0 {
		p.fail("actions are not at the foot: %q", out)
	}
	p.shot("looks-phone-list")
	cut := func() []string {
		return eval[[]string](p, `[...document.querySelectorAll(".table .line")].filter((e) => e.scrollHeight > e.clientHeight + 1).map((e) => e.innerText)`)
	}
	if rows := cut(); len(rows) > 0 {
		p.fail("rows are cut: %q", rows)
	}
	p.list("events default")
	p.shows("ErrImageNeverPull")
	if rows := cut(); len(rows) > 0 {
		p.fail("events are cut: %q", rows)
	}
	p.shot("looks-phone-events")
	p.size(1280, 800)
}

// tenantMenu: kinds that may not be listed are not in the menu, and the login page names the command for a token.
func tenantMenu(t *testing.T, b *browser, token, ip string) {
	p := b.open("https://" + ip + ":" + consolePort + "/")
	p.T = t
	p.shows("coracle console token")
	p.focused("textarea")
	p.keys(token, kb.Tab, kb.Enter)
	p.shows("live")
	p.until("the menu of a tenant", func(string) bool {
		menu := p.menuText()
		return strings.Contains(menu, "pods") && strings.Contains(menu, "configmaps") && !strings.Contains(menu, "nodes") &&
			!strings.Contains(menu, "namespaces") && !strings.Contains(menu, "persistentvolumes\n")
	})
	p.shot("looks-tenant")
}
