// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// brokenStream is a text in client-go's error when a connection ends before the program does
// (tools/remotecommand/errorstream.go).
const brokenStream = "error reading from error stream"

// runCommand runs a command in a container, or attaches to its process. It connects the page to the process.
func (st *stream) runCommand(ctx context.Context, r *pageMessage) error {
	if st.s.h.o.ReadOnly {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New(readOnly))
	}
	if err := apiPath(http.MethodGet, r.Path); err != nil {
		return err
	}
	query := r.values()
	silent := r.Op == "attach" && query.Get("stdin") == "false" // for a process that reads no input
	query.Set("stdin", strconv.FormatBool(!silent))
	query.Set("stdout", "true")
	query.Set("stderr", strconv.FormatBool(!r.TTY)) // a terminal has one output
	query.Set("tty", strconv.FormatBool(r.TTY))
	if r.Op == "exec" {
		query["command"] = r.Command
	}
	executor, err := newExecutor(st.s.u.config, r.Path, query)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdin, typed := io.Pipe()
	defer func() { _ = stdin.Close() }() // a pipe in memory has no error
	sizes := make(sizeQueue, 1)
	go st.feed(ctx, typed, sizes)
	options := remotecommand.StreamOptions{Stdout: &output{st: st, number: 1}, Tty: r.TTY}
	if !silent {
		options.Stdin = stdin
	}
	if r.TTY {
		options.TerminalSizeQueue = sizes
	} else {
		options.Stderr = &output{st: st, number: 2}
	}
	_, err = await(ctx, func() (struct{}, error) { // it dials without the context
		return struct{}{}, executor.StreamWithContext(ctx, options)
	}, func(struct{}) {})
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return st.send(message{"type": "exit", "exit": exit.Code})
	}
	if err != nil && strings.Contains(err.Error(), brokenStream) {
		return fmt.Errorf("the connection to the container was lost: its node, the API or a proxy between has ended it (%w)", err)
	}
	if err != nil {
		return fmt.Errorf("running the command: %w", err)
	}
	return st.send(message{"type": "exit", "exit": 0})
}

// newExecutor makes an executor for a container. It uses WebSocket, or SPDY where an older API has only that.
func newExecutor(config *rest.Config, path string, query url.Values) (remotecommand.Executor, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("the address of the API: %w", err)
	}
	target := base.JoinPath(path)
	target.RawQuery = query.Encode()
	ws, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, target.String())
	if err != nil {
		return nil, fmt.Errorf("using the credentials: %w", err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, target)
	if err != nil {
		return nil, fmt.Errorf("using the credentials: %w", err)
	}
	both, err := remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the container: %w", err)
	}
	return both, nil
}

// feed forwards the page's messages to the command: text, and the size of its terminal.
func (st *stream) feed(ctx context.Context, typed *io.PipeWriter, sizes sizeQueue) {
	defer func() { _ = typed.Close() }() // a pipe in memory has no error
	defer close(sizes)
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-st.input:
			st.s.pending.Add(-int64(len(r.Data)))
			if r.Op == "stdin" {
				if _, err := io.WriteString(typed, r.Data); err != nil {
					return // the command does not read any more
				}
				continue
			}
			select {
			case <-sizes: // an older size that was not read
			default:
			}
			sizes <- remotecommand.TerminalSize{Width: r.Cols, Height: r.Rows}
		}
	}
}

// sizeQueue holds a terminal's newest size. Its capacity is 1, since older sizes have no effect.
type sizeQueue chan remotecommand.TerminalSize

// Next implements remotecommand.TerminalSizeQueue.
func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, open := <-q
	if !open {
		return nil
	}
	return &size
}

// output sends the output of a command to the page. It keeps an incomplete UTF-8 character until the rest of it is
// written.
type output struct {
	st     *stream
	number int
	text   []byte
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	text := append(o.text, p...)
	end := len(text)
	for back := 1; back < utf8.UTFMax && back <= len(text); back++ {
		if c := text[len(text)-back]; utf8.RuneStart(c) {
			if !utf8.FullRune(text[len(text)-back:]) {
				end = len(text) - back
			}
			break
		}
	}
	o.text = append([]byte(nil), text[end:]...)
	if end == 0 {
		return len(p), nil
	}
	return len(p), o.st.send(message{"type": "data", "data": string(text[:end]), "stream": o.number})
}
