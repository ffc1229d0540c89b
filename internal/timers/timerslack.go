// SPDX-License-Identifier: Apache-2.0

// This file tells the kernel how late it may wake this process's threads, so that timers which are due one after the
// other wake an idle processor once (prctl(2), PR_SET_TIMERSLACK). A processor that has work is in time to a tick of
// the kernel's clock all the same.
//
// A thread gets the slack of the one that starts it, and so does a program that is started; a program that runs for
// long sets its own.

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

// Standard is the kernel's own slack for a thread without a setting.
const Standard = 50 * time.Microsecond

// rounds is how often Set looks for threads that were started meanwhile. It ends with the first round that finds none.
const rounds = 10

// Set gives all threads of this process a slack, and by them those that are started later. It needs CAP_SYS_NICE, and
// Linux
// 4.6: before that there is no file by which to say it for another thread. Without these it changes nothing.
func Set(slack time.Duration) error {
	// A thread may always say it for itself, and so comes last: it would be the only one, and give it to the programs
	// that it starts.
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

// setOthers does it for all threads but one, which starts none meanwhile.
func setOthers(own string, text []byte) error {
	done := map[string]bool{own: true}
	for range rounds {
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
			if err := os.WriteFile(fileOf(id), text, 0); err != nil && !exited(id, err) {
				return err
			}
		}
		if !news {
			return nil
		}
	}
	return nil // threads come and go all the time; those that came in between were started by one that has it
}

// exited says whether an error is of a thread that has ended.
func exited(id string, err error) bool {
	if errors.Is(err, unix.ESRCH) { // since its file was opened
		return true
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Stat("/proc/" + id)
	return err != nil
}
