// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/logging"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// buffer is a log that several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.b.Reset()
	return b.b.String()
}

func TestUpstreamsComplaintsAreHeldWhileStarting(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1")
	const complaint, late = "ERROR complaint\n", "WARN  not ready yet; the messages logged so far follow after=20s\n"
	cases := map[string]struct {
		play func(q *quiet)
		want string
	}{
		"a good start":   {func(q *quiet) { q.setReady(); time.Sleep(settleDelay + time.Second); q.finish(true) }, ""},
		"a failed start": {func(q *quiet) { q.finish(false) }, complaint},
		"a slow start":   {func(q *quiet) { time.Sleep(holdTimeout + time.Second); q.setReady(); q.finish(true) }, late + complaint},
		"later":          {func(q *quiet) { q.setReady(); time.Sleep(time.Minute); klog.Error("complaint"); q.finish(true) }, complaint},
		"a good stop": {func(q *quiet) {
			q.setReady()
			time.Sleep(time.Minute)
			q.setStopping()
			synctest.Wait()
			klog.Error("complaint")
			q.finish(true)
		}, ""},
		"a slow stop": {func(q *quiet) { q.setStopping(); time.Sleep(holdTimeout + time.Second); q.finish(true) },
			"WARN  not stopped yet; the messages logged so far follow after=20s\n" + complaint},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out buffer
				l := testenv.Must(logging.Setup(config.Logging{}, &out))(t)
				q := startQuiet(l)
				klog.Error("complaint")
				c.play(q)
				testenv.Equal(t, out.take(), c.want, "")
			})
		})
	}
}
