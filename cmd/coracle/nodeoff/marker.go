// SPDX-License-Identifier: Apache-2.0

package nodeoff

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
)

// marker is the first line of the marker's file. The lines after it are ready, if the node was, and then the reason of
// the failure: the text of a panic, or of an error.
//
// The file exists while a start of the node is on trial, and while the node is off. It is neither flushed nor replaced
// atomically: its reader is the next process of the same boot, which reads the kernel's cache. On a full disk it may be
// empty.
type marker struct {
	Boot     string
	Program  string `json:",omitempty"`
	Failures int    // in a row, before this start
	Try      bool   // the next start of the process runs the node
}

const readyLine = "ready\n"

// readAtMost bounds what is read of the marker, in bytes: a panic's text may name every goroutine.
const readAtMost = 1024

// createMarker makes or replaces the marker. The file is returned also with an error of writing it: its presence
// counts.
func createMarker(path string, m marker) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		err = json.NewEncoder(f).Encode(m)
	}
	return f, err
}

// readMarker reads the marker that the process before this one has left. It returns how many starts of the node have
// failed in a row, and the reason of the last failure. The node may start if that is empty.
func readMarker(path, boot, program string) (failures int, why string) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ""
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, readAtMost))
		_ = f.Close() // it was only read
	}
	line, rest, whole := strings.Cut(string(text), "\n")
	var m marker
	if json.Unmarshal([]byte(line), &m) != nil || !whole || m.Failures < 0 || err != nil {
		return 1, "the process ended while the node started, and the record of that is damaged; its log says more"
	}
	reason, wasReady := strings.CutPrefix(rest, readyLine)
	reason, _, _ = strings.Cut(reason, "\n")
	switch {
	case m.Boot != boot, m.Program != program, wasReady && reason == "":
		return 0, ""
	case m.Try:
		return m.Failures, ""
	case reason == "":
		reason = "the process was killed or exited while the node started; the end of the log of that start says more"
	}
	return m.Failures + 1, reason
}
