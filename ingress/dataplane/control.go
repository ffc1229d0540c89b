// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// maxLine limits one line of a stream of changes, in bytes. maxPending limits the lines between two commits.
	maxLine    = 32 << 20
	maxPending = 256 << 20
	// replyTime is the time that an agent may take to read a response.
	replyTime = 10 * time.Second
)

// Control receives the table from an agent.
type Control struct {
	// Proxy is the proxy whose table is changed.
	Proxy *Proxy
	// Logger logs each agent.
	Logger *slog.Logger
	// Listeners are handed to an agent that asks for them. Sockets that the agent sends are added to them.
	Listeners *Listeners
	// Committed, where it is set, is called once: when the first table is in effect.
	Committed func()
	// Abandoned, where it is set, is called when an agent's connection ends before there is a table.
	Abandoned func()

	once      sync.Once
	committed atomic.Bool
}

// Serve accepts agents until ctx is done or l fails. It serves one agent at a time: a new connection ends the one
// before. What an agent sends before its first Commit replaces the whole table. Without an agent the table stays
// unchanged. Serve closes l, and returns nil when ctx ended it.
func (c *Control) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	end := func() {}
	defer func() { end() }()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting the agent's connection at %s: %w", l.Addr(), err)
		}
		end()
		end = c.start(ctx, conn)
	}
}

// start serves an agent in a goroutine. It returns a function that ends the goroutine and waits for it.
func (c *Control) start(ctx context.Context, conn net.Conn) func() {
	ctx, cancel := context.WithCancel(ctx)
	closed := context.AfterFunc(ctx, func() { _ = conn.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		defer closed()
		c.Logger.Info("an agent is connected")
		err := c.follow(conn)
		if ctx.Err() == nil && c.Abandoned != nil && !c.committed.Load() { // no other agent has connected, and none has committed
			c.Abandoned()
		}
		if ctx.Err() == nil {
			c.Logger.Info("the agent's connection ended; the table stays as it is", "cause", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// transaction holds the changes that an agent has sent since its last Commit.
type transaction struct {
	initial table.Sections // the initial sections; nil after the first Commit
	changes []table.Change
	listen  []Socket
	close   []string
	size    int
}

// follow applies what an agent sends until its connection fails.
func (c *Control) follow(conn net.Conn) error {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("the agent's connection cannot carry sockets")
	}
	receiver := &table.Receiver{Conn: unix}
	defer receiver.Close()
	reader := bufio.NewReaderSize(receiver, 64<<10)
	pending := transaction{initial: table.Sections{}}
	defer func() {
		for _, s := range pending.listen {
			s.close() // it was not committed
		}
	}()
	for {
		line, err := readLine(reader)
		if err != nil {
			return err
		}
		var change table.Change
		if err := json.Unmarshal(line, &change); err != nil {
			return fmt.Errorf("reading a change of the ingress table: %w", err)
		}
		if pending.size += len(line); pending.size > maxPending {
			return fmt.Errorf("the agent sent more than %d bytes without a commit", maxPending)
		}
		switch {
		case change.Sockets:
			err = c.handOver(unix)
		case len(change.Listen)+len(change.Close) > 0:
			err = pending.sockets(change, receiver)
		case !change.Commit && pending.initial != nil:
			pending.initial.Apply(change)
		case !change.Commit:
			pending.changes = append(pending.changes, change)
		default:
			problems := c.commit(pending)
			pending = transaction{}
			answer := table.Response{Problems: problems}
			if change.Stats {
				answer.Stats = c.Proxy.Report()
			}
			err = reply(conn, answer)
		}
		if err != nil {
			return err
		}
	}
}

// sockets records the sockets that the next commit adds and removes.
func (t *transaction) sockets(c table.Change, from *table.Receiver) error {
	t.close = append(t.close, c.Close...)
	descriptors, err := from.Take(len(c.Listen))
	if err != nil {
		return fmt.Errorf("taking the agent's sockets: %w", err)
	}
	for i, d := range descriptors {
		s, err := Inherit(c.Listen[i], d)
		if err != nil {
			closeAll(descriptors[i+1:])
			return err
		}
		t.listen = append(t.listen, s)
	}
	return nil
}

// commit makes a transaction take effect. A site is in the table before its sockets accept connections.
func (c *Control) commit(t transaction) (problems map[string]string) {
	if t.initial != nil {
		problems = c.Proxy.Replace(t.initial)
	} else {
		problems = c.Proxy.Apply(t.changes)
	}
	c.Listeners.Remove(t.close)
	c.Listeners.Add(t.listen)
	c.once.Do(func() {
		c.committed.Store(true)
		if c.Committed != nil {
			c.Committed()
		}
	})
	return problems
}

// handOver sends duplicates of the listening sockets, without those that are closed already.
func (c *Control) handOver(conn *net.UnixConn) error {
	descriptors, names, err := c.Listeners.descriptors()
	if err != nil {
		return err
	}
	defer closeAll(descriptors)
	text, err := json.Marshal(table.Response{PID: os.Getpid(), Sockets: names, Limits: c.Proxy.limits.table()})
	if err != nil {
		return fmt.Errorf("writing an answer to the agent: %w", err)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
		return fmt.Errorf("setting the time for an answer to the agent: %w", err)
	}
	if err := table.Send(conn, append(text, '\n'), descriptors); err != nil {
		return fmt.Errorf("handing sockets to the agent: %w", err)
	}
	return nil
}

func reply(conn net.Conn, answer table.Response) error {
	text, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("writing an answer to the agent: %w", err)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
		return fmt.Errorf("setting the time for an answer to the agent: %w", err)
	}
	if _, err := conn.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("sending an answer to the agent: %w", err)
	}
	return nil
}

// readLine reads up to the end of a line, into memory that the caller then owns.
func readLine(reader *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, err := reader.ReadSlice('\n')
		if len(line)+len(piece) > maxLine {
			return nil, fmt.Errorf("the agent sent a line of more than %d bytes", maxLine)
		}
		line = append(line, piece...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil, io.EOF // a line without its end may be incomplete
		case err != nil:
			return nil, fmt.Errorf("reading from the agent: %w", err)
		default:
			return line, nil
		}
	}
}
