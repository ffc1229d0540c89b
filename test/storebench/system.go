// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os/exec"
	"strings"

	"github.com/coracle-k8s/coracle/test/storebench/load"
	"github.com/coracle-k8s/coracle/test/testca"
)

// system is one of the stores that are compared.
type system interface {
	name() string
	// command starts a server of a cluster, new or again.
	command(c *cluster, s *server) *exec.Cmd
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

func (o *coracle) local(ctx context.Context, s *server, spec load.Spec) (load.Result, error) {
	var r load.Result
	err := s.process.Ask(ctx, "load", spec, &r)
	return r, err
}
