// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// responseTimeout bounds the wait for the proxy's answer to a change, socketsWithin that for its sockets.
	responseTimeout, socketsWithin = 30 * time.Second, 3 * time.Second
	// maxResponse bounds an answer in bytes: a proxy that an attacker controls must not use up this process' memory.
	maxResponse = 8 << 20
)

// process is a proxy as this run sees it.
type process struct {
	entry
	began time.Time // when this run started or found it
	conn  *net.UnixConn
	out   *json.Encoder
	sent  table.Sections // nil before the first table of this connection
	// problems are those of the last answer.
	problems map[string]string
	// answeredPID is the number that the process itself gave with its sockets; 0 where it gave none.
	answeredPID int
	responses   chan table.Response // no room: one is awaited for each change
	ended       chan error          // capacity 1: a connection ends once
	done        chan struct{}       // closed by close
	reading     sync.WaitGroup
}

// connect opens the control connection.
func connect(dir string, e entry) (*process, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, e.Socket), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connecting with the ingress proxy: %w", err)
	}
	return &process{
		entry: e, began: time.Now(), conn: conn, out: json.NewEncoder(conn),
		responses: make(chan table.Response), ended: make(chan error, 1), done: make(chan struct{}),
	}, nil
}

// adopt connects with a process that an earlier run has started, and asks for duplicates of its sockets; there are none
// where it drains, is of a version that knows no such question, or does not answer.
func adopt(dir string, e entry) (*process, *sockets, error) {
	p, err := connect(dir, e)
	if err != nil {
		return nil, nil, err
	}
	s, err := p.askSockets()
	if err != nil && !errors.Is(err, errNoResponse) {
		_ = p.conn.Close()
		return nil, nil, err
	}
	p.reading.Go(p.read)
	return p, s, nil
}

// errNoResponse says that a process answered nothing for socketsWithin.
var errNoResponse = errors.New("the ingress proxy does not hand over its sockets")

// askSockets is the first thing on a connection, before read.
func (p *process) askSockets() (*sockets, error) {
	if err := p.conn.SetDeadline(time.Now().Add(socketsWithin)); err != nil {
		return nil, fmt.Errorf("asking the ingress proxy for its sockets: %w", err)
	}
	defer func() { _ = p.conn.SetDeadline(time.Time{}) }()
	if err := p.out.Encode(table.Change{Sockets: true}); err != nil {
		return nil, fmt.Errorf("asking the ingress proxy for its sockets: %w", err)
	}
	receiver, text, line := &table.Receiver{Conn: p.conn}, make([]byte, 16<<10), []byte(nil)
	defer receiver.Close()
	for !bytes.HasSuffix(line, []byte("\n")) {
		n, err := receiver.Read(text)
		if errors.Is(err, io.EOF) {
			err = errors.New("it closed the connection")
		}
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				return nil, errNoResponse
			}
			return nil, fmt.Errorf("taking the sockets of the ingress proxy: %w", err)
		}
		if line = append(line, text[:n]...); len(line) > maxResponse {
			return nil, errors.New("taking the sockets of the ingress proxy: there is no end of them")
		}
	}
	var a table.Response
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("reading the answer of the ingress proxy about its sockets: %w", err)
	}
	descriptors, err := receiver.Take(len(a.Sockets))
	if err != nil {
		return nil, fmt.Errorf("taking the sockets of the ingress proxy: %w", err)
	}
	p.answeredPID = a.PID
	if len(a.Sockets) == 0 {
		return nil, nil
	}
	s := &sockets{descriptors: descriptors, names: a.Sockets}
	if err := s.check(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// read receives answers. Where the connection ends the process has, or it listens to another run.
func (p *process) read() {
	bounded := &boundedReader{from: p.conn}
	for in := json.NewDecoder(bounded); ; {
		bounded.left = maxResponse
		var a table.Response
		if err := in.Decode(&a); err != nil {
			p.ended <- fmt.Errorf("its connection was closed: %w; its log says why", err)
			return
		}
		select {
		case p.responses <- a:
		case <-p.done:
			return
		}
	}
}

// boundedReader fails where more is read than is left.
type boundedReader struct {
	from io.Reader
	left int
}

// Read implements io.Reader.
func (b *boundedReader) Read(to []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("it sends an answer of more than %d bytes", maxResponse)
	}
	n, err := b.from.Read(to)
	b.left -= n
	return n, err
}

func (p *process) close() {
	close(p.done)
	_ = p.conn.Close()
	p.reading.Wait()
}

// put has the proxy serve by a table and with changed sockets of s, and returns what sections lack.
func (p *process) put(ctx context.Context, now table.Sections, s *sockets, change socketChange) (map[string]string, error) {
	changes := table.Diff(p.sent, now)
	if p.sent != nil && len(changes) == 0 && change.empty() {
		return p.problems, nil
	}
	if !change.empty() {
		if err := p.sendSockets(s, change); err != nil {
			return nil, err
		}
	}
	a, err := p.commit(ctx, changes, false)
	if err != nil {
		return nil, err
	}
	p.sent, p.problems = now, a.Problems
	return p.problems, nil
}

// sendSockets is a part of a commit.
func (p *process) sendSockets(s *sockets, change socketChange) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(responseTimeout)); err != nil {
		return err
	}
	c := table.Change{Close: slices.Sorted(maps.Keys(change.closed))}
	var descriptors []int
	c.Listen, descriptors = s.of(change.opened)
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return table.Send(p.conn, append(line, '\n'), descriptors)
}

// probe finds out whether the proxy answers. It may be called after put.
func (p *process) probe(ctx context.Context) error {
	if p.sent == nil {
		return nil // an empty beginning would be an empty table
	}
	_, err := p.commit(ctx, nil, false)
	return err
}

// stats asks for the proxy's counters; nil before it has a table. It may be called after put.
func (p *process) stats(ctx context.Context) (*table.Stats, error) {
	if p.sent == nil {
		return nil, nil //nolint:nilnil // as said above
	}
	a, err := p.commit(ctx, nil, true)
	return a.Stats, err
}

func (p *process) commit(ctx context.Context, changes []table.Change, stats bool) (table.Response, error) {
	if err := p.conn.SetWriteDeadline(time.Now().Add(responseTimeout)); err != nil {
		return table.Response{}, err
	}
	for _, c := range append(changes, table.Change{Commit: true, Stats: stats}) {
		if err := p.out.Encode(c); err != nil {
			return table.Response{}, err
		}
	}
	select {
	case <-ctx.Done():
		return table.Response{}, ctx.Err()
	case err := <-p.ended:
		return table.Response{}, err
	case <-time.After(responseTimeout):
		return table.Response{}, fmt.Errorf("it has not answered for %s: %w", responseTimeout, os.ErrDeadlineExceeded)
	case a := <-p.responses:
		return a, nil
	}
}
