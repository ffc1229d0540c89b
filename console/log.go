// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

const (
	// maxLine limits a line of a log, in bytes. Of a longer line the page gets the beginning, and the number of missing
	// bytes.
	maxLine = 64 << 10
	// maxLines and maxLinesBytes limit the lines in one message.
	maxLines      = 500
	maxLinesBytes = 256 << 10
)

// readLog sends a container's log.
func (st *stream) readLog(ctx context.Context, logPath string, query url.Values) error {
	if path.Base(logPath) != "log" {
		return fmt.Errorf("%q is not the path of a log", logPath)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := st.s.u.request(ctx, http.MethodGet, logPath, query, http.Header{"Accept": {"*/*"}}, nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		// The API's answer for a pod without a node: an empty log, which has ended.
		if response.StatusCode == http.StatusNoContent {
			return nil
		}
		return statusError(response)
	}
	// A program may write nothing for long: the page knows from this that its log is open.
	if err := st.send(message{"type": "state", "ok": true}); err != nil {
		response.Body.Close()
		return err
	}
	lines := make(chan string) // unbuffered: a slow tab slows the reading
	failed := make(chan error, 1)
	go func() {
		defer response.Body.Close()
		failed <- readLines(ctx, response.Body, lines)
	}()
	var pending []string
	size := 0
	flush := func() error {
		if len(pending) == 0 {
			return nil
		}
		m := message{"type": "lines", "lines": pending}
		pending, size = nil, 0
		return st.send(m)
	}
	timer := time.NewTimer(gatherDelay)
	timer.Stop()
	for {
		select {
		case line := <-lines:
			if len(pending) == 0 {
				timer.Reset(gatherDelay)
			}
			pending, size = append(pending, line), size+len(line)
			if len(pending) >= maxLines || size >= maxLinesBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		case <-timer.C:
			if err := flush(); err != nil {
				return err
			}
		case err := <-failed:
			return errors.Join(flush(), err)
		}
	}
}

// readLines sends the lines of a log to lines until it ends. It cuts a line that is longer than maxLine.
func readLines(ctx context.Context, body io.Reader, lines chan<- string) error {
	r := bufio.NewReaderSize(body, maxLine)
	for {
		text, err := r.ReadSlice('\n')
		line := strings.TrimSuffix(string(text), "\n")
		if errors.Is(err, bufio.ErrBufferFull) {
			missing := 0
			for errors.Is(err, bufio.ErrBufferFull) {
				text, err = r.ReadSlice('\n')
				missing += len(bytes.TrimSuffix(text, []byte("\n")))
			}
			line += fmt.Sprintf(" … (%d more bytes)", missing)
		}
		if line != "" || err == nil {
			select {
			case lines <- strings.ToValidUTF8(line, "\uFFFD"):
			case <-ctx.Done():
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the log: %w", err)
		}
	}
}
