// SPDX-License-Identifier: Apache-2.0

package preflight_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// goodFiles describe a small board on which all is well.
func goodFiles() map[string]string {
	files := map[string]string{
		"proc/sys/kernel/osrelease":              "6.12.25+rpt-rpi-v8\n",
		"proc/self/status":                       "Name:\tcoracle\nCapEff:\t000001ffffffffff\n",
		"proc/meminfo":                           "MemTotal:        3884352 kB\n",
		"proc/swaps":                             "Filename\tType\n",
		"proc/filesystems":                       "nodev\toverlay\n",
		"proc/sys/fs/inotify/max_user_instances": "1024\n",
		"proc/sys/net/ipv4/ip_forward":           "0\n",
		"proc/self/mountinfo":                    "20 1 179:2 / / rw,noatime shared:1 - ext4 /dev/root rw\n21 20 0:20 / /proc rw shared:2 - proc proc rw\n",
		"sys/fs/cgroup/cgroup.controllers":       "cpuset cpu io memory pids\n",
		"dev/kmsg":                               "",
	}
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts", "cgroup"} {
		files["proc/self/ns/"+ns] = ""
	}
	return files
}

// fakeProbe answers well where the test sets nothing else.
type fakeProbe struct {
	links     map[string]error
	nat       error
	overlay   error
	listen    map[int]error
	listeners map[int]string
	space     preflight.Space
	sync      time.Duration
	closed    []hostfirewall.Chain
	routes    []preflight.Route
	wild      []string
	wildError error
}

func (p fakeProbe) Link(kind string) error           { return p.links[kind] }
func (p fakeProbe) NAT() error                       { return p.nat }
func (p fakeProbe) Overlay(string) error             { return p.overlay }
func (p fakeProbe) Listen(port preflight.Port) error { return p.listen[port.Number] }
func (p fakeProbe) Listeners([]int, []netip.Addr) (map[int]string, error) {
	return p.listeners, nil
}
func (p fakeProbe) Space(string) (preflight.Space, error)               { return p.space, nil }
func (p fakeProbe) SyncTime(string) (time.Duration, error)              { return p.sync, nil }
func (p fakeProbe) Firewalls() ([]hostfirewall.Chain, error)            { return p.closed, nil }
func (p fakeProbe) Wildcards(context.Context, string) ([]string, error) { return p.wild, p.wildError }

func (p fakeProbe) Routes() ([]preflight.Route, error) { return p.routes, nil }

// setup is a host and needs that a case changes.
type setup struct {
	files map[string]string
	probe fakeProbe
	host  preflight.Host
	needs preflight.Needs
}

func goodSetup() *setup {
	return &setup{
		files: goodFiles(),
		probe: fakeProbe{space: preflight.Space{Type: "ext4", Total: 32e9, Free: 20e9, Inodes: 1e6, InodeFree: 9e5}, sync: 3 * time.Millisecond, routes: []preflight.Route{{netip.MustParsePrefix("192.168.1.0/24"), "eth0"}}},
		host: preflight.Host{
			Root: true, Now: func() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) },
			IPVS: func(string, string, []netip.Prefix) error { return nil },
		},
		needs: preflight.Needs{
			ProxyMode: "auto", Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
			ResolvConf: "/etc/resolv.conf",
			DataDir:    "/var/lib/coracle", NodeIPs: []netip.Addr{netip.MustParseAddr("192.168.1.5")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
			Firewall: hostfirewall.Needs{Port: 6443, Tunnel: 8472, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}},
			Ingress:  []int{80, 443},
			Ports:    []preflight.Port{{Network: "tcp", Number: 6443, What: "the API server", Setting: "--https-listen-port"}, {Network: "udp", Number: 10053, What: "cluster DNS"}},
		},
	}
}

// lacks has the kernel lack what IPVS needs.
func (s *setup) lacks(what string) {
	s.host.IPVS = func(mode, _ string, pods []netip.Prefix) error {
		if mode != s.needs.ProxyMode || len(pods) != 1 {
			return errors.New("another question")
		}
		return errors.New(what)
	}
}

func (s *setup) run() []preflight.Result {
	fsys := fstest.MapFS{}
	for name, text := range s.files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	s.host.FS, s.host.Probe = fsys, s.probe
	return preflight.Run(context.Background(), s.host, s.needs)
}

func TestGoodHostPassesAllChecks(t *testing.T) {
	for _, r := range goodSetup().run() {
		testenv.False(t, r.Level != preflight.OK || r.Do != "", "%+v", r)
	}
}

