//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/harness"
)

// ends is what the machine says of a coracle that ended by itself.
const ends = "coracle has ended"

// TestAgentsClock: an agent on a machine whose clock has no battery, and whose kernel has no nftables, in a cluster that leaves pods' network and Services to other programs. It begins in 1970,
// is told that its clock is wrong when it wants to join, and joins once NTP has set it. Then the machine loses its power and comes back in 1970, and NTP does not answer: the agent goes on at the
// newest time that its machine has seen.
func TestAgentsClock(t *testing.T) {
	if !whole {
		t.Skip("it takes minutes, for system calls are slow in such a machine: make e2e-ha has it")
	}
	g := newGuests(t)
	server := g.site.NewMachine().NewServer("--disable-agent", "--network-backend", "none", "--disable-kube-proxy", "--disable", "network-policy,coredns")
	server.Start()
	var token string
	c := &Cluster{T: t, Site: g.site}
	harness.Eventually(t, soon, "the server has a token for agents and a kubeconfig", func() error {
		data, err := os.ReadFile(server.Seen("server", "agent-token"))
		if err != nil {
			return errors.Join(server.Alive(), err)
		}
		token = strings.TrimSpace(string(data))
		c.config, err = clientcmd.BuildConfigFromFlags("", server.Kubeconfig)
		return err
	})
	api := c.Client(g.from, server.IP+":6443", 30*time.Second)
	agent := g.add(1, "agent", fmt.Sprintf("--server https://%s:6443 --token %s", server.IP, token))
	said := func() string {
		data, err := os.ReadFile(agent.reads("log"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(data)
	}
	no, step := time.Unix(100, 0), filepath.Join(g.shared, "step") // what a clock without a battery shows; what NTP says
	agent.boot(no)
	g.await("it says that its clock is wrong", agent, func() error {
		if !strings.Contains(said(), "behind the server's: certificates would not be valid") {
			return errors.New("it does not")
		}
		return nil
	})
	right := time.Now().UTC().Truncate(time.Second)
	if err := os.WriteFile(step, []byte(right.Format("2006-01-02T15:04:05")), 0o600); err != nil {
		t.Fatal(err)
	}
	first := agent.ready(api, "", "NTP has set its clock")
	t.Logf("its node is ready %v after NTP set its clock", time.Since(right).Round(time.Second))
	ended := strings.Count(said(), ends)
	agent.PowerOff()
	if err := os.Remove(step); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	agent.boot(no)
	agent.ready(api, first, "it came back in 1970")
	t.Logf("its node is ready %v after it came back", time.Since(began).Round(time.Second))
	agent.shows(right, right.Add(time.Hour))
	if n := strings.Count(said(), "this machine's clock was behind, and was set forward"); n != 2 {
		t.Errorf("it came up in 1970 twice and said %d times that its clock was set", n)
	}
	if n := strings.Count(said(), ends); n != ended {
		t.Errorf("after it had joined the agent ended %d times by itself:\n%s", n-ended, said())
	}
}

// ready waits until the agent has told that its node is ready since the machine was switched on last: each boot of a kernel has a name, of which it returns the present one.
func (x *guest) ready(api kubernetes.Interface, before, what string) (boot string) {
	x.t.Helper()
	x.await(what+": its node is ready", x, func() error {
		n, err := api.CoreV1().Nodes().Get(x.t.Context(), x.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case n.Status.NodeInfo.BootID == "" || n.Status.NodeInfo.BootID == before:
			return errors.New("it has not told of this boot yet")
		case Ready(n) != corev1.ConditionTrue:
			return fmt.Errorf("it is not: %v", n.Status.Conditions)
		}
		boot = n.Status.NodeInfo.BootID
		return nil
	})
	return boot
}
