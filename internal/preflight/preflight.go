// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"context"
	"io/fs"
	"net/netip"
	"time"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
)

// Level is the severity of a finding.
type Level string

// The levels. OK needs nothing. Warn means that something works less well than it could, or could not be checked. Fail
// means that coracle cannot start, or that pods cannot run.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// Result is one finding.
type Result struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Found string `json:"found"`        // the state that was found
	Do    string `json:"do,omitempty"` // the hint
}

// Needs are the settings with which coracle will be started, as far as the checks use them.
type Needs struct {
	DataDir string
	Ports   []Port
	NodeIPs []netip.Addr
	// Ingress are the TCP ports of the ingress at nodes' addresses, at which other programs may listen. There are none
	// where the ingress is disabled.
	Ingress []int
	// Firewall is the traffic that a firewall of this machine has to accept.
	Firewall hostfirewall.Needs
	// Networks are the cluster's own networks, with which a route of the host must not overlap.
	Networks []netip.Prefix
	// Snapshotter is auto, overlayfs or native.
	Snapshotter string
	// ProxyMode is auto, ipvs or nftables. IPVSScheduler is the scheduler for IPVS. Both are empty where another
	// program serves Services.
	ProxyMode, IPVSScheduler string
	// Pods are the networks of the cluster's pods.
	Pods []netip.Prefix
	// NoNFTables says that nothing of coracle uses nftables, because other programs provide the pod network and
	// Services.
	NoNFTables bool
	// ResolvConf is the file with the resolvers and the search list that pods inherit. It is empty where there is no
	// node.
	ResolvConf string
	// Running says that a coracle with these settings runs already, so that it holds the ports itself.
	Running bool
}

// Port is a port that has to be free.
type Port struct {
	Network string     // tcp or udp
	Address netip.Addr // the zero value for all
	Number  int
	What    string // the part that needs it
	Setting string // the flag that changes it, "" when none does
}

// Host gives access to the machine that is checked. Tests make their own.
type Host struct {
	FS    fs.FS // the root of the file system
	Root  bool  // whether this process has the rights of root
	Now   func() time.Time
	Probe Probe
	// IPVS returns an error that says what the kernel lacks for IPVS, or nil when it lacks nothing. IPVS may be nil
	// itself: then the proxy mode is not checked.
	IPVS func(mode, scheduler string, pods []netip.Prefix) error
}

// Probe tries what cannot be found out by reading files.
type Probe interface {
	// Link tries to make an interface of a kind (bridge, veth, vxlan) in a network namespace of its own.
	Link(kind string) error
	// NAT tries to make an nftables table with a masquerading chain in a network namespace of its own.
	NAT() error
	// Overlay tries to mount overlayfs with its folders at dir, in a mount namespace of its own.
	Overlay(dir string) error
	// Listen returns an error when a port is not free. The error names the process that has the port, if that can be
	// found.
	Listen(p Port) error
	// Listeners returns the names of the processes that listen at some TCP ports, at all addresses or at one of these.
	// A name is "" for a process that cannot be found.
	Listeners(ports []int, at []netip.Addr) (map[int]string, error)
	// Space examines the file system of path, or of the nearest existing folder above it.
	Space(path string) (Space, error)
	// SyncTime measures how long a small write takes to reach the disk, in path or the nearest existing folder above
	// it.
	SyncTime(path string) (time.Duration, error)
	// Firewalls returns the chains that drop packets which none of their rules accepts.
	Firewalls() ([]hostfirewall.Chain, error)
	// Routes returns the networks to which the host has routes, apart from its default route.
	Routes() ([]Route, error)
	// Wildcards returns the domains in a file's search list below which a made-up name resolves.
	Wildcards(ctx context.Context, resolvConf string) ([]string, error)
}

// Space describes a file system. Sizes are in bytes.
type Space struct {
	Type              string
	Total, Free       uint64
	Inodes, InodeFree uint64
}

// Route is one of the host's routes.
type Route struct {
	Network   netip.Prefix
	Interface string
}

// Run makes all checks in a fixed order.
func Run(ctx context.Context, h Host, n Needs) []Result {
	r := &run{Host: h, Needs: n}
	for _, check := range []func(){
		r.rights, r.kernel, r.namespaces, r.cgroups, r.memory, r.swap, r.clock, r.devices, r.limits,
		r.links, r.nat, r.proxyMode, r.forwarding, r.filters, r.routes, r.address, r.ports, r.checkIngressPorts,
		r.mount, r.space, r.overlay, r.speed, r.findOtherRuntimes,
		func() { r.searchList(ctx) },
	} {
		if ctx.Err() != nil {
			break
		}
		check()
	}
	return r.results
}

type run struct {
	Host
	Needs
	results []Result
}

func (r *run) ok(name, found string) { r.results = append(r.results, Result{name, OK, found, ""}) }
func (r *run) warn(name, found, do string) {
	r.results = append(r.results, Result{name, Warn, found, do})
}
func (r *run) addFailure(name, found, do string) {
	r.results = append(r.results, Result{name, Fail, found, do})
}

// needsRoot reports that only root can do a check.
func (r *run) needsRoot(name string) {
	r.warn(name, "only root can find out", "run it with sudo")
}

// read returns the text of a small file. It returns "" when there is none.
func (r *run) read(name string) string {
	text, err := fs.ReadFile(r.FS, name)
	if err != nil {
		return ""
	}
	return string(text)
}

func (r *run) exists(name string) bool {
	_, err := fs.Stat(r.FS, name)
	return err == nil
}
