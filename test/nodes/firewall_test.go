//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// firewall is one that a machine's administrator has, as its makers ship it.
type firewall struct {
	name string
	// on, off and reload are what the administrator types; kept, when set, keeps what was opened by hand.
	on, kept, reload, off string
	// found is what coracle says of it.
	found []string
}

// dockerd begins with forwarding switched off: where it is on already, Docker leaves FORWARD's policy alone. Then it
// waits for Docker's rules.
const dockerd = `sysctl -qw net.ipv4.ip_forward=0
dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
until iptables -S FORWARD 2>&1 | grep -q -e '-P FORWARD DROP' && iptables -S DOCKER-USER 2>&1 | grep -q RETURN; do
  kill -0 $! || { tail -n 20 /var/log/dockerd.log >&2; exit 1; }
  sleep 0.2
done`

const stopDockerd = `pid=$(cat /var/run/docker.pid)
kill "$pid"
while kill -0 "$pid" 2>&1; do sleep 0.2; done
`

// An administrator's own rules, with what a server needs and a policy that drops.
const plainRules = `cat > /etc/nftables.conf <<'RULES'
flush ruleset
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname lo accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
  }
}
RULES
nft -f /etc/nftables.conf`

var firewalls = []firewall{
	{
		name: "ufw", on: "ufw --force enable", reload: "ufw reload", off: "ufw disable",
		found: []string{"ufw drops what comes to this machine (ip filter INPUT, ip6 filter INPUT) and what pods send and receive (ip filter FORWARD, ip6 filter FORWARD)"},
	},
	{
		name: "firewalld",
		on: systemBus + `firewalld >/var/log/firewalld.out 2>&1
until firewall-cmd --state 2>&1 | grep -qx running; do sleep 0.2; done`,
		reload: "firewall-cmd --reload",
		off: `pid=$(cat /run/firewalld.pid)
kill "$pid"
while kill -0 "$pid" 2>&1; do sleep 0.2; done
rm -rf /run/firewalld /run/firewalld.pid`,
		found: []string{"firewalld drops what comes to this machine (inet firewalld filter_INPUT) and what pods send and receive (inet firewalld filter_FORWARD)"},
	},
	{
		name: "docker", on: dockerd, reload: stopDockerd + dockerd, off: stopDockerd + "iptables -P FORWARD ACCEPT; nft delete table ip filter; nft delete table ip nat",
		found: []string{"Docker drops what pods send and receive (ip filter FORWARD)"},
	},
	{
		name: "nftables", on: plainRules, kept: `{ echo flush ruleset; nft list table inet filter; } > /etc/nftables.new; mv /etc/nftables.new /etc/nftables.conf`,
		reload: "nft -f /etc/nftables.conf", off: "nft delete table inet filter",
		found: []string{"nftables drops what comes to this machine (inet filter input) and what pods send and receive (inet filter forward)"},
	},
}

// TestForeignFirewalls: each firewall blocks the cluster, coracle says so and what to type, that is enough, and its
// reload interrupts little.
func TestForeignFirewalls(t *testing.T) {
	m := foreignMesh(t)
	for _, f := range firewalls {
		t.Run(f.name, func(t *testing.T) {
			m := *m
			m.T = t
			m.behind(f)
		})
	}
}

func (m *mesh) behind(f firewall) {
	m.Helper()
	logs := make([]int, len(m.nodes))
	for i, n := range m.nodes {
		logs[i] = logLength(m.T, n)
		m.foreign(i, f.on)
	}
	defer func() {
		for i, n := range m.nodes {
			from := logLength(m.T, n)
			m.foreign(i, f.off)
			m.logged(i, from, "No other program's firewall drops")
		}
	}()
	// Established connections may go on: each visit is a new one.
	if out, err := m.nodes[0].TryKubectl("exec", "box-0", "--", "testbox", "get", "http://"+host(m.pods[1][0])+":8080/", "3"); err == nil {
		m.Errorf("a pod reaches one of another node through %s, so that this test shows nothing: %s", f.name, out)
	}
	for i := range m.nodes {
		commands := m.advice(i, f)
		m.logged(i, logs[i], "Another program's firewall decides", commands[0], commands[len(commands)-1])
		m.Logf("node %d: %s", i, strings.Join(commands, "; "))
		m.foreign(i, strings.Join(append(commands, f.kept), "\n"))
	}
	m.allMeet()

	m.beat()
	for i := range m.nodes {
		m.foreign(i, f.reload)
	}
	gap := m.longestGap()
	m.Logf("%s: while it was loaded again, one after the other on %d nodes, no request succeeded for at most %v", f.name, len(m.nodes), gap)
	testenv.True(m, gap <= 10*time.Second, "no request succeeded for %v while the firewall was loaded again", gap)
}

