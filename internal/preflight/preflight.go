// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"context"
	"io/fs"
	"net/netip"
	"time"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
)

// Level says how bad a finding is.
type Level string

// The levels: OK needs nothing, Warn works but not as well as it could or may not be known, Fail keeps coracle from
// starting or pods from running.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// Result is one finding.
type Result struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Found string `json:"found"`        // what is the case
	Do    string `json:"do,omitempty"` // what to do about it
}

// Needs is what coracle will be started with, as far as it matters here.
type Needs struct {
	DataDir string
	RunDir  string
	Ports   []Port
	NodeIPs []netip.Addr
	// Ingress are the TCP ports of the ingress at nodes' addresses, which other programs may keep; none where it is
	// disabled.
	Ingress []int
	// Firewall is what a firewall of this machine has to let through.
	Firewall hostfirewall.Needs
	// Networks are the cluster's own, which a route of the host must not cover.
	Networks []netip.Prefix
	// Snapshotter is auto, overlayfs or native.
	Snapshotter string
	// ProxyMode is auto, ipvs or nftables, and IPVSScheduler goes with it; empty where Services are left to another
	// program.
	ProxyMode, IPVSScheduler string
	// Pods are the networks of the cluster's pods.
	Pods []netip.Prefix
	// NoNFTables says that nothing here will make rules in the kernel: pods' network and Services are left to other
	// programs.
	NoNFTables bool
	// Running says that a coracle with these settings runs already, so that the ports are its own.
	Running bool
}

// Port is one that has to be free.
type Port struct {
	Network string     // tcp or udp
	Address netip.Addr // the zero value for all
	Number  int
	What    string // who wants it
	Setting string // the flag that moves it, "" when none does
}

// Host is how the machine is looked at. Tests make their own.
type Host struct {
	FS    fs.FS // the root of the file system
	Root  bool  // this process may do what only root may
	Now   func() time.Time
	Probe Probe
	// IPVS names what the kernel lacks for IPVS, nil where it has all. It may be nil itself: then nothing is said of
	// the proxy mode.
	IPVS func(mode, scheduler string, pods []netip.Prefix) error
}

// Probe tries what cannot be read from files.
type Probe interface {
	// Link tries to make an interface of a kind (bridge, veth, vxlan) in a network namespace of its own.
	Link(kind string) error
	// NAT tries to make an nftables table with a masquerading chain in a network namespace of its own.
	NAT() error
	// Overlay tries to mount overlayfs with its folders at dir, in a mount namespace of its own.
	Overlay(dir string) error
	// Listen says whether a port is free. The error names who has it, if that can be found.
	Listen(p Port) error
	// Listeners names the processes that listen at some TCP ports, at all addresses or at one of these; "" for one that
	// cannot be found.
	Listeners(ports []int, at []netip.Addr) (map[int]string, error)
	// Space examines the file system of the nearest existing folder on the way to path.
	Space(path string) (Space, error)
	// SyncTime measures how long a small write takes to reach the disk, in the nearest existing folder.
	SyncTime(path string) (time.Duration, error)
	// Firewalls lists the chains that drop what no rule accepts.
	Firewalls() ([]hostfirewall.Chain, error)
	// Routes lists the networks to which the host has routes, apart from its default route.
	Routes() ([]Route, error)
}

// Space describes a file system; sizes in bytes.
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
		r.links, r.nat, r.proxyMode, r.forwarding, r.filters, r.routes, r.address, r.ports, r.ingress,
		r.mount, r.space, r.overlay, r.speed, r.others,
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
func (r *run) fail(name, found, do string) {
	r.results = append(r.results, Result{name, Fail, found, do})
}

// needsRoot notes that something could not be found out.
func (r *run) needsRoot(name string) {
	r.warn(name, "only root can find out", "run it with sudo")
}

// read returns a small file's text, "" when it is not there.
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
