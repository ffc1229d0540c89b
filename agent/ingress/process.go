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
	// responseTimeout limits the wait for the proxy's response to a change, socketsTimeout that for its sockets.
	responseTimeout, socketsTimeout = 30 * time.Second, 3 * time.Second
	// maxResponse limits a response in bytes: a proxy that an attacker controls must not exhaust this process' memory.
	maxResponse = 8 << 20
)

// process is this run's connection to a proxy.
type process struct {
	entry
	beganAt time.Time // when this run started or found it
	// startedHere means that this run has started the proxy, which therefore has no table from before.
	startedHere bool
	conn        *net.UnixConn
	encoder     *json.Encoder
	sent        table.Sections // nil before the first table of this connection
	// problems are the proxy's problems, as of its last response.
	problems map[string]string
	// answeredPID is the process ID that the process itself sent with its sockets. 0 means that it sent none.
	answeredPID int
	// limits are those that the process was started with. They are zero where it did not say them.
	limits table.Limits
	// limitCounts is what the proxy has counted so far. It is nil before an earlier run's process was asked.
	limitCounts *table.Limited
	responses   chan table.Response // unbuffered: each change waits for its response
	connEnded   chan error          // capacity 1: a connection ends once
	done        chan struct{}       // closed by close
	reading     sync.WaitGroup
}

// connect opens the control connection to the proxy process of an entry.
func connect(dir string, e entry) (*process, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, e.Socket), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connecting with the ingress proxy: %w", err)
	}
	return &process{
		entry: e, beganAt: time.Now(), conn: conn, encoder: json.NewEncoder(conn),
		responses: make(chan table.Response), connEnded: make(chan error, 1), done: make(chan struct{}),
	}, nil
}

// adopt connects to a process that an earlier run has started, and asks for duplicates of its sockets. The sockets are
// nil if the process drains, is of a version that does not know that request, or does not reply.
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

// errNoResponse means that a process did not reply within socketsTimeout.
var errNoResponse = errors.New("the ingress proxy does not pass on its sockets")

// askSockets asks for the process' sockets. It has to be called first on a connection, before read.
func (p *process) askSockets() (*sockets, error) {
	if err := p.conn.SetDeadline(time.Now().Add(socketsTimeout)); err != nil {
		return nil, fmt.Errorf("asking the ingress proxy for its sockets: %w", err)
	}
	defer func() { _ = p.conn.SetDeadline(time.Time{}) }()
	if err := p.encoder.Encode(table.Change{Sockets: true}); err != nil {
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
			return nil, errors.New("taking the sockets of the ingress proxy: it sent too many")
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
	p.answeredPID, p.limits = a.PID, a.Limits
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

// read receives responses. When the connection ends, the process has ended or another run has connected to it.
func (p *process) read() {
	bounded := &boundedReader{source: p.conn}
	for in := json.NewDecoder(bounded); ; {
		bounded.remaining = maxResponse
		var a table.Response
		if err := in.Decode(&a); err != nil {
			p.connEnded <- fmt.Errorf("its connection was closed: %w; its log says why", err)
			return
		}
		select {
		case p.responses <- a:
		case <-p.done:
			return
		}
	}
}

// boundedReader returns an error once left bytes were read.
type boundedReader struct {
	source    io.Reader
	remaining int
}

// Read implements io.Reader.
func (b *boundedReader) Read(to []byte) (int, error) {
	if b.remaining <= 0 {
		return 0, fmt.Errorf("it sends an answer of more than %d bytes", maxResponse)
	}
	n, err := b.source.Read(to)
	b.remaining -= n
	return n, err
}

func (p *process) close() {
	close(p.done)
	_ = p.conn.Close()
	p.reading.Wait()
}

// sendTable sends a table and the changed sockets of s to the proxy, and returns the problems of the table's sections.
func (p *process) sendTable(ctx context.Context, now table.Sections, s *sockets, change socketChange) (map[string]string, error) {
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

// sendSockets sends changed sockets, which the next commit puts into effect.
func (p *process) sendSockets(s *sockets, change socketChange) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(responseTimeout)); err != nil {
		return err
	}
	c := table.Change{Close: slices.Sorted(maps.Keys(change.closed))}
	var descriptors []int
	c.Listen, descriptors = s.descriptorsOf(change.opened)
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return table.Send(p.conn, append(line, '\n'), descriptors)
}

// stats asks for the proxy's counters. It returns nil before the proxy has a table. It must not run concurrently with
// put.
func (p *process) stats(ctx context.Context) (*table.Stats, error) {
	if p.sent == nil {
		return nil, nil //nolint:nilnil // a commit before the first table would be an empty table
	}
	a, err := p.commit(ctx, nil, true)
	return a.Stats, err
}

func (p *process) commit(ctx context.Context, changes []table.Change, stats bool) (table.Response, error) {
	if err := p.conn.SetWriteDeadline(time.Now().Add(responseTimeout)); err != nil {
		return table.Response{}, err
	}
	for _, c := range append(changes, table.Change{Commit: true, Stats: stats}) {
		if err := p.encoder.Encode(c); err != nil {
			return table.Response{}, err
		}
	}
	select {
	case <-ctx.Done():
		return table.Response{}, ctx.Err()
	case err := <-p.connEnded:
		return table.Response{}, err
	case <-time.After(responseTimeout):
		return table.Response{}, fmt.Errorf("it has been unresponsive for %s: %w", responseTimeout, os.ErrDeadlineExceeded)
	case a := <-p.responses:
		return a, nil
	}
}
