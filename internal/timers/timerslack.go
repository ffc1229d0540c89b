// SPDX-License-Identifier: Apache-2.0

// This file sets how late the kernel may wake this process' threads, so that timers which expire one after the other
// wake an idle processor once (prctl(2), PR_SET_TIMERSLACK). On a busy processor, timers still fire within a tick of
// the kernel's clock.
//
// A new thread inherits the slack of the thread that starts it, and so does a new program. A program that runs for long
// sets its own.

package timers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Standard is the kernel's default slack of a thread.
const Standard = 50 * time.Microsecond

// maxRounds is how often Set searches for threads that were started meanwhile. The first round that finds none ends the
// search.
const maxRounds = 10

// Set sets the timer slack of all threads of this process. Threads that are started later inherit it. It needs
// CAP_SYS_NICE, and Linux 4.6, because older kernels have no file for the slack of another thread. Without these it
// changes nothing and returns an error.
func Set(slack time.Duration) error {
	// A thread can always set its own slack, so this thread comes last. Otherwise, when the others fail, it would be
	// the only one with the slack, and would pass it to the programs that it starts.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own := strconv.Itoa(unix.Gettid())
	text := []byte(strconv.FormatInt(slack.Nanoseconds(), 10))
	if err := setOthers(own, text); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	if err := os.WriteFile(fileOf(own), text, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	return nil
}

func fileOf(thread string) string { return "/proc/" + thread + "/timerslack_ns" }

// setOthers sets the slack of all threads except this one, which starts none meanwhile.
func setOthers(own string, text []byte) error {
	done := map[string]bool{own: true}
	for range maxRounds {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		news := false
		for _, thread := range threads {
			id := thread.Name()
			if done[id] {
				continue
			}
			done[id], news = true, true
			if err := os.WriteFile(fileOf(id), text, 0); err != nil && !threadExited(id, err) {
				return err
			}
		}
		if !news {
			return nil
		}
	}
	return nil // threads start and end all the time; the missed ones were started by threads that have the slack
}

// threadExited says whether an error means that the thread has ended.
func threadExited(id string, err error) bool {
	if errors.Is(err, unix.ESRCH) { // the thread has ended since its file was opened
		return true
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Stat("/proc/" + id)
	return err != nil
}
