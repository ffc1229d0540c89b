//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ends is what the machine says of a coracle that ended by itself.
const ends = "coracle has ended"

// TestAgentJoinsOnceClockIsSet: an agent on a machine whose clock has no battery, and whose kernel has no nftables, in
// a cluster that leaves pods' network and Services to other programs. It begins in 1970, hears that its clock is
// wrong when it wants to join, and joins once NTP has set it. Then the machine loses its power and comes back in 1970,
// and NTP does not answer: the agent goes on at the newest time that its machine has seen.
func TestAgentJoinsOnceClockIsSet(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes, for system calls are slow in such a machine")
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
	lastLine := func() string {
		data, err := os.ReadFile(agent.reads("log"))
		testenv.Require(t, err == nil || errors.Is(err, os.ErrNotExist), "%v", err)
		return string(data)
	}
	no, step := time.Unix(100, 0), filepath.Join(g.shared, "step") // what a clock without a battery shows; what NTP says
	agent.boot(no)
	g.await("it says that its clock is wrong", agent, func() error {
		if !strings.Contains(lastLine(), "behind the server's: certificates would not be valid") {
			return errors.New("it does not")
		}
		return nil
	})
	right := time.Now().UTC().Truncate(time.Second)
	testenv.NoError(t, os.WriteFile(step, []byte(right.Format("2006-01-02T15:04:05")), 0o600))
	first := agent.ready(api, "", "NTP has set its clock")
	t.Logf("its node is ready %v after NTP set its clock", time.Since(right).Round(time.Second))
	ended := strings.Count(lastLine(), ends)
	agent.PowerOff()
	testenv.NoError(t, os.Remove(step))
	began := time.Now()
	agent.boot(no)
	agent.ready(api, first, "it came back in 1970")
	t.Logf("its node is ready %v after it came back", time.Since(began).Round(time.Second))
	agent.shows(right, right.Add(time.Hour))
	if n := strings.Count(lastLine(), "this machine's clock was behind, and was set forward"); n != 2 {
		t.Errorf("it came up in 1970 twice and said %d times that its clock was set", n)
	}
	if n := strings.Count(lastLine(), ends); n != ended {
		t.Errorf("after it had joined the agent ended %d times by itself:\n%s", n-ended, lastLine())
	}
}

// TestClusterReturnsAfter400DaysOff: a server and an agent, on machines with clocks of their own, are off for 400 days,
// so that all of their certificates have run out when they are switched on again. The server makes new ones, the agent
// joins once more with its token, as the node that it was, and neither ends.
func TestClusterReturnsAfter400DaysOff(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes, for system calls are slow in such a machine")
	g := newGuests(t)
	server := g.add(1, "server", "--network-backend none --disable-kube-proxy --disable network-policy,coredns")
	now := time.Now()
	server.boot(now)
	var token string
	g.await("the server has a token for agents", server, func() error {
		data, err := os.ReadFile(server.reads("agent-token"))
		token = strings.TrimSpace(string(data))
		return err
	})
	agent := g.add(2, "agent", fmt.Sprintf("--server https://%s:6443 --token %s", server.IP, token))
	agent.boot(now)
	first := agent.ready(server.serves("at first"), "", "at first")
	uid := agent.uid(server.serves("at first"))
	logs := func() (both string) {
		for _, x := range []*guest{server, agent} {
			data := testenv.Must(os.ReadFile(x.reads("log")))(t)
			both += string(data)
		}
		return both
	}
	ended := strings.Count(logs(), ends)
	ranOut := []time.Time{agent.shownUntil(":10250"), server.shownUntil(":6443")}
	agent.PowerOff()
	server.PowerOff()

	later := now.Add(400 * 24 * time.Hour)
	for _, until := range ranOut {
		testenv.Require(t, !later.Before(until), "a certificate is valid until %v: 400 days show nothing", until)
	}
	began := time.Now()
	server.boot(later)
	agent.boot(later)
	api := server.serves("400 days later")
	t.Logf("the server serves %v after it came back", time.Since(began).Round(time.Second))
	agent.ready(api, first, "400 days later")
	t.Logf("the agent's node is ready %v after it came back", time.Since(began).Round(time.Second))
	testenv.Equal(t, agent.uid(api), uid, "the node is another one:")
	for _, until := range []time.Time{agent.shownUntil(":10250"), server.shownUntil(":6443")} {
		testenv.False(t, until.Before(later.Add(300*24*time.Hour)), "a certificate is valid until %v", until)
	}
	if n := strings.Count(logs(), ends); n != ended {
		t.Errorf("after they came back they ended %d times by themselves:\n%s", n-ended, logs())
	}
}

// serves waits until the server's API answers its administrator, of whom the kubeconfig may have to be made again
// first, and returns a client. That the certificate is valid today is not asked.
func (x *guest) serves(what string) kubernetes.Interface {
	x.t.Helper()
	var api kubernetes.Interface
	x.await(what+": the server's API answers", x, func() error {
		config, err := clientcmd.BuildConfigFromFlags("", x.reads("kubeconfig"))
		if err != nil {
			return err
		}
		config.TLSClientConfig.CAData, config.TLSClientConfig.Insecure = nil, true
		api = (&Cluster{T: x.t, Site: x.site, config: config}).Client(x.from, x.IP+":6443", 30*time.Second)
		_, err = api.CoreV1().Namespaces().Get(x.t.Context(), metav1.NamespaceDefault, metav1.GetOptions{})
		return err
	})
	return api
}

// shownUntil is until when the certificate is valid that the machine shows at a port.
func (x *guest) shownUntil(port string) (until time.Time) {
	x.t.Helper()
	x.await("its certificate at "+port, x, func() error {
		ctx, cancel := context.WithTimeout(x.t.Context(), askTimeout)
		defer cancel()
		raw, err := x.from.Dial(ctx, "tcp", x.IP+port)
		if err != nil {
			return err
		}
		defer raw.Close()
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // what it shows is looked at
		if err := c.HandshakeContext(ctx); err != nil {
			return err
		}
		until = c.ConnectionState().PeerCertificates[0].NotAfter
		return nil
	})
	return until
}

// uid is that of its Node.
func (x *guest) uid(api kubernetes.Interface) (uid types.UID) {
	x.t.Helper()
	x.await("its Node", x, func() error {
		n, err := api.CoreV1().Nodes().Get(x.t.Context(), x.Name, metav1.GetOptions{})
		if err == nil {
			uid = n.UID
		}
		return err
	})
	return uid
}

// ready waits until the agent has reported that its node is ready since the machine was switched on last: each boot of
// a kernel has a name, of which it returns the present one.
func (x *guest) ready(api kubernetes.Interface, before, what string) (boot string) {
	x.t.Helper()
	x.await(what+": its node is ready", x, func() error {
		n, err := api.CoreV1().Nodes().Get(x.t.Context(), x.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case n.Status.NodeInfo.BootID == "" || n.Status.NodeInfo.BootID == before:
			return errors.New("it has not reported this boot yet")
		case Ready(n) != corev1.ConditionTrue:
			return fmt.Errorf("it is not: %v", n.Status.Conditions)
		}
		boot = n.Status.NodeInfo.BootID
		return nil
	})
	return boot
}
