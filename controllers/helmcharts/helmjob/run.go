// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Name is the child's name, by which coracle knows what it is to be. The child has no arguments.
const Name = "coracle-helmjob"

// Runner starts children.
type Runner struct {
	// Program is the path of coracle.
	Program string
	// Log receives the child's log: lines of text. nil discards it.
	Log io.Writer
	// Env are the child's environment variables, which also name proxies. nil is for those of this process.
	Env []string
}

// Run executes a request in a child and returns when the child has ended. The error is for failures that are not caused
// by the chart: the child could not be started, was killed, or wrote an invalid result. If ctx ends first, the child is
// killed. It is also killed when this process dies, since its standard input closes then. The next request recovers an
// incomplete release.
func (r Runner) Run(ctx context.Context, req *Request) (*Result, error) {
	if err := req.Validate(); err != nil {
		return &Result{Reason: BadRequest, Message: err.Error()}, nil
	}
	text, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("writing a request for helm: %w", err)
	}
	stdin, writeEnd, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for helm: %w", err)
	}
	defer writeEnd.Close() // only after the child has ended: the child takes the end of its input for the death of this process
	out := &boundedResult{}
	var tail bytes.Buffer
	last := &lastLines{log: r.Log, tail: &tail}
	c := exec.CommandContext(ctx, r.Program)
	c.Args[0] = Name
	c.Stdin, c.Stdout, c.Stderr, c.Env = stdin, out, last, r.Env
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // only this process handles a Ctrl-C at its terminal
	c.WaitDelay = 10 * time.Second
	err = c.Start()
	stdin.Close()
	if err != nil {
		return nil, fmt.Errorf("starting helm in a process of its own (%s): %w", r.Program, err)
	}
	sent := make(chan error, 1) // for the only value, so that the writer never waits
	go func() {
		_, err := writeEnd.Write(append(text, '\n'))
		sent <- err
	}()
	err = c.Wait()
	writeEnd.Close() // a child that died early may have left the writer waiting
	writeErr := <-sent
	if ctx.Err() != nil {
		return nil, fmt.Errorf("helm was stopped: %w", context.Cause(ctx))
	}
	result := &Result{}
	if jsonErr := json.Unmarshal(out.text.Bytes(), result); jsonErr != nil {
		return nil, fmt.Errorf("helm ended without a result: %w; its last words: %s", errors.Join(err, writeErr, cmp.Or(out.err, jsonErr)),
			strings.TrimSpace(tail.String()))
	}
	return result, nil
}

// boundedResult accepts a result of limited size, since the chart may have influenced the child.
type boundedResult struct {
	text bytes.Buffer
	err  error
}

const resultBytes = 4 << 20

func (a *boundedResult) Write(p []byte) (int, error) {
	if a.text.Len()+len(p) > resultBytes {
		a.err = fmt.Errorf("its result has more than %d bytes", resultBytes)
		return 0, a.err // the pipe is closed then, which ends the child
	}
	return a.text.Write(p)
}

// lastLines forwards a log and keeps its end.
type lastLines struct {
	log  io.Writer
	tail *bytes.Buffer
}

const keepBytes = 2 << 10

func (l *lastLines) Write(p []byte) (int, error) {
	l.tail.Write(p[max(0, len(p)-keepBytes):])
	if over := l.tail.Len() - keepBytes; over > 0 {
		l.tail.Next(over)
	}
	if l.log != nil {
		return l.log.Write(p)
	}
	return len(p), nil
}
