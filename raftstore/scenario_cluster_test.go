// SPDX-License-Identifier: Apache-2.0

//go:debug randseednop=0

package raftstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand"
	randv2 "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/memnet"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// The scenarios run whole clusters in a testing/synctest bubble: the network is
// memnet's and time is the bubble's, so that an hour takes as long as what
// happens in it, and nothing else. Only the files are real.
//
// A seed decides the faults, what the clients do, the delays of links and raft's
// election timeouts. The order in which goroutines run is left to chance, so the
// same seed gives much the same story, not the very same.
//
//	CORACLE_TEST_SEED=7     play each scenario with this seed only
//	CORACLE_TEST_SEEDS=100  play each random scenario so often

// manySeeds says that scenarios are played with new seeds, as make soak does, or with a given one.
func manySeeds() bool { return os.Getenv("CORACLE_TEST_SEEDS")+os.Getenv("CORACLE_TEST_SEED") != "" }

// seeds runs a scenario with several seeds.
func seeds(t *testing.T, usual int, play func(t *testing.T, seed uint64)) {
	first, count := uint64(1), usual
	if testenv.RaceDetector { // scenarios take ten times as long then
		count = 1
	}
	if s := os.Getenv("CORACLE_TEST_SEEDS"); s != "" {
		n := testenv.Must(strconv.Atoi(s))(t)
		first, count = uint64(time.Now().UnixNano()), n
	}
	if s := os.Getenv("CORACLE_TEST_SEED"); s != "" {
		n := testenv.Must(strconv.ParseUint(s, 10, 64))(t)
		first, count = n, 1
	}
	for i := range count {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { play(t, seed) })
	}
}

// changesAddresses is called by scenarios in which a member's address for raft
// changes while the leader sends it entries. hashicorp/raft 1.8.0 then writes the
// peer under a lock (raft.go, startStopReplication) and reads it without one, for its
// id, which stays the same (replication.go, updateLastAppended). We cannot keep it from that.
func changesAddresses(t *testing.T) {
	if testenv.RaceDetector {
		t.Skip("hashicorp/raft 1.8.0 reads a peer without its lock while the peer's address changes")
	}
}

// cluster is the stage of a scenario.
type cluster struct {
	*testing.T
	net   *memnet.Network
	rand  *randv2.Rand
	seed  uint64
	dir   string
	nodes []*node
	*record

	ctx   context.Context // ends with the scenario
	tasks sync.WaitGroup

	mu     sync.Mutex
	leads  map[uint64]string // by term, as raft itself says
	two    bool              // there are two clusters, so a term may have two leaders
	tune   func(*Options)
	trail  *uint64 // entries that stay in the logs, see keep
	actors int
	block  dialBlock
	held   heldCalls
	// reported are the addresses that something outside the store reports to all servers.
	reported atomic.Pointer[[]string]
}

// scenario plays with a cluster of n servers, with or without a vote, named a,
// b, c and so on. Afterwards it lets them settle and checks what clients and
// watchers saw.
func scenario(t *testing.T, seed uint64, n int, play func(c *cluster)) {
	scenarioOf(t, seed, n, nil, play)
}

func scenarioOf(t *testing.T, seed uint64, n int, tune func(*Options), play func(c *cluster)) {
	stage(t, seed, n, tune, func(c *cluster) {
		play(c)
		c.settle()
	})
}

// scenarios runs a scenario with as many seeds as usual says, or the environment.
func scenarios(t *testing.T, usual, n int, play func(c *cluster)) {
	scenariosOf(t, usual, n, nil, play)
}

func scenariosOf(t *testing.T, usual, n int, tune func(*Options), play func(c *cluster)) {
	seeds(t, usual, func(t *testing.T, seed uint64) { scenarioOf(t, seed, n, tune, play) })
}

// stages does the same with a stage.
func stages(t *testing.T, usual, n int, tune func(*Options), play func(c *cluster)) {
	seeds(t, usual, func(t *testing.T, seed uint64) { stage(t, seed, n, tune, play) })
}

// stage gives play a cluster, and checks nothing.
func stage(t *testing.T, seed uint64, n int, tune func(*Options), play func(c *cluster)) {
	dir := scratch(t)
	rand.Seed(int64(seed)) //nolint:staticcheck // raft takes its timeouts from there
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		c := &cluster{
			T: t, net: memnet.New(), rand: randv2.New(randv2.NewPCG(seed, 1)), seed: seed, dir: dir,
			record: newRecord(), ctx: ctx, leads: make(map[uint64]string), tune: tune,
		}
		c.net.Seed(seed)
		c.reported.Store(new([]string))
		defer func() {
			cancel()
			c.tasks.Wait()
			for _, n := range c.nodes {
				n.stop()
			}
		}()
		c.form(n)
		play(c)
	})
}

