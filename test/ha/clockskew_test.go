//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// majorityPatience is within which time a majority whose clocks are right writes again.
	majorityPatience = 2 * time.Second
	// wholeAgain is within which time all is whole when all clocks are right.
	wholeAgain = time.Minute
)

// nodeProbe asks for an agent's Node through the agent's balancer, with the node's own certificate.
type nodeProbe struct {
	agent *harness.Server
	api   func() (kubernetes.Interface, error) // with connections of its own

	mu       sync.Mutex
	failed   time.Time // when the last request without an answer was begun
	answered time.Time // when the last request with an answer was begun
	err      error     // of the last failure
}

// newNodeProbe returns a probe. verify says whether the certificate of the server is checked.
func (c *Cluster) newNodeProbe(a *harness.Server, verify bool) *nodeProbe {
	pair := a.Seen("agent", "cred", "client-kubelet.pem")
	return &nodeProbe{agent: a, api: func() (kubernetes.Interface, error) {
		config := &rest.Config{Host: "https://" + balanced, Timeout: 3 * time.Second, TLSClientConfig: rest.TLSClientConfig{CertFile: pair, KeyFile: pair}}
		if config.Insecure = !verify; verify {
			config.CAData = c.config.CAData
		}
		config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return a.Machine.Dial(ctx, network, address)
		}
		return kubernetes.NewForConfig(config)
	}}
}

// ask makes one request.
func (p *nodeProbe) ask(ctx context.Context) error {
	began := time.Now()
	api, err := p.api()
	if err == nil {
		_, err = api.CoreV1().Nodes().Get(ctx, p.agent.NodeName(), metav1.GetOptions{})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed, p.err = began, err
	} else {
		p.answered = began
	}
	return err
}

// run asks twice a second until ctx is done.
func (p *nodeProbe) run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = p.ask(ctx) // which records the error
		pauseFor(ctx, 500*time.Millisecond)
	}
}

// since returns for how long requests failed after a moment, and an error if the last one failed.
func (p *nodeProbe) since(moment time.Time) (time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if p.failed.After(p.answered) {
		err = p.err
	}
	return max(p.failed.Sub(moment), 0), err
}

// longestPause is the longest time between two acknowledged writes from one moment to another.
func longestPause(acked []Ack, from, to time.Time) (longest time.Duration) {
	last := from
	for _, a := range acked {
		if a.At.After(from) && a.At.Before(to) {
			longest, last = max(longest, a.At.Sub(last)), a.At
		}
	}
	return max(longest, to.Sub(last))
}

// TestClockOfOneServer: the clock of the server that an agent uses leaps, which leads or does not, and is right again
// after a minute. The majority writes on, each agent has an API, and all is whole once the clock is right.
func TestClockOfOneServer(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes many minutes")
	const day = 24 * time.Hour
	for _, by := range []time.Duration{-400 * day, -3 * time.Hour, 400 * day} {
		t.Run(by.String(), func(t *testing.T) {
			c := New(t, 3, 2)
			x := &clients{c: c, ns: metav1.NamespaceDefault, writers: map[*harness.Server]*Writer{}}
			x.runUntilStopped(t)
			for _, s := range c.Servers {
				x.writers[s] = NewWriter(fmt.Sprintf("at-%d", s.Number), c.Client(s.Machine, own, writeTimeout), x.ns)
				x.run(x.writers[s].Run)
			}
			var probes []*nodeProbe
			for _, a := range c.Agents {
				probes = append(probes, c.newNodeProbe(a, true))
				x.run(probes[len(probes)-1].run)
			}
			for _, leads := range []bool{true, false} {
				x.skew(t, by, leads, probes)
			}
			names := x.names()
			x.stop()
			x.allHave(t, names)
		})
	}
}

