// SPDX-License-Identifier: Apache-2.0

package timerslack

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/testenv"
)

// All threads get the slack, also those that are started later.
func TestSet(t *testing.T) {
	testenv.RequireRoot(t, "other threads' slack takes CAP_SYS_NICE")
	hold := func() (release func()) { // a thread that nobody else gets
		ready, end := make(chan struct{}), make(chan struct{})
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			close(ready)
			<-end
		}()
		<-ready
		return func() { close(end) }
	}
	for range 5 {
		defer hold()()
	}
	if err := Set(3 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Set(Standard); err != nil {
			t.Error(err)
		}
		check(t, "50000")
	}()
	for range 5 {
		defer hold()()
	}
	check(t, "3000000")
}

// check fails the test unless each thread of this process has that slack.
func check(t *testing.T, want string) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		b, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("thread %s has a slack of %q ns, not %s; %v", thread.Name(), got, want, err)
		}
	}
}