// scratch is a directory in memory, if there is such: the scenarios are not
// about how fast files are.
func scratch(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "scenario")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { testenv.Check(t, os.RemoveAll(dir)) })
	return dir
}

// form starts the servers and waits until as many have a vote as should.
func (c *cluster) form(n int) {
	for i := range n {
		c.add(string(rune('a' + i)))
	}
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b {
				c.net.Delay(a.name, b.name, 200*time.Microsecond, 300*time.Microsecond)
			}
		}
	}
	for i, n := range c.nodes {
		if i == 0 {
			n.start()
			c.ready(n)
			continue
		}
		n.start("a")
	}
	if n == 0 {
		return
	}
	c.eventually("the servers have votes", time.Minute, func() bool {
		return c.voters(c.nodes[0]) == n-(n+1)%2 && len(c.nodes[0].store.cluster.Members()) == n
	})
}

// add makes a server that is not started yet.
func (c *cluster) add(name string) *node {
	n := &node{c: c, name: name, host: name, dir: filepath.Join(c.dir, name), faults: &diskfaults.Faults{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, n) // clients may be at work
	return n
}

func (c *cluster) ready(n *node) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	testenv.NoError(c, n.store.WaitReady(ctx))
}

// eventually waits until something is so.
func (c *cluster) eventually(what string, within time.Duration, ok func() bool) {
	c.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		c.endIf(time.Now().After(deadline), "not within %v: %s", within, what)
	}
}

// failIf fails the scenario where something is wrong, with its seed and the servers' state.
func (c *cluster) failIf(wrong bool, format string, args ...any) {
	c.Helper()
	if wrong {
		c.Errorf("seed %d: %s\n%s", c.seed, fmt.Sprintf(format, args...), c.state())
	}
}

// endIf is failIf, and ends the scenario.
func (c *cluster) endIf(wrong bool, format string, args ...any) {
	c.Helper()
	c.failIf(wrong, format, args...)
	if wrong {
		c.FailNow()
	}
}

// state describes the servers, for failures.
func (c *cluster) state() string {
	out := ""
	for _, n := range c.nodes {
		if n.store == nil {
			out += n.name + " is down\n"
			continue
		}
		lead, _ := n.store.leader.get()
		out += fmt.Sprintf("%s: %v, leads: %+v, knows leader: %+v, applied %d of %d, votes: %v\n", n.name,
			n.store.replica.raft.State(), n.store.Status().Leadership, lead, n.store.replica.raft.AppliedIndex(), n.store.replica.raft.LastIndex(),
			n.store.replica.raft.GetConfiguration().Configuration().Servers)
	}
	return out
}

func (c *cluster) voters(n *node) int {
	voters := 0
	for _, m := range n.store.cluster.Members() {
		if m.Voter {
			voters++
		}
	}
	return voters
}

