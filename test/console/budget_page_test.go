//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/coracle-k8s/coracle/test/harness"
)

// marks notes in __marks when the first rows are on the screen and when all are, in milliseconds after the page was
// asked for.
const marks = `window.__marks = {};
const look = () => {
  if (!__marks.rows && document.querySelector(".table .line")) __marks.rows = performance.now();
  if (/^\d+$/.test(document.querySelector(".bar .count")?.textContent ?? "")) __marks.all = performance.now();
  if (!__marks.all) requestAnimationFrame(look);
};
requestAnimationFrame(look);`

// lateness collects how old a change is when its row has been drawn: the rows' status is the time of the change. Rows
// that have just come into sight do not count.
const lateness = `window.__late = [];
{ let seen = new Map();
  const look = () => {
    const now = new Map();
    for (const line of document.querySelectorAll(".table .line")) {
      const at = /T(\d{13})/.exec(line.textContent)?.[1];
      now.set(line.id, at);
      if (at && seen.has(line.id) && seen.get(line.id) !== at) __late.push(Date.now() - Number(at));
    }
    seen = now;
    requestAnimationFrame(() => setTimeout(look, 0));
  };
  look();
}`

// scrolling scrolls the list up and down for some seconds, and gives the times between frames.
const scrolling = `new Promise((done) => {
  const box = document.querySelector(".table"), frames = [];
  const end = performance.now() + 20000;
  let last = performance.now(), by = 60;
  const step = (now) => {
    frames.push(now - last);
    last = now;
    if (box.scrollTop + box.clientHeight >= box.scrollHeight - 1) by = -60;
    if (box.scrollTop <= 0) by = 60;
    box.scrollTop += by * (1 + frames.length % 7);
    if (now < end) requestAnimationFrame(step); else { box.scrollTop = 0; done(frames.slice(1)); }
  };
  requestAnimationFrame(step);
})`

// filtering types filters, and gives for each how long it took until it was drawn.
const filtering = `(async () => {
  const field = document.querySelector("#filter"), times = [];
  for (const text of ["w", "we", "web", "web-7d9c5b6f8d-0", "web-7d9c5b6f8d-00", "", "!web", "crowd-3", "T1", "^crowd-[1-4].*7$", "-l tier=front", "0{2}.*Pending", ""]) {
    const began = performance.now();
    field.value = text;
    field.dispatchEvent(new InputEvent("input", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    times.push(performance.now() - began);
    await new Promise((done) => setTimeout(done, 300));
  }
  return times;
})()`

// quantile returns the value below which the share p of the values is.
func quantile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return -1
	}
	v := slices.Clone(values)
	slices.Sort(v)
	return v[min(len(v)-1, int(p*float64(len(v))))]
}

// heap is the tab's heap after a collection, in MB.
func (p *page) heap() float64 {
	var used float64
	p.do("measuring the heap", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := cdp.Call(ctx, t, heapprofiler.CollectGarbage, cdp.Empty{}); err != nil {
			return err
		}
		u, err := cdp.Call(ctx, t, runtime.GetHeapUsage, cdp.Empty{})
		used = u.UsedSize
		return err
	}))
	return used / (1 << 20)
}

// tasks is the processor time of the tab's main thread since it began, in milliseconds: what a frame costs, however
// busy the machine is.
func (p *page) tasks() float64 {
	p.T.Helper()
	return p.figure("TaskDuration")
}

// figure is one of the tab's own figures, in milliseconds of a processor.
func (p *page) figure(name string) float64 {
	p.T.Helper()
	var out float64
	p.do("reading the tab's figures", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := cdp.Call(ctx, t, performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks}); err != nil {
			return err
		}
		m, err := cdp.Call(ctx, t, performance.GetMetrics, cdp.Empty{})
		for _, x := range m.Metrics {
			if x.Name == name {
				out = x.Value * 1000
			}
		}
		return err
	}))
	return out
}

// TestBudgetPage measures a page of 5,000 pods: how soon it is there, how soon changes are, how it scrolls and filters,
// and what its heap is after each of MINUTES minutes of changes.
func TestBudgetPage(t *testing.T) {
	byHand(t, "page")
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent", "--console-listen", ":"+consolePort)
	s.StartAPI()
	c := client(t, s)
	addPods(t, s, c)
	p := newBrowser(t, m.Site).login(s, newToken(s.In(t), "--role", "view", "--ttl", "24h"))
	p.do("marking", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: marks})
		return err
	}))
	p.list("po *")
	p.shows("5000")
	p.shot("crowd")
	address := "https://" + net.JoinHostPort(s.IP, consolePort) + "/#/list/pods.v1?ns=*"
	for range setting("LOADS", 5) {
		p.do("loading the page", chromedp.Navigate("about:blank"), chromedp.Navigate(address))
		p.until("all rows", func(string) bool { return eval[bool](p, `!!window.__marks?.all`) })
		got := eval[map[string]float64](p, `({paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? -1, ...__marks,
  files: performance.getEntriesByType("resource").filter((e) => /\.(js|css)$/.test(e.name)).reduce((n, e) => n + e.encodedBodySize, 0)})`)
		t.Logf("first paint %.0f ms, first rows %.0f ms, all rows %.0f ms; scripts and styles %.1f KB; load %s",
			got["paint"], got["rows"], got["all"], got["files"]/1024, load())
	}
	t.Logf("heap at rest: %.1f MB", p.heap())

	ctx, stop := context.WithCancel(t.Context())
	var failed atomic.Int64
	wait := churn(ctx, c, &failed)
	defer wait()
	defer stop()
	time.Sleep(5 * time.Second) // a measurement
	eval[any](p, lateness+`;undefined`)
	time.Sleep(30 * time.Second) // a measurement
	late := eval[[]float64](p, `__late.splice(0)`)
	t.Logf("event to screen, of %d: p50 %.0f ms, p95 %.0f ms, p99 %.0f ms; %d changes not made; load %s", len(late), quantile(late, 0.5), quantile(late, 0.95), quantile(late, 0.99), failed.Load(), load())
	for range 3 {
		before := p.tasks()
		frames := eval[[]float64](p, scrolling)
		spent := (p.tasks() - before) / float64(len(frames))
		t.Logf("frames while scrolling, of %d: p50 %.1f ms, p99 %.1f ms, longest %.1f ms; %.1f ms of a processor each; load %s",
			len(frames), quantile(frames, 0.5), quantile(frames, 0.99), quantile(frames, 1), spent, load())
	}
	late = eval[[]float64](p, `__late.splice(0)`)
	t.Logf("event to screen while scrolling, of %d: p50 %.0f ms, p95 %.0f ms", len(late), quantile(late, 0.5), quantile(late, 0.95))
	for range 3 {
		t.Logf("filters: %s ms; load %s", fmt.Sprint(rounded(eval[[]float64](p, filtering))), load())
	}
	eval[any](p, `window.__late = { push() {} }; undefined`)
	for minute := range setting("MINUTES", 5) + 1 {
		if minute > 0 {
			time.Sleep(time.Minute) // a measurement
		}
		t.Logf("minute %d: heap %.1f MB, %d changes not made, load %s", minute, p.heap(), failed.Load(), load())
	}
}

func rounded(values []float64) []int {
	out := make([]int, len(values))
	for i, v := range values {
		out[i] = int(v + 0.5)
	}
	return out
}
