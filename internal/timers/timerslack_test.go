// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// All threads get the slack, also those that are started later.
func TestTimerSlackIsSetOnAllThreads(t *testing.T) {
	testenv.RequireRoot(t, "other threads' slack takes CAP_SYS_NICE")
	hold := func() (release func()) { // a thread that runs nothing else
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
	testenv.NoError(t, Set(3*time.Millisecond))
	defer func() {
		testenv.Check(t, Set(Standard))
		check(t, "50000")
	}()
	for range 5 {
		defer hold()()
	}
	check(t, "3000000")
}

// allowedNothing says, in a process of its own, that its first thread shall set a slack without being allowed to.
const allowedNothing = "CORACLE_TEST_TIMERSLACK"

func init() {
	if os.Getenv(allowedNothing) != "" {
		runtime.LockOSThread() // TestMain has the first thread
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(allowedNothing) == "" {
		os.Exit(m.Run())
	}
	niceness := func(may bool) {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&head, &sets[0]); err != nil {
			panic(err)
		}
		if sets[0].Effective &^= 1 << unix.CAP_SYS_NICE; may {
			sets[0].Effective |= 1 << unix.CAP_SYS_NICE
		}
		if err := unix.Capset(&head, &sets[0]); err != nil {
			panic(err)
		}
	}
	niceness(false)
	err := Set(3 * time.Millisecond)
	niceness(true) // it takes as much to read what others have
	if err == nil {
		panic("there is no error")
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		panic(err)
	}
	for _, thread := range threads {
		b, err := os.ReadFile(fileOf(thread.Name()))
		fmt.Println(strings.TrimSpace(string(b)), err)
	}
}

// TestNoSlackIsSetWithoutPrivilege: who may not set all threads' slack sets none. The first thread alone would give its
// own to the programs that it starts, and these to containers.
func TestNoSlackIsSetWithoutPrivilege(t *testing.T) {
	testenv.RequireRoot(t, "it gives up CAP_SYS_NICE, and takes it back")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), allowedNothing+"=1")
	out, err := cmd.CombinedOutput()
	testenv.NoError(t, err, "%s", out)
	for line := range strings.Lines(string(out)) {
		testenv.Equal(t, line, "50000 <nil>\n", "a thread has the slack")
	}
}

// check fails the test unless each thread of this process has that slack.
func check(t *testing.T, want string) {
	t.Helper()
	threads := testenv.Must(os.ReadDir("/proc/self/task"))(t)
	for _, thread := range threads {
		b, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("thread %s has a slack of %q ns, not %s; %v", thread.Name(), got, want, err)
		}
	}
}
