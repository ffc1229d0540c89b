// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"

	"github.com/coracle-k8s/coracle/test/storebench/load"
	"github.com/coracle-k8s/coracle/test/testca"
)

// system is one of the stores that are compared.
type system interface {
	name() string
	// command starts a server of a cluster, new or again.
	command(c *cluster, s *server) *exec.Cmd
	// attach is called before a server's process starts.
	attach(s *server, cmd *exec.Cmd) error
	// local runs a load as the API server on this server's machine does.
	local(ctx context.Context, s *server, spec load.Spec) (load.Result, error)
}

// etcd at its defaults. Its clients are outside of its process.
type etcd struct {
	program string
	pki     testca.Files
}

func (e *etcd) name() string { return "etcd" }

func (e *etcd) command(c *cluster, s *server) *exec.Cmd {
	var initial []string
	for _, o := range c.servers {
		initial = append(initial, o.name+"=https://"+o.peer)
	}
	return exec.Command(e.program, "--name", s.name, "--data-dir", s.dir, "--log-level", "warn",
		"--listen-client-urls", "http://"+s.client, "--advertise-client-urls", "http://"+s.client,
		"--listen-peer-urls", "https://"+s.peer, "--initial-advertise-peer-urls", "https://"+s.peer,
		"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new",
		"--peer-cert-file", e.pki.Cert, "--peer-key-file", e.pki.Key,
		"--peer-trusted-ca-file", e.pki.CA, "--peer-client-cert-auth")
}

func (e *etcd) attach(*server, *exec.Cmd) error { return nil }

func (e *etcd) local(ctx context.Context, s *server, spec load.Spec) (load.Result, error) {
	return s.remote(ctx, spec)
}

// coracle is our store at its defaults. Its client is inside its process.
type coracle struct {
	program string
	pki     testca.Files
}

func (o *coracle) name() string { return "coracle" }

func (o *coracle) command(c *cluster, s *server) *exec.Cmd {
	args := []string{"-name", s.name, "-dir", s.dir, "-cluster", "bench", "-client-address", s.client, "-bound"}
	if len(c.servers) > 1 {
		args = append(args, "-peer-address", s.peer, "-peer-cert", o.pki.Cert, "-peer-key", o.pki.Key, "-peer-ca", o.pki.CA)
	}
	if s != c.servers[0] {
		args = append(args, "-join", c.servers[0].peer)
	}
	return exec.Command(o.program, args...)
}

func (o *coracle) attach(s *server, cmd *exec.Cmd) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	s.control = &control{in: in, waiting: make(map[int]chan response)}
	go s.control.read(out) // ends with the process
	return nil
}

func (o *coracle) local(ctx context.Context, s *server, spec load.Spec) (load.Result, error) {
	var r load.Result
	err := s.control.call(ctx, "load", spec, &r)
	return r, err
}

// control speaks with a storenode over its standard input and output.
type control struct {
	in io.WriteCloser

	mu      sync.Mutex
	last    int
	waiting map[int]chan response // nil: the process has ended
}

type response struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  string          `json:"error"`
}

func (c *control) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var a response
		if json.Unmarshal(lines.Bytes(), &a) != nil {
			continue // "ready"
		}
		c.mu.Lock()
		if w := c.waiting[a.ID]; w != nil {
			w <- a
			delete(c.waiting, a.ID)
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.waiting {
		close(w)
	}
	c.waiting = nil
}

func (c *control) call(ctx context.Context, op string, args, result any) error {
	w := make(chan response, 1) // the reader never waits
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		return errors.New("storenode has ended")
	}
	c.last++
	id := c.last
	c.waiting[id] = w
	b, err := json.Marshal(map[string]any{"id": id, "op": op, "args": args})
	if err == nil {
		_, err = c.in.Write(append(b, '\n'))
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("ask storenode: %w", err)
	}
	select {
	case a, ok := <-w:
		switch {
		case !ok:
			return errors.New("storenode has ended")
		case a.Error != "":
			return errors.New(a.Error)
		}
		return json.Unmarshal(a.Result, result)
	case <-ctx.Done():
		return ctx.Err()
	}
}
