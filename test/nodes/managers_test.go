//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// manager is a program that has the machine's interfaces, as its makers ship it. It is given the addresses that the
// machine's interface has as $4 and $6, and the way out as $way.
type manager struct {
	name string
	// on, restart, reload and off are what happens to it; reapply has it set the machine's interface up again.
	on, restart, reload, reapply, off string
	// list is what it says of interfaces, and asked waits until it has asked without an answer for an address of a
	// pod's device.
	list, asked string
	// alone is the file in which it is configured to leave coracle's interfaces alone.
	alone string
}

// systemBus is D-Bus, by which the commands speak to their programs.
const systemBus = `mkdir -p /run/dbus
[ -e /run/dbus/pid ] || dbus-daemon --system --fork >/var/log/dbus.out 2>&1
`

// aside starts a program where nothing of the machine's devices can be written in /sys. Then it does not wait for udev,
// which no test machine has, as in a container.
const aside = `aside() {
  setsid unshare --mount sh -c 'mount -o remount,bind,ro /sys && exec "$@"' aside "$@" >>/var/log/aside.out 2>&1 </dev/null &
  echo $! > /run/aside.pid
}
`

const (
	stopAside = `pid=$(cat /run/aside.pid)
kill "$pid"
while kill -0 "$pid" 2>&1; do sleep 0.2; done
`
	startNetworkd = aside + `aside /usr/lib/systemd/systemd-networkd
until networkctl status eth0 2>&1 | grep -q 'State: routable (configured)'; do
  kill -0 "$(cat /run/aside.pid)" || { tail -n 20 /var/log/aside.out >&2; exit 1; }
  sleep 0.2
done`
	startNetworkManager = aside + `aside NetworkManager --debug
until nmcli -t -f RUNNING general 2>&1 | grep -qx running; do
  kill -0 "$(cat /run/aside.pid)" || { tail -n 20 /var/log/aside.out >&2; exit 1; }
  sleep 0.2
done
nmcli connection up lan
`
)

// networkd has its own settings for the interface, and rest beside them.
func networkd(name, rest string) manager {
	return manager{
		name: name,
		on: systemBus + `grep -q ^systemd-network: /etc/passwd || {
  echo systemd-network:x:972: >> /etc/group; echo systemd-network:x:972:972::/nonexistent:/usr/sbin/nologin >> /etc/passwd
}
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network: /run/systemd/netif
rm -f /etc/systemd/network/*
printf '[Match]\nName=eth0\n[Network]\nAddress=%s\nAddress=%s\nGateway=%s\nIPv6AcceptRA=no\n' "$4" "$6" "$way" > /etc/systemd/network/10-lan.network
` + rest + `ip addr flush dev eth0 scope global # it trips over addresses that others gave: "Failed to configure address: Numerical result out of range"
` + startNetworkd,
		restart: stopAside + startNetworkd, reload: "networkctl reload", reapply: "networkctl reconfigure eth0", off: stopAside,
		list: "networkctl list --no-pager --no-legend", alone: "/etc/systemd/network/05-coracle.network",
	}
}

var managers = []manager{
	networkd("networkd", ""),
	// Some distributions have such a file, for all interfaces that nothing else is said of.
	networkd("networkd of all interfaces", `printf '[Match]\nName=*\n[Network]\nDHCP=yes\n' > /etc/systemd/network/99-all.network
`),
	{
		name: "NetworkManager",
		on: systemBus + `cat > /etc/NetworkManager/system-connections/lan.nmconnection <<PROFILE
[connection]
id=lan
type=ethernet
interface-name=eth0
[ipv4]
method=manual
address1=$4,$way
[ipv6]
method=manual
address1=$6
PROFILE
chmod 600 /etc/NetworkManager/system-connections/lan.nmconnection
mkdir -p /var/lib/NetworkManager /run/NetworkManager
` + startNetworkManager,
		restart: stopAside + startNetworkManager, reload: "nmcli general reload; nmcli connection reload", reapply: "nmcli device reapply eth0; nmcli connection up lan", off: stopAside,
		list:  "nmcli -t -f DEVICE,TYPE,STATE,CONNECTION device",
		asked: "until grep -qE 'vethcor.*state change: ip-config -> (failed|ip-check)' /var/log/aside.out; do sleep 1; done",
		alone: "/etc/NetworkManager/conf.d/coracle.conf",
	},
}