// skew sets the clock of the server that the first agent uses wrong for a minute.
func (x *clients) skew(t *testing.T, by time.Duration, leads bool, probes []*nodeProbe) {
	t.Helper()
	c := x.c
	victim := c.usedBy(t, c.Agents[0])
	others := Without(c.Servers, victim)
	if leads {
		c.Lead(victim)
	} else {
		c.Lead(others[0])
	}
	x.writesGoOn(t, time.Now(), nil)
	what := fmt.Sprintf("the clock of machine %d, which leads: %v, is off by %v", victim.Number, leads, by)
	began := time.Now()
	victim.SkewClock(by)
	time.Sleep(time.Minute) // a wrong clock has to last for a while, and no event ends that
	now := time.Now()
	for _, s := range others {
		acked, errs := x.writers[s].Acked()
		pause := longestPause(acked, began, now)
		t.Logf("%s: machine %d was without an acknowledged write for %v at most", what, s.Number, pause.Round(10*time.Millisecond))
		testenv.True(t, pause <= majorityPatience, "%s: machine %d was without an acknowledged write for %v, want %v at most; errors: %v", what, s.Number,
			pause, majorityPatience, errs)
	}
	for _, p := range probes {
		failed, err := p.since(began)
		t.Logf("%s: requests through agent %d failed until %v after", what, p.agent.Number, failed.Round(10*time.Millisecond))
		testenv.True(t, failed <= agentPatience && err == nil, "%s: requests through agent %d failed until %v after, want %v at most: %v", what,
			p.agent.Number, failed, agentPatience, err)
	}
	victim.SkewClock(0)
	right := time.Now()
	c.WaitWhole()
	x.writesGoOn(t, right, nil)
	took := time.Since(right)
	t.Logf("%s: whole %v after it was right", what, took.Round(100*time.Millisecond))
	testenv.True(t, took <= wholeAgain, "%s: whole %v after it was right, want %v at most", what, took, wholeAgain)
}

// TestClusterFormedWithClocksAhead: the clocks of a server and an agent are ahead when the cluster is formed, and are
// set right then. The agent's certificates, which are not valid yet, are replaced, and a start of the agent keeps them.
func TestClusterFormedWithClocksAhead(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes")
	const ahead = 8 * time.Hour
	c := &Cluster{T: t, Site: harness.NewSite(t), store: atStore}
	server := c.machine().NewServer(c.flags()...)
	server.Start()
	server.SkewClock(ahead)
	harness.Eventually(t, soon, "the server has a token for agents", func() error {
		return errors.Join(testenv.Err(os.Stat(server.Seen("server", "agent-token"))), server.Alive())
	})
	a := c.machine().NewAgent(server)
	a.AddBoxImage()
	a.Start()
	a.SkewClock(ahead)
	probe := c.newNodeProbe(a, false)
	ready := func() error {
		api, err := probe.api()
		if err != nil {
			return err
		}
		n, err := api.CoreV1().Nodes().Get(t.Context(), a.NodeName(), metav1.GetOptions{})
		if err == nil && Ready(n) != corev1.ConditionTrue {
			err = fmt.Errorf("it is not: %v", n.Status.Conditions)
		}
		return err
	}
	harness.Eventually(t, soon, "the node is ready while all clocks are ahead", ready)
	server.SkewClock(0)
	a.SkewClock(0)
	right := time.Now()
	harness.Eventually(t, soon, "the node's certificate is accepted when all clocks are right", func() error { return probe.ask(t.Context()) })
	harness.Eventually(t, soon, "the node is ready when all clocks are right", ready)
	took := time.Since(right)
	t.Logf("the node is ready %v after all clocks were right", took.Round(100*time.Millisecond))
	testenv.True(t, took <= wholeAgain, "the node is ready %v after all clocks were right, want %v at most", took, wholeAgain)
	testenv.NoError(t, a.Stop())
	a.Start()
	harness.Eventually(t, soon, "the node's certificate is accepted when the agent was started again", func() error { return probe.ask(t.Context()) })
}