// leader waits for a server that leads, among those given or all.
func (c *cluster) leader(among ...*node) *node {
	c.Helper()
	if among == nil {
		among = c.nodes
	}
	var leader *node
	c.eventually("one of the servers leads", 30*time.Second, func() bool {
		for _, n := range among {
			if n.leads() && (leader == nil || n.term() > leader.term()) {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

// others are the servers that are not among those given.
func (c *cluster) others(but ...*node) []*node {
	var out []*node
	for _, n := range c.nodes {
		if !contains(but, n) {
			out = append(out, n)
		}
	}
	return out
}

func contains(nodes []*node, n *node) bool {
	for _, o := range nodes {
		if o == n {
			return true
		}
	}
	return false
}

func names(nodes []*node) []string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.name)
	}
	return out
}

// partition separates groups of servers.
func (c *cluster) partition(groups ...[]*node) {
	var named [][]string
	for _, g := range groups {
		named = append(named, names(g))
	}
	c.net.Partition(named...)
}

// isolate separates servers from all others.
func (c *cluster) isolate(nodes ...*node) { c.partition(nodes, c.others(nodes...)) }

// pass lets time pass.
func (c *cluster) pass(d time.Duration) { time.Sleep(d) }

// shuffled are all servers in random order.
func (c *cluster) shuffled() []*node {
	out := append([]*node(nil), c.nodes...)
	c.rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// node is a server: its directory, its place in the network, and its store
// while it runs.
type node struct {
	c      *cluster
	name   string
	host   string        // its address
	was    raft.ServerID // before it stopped
	off    atomic.Int64  // what its wall clock is ahead by, a time.Duration
	dir    string
	faults *diskfaults.Faults
	gone   bool // for good: it does not take part in what is checked at the end

	mu      sync.Mutex
	store   *Store
	ctx     context.Context // of the store's run
	cancel  context.CancelFunc
	watched *watched
}

// running returns the store if the server is up.
func (n *node) running() *Store {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.store
}

func (n *node) leads() bool {
	s := n.running()
	return s != nil && s.Status().Leadership.Leader
}

func (n *node) term() uint64 {
	s := n.running()
	if s == nil {
		return 0
	}
	return s.replica.raft.CurrentTerm()
}

func (n *node) options(join ...string) Options {
	host := n.c.net.Host(n.host)
	o := Options{
		Dir: n.dir, NodeID: n.name, ClusterID: "scenario", Version: "scenario", Logger: testLog(n.name), Faults: n.faults, Join: join,
		Others:  func() []string { return *n.c.reported.Load() },
		Wall:    func() time.Time { return time.Now().Add(time.Duration(n.off.Load())) },
		Network: &Network{Address: n.host, Listener: host.Listen(), Dial: n.c.held.dial(n.c.block.dial(n.host, host.Dial))},
	}
	if n.c.tune != nil {
		n.c.tune(&o)
	}
	return o
}

// start starts the server, in its directory if there is one.
func (n *node) start(join ...string) {
	n.c.Helper()
	testenv.NoError(n.c, n.tryStart(join...), "start %s", n.name)
}

func (n *node) tryStart(join ...string) error { return n.open(n.options(join...), false) }

// open starts the server; alone, as the only one of a cluster without a network.
func (n *node) open(o Options, alone bool) error {
	if alone {
		o.Network = nil
	}
	s, err := Open(n.c.ctx, o)
	if err != nil {
		return err
	}
	observer := raft.NewObserver(make(chan raft.Observation), false, func(o *raft.Observation) bool {
		if state, ok := o.Data.(raft.RaftState); ok && state == raft.Leader {
			n.c.noteLeader(o.Raft.CurrentTerm(), n.name)
		}
		return false
	})
	s.replica.raft.RegisterObserver(observer)
	if n.c.trail != nil {
		s.replica.dir.Log.SetTrailing(*n.c.trail, 0)
	}
	n.mu.Lock()
	n.store = s
	n.ctx, n.cancel = context.WithCancel(n.c.ctx)
	n.watched = n.c.watch(n.ctx, n.name, s)
	ctx := n.ctx
	n.mu.Unlock()
	n.c.tasks.Go(func() { n.guard(ctx, s) })
	return nil
}

// noteLeader takes note of who leads a term: one server at most.
func (c *cluster) noteLeader(term uint64, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if was, ok := c.leads[term]; ok && was != name && !c.two {
		c.Errorf("seed %d: %s and %s both led in term %d", c.seed, was, name, term)
	}
	c.leads[term] = name
}

// stop stops the server in good order.
func (n *node) stop() {
	n.mu.Lock()
	s := n.store
	n.store = nil
	n.mu.Unlock()
	if s == nil {
		return
	}
	n.was = s.replica.id
	n.cancel()
	testenv.Check(n.c, s.Close(context.Background()), "seed %d: close %s", n.c.seed, n.name)
}

// crash stops the server without a word: its connections fail, and whatever
// it does while the test stops it reaches no other server.
func (n *node) crash() {
	n.mu.Lock()
	s := n.store
	n.mu.Unlock()
	n.c.net.Reset(n.host)
	// Raft leaves who waits for a transfer waiting if it is shut down before it
	// comes to it: so its disk is let go first.
	n.faults.DelayFlushes(0)
	n.faults.FailWrites(nil)
	n.c.pass(time.Millisecond)
	testenv.Check(n.c, peersOf(s).peers.Close())
	n.stop()
}

// newest is the highest term that any server is in.
func (c *cluster) newest() (term uint64) {
	for _, n := range c.nodes {
		term = max(term, n.term())
	}
	return term
}

// large is a value that fits no packet, however it is compressed.
func (c *cluster) large() string {
	b := make([]byte, 5000)
	for i := range b {
		b[i] = byte(c.rand.Uint32())
	}
	return hex.EncodeToString(b)
}

// loseLarge loses packets above a size wherever they come from; 0 loses none.
func (c *cluster) loseLarge(bytes int) {
	for _, a := range c.nodes {
		for _, b := range c.others(a) {
			c.net.Largest(a.name, b.name, bytes)
		}
	}
}