// TestForeignManagers: pods of different nodes reach one another again soon, whatever a manager of the machines'
// interfaces does with these, with each back end.
func TestForeignManagers(t *testing.T) {
	m := foreignMesh(t)
	for _, g := range managers {
		t.Run(g.name, func(t *testing.T) {
			m := *m
			m.T = t
			m.managedBy(g)
		})
	}
}

func (m *mesh) managedBy(g manager) {
	m.Helper()
	tell := func(i int, script string) string {
		m.Helper()
		return m.foreign(i, fmt.Sprintf("set -- '' '' '' %s/24 '' %s/64\nway=10.77.0.1\n", m.nodes[i].IP, address6(i))+script)
	}
	defer func() {
		for i := range m.nodes {
			tell(i, g.off)
		}
	}()
	last := len(m.nodes) - 1
	for k, backend := range []string{"vxlan", "host-gw", "wireguard"} {
		m.run(0, m.nodes[0].Coracle(), "network-backend", "set", backend, "--data-dir", m.nodes[0].DataDir)
		for _, step := range []struct {
			what, script string
			first        int // node to which it happens; it does to all behind that, too
		}{
			{"started", g.on, 0},
			{"started again", g.restart, 0},
			{"loaded again", g.reload, 0},
			{"sets the interface up again", g.reapply, 0},
			{"has asked for addresses of pods' devices", g.asked, 0},
			{"sees the interface go and come", "ip link set eth0 down; sleep 3; ip link set eth0 up", last}, // the three seconds are time in which it notices
		} {
			if step.script == "" || k > 0 && (step.script == g.on || step.script == g.asked) {
				continue
			}
			// The pod itself: the only endpoint of a Service would have to become ready again, too, once its node was
			// away for three seconds.
			m.beatAt("http://" + m.pods[last][0] + ":8080/")
			for i := step.first; i <= last; i++ {
				tell(i, step.script)
			}
			gap := m.longestGap()
			m.Logf("%s, %s, %s: no request succeeded for at most %v", g.name, backend, step.what, gap)
			testenv.False(m, gap > 10*time.Second, "%s, %s, %s: no request succeeded for %v", g.name, backend, step.what, gap)
		}
		m.Logf("%s says\n%s", g.name, tell(0, g.list))
		m.allMeet()
		m.startsPod(fmt.Sprintf("fresh-%d", k), last, "http://"+host(m.pods[0][1])+":8080/")
	}
	m.leavesAlone(g, tell)
	m.allMeet()
}

// leavesAlone: with the page's file it has nothing to do with coracle's interfaces.
func (m *mesh) leavesAlone(g manager, tell func(int, string) string) {
	m.Helper()
	example := documented(m.T, "network.md", "# "+g.alone)
	for i := range m.nodes {
		tell(i, fmt.Sprintf("cat > %s <<'FILE'\n%sFILE\n%s", g.alone, example, g.reload))
		harness.Eventually(m, patient, "it leaves coracle's interfaces alone", func() error {
			seen := 0
			for line := range strings.Lines(tell(i, g.list)) {
				if !strings.Contains(line, "coracle") && !strings.Contains(line, "vethcor") {
					continue
				}
				seen++
				if !strings.Contains(line, "unmanaged") {
					return fmt.Errorf("it has %s", line)
				}
			}
			if seen == 0 {
				return errors.New("it lists none")
			}
			return nil
		})
	}
}

// startsPod: a pod that starts now on a node has a network that a visit succeeds in.
func (m *mesh) startsPod(name string, node int, url string) {
	m.Helper()
	m.nodes[0].Apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: %s, restartPolicy: Never, tolerations: [{operator: Exists}], containers: [%s, command: [testbox, get, "%s", "60"]}]}}`,
		name, m.nodes[node].NodeName(), harness.BoxYAML, url))
	m.nodes[0].Kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+name, "--timeout=180s")
	m.nodes[0].Kubectl("delete", "pod", name)
}
