//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
)

// flood writes 52,000 lines of 100 bytes, and then 4,000 a second. One of a hundred is an error.
const flood = `
apiVersion: v1
kind: Pod
metadata: {name: flood, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: box
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command:
    - sh
    - -c
    - |
      pad=$(head -c 60 /dev/zero | tr '\000' x)
      for i in $(seq 400); do
        level=INFO; [ $((i % 100)) = 0 ] && level=ERROR
        printf '%-5s worker: request %06d done %s\n' $level $i $pad
      done > /tmp/block
      for i in $(seq 130); do cat /tmp/block; done
      while :; do cat /tmp/block; sleep 0.1; done
`

// TestBudgetLog measures what the page's script takes of a processor while a log of 400 kB a second is shown, of which
// 50,000 lines are kept: without a filter, and with one that few lines match.
func TestBudgetLog(t *testing.T) {
	byHand(t, "log")
	k := newServer(t)
	k.Apply(flood)
	k.Kubectl("wait", "--for=condition=Ready", "pod/flood", "--timeout=120s")
	p := newBrowser(t, k.Machine.Site).admin(k)
	p.find("po default", "flood")
	p.keys("l")
	p.shows("worker: request")
	address := eval[string](p, `location.hash = location.hash.split("?")[0] + "?since=all"`)
	p.until("more lines have come than are kept", func(string) bool { return eval[int](p, `__types.lines`) > 160 })
	for range 3 {
		for _, filter := range []string{"", "ERROR"} {
			p.keys("/")
			p.focused("#filter")
			p.keys(filter, kb.Enter)
			p.focused(".log")
			time.Sleep(2 * time.Second) // a measurement: of what comes, not of the change
			before, beforeAll := p.figure("ScriptDuration"), p.tasks()
			time.Sleep(10 * time.Second) // a measurement
			t.Logf("filter %q of %s: %.0f ms of script and %.0f ms of all in 10 s; heap %.1f MB; load %s",
				filter, address, p.figure("ScriptDuration")-before, p.tasks()-beforeAll, p.heap(), load())
			if filter != "" {
				p.keys(kb.Escape)
			}
		}
	}
}
