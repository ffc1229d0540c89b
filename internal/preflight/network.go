// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
)

func (r *run) links() {
	if !r.Root {
		r.needsRoot("interfaces")
		return
	}
	var missing []string
	for _, kind := range []string{"bridge", "veth"} {
		if err := r.Probe.Link(kind); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", kind, err))
		}
	}
	if len(missing) > 0 {
		r.addFailure("interfaces", "the kernel cannot make "+strings.Join(missing, ", "), "load the modules: modprobe -a bridge veth; if they "+
			"are missing, install the kernel's extra modules (linux-modules-extra, kernel-modules)")
		return
	}
	if err := r.Probe.Link("vxlan"); err != nil {
		r.warn("interfaces", fmt.Sprintf("bridge and veth, but no vxlan (%v); clusters of several machines need it", err),
			"modprobe vxlan; if it is missing, install the kernel's extra modules (linux-modules-extra, on Raspberry Pi "+
				"linux-modules-extra-raspi)")
		return
	}
	r.ok("interfaces", "bridge, veth, vxlan")
}

// NFTablesAdvice is the hint for a kernel without nftables, or with too few of its features.
const NFTablesAdvice = "load the modules: modprobe -a nf_tables nft_chain_nat nft_masq; if they are missing, install the kernel's extra " +
	"modules, or another kernel (no nft or iptables program is needed). " +
	"A cluster that leaves pods' network and Services to programs that do without nftables does not need them: --network-backend none " +
	"and --disable-kube-proxy, on its first server"

// WithoutNFTables returns a text that says what is missing. err is the error of Probe.NAT.
func WithoutNFTables(err error) string {
	return fmt.Sprintf("the kernel cannot translate addresses with nftables (%v)", err)
}

func (r *run) nat() {
	if !r.Root {
		r.needsRoot("nftables")
		return
	}
	switch err := r.Probe.NAT(); {
	case err != nil && r.NoNFTables:
		r.ok("nftables", "none, and nothing of coracle needs them with these settings")
	case err != nil:
		r.addFailure("nftables", WithoutNFTables(err), NFTablesAdvice)
	default:
		r.ok("nftables", "with address translation")
	}
}

// IPVSAdvice is the hint when --proxy-mode=ipvs was given and the kernel lacks something for IPVS.
const IPVSAdvice = ipvsModules + "; or leave the choice to --proxy-mode=auto, which takes nftables here"

const ipvsModules = "load the modules: modprobe -a ip_vs ip_vs_rr dummy; " +
	"if they are missing, install the kernel's extra modules, or another kernel"

// proxyMode reports which proxy back end this node's Services get.
func (r *run) proxyMode() {
	const name = "service proxy"
	switch {
	case r.ProxyMode == "" || r.IPVS == nil:
		return
	case r.ProxyMode == "nftables":
		r.ok(name, "nftables")
		return
	case !r.Root:
		r.needsRoot(name)
		return
	}
	switch err := r.IPVS(r.ProxyMode, r.IPVSScheduler, r.Pods); {
	case err == nil:
		r.ok(name, "IPVS")
	case r.ProxyMode == "ipvs":
		r.addFailure(name, "--proxy-mode=ipvs: "+err.Error(), IPVSAdvice)
	default:
		found := "nftables, which auto takes where there is no IPVS: " + err.Error()
		r.results = append(r.results, Result{name, OK, found, "nothing has to be done; to have IPVS, " + ipvsModules})
	}
}

// forwarding checks whether forwarding can be enabled. Coracle enables it.
func (r *run) forwarding() {
	if !r.exists("proc/sys/net/ipv4/ip_forward") {
		r.addFailure("forwarding", "/proc/sys/net/ipv4/ip_forward is missing", "mount /proc, or use a kernel with IPv4")
		return
	}
	if slices.ContainsFunc(r.mounts(), func(m *mountinfo.Info) bool { return m.Mountpoint == "/proc/sys" && hasOption(m, "ro") }) {
		r.addFailure("forwarding", "/proc/sys is read-only, so that packets cannot be forwarded to pods",
			"this seems to be a container: make it a privileged one")
		return
	}
	r.ok("forwarding", "can be switched on")
}

// filters finds firewalls that by default drop traffic that coracle needs. It does not check the firewalls' exceptions.
func (r *run) filters() {
	var found []hostfirewall.Chain
	if r.Root {
		var err error
		if found, err = r.Probe.Firewalls(); err != nil {
			found = nil // there are no nftables, which another check reports
		}
	}
	found = r.Firewall.Concern(append(found, r.switchedOn(found)...))
	switch {
	case len(found) > 0:
		r.warn("firewall", hostfirewall.Describe(found), "where the cluster is not let through yet: "+
			hostfirewall.Advice(found, r.Firewall))
	case !r.Root:
		r.needsRoot("firewall")
	default:
		r.ok("firewall", "nothing drops the cluster's traffic")
	}
}