func TestFindingsSayWhatToDo(t *testing.T) {
	denied := errors.New("operation not supported")
	cases := map[string]struct {
		change  func(s *setup)
		name    string
		level   preflight.Level
		message string // in Found
		advice  string // in Do
	}{
		"a wildcard":        {func(s *setup) { s.probe.wild = []string{"lan.example"} }, "search list", preflight.Warn, "below lan.example exists, and /etc/resolv.conf has that", "--resolv-conf"},
		"no resolver":       {func(s *setup) { s.probe.wildError = denied }, "search list", preflight.Warn, "could not be checked: operation not supported", "/etc/resolv.conf"},
		"old kernel":        {func(s *setup) { s.files["proc/sys/kernel/osrelease"] = "4.4.0" }, "kernel", preflight.Fail, "4.4.0 is too old", "5.13"},
		"middling kernel":   {func(s *setup) { s.files["proc/sys/kernel/osrelease"] = "5.10.0-28-arm64" }, "kernel", preflight.Warn, "lacks parts of nftables", "5.13"},
		"no namespaces":     {func(s *setup) { delete(s.files, "proc/self/ns/net") }, "namespaces", preflight.Fail, "no net namespaces", "CONFIG_NAMESPACES"},
		"pi without memory": {func(s *setup) { s.files["sys/fs/cgroup/cgroup.controllers"] = "cpuset cpu io pids" }, "control groups", preflight.Fail, "without memory", "/boot/firmware/cmdline.txt"},
		"no cgroups":        {func(s *setup) { delete(s.files, "sys/fs/cgroup/cgroup.controllers") }, "control groups", preflight.Fail, "none are mounted", "mount -t cgroup2"},
		"cgroups v1": {func(s *setup) {
			delete(s.files, "sys/fs/cgroup/cgroup.controllers")
			s.files["proc/cgroups"] = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
			for _, c := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "pids"} {
				s.files["proc/cgroups"] += c + "\t1\t1\t1\n"
				s.files["sys/fs/cgroup/"+c+"/tasks"] = ""
			}
		}, "control groups", preflight.Warn, "version 1", "unified_cgroup_hierarchy"},
		"little memory": {func(s *setup) { s.files["proc/meminfo"] = "MemTotal: 200000 kB" }, "memory", preflight.Fail, "195 MB", "512 MB"},
		"some memory":   {func(s *setup) { s.files["proc/meminfo"] = "MemTotal: 450000 kB" }, "memory", preflight.Warn, "439 MB", "memory limits"},
		"a small group": {func(s *setup) {
			s.files["proc/self/mountinfo"] += "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
			s.files["proc/self/cgroup"], s.files["sys/fs/cgroup/box/memory.max"] = "0::/box\n", "268435456\n"
		}, "memory", preflight.Warn, "256 MB, the limit of its control group (/sys/fs/cgroup/box/memory.max)", "at least 512 MB"},
		"1970":                   {func(s *setup) { s.host.Now = func() time.Time { return time.Unix(100, 0) } }, "clock", preflight.Fail, "1970-01-01", "date -s"},
		"no kmsg":                {func(s *setup) { delete(s.files, "dev/kmsg") }, "devices", preflight.Fail, "/dev/kmsg is missing", "lxc.mount.entry"},
		"few inotify":            {func(s *setup) { s.files["proc/sys/fs/inotify/max_user_instances"] = "128" }, "limits", preflight.OK, "128 inotify instances; coracle raises that to 1024", ""},
		"container":              {func(s *setup) { s.files["proc/self/status"] = "CapEff:\t00000000a80425fb\n" }, "rights", preflight.Fail, "lacks CAP_SYS_ADMIN", "privileged"},
		"no SYS_RESOURCE":        {func(s *setup) { s.files["proc/self/status"] = "CapEff:\t000001fffeffffff\n" }, "rights", preflight.Warn, "CAP_SYS_RESOURCE", "nothing has to be done"},
		"no bridge":              {func(s *setup) { s.probe.links = map[string]error{"bridge": denied} }, "interfaces", preflight.Fail, "bridge (operation not supported)", "modprobe -a bridge"},
		"no vxlan":               {func(s *setup) { s.probe.links = map[string]error{"vxlan": denied} }, "interfaces", preflight.Warn, "no vxlan", "linux-modules-extra"},
		"no nftables":            {func(s *setup) { s.probe.nat = denied }, "nftables", preflight.Fail, "cannot translate", "modprobe -a nf_tables"},
		"nftables is not needed": {func(s *setup) { s.probe.nat, s.needs.NoNFTables = denied, true }, "nftables", preflight.OK, "nothing of coracle needs them", ""},
		"IPVS":                   {func(*setup) {}, "service proxy", preflight.OK, "IPVS", ""},
		"no IPVS": {func(s *setup) { s.lacks("the kernel has no IPVS, the module ip_vs (no)") }, "service proxy", preflight.OK,
			"nftables, which auto takes where there is no IPVS: the kernel has no IPVS, the module ip_vs (no)", "modprobe -a ip_vs ip_vs_rr dummy"},
		"no IPVS, which is asked for": {func(s *setup) {
			s.lacks("the kernel lacks the module dummy (no)")
			s.needs.ProxyMode = "ipvs"
		}, "service proxy", preflight.Fail,
			"--proxy-mode=ipvs: the kernel lacks the module dummy (no)", "--proxy-mode=auto"},
		"IPVS is not asked for": {func(s *setup) { s.lacks("no IPVS"); s.needs.ProxyMode = "nftables" }, "service proxy", preflight.OK, "nftables", ""},
		"IPVS, not root":        {func(s *setup) { s.host.Root = false }, "service proxy", preflight.Warn, "only root can find out", "sudo"},
		"read-only sys":         {func(s *setup) { s.files["proc/self/mountinfo"] += "22 21 0:21 / /proc/sys ro - proc proc rw\n" }, "forwarding", preflight.Fail, "read-only", "privileged"},
		"ufw": {func(s *setup) { s.files["etc/ufw/ufw.conf"] = "ENABLED=yes\n" }, "firewall", preflight.Warn,
			"ufw drops what comes to this machine and what pods send and receive, where", "ufw allow 6443; ufw allow 8472/udp; ufw allow from 10.42.0.0/16; ufw route allow from 10.42.0.0/16; ufw route allow to 10.42.0.0/16"},
		"ufw, not root": {func(s *setup) { s.files["etc/ufw/ufw.conf"] = "ENABLED=yes\n"; s.host.Root = false }, "firewall", preflight.Warn, "ufw drops", "ufw allow 6443"},
		"ufw in the kernel": {func(s *setup) {
			s.files["etc/ufw/ufw.conf"] = "ENABLED=yes\n"
			s.probe.closed = []hostfirewall.Chain{{Program: hostfirewall.UFW, Hook: hostfirewall.Input, Family: "ip", Table: "filter", Name: "INPUT"}}
		}, "firewall", preflight.Warn, "ufw drops what comes to this machine (ip filter INPUT), where", "ufw allow from 10.42.0.0/16"},
		"firewalld": {func(s *setup) { s.files["run/firewalld/x"] = "" }, "firewall", preflight.Warn, "firewalld drops", "--zone=trusted --add-source=10.42.0.0/16; firewall-cmd --reload"},
		"docker": {func(s *setup) {
			s.probe.closed = []hostfirewall.Chain{{Program: hostfirewall.Docker, Hook: hostfirewall.Forward, Family: "ip", Table: "filter", Name: "FORWARD"}}
		}, "firewall", preflight.Warn, "Docker drops what pods send and receive (ip filter FORWARD)", "iptables -I DOCKER-USER -d 10.42.0.0/16 -j ACCEPT; put the same"},
		"IPv6 alone is closed, and no pod has it": {func(s *setup) {
			s.probe.closed = []hostfirewall.Chain{{Program: hostfirewall.IPTables, Hook: hostfirewall.Forward, Family: "ip6", Table: "filter", Name: "FORWARD"}}
		}, "firewall", preflight.OK, "nothing drops", ""},
		"route in the way": {func(s *setup) {
			s.probe.routes = append(s.probe.routes, preflight.Route{netip.MustParsePrefix("10.42.7.0/24"), "wg0"})
		}, "routes", preflight.Fail, "10.42.7.0/24 by wg0", "--cluster-cidr"},
		"own route": {func(s *setup) {
			s.probe.routes = append(s.probe.routes, preflight.Route{netip.MustParsePrefix("10.42.0.0/24"), "coracle0"})
		}, "routes", preflight.OK, "none overlaps", ""},
		"own pod's route": {func(s *setup) {
			s.probe.routes = append(s.probe.routes, preflight.Route{netip.MustParsePrefix("10.42.0.2/32"), "vethcork3vwyvkg"})
		}, "routes", preflight.OK, "none overlaps", ""},
		"foreign address":   {func(s *setup) { s.probe.listen = map[int]error{0: denied} }, "address", preflight.Fail, "192.168.1.5 is not an address of this machine", "--node-ip"},
		"port taken":        {func(s *setup) { s.probe.listen = map[int]error{6443: errors.New("used by nginx, process 12")} }, "ports", preflight.Fail, "tcp 6443 for the API server (used by nginx, process 12)", "--https-listen-port"},
		"own ports":         {func(s *setup) { s.probe.listen = map[int]error{6443: denied}; s.needs.Running = true }, "ports", preflight.OK, "used by the coracle that runs", ""},
		"no ingress beside": {func(s *setup) { s.needs.Running = true }, "ingress", preflight.OK, "no other program", ""},
		"ingress' port": {
			func(s *setup) { s.probe.listeners = map[int]string{443: "", 80: "nginx, process 12"} },
			"ingress", preflight.Warn, "TCP 80 (nginx, process 12) and TCP 443", "no address of Ingresses",
		},
		"noexec": {func(s *setup) {
			s.files["proc/self/mountinfo"] += "30 20 8:1 / /var/lib rw,noexec shared:3 - ext4 /dev/sda rw\n"
		}, "mount", preflight.Fail, "/var/lib", "/etc/fstab"},
		"private mount":       {func(s *setup) { s.files["proc/self/mountinfo"] = "20 1 179:2 / / rw - ext4 /dev/root rw\n" }, "mount", preflight.Warn, "private", "make-rshared"},
		"full disk":           {func(s *setup) { s.probe.space.Free = 5e8 }, "disk", preflight.Fail, "0.5 of 32.0 GB free", "make room"},
		"eviction near":       {func(s *setup) { s.probe.space.Total = 200e9 }, "disk", preflight.Warn, "below 15%", "eviction-hard"},
		"network disk":        {func(s *setup) { s.probe.space.Type = "nfs" }, "disk", preflight.Warn, "another machine", "--data-dir"},
		"no overlayfs":        {func(s *setup) { s.probe.overlay = denied }, "overlayfs", preflight.Warn, "layers are copied", "modprobe overlay"},
		"overlayfs wanted":    {func(s *setup) { s.probe.overlay = denied; s.needs.Snapshotter = "overlayfs" }, "overlayfs", preflight.Fail, "cannot be mounted", "--snapshotter"},
		"slow card":           {func(s *setup) { s.probe.sync = 80 * time.Millisecond }, "disk speed", preflight.Warn, "80ms", "SSD"},
		"k3s":                 {func(s *setup) { s.files["run/k3s/containerd/containerd.sock"] = "" }, "other clusters", preflight.Warn, "k3s", "k3s-killall.sh"},
		"user without rights": {func(s *setup) { s.host.Root = false }, "nftables", preflight.Warn, "only root can find out", "sudo"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := goodSetup()
			c.change(s)
			for _, r := range s.run() {
				if r.Name != c.name {
					continue
				}
				testenv.False(t, r.Level != c.level || !strings.Contains(r.Found, c.message) || !strings.Contains(r.Do, c.advice), "%+v", r)
				testenv.False(t, r.Level != preflight.OK && r.Do == "", "says nothing about what to do")
				return
			}
			t.Errorf("there is no finding %q", c.name)
		})
	}
}

