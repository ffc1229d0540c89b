// SPDX-License-Identifier: Apache-2.0

package nodeoff

import (
	"encoding/json"
	"errors"
	"fmt"
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
	Failures int  // in a row, before this start
	Try      bool // the next start of the process runs the node
}

const (
	ready = "ready\n"
	// readAtMost and reasonAtMost bound what is read of a panic's text, which may name every goroutine, and what is
	// shown of it, in bytes.
	readAtMost, reasonAtMost = 8192, 500
)

// createMarker makes or replaces the marker. The file is returned also with an error of writing it: its presence
// counts.
func createMarker(path string, m marker) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(m)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	return f, err
}

// failure is what the marker says of the process before this one.
type failure struct {
	failures int    // in a row
	why      string // empty: the node may start
}

// readMarker reads the marker that the process before this one has left.
func readMarker(path, boot string) failure {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return failure{}
	}
	if err != nil {
		return failure{1, fmt.Sprintf("the record of its last start cannot be read: %v", err)}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, readAtMost))
	line, rest, whole := strings.Cut(string(text), "\n")
	var m marker
	if json.Unmarshal([]byte(line), &m) != nil || !whole || m.Failures < 0 || err != nil {
		return failure{1, "the process ended while the node started, and the record of that is damaged; its log says more"}
	}
	reason, wasReady := strings.CutPrefix(rest, ready)
	reason, _, _ = strings.Cut(reason, "\n")
	switch {
	case m.Boot != boot, wasReady && reason == "":
		return failure{}
	case m.Try:
		return failure{failures: m.Failures}
	case reason == "":
		reason = "the process was killed or exited while the node started; the end of the log of that start says more"
	}
	return failure{m.Failures + 1, reason[:min(len(reason), reasonAtMost)]}
}