// advice is what coracle check tells the administrator of a node to type.
func (m *mesh) advice(i int, f firewall) []string {
	m.Helper()
	n := m.nodes[i]
	// It fails for other reasons too, such as what this machine lacks; its answer is what counts.
	out, _ := n.Run(n.Coracle(), "check", "-o", "json", "--data-dir", n.DataDir, "--node-ip", n.IP+","+address6(i),
		"--cluster-cidr", "10.42.0.0/16,fd42::/56", "--service-cidr", "10.43.0.0/16,fd43::/112")
	var results []struct{ Name, Level, Found, Do string }
	testenv.NoError(m, json.Unmarshal([]byte(out), &results), "coracle check says %q", out)
	for _, r := range results {
		if r.Name != "firewall" {
			continue
		}
		for _, want := range f.found {
			testenv.Contains(m, r.Found, want, "node %d: coracle check says", i)
		}
		_, commands, ok := strings.Cut(r.Do, "not let through yet: ")
		testenv.Require(m, ok && r.Level == "WARN", "node %d: coracle check says %+v", i, r)
		commands, _, _ = strings.Cut(commands, "; put the same")
		return strings.Split(commands, "; ")
	}
	m.Fatalf("coracle check says nothing of firewalls: %s", out)
	return nil
}

func logLength(t *testing.T, n *harness.Server) int {
	t.Helper()
	b := testenv.Must(os.ReadFile(n.Log))(t)
	return len(b)
}

// logged waits until one line of a node's log, after that many bytes, has all of the words.
func (m *mesh) logged(i, from int, words ...string) {
	m.Helper()
	harness.Eventually(m, patient, fmt.Sprintf("the log of node %d has %q", i, words), func() error {
		b, err := os.ReadFile(m.nodes[i].Log)
		if err != nil {
			return err
		}
	line:
		for line := range strings.Lines(string(b[from:])) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue line
				}
			}
			return nil
		}
		return fmt.Errorf("none of the lines")
	})
}

// beat has the first pod visit the last one's Service by its name, again and again, until longestGap; it returns when
// some visits have succeeded.
func (m *mesh) beat() {
	m.Helper()
	m.beatAt(fmt.Sprintf("http://box-%d.default.svc.cluster.local/", len(m.nodes)-1))
}

// beatAt is beat with another place to visit.
func (m *mesh) beatAt(url string) {
	m.Helper()
	script := fmt.Sprintf(`rm -f /stop /beats
setsid sh -c 'while [ ! -e /stop ]; do
  if testbox get %s 0; then read -r up rest < /proc/uptime; echo $up >> /beats; fi
  sleep 0.1
done' >/dev/null 2>&1 </dev/null &`, url)
	m.exec(0, script)
	m.beats(5)
}

// beats waits until there are that many more, and returns when they all were, in seconds since the machine's start.
func (m *mesh) beats(more int) (all []string) {
	m.Helper()
	before := -1
	harness.Eventually(m, patient, "visits succeed", func() error {
		out, err := m.nodes[0].TryKubectl("exec", "box-0", "--", "sh", "-c", "cat /beats || :")
		if err != nil {
			return err
		}
		all = strings.Fields(out)
		if before < 0 {
			before = len(all)
		}
		if len(all) < before+more {
			return fmt.Errorf("%d did, %d before", len(all), before)
		}
		return nil
	})
	return all
}

// longestGap ends beat and says how long no visit succeeded, at most.
func (m *mesh) longestGap() time.Duration {
	m.Helper()
	all := m.beats(20)
	m.exec(0, "touch /stop")
	longest, last := 0.0, 0.0
	for i, text := range all {
		at := testenv.Must(strconv.ParseFloat(text, 64))(m)
		if i > 0 {
			longest = max(longest, at-last)
		}
		last = at
	}
	return time.Duration(longest * float64(time.Second)).Round(10 * time.Millisecond)
}