// TestNoServiceProxyNoProxyMode: where Services are left to another program nothing is said of their proxy mode.
func TestNoServiceProxyNoProxyMode(t *testing.T) {
	s := goodSetup()
	s.needs.ProxyMode = ""
	for _, r := range s.run() {
		testenv.True(t, r.Name != "service proxy", "%+v", r)
	}
}

func TestNativeSnapshotterNeedsNoOverlay(t *testing.T) {
	s := goodSetup()
	s.probe.overlay, s.needs.Snapshotter = errors.New("no"), "native"
	for _, r := range s.run() {
		testenv.True(t, r.Name != "overlayfs", "%+v", r)
	}
}

// TestSettingIsNamedOnce: one setting moves the port for TCP and the one for UDP.
func TestSettingIsNamedOnce(t *testing.T) {
	s := goodSetup()
	s.needs.Ports = []preflight.Port{{Network: "tcp", Number: 6443, What: "the API server", Setting: "--https-listen-port"}, {Network: "udp", Number: 6443, What: "gossip", Setting: "--https-listen-port"}}
	s.probe.listen = map[int]error{6443: errors.New("used by nginx, process 12")}
	for _, r := range s.run() {
		testenv.False(t, r.Name == "ports" && strings.Count(r.Do, "--https-listen-port") != 1, "%+v", r)
	}
}

// TestListenersOfOtherAddressesAreNoConflict: who listens at all addresses has a port of each, and who listens at
// others of the machine has not.
func TestListenersOfOtherAddressesAreNoConflict(t *testing.T) {
	at := []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::1")}
	for address, want := range map[string]bool{"127.0.0.1:0": false, "127.0.0.2:0": true, "0.0.0.0:0": true, "[::1]:0": true, "[::]:0": true} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s is not tried: %v", address, err) // a machine without IPv6
			continue
		}
		port := l.Addr().(*net.TCPAddr).Port
		got, err := preflight.Listeners([]int{port}, at)
		if who, found := got[port]; err != nil || found != want || found && !strings.Contains(who, strconv.Itoa(os.Getpid())) {
			t.Errorf("%s: found %v, error %v", l.Addr(), got, err)
		}
		_ = l.Close()
		if got, err := preflight.Listeners([]int{port}, at); err != nil || len(got) != 0 {
			t.Errorf("%s, closed: found %v, error %v", l.Addr(), got, err)
		}
	}
}
