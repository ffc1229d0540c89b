// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/diskfaults"
)

// node is the process: the store and what steers it.
type node struct {
	opts  options
	store *raftstore.Store
	disk  diskfaults.Faults

	mu  sync.Mutex
	out io.Writer
}

// request is a line on standard input.
type request struct {
	ID   int             `json:"id"`
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// response is the line on standard output that a request gets; answers come in any order.
type response struct {
	ID     int    `json:"id"`
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

type operation func(ctx context.Context, args json.RawMessage) (any, error)

func (n *node) operations() map[string]operation {
	return map[string]operation{
		"status":   n.status,
		"members":  n.members,
		"check":    n.check,
		"remove":   n.remove,
		"transfer": n.transfer,
		"faults":   n.faults,
		"load":     n.load,
	}
}

// control answers requests, each on its own, until standard input or ctx ends.
func (n *node) control(ctx context.Context, stop func()) {
	ops := n.operations()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			n.respond(response{Error: err.Error()})
			continue
		}
		op := ops[r.Op]
		if op == nil {
			n.respond(response{ID: r.ID, Error: fmt.Sprintf("no operation %q", r.Op)})
			continue
		}
		go func() { // may wait as long as the store does; the process's end takes it along
			result, err := op(ctx, r.Args)
			a := response{ID: r.ID, Result: result}
			if err != nil {
				a.Result, a.Error = nil, err.Error()
			}
			n.respond(a)
		}()
	}
	if n.opts.bound {
		stop()
	}
}

func (n *node) respond(a response) {
	b, err := json.Marshal(a)
	if err != nil {
		b, _ = json.Marshal(response{ID: a.ID, Error: err.Error()})
	}
	n.print(string(b))
}

func (n *node) print(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintln(n.out, line)
}

// prepare sets up what has to be there before the store opens.
func (n *node) prepare() { n.opts.store.Faults = &n.disk }

func (n *node) status(context.Context, json.RawMessage) (any, error) { return n.store.Status(), nil }

func (n *node) members(context.Context, json.RawMessage) (any, error) {
	return n.store.Cluster().Members(), nil
}

// check tells what must never go back, and what raft's members have against those of the log.
func (n *node) check(context.Context, json.RawMessage) (any, error) {
	status := n.store.Status()
	problem, at := n.store.Cluster().CheckMembers()
	return map[string]any{"applied": status.AppliedIndex, "revision": status.Revision, "membersAt": at, "membersProblem": problem}, nil
}

func (n *node) remove(ctx context.Context, args json.RawMessage) (any, error) {
	var name string
	if err := json.Unmarshal(args, &name); err != nil {
		return nil, fmt.Errorf("remove wants a name: %w", err)
	}
	return "removed", n.store.Cluster().RemoveMember(ctx, name)
}

func (n *node) transfer(ctx context.Context, _ json.RawMessage) (any, error) {
	return "transferred", n.store.Cluster().TransferLeadership(ctx)
}

// diskFaults are how the disk is to misbehave from now on; the zero value ends it.
type diskFaults struct {
	DelayMillis int    `json:"delayMillis"` // of each flush
	Error       string `json:"error"`       // of each write: "EIO" or "ENOSPC"
}

func (n *node) faults(_ context.Context, args json.RawMessage) (any, error) {
	var f diskFaults
	if err := json.Unmarshal(args, &f); err != nil {
		return nil, err
	}
	var failure error
	switch f.Error {
	case "":
	case "EIO":
		failure = unix.EIO
	case "ENOSPC":
		failure = unix.ENOSPC
	default:
		return nil, fmt.Errorf("no disk error %q", f.Error)
	}
	n.disk.DelayFlushes(time.Duration(f.DelayMillis) * time.Millisecond)
	n.disk.FailWrites(failure)
	return f, nil
}
