// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"

	"github.com/coracle-k8s/coracle/test/storebench/load"
	"github.com/coracle-k8s/coracle/test/storecluster"
)

// formTime bounds how long a cluster may take to form or to heal.
const formTime = 60 * time.Second

// cluster is a running store of one of the systems.
type cluster struct {
	sys     system
	dir     string
	servers []*server
}

// server is one server of a cluster, whether its process runs or not.
type server struct {
	sys          system
	name, dir    string
	client, peer string // addresses
	log          string
	process      *storecluster.Process
	connections  []*kubernetes.Client
}

// newCluster starts a cluster and waits until all its voters are there.
func (b *bench) newCluster(ctx context.Context, sys system, voters int) (*cluster, error) {
	dir, err := os.MkdirTemp(b.dir, sys.name()+"-")
	if err != nil {
		return nil, err
	}
	c := &cluster{sys: sys, dir: dir}
	for i := range voters {
		s := &server{sys: sys, name: fmt.Sprintf("s%d", i+1)}
		s.dir, s.log = filepath.Join(dir, s.name), filepath.Join(dir, s.name+".log")
		if s.client, err = freeAddress(); err != nil {
			return nil, err
		}
		if s.peer, err = freeAddress(); err != nil {
			return nil, err
		}
		c.servers = append(c.servers, s)
	}
	for _, s := range c.servers {
		if err := c.start(s); err != nil {
			c.close()
			return nil, err
		}
	}
	if err := c.healthy(ctx); err != nil {
		err = fmt.Errorf("%w\n%s", err, c.logs())
		c.close()
		return nil, err
	}
	return c, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// start starts a server's process, the first time or after its end.
func (c *cluster) start(s *server) error {
	p, err := storecluster.Start(c.sys.command(c, s), s.log, nil)
	if err != nil {
		return fmt.Errorf("start %s of %s: %w", s.name, c.sys.name(), err)
	}
	s.process = p
	return nil
}

func (s *server) pid() int { return s.process.Process.Pid }

// close ends all processes and removes their data.
func (c *cluster) close() {
	for _, s := range c.servers {
		for _, conn := range s.connections {
			_ = conn.Close()
		}
		s.connections = nil
		if s.process != nil {
			s.process.Kill()
		}
	}
	_ = os.RemoveAll(c.dir)
}

// logs are the last lines of what each server said.
func (c *cluster) logs() string {
	var all string
	for _, s := range c.servers {
		all += fmt.Sprintf("--- %s %s\n%s\n", c.sys.name(), s.name, storecluster.Tail(s.log, 15))
	}
	return all
}

// connect gives n connections to this server, as the API server makes them.
func (s *server) connect(n int) ([]*kubernetes.Client, error) {
	for len(s.connections) < n {
		c, err := kubernetes.New(clientv3.Config{
			Endpoints: []string{"http://" + s.client}, DialTimeout: 20 * time.Second,
			DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second, Logger: zap.NewNop(),
		})
		if err != nil {
			return nil, err
		}
		s.connections = append(s.connections, c)
	}
	return s.connections[:n], nil
}

// remote runs a load over gRPC from this process.
func (s *server) remote(ctx context.Context, spec load.Spec) (load.Result, error) {
	clients, err := s.connect(max(1, min(spec.Clients, load.MaxConnections)))
	if err != nil {
		return load.Result{}, err
	}
	return load.Run(ctx, clients, spec)
}

func (s *server) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	clients, err := s.connect(1)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return clients[0].Status(ctx, "http://"+s.client)
}

// leader is the server that all running servers take for the leader.
func (c *cluster) leader(ctx context.Context) (*server, error) {
	var found *server
	var id uint64
	for _, s := range c.servers {
		st, err := s.status(ctx)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", s.name, err)
		case st.Leader == 0:
			return nil, fmt.Errorf("%s knows no leader", s.name)
		case id != 0 && id != st.Leader:
			return nil, fmt.Errorf("%s knows another leader", s.name)
		}
		if id = st.Leader; st.Header.MemberId == id {
			found = s
		}
	}
	if found == nil {
		return nil, errors.New("the leader is none of the servers")
	}
	return found, nil
}

// healthy waits until all servers are voters, agree on the leader and read
// linearizably.
func (c *cluster) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, formTime)
	defer cancel()
	for {
		err := c.check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d servers of %s were not well within %s: %w", len(c.servers), c.sys.name(), formTime, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *cluster) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	members, err := leader.connections[0].MemberList(ctx)
	if err != nil {
		return err
	}
	voters := 0
	for _, m := range members.Members {
		if !m.IsLearner {
			voters++
		}
	}
	if voters != len(c.servers) {
		return fmt.Errorf("%d of %d servers vote", voters, len(c.servers))
	}
	for _, s := range c.servers {
		if _, err := s.connections[0].KV.Get(ctx, "health"); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// leaderAndFollower waits for health and tells who is who. There is no
// follower of one voter.
func (c *cluster) leaderAndFollower(ctx context.Context) (leader, follower *server, err error) {
	if err := c.healthy(ctx); err != nil {
		return nil, nil, err
	}
	if leader, err = c.leader(ctx); err != nil {
		return nil, nil, err
	}
	for _, s := range c.servers {
		if s != leader {
			follower = s
		}
	}
	return leader, follower, nil
}