// switchedOn returns firewalls that are enabled by their files, and have no rules in the kernel yet, or none that this
// user may see.
func (r *run) switchedOn(seen []hostfirewall.Chain) (out []hostfirewall.Chain) {
	for _, f := range []struct {
		program hostfirewall.Program
		on      bool
	}{
		{hostfirewall.UFW, strings.Contains(r.read("etc/ufw/ufw.conf"), "ENABLED=yes")},
		{hostfirewall.Firewalld, r.exists("run/firewalld.pid") || r.exists("run/firewalld")},
	} {
		if f.on && !slices.Contains(hostfirewall.Programs(seen), f.program) {
			out = append(out, hostfirewall.Chain{Program: f.program, Hook: hostfirewall.Input},
				hostfirewall.Chain{Program: f.program, Hook: hostfirewall.Forward})
		}
	}
	return out
}

// ownDevice says whether a device belongs to the pod network, by the names that package cni gives. Pods keep running
// while coracle is stopped.
func ownDevice(name string) bool {
	return strings.HasPrefix(name, "coracle") || strings.HasPrefix(name, "vethcor")
}

// routes finds routes of the host to networks that overlap the cluster's networks.
func (r *run) routes() {
	routes, err := r.Probe.Routes()
	if err != nil {
		r.warn("routes", fmt.Sprintf("the host's routes cannot be read (%v)", err), "make sure that the cluster's networks are not in use")
		return
	}
	for _, route := range routes {
		for _, n := range r.Networks {
			if ownDevice(route.Interface) || !n.Overlaps(route.Network) {
				continue
			}
			r.addFailure("routes", fmt.Sprintf("the host has a route to %s by %s, which the cluster's network %s overlaps", route.Network,
				route.Interface, n), "choose other networks with --cluster-cidr and --service-cidr")
			return
		}
	}
	r.ok("routes", "none overlaps the cluster's networks")
}

func (r *run) address() {
	if len(r.NodeIPs) == 0 {
		return // the error of the settings says so
	}
	var texts []string
	for _, ip := range r.NodeIPs {
		texts = append(texts, ip.String())
		if !r.Running && r.Probe.Listen(Port{Network: "tcp", Address: ip, Number: 0}) != nil {
			r.addFailure("address", ip.String()+" is not an address of this machine", "name one with --node-ip; ip address shows them")
			return
		}
	}
	r.ok("address", strings.Join(texts, ", "))
}

func (r *run) ports() {
	if r.Running {
		r.ok("ports", "used by the coracle that runs")
		return
	}
	var taken, moves []string
	for _, p := range r.Ports {
		if err := r.Probe.Listen(p); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) { // the check of the address reports it
			taken = append(taken, fmt.Sprintf("%s %d for %s (%v)", p.Network, p.Number, p.What, err))
			if p.Setting != "" && !slices.Contains(moves, p.Setting) {
				moves = append(moves, p.Setting)
			}
		}
	}
	if len(taken) == 0 {
		r.ok("ports", "free: "+joinPorts(r.Ports))
		return
	}
	do := "stop what uses them"
	if len(moves) > 0 {
		do += ", or move coracle's with " + strings.Join(moves, ", ")
	}
	r.addFailure("ports", "in use: "+strings.Join(taken, "; "), do)
}

// checkIngressPorts warns of programs that listen at the ports of the ingress. These programs keep the ports, and the
// ingress does not use this node's addresses.
func (r *run) checkIngressPorts() {
	if len(r.Ingress) == 0 {
		return
	}
	taken, err := r.Probe.Listeners(r.Ingress, r.NodeIPs)
	if err != nil {
		r.warn("ingress", err.Error(), "")
		return
	}
	if len(taken) == 0 {
		r.ok("ingress", "no other program listens at its ports")
		return
	}
	r.warn("ingress", "another program listens at "+Programs(taken),
		"it keeps the port, and this machine is no address of Ingresses: stop it or have it listen elsewhere, or use --disable ingress")
}

func joinPorts(ports []Port) string {
	var texts []string
	for _, p := range ports {
		texts = append(texts, fmt.Sprintf("%d/%s", p.Number, p.Network))
	}
	return strings.Join(texts, ", ")
}
