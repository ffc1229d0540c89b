// SPDX-License-Identifier: Apache-2.0

package records

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFailed is how many starts in a row containerd may fail before its records count as damaged.
const maxFailed = 2

// Ended notes how a start of containerd has ended. A start that ended with its process is not noted: who killed it may
// have had any reason, and what makes bbolt panic is found by Prepare.
func (r *Records) Ended(err error) {
	if err == nil {
		r.forget()
		return
	}
	r.addFailed(err)
}

// forget forgets the failed starts.
func (r *Records) forget() { _ = os.Remove(r.Node.Root + ".starts") }

// ofRecords are parts of the errors of containerd that are about its records: it reads all of them when it finds its
// containers again, and changes them for a newer version. A mistake in its configuration, or in a new version of
// coracle, fails with others, on every node to which it is rolled out.
var ofRecords = []string{"failed to recover state: ", "failed to migrate to "}

// addFailed adds a failed start to those of this boot if the reason is about the records, and is not a stop, a slow
// disk, or something that the kernel refused. Nothing is flushed, since the next boot counts from the beginning.
func (r *Records) addFailed(err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	if !slices.ContainsFunc(ofRecords, func(part string) bool { return strings.Contains(text, part) }) {
		return
	}
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
