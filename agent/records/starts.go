// SPDX-License-Identifier: Apache-2.0

package records

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFailed is how many starts in a row containerd may fail before its records count as damaged.
const maxFailed = 2

// Ended notes how a start of containerd has ended.
func (r *Records) Ended(err error) {
	if setErr := debug.SetCrashOutput(nil, debug.CrashOptions{}); setErr == nil {
		_ = os.Remove(r.Node.Root + ".crash")
	}
	if err == nil {
		r.forget()
		return
	}
	r.addFailed(err)
}

// forget forgets the failed starts.
func (r *Records) forget() { _ = os.Remove(r.Node.Root + ".starts") }

// addFailed adds a failed start to those of this boot, unless the reason may be another than the records: a stop, a
// slow disk, or something that the kernel refused. Nothing is flushed, since the next boot counts from the beginning.
func (r *Records) addFailed(err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	for no := unix.Errno(1); no < 134; no++ { // by their text, since upstream does not wrap each
		if strings.Contains(text, no.Error()) {
			return
		}
	}
	f, err := os.OpenFile(r.Node.Root+".starts", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, r.boot(), text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		r.Logger.Warn("containerd: its failed start is not counted", "error", err)
	}
}

// failedTwice returns why containerd's last start failed, if its last two since the boot have failed, else "".
func (r *Records) failedTwice(boot string) string {
	r.countCrash()
	data, _ := os.ReadFile(r.Node.Root + ".starts") // none after a good start
	failed, last := 0, ""
	for line := range strings.Lines(string(data)) {
		if id, text, _ := strings.Cut(strings.TrimSpace(line), " "); id == boot {
			failed, last = failed+1, text
		}
	}
	if failed < maxFailed {
		return ""
	}
	return fmt.Sprintf("containerd did not start %d times in a row: %s", failed, last)
}

// watchCrash makes a panic of this process leave a copy of its text until Ended is called.
func (r *Records) watchCrash() {
	f, err := os.OpenFile(r.Node.Root+".crash", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(debug.SetCrashOutput(f, debug.CrashOptions{}), f.Close())
	}
	if err != nil {
		r.Logger.Warn("containerd: a panic while it starts is not counted", "error", err)
	}
}

// countCrash counts the last start as failed if it has ended by a panic in containerd. A killed process has left no
// text, and says nothing about the records.
func (r *Records) countCrash() {
	data, _ := os.ReadFile(r.Node.Root + ".crash") // there is none after a start that has ended
	_ = os.Remove(r.Node.Root + ".crash")
	if parts := strings.SplitN(string(data), "\n\n", 3); len(parts) > 1 && strings.Contains(parts[1], "github.com/containerd/") {
		r.addFailed(errors.New(parts[0])) // parts[1] is the stack of the goroutine that panicked
	}
}
