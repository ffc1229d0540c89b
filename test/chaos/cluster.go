// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/coracle-k8s/coracle/test/storecluster"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// diskMegabytes is the size of a server's file system: the reserve, some segments, and two snapshots.
	diskMegabytes = 384
	readyTimeout  = 60 * time.Second
)

// cluster is all servers of a store.
type cluster struct {
	t    testing.TB
	dir  string // logs, certificates, and the mount points
	bin  string
	site *site
	ca   *testca.Authority

	mu      sync.Mutex
	servers []*server // in order of their numbers
	count   int       // ever made
}

// status is what storenode tells of its store; see raftstore.Status.
type status struct {
	Leadership struct {
		Leader bool
		Term   uint64
	}
	Revision     int64
	Compacted    int64
	AppliedIndex uint64
}

// member is what storenode tells of a server; see raftstore.Member.
type member struct {
	Name, RaftID  string
	Voter, Leader bool
}

// buildNode compiles test/storenode, unless CORACLE_STORENODE names a program.
func buildNode(t testing.TB, dir string) string {
	t.Helper()
	if bin := os.Getenv("CORACLE_STORENODE"); bin != "" {
		return bin
	}
	bin := filepath.Join(dir, "storenode")
	out, err := exec.Command("go", "build", "-tags", "no_btrfs no_zfs no_devmapper grpcnotrace", "-o", bin,
		"github.com/coracle-k8s/coracle/test/storenode").CombinedOutput()
	testenv.Require(t, err == nil, "building storenode: %v\n%s", err, out)
	return bin
}

// newCluster starts n servers of the program bin and waits until each of them answers.
func newCluster(t testing.TB, bin, dir string, n int) *cluster {
	t.Helper()
	ca := testenv.Must(testca.New(dir))(t)
	c := &cluster{t: t, dir: dir, bin: bin, site: newSite(t), ca: ca}
	t.Cleanup(c.killAll)
	for range n {
		s := c.newServer()
		testenv.NoError(t, s.start(c.peersOf(s)))
		testenv.NoError(t, c.waitReady(s))
	}
	return c
}

// newServer makes a server, its namespace and its disk, and does not start it.
func (c *cluster) newServer() *server {
	c.t.Helper()
	c.count++
	name := fmt.Sprintf("s%d", c.count)
	s := &server{
		name: name, host: c.site.addHost(name, c.count), bin: c.bin, gone: make(chan struct{}),
		disk: filepath.Join(c.dir, name), log: filepath.Join(c.dir, name+".log"),
	}
	cert, err := c.ca.Issue(name, s.host.ip)
	if err == nil {
		err = s.mountDisk(diskMegabytes)
	}
	testenv.NoError(c.t, err)
	if !onRealDisk() {
		c.t.Cleanup(func() { _ = syscall.Unmount(s.disk, syscall.MNT_DETACH) })
	}
	s.args = []string{
		"--cluster", "chaos", "--peer-cert", cert.Cert, "--peer-key", cert.Key, "--peer-ca", cert.CA,
		"--max-voters", "7", "--history-age", "24h", "--history-bytes", "4000000000",
	}
	c.mu.Lock()
	c.servers = append(c.servers, s)
	c.mu.Unlock()
	return s
}

// all lists the servers that belong to the cluster.
func (c *cluster) all() []*server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.servers), (*server).removed)
}

// peersOf lists where the others are.
func (c *cluster) peersOf(s *server) []string {
	var out []string
	for _, other := range c.all() {
		if other != s {
			out = append(out, other.peer())
		}
	}
	return out
}

func (c *cluster) killAll() {
	for _, s := range c.all() {
		_ = s.kill()
	}
}

func (c *cluster) waitReady(s *server) error {
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	if p == nil {
		return storecluster.ErrNotRunning
	}
	select {
	case <-p.Ready:
		return nil
	case <-p.Done:
		return fmt.Errorf("%s ended instead of getting ready (%w):\n%s", s.name, p.Err, storecluster.Tail(s.log, 25))
	case <-time.After(readyTimeout):
		return fmt.Errorf("%s is not ready after %v; its log: %s", s.name, readyTimeout, s.log)
	}
}

// crashes lists the servers whose process ended by itself.
func (c *cluster) crashes() error {
	var errs []error
	for _, s := range c.all() {
		errs = append(errs, s.crashed())
	}
	return errors.Join(errs...)
}

func (s *server) status(ctx context.Context) (status, error) {
	var st status
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := s.ask(ctx, "status", nil, &st)
	return st, err
}

// leader returns the server that says that it leads, in the greatest term if several do.
func (c *cluster) leader(ctx context.Context) (*server, uint64) {
	var lead *server
	var term uint64
	for _, s := range c.all() {
		s.mu.Lock()
		unresponsive := s.proc == nil || s.paused
		s.mu.Unlock()
		if unresponsive {
			continue
		}
		st, err := s.status(ctx)
		if err == nil && st.Leadership.Leader && st.Leadership.Term > term {
			lead, term = s, st.Leadership.Term
		}
	}
	return lead, term
}

// pickLeader returns the leader, or any server if there is none.
func (c *cluster) pickLeader(ctx context.Context, r *rand.Rand) *server {
	if lead, _ := c.leader(ctx); lead != nil {
		return lead
	}
	all := c.all()
	return all[r.IntN(len(all))]
}

// connect returns a client of one server only.
func (s *server) connect() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{s.client()}, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 300 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	})
}

// settle waits until every server runs, leads or follows, votes as it should, and has the same revision.
func (c *cluster) settle(ctx context.Context, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		err := c.settled(ctx)
		if err == nil {
			return nil
		}
		if crash := c.crashes(); crash != nil {
			return crash
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cluster does not settle within %v: %w", within, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *cluster) settled(ctx context.Context) error {
	lead, _ := c.leader(ctx)
	if lead == nil {
		return errors.New("no server leads")
	}
	all := c.all()
	var members []member
	if err := lead.ask(ctx, "members", nil, &members); err != nil {
		return err
	}
	voters := 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
		if !slices.ContainsFunc(all, func(s *server) bool { return s.name == m.Name }) {
			return fmt.Errorf("%s (%s) is still a member", m.Name, m.RaftID)
		}
	}
	if want := len(all) - (1 - len(all)%2); voters != want || len(members) != len(all) {
		return fmt.Errorf("%d members, %d voters; there are %d servers, so %d should vote: %+v", len(members), voters, len(all), want, members)
	}
	st, err := lead.status(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		its, err := s.status(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if its.AppliedIndex+200 < st.AppliedIndex { // clients may be writing
			return fmt.Errorf("%s has applied %d, the leader %d", s.name, its.AppliedIndex, st.AppliedIndex)
		}
	}
	return nil
}

// logs is where the logs are, for a message.
func (c *cluster) logs() string { return filepath.Join(c.dir, "*.log") }

// fill takes the whole disk of a server.
func (s *server) fill() error {
	if onRealDisk() {
		return nil
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.disk, &fs); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(s.disk, "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		if _, err := f.Write(buf); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return nil
			}
			return err
		}
	}
}

func (s *server) unfill() error { return os.Remove(filepath.Join(s.disk, "ballast")) }
