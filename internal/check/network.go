// SPDX-License-Identifier: Apache-2.0

package check

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
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
		r.fail("interfaces", "the kernel cannot make "+strings.Join(missing, ", "), "load the modules: modprobe -a bridge veth; if they are missing, install the kernel's extra modules (linux-modules-extra, kernel-modules)")
		return
	}
	if err := r.Probe.Link("vxlan"); err != nil {
		r.warn("interfaces", fmt.Sprintf("bridge and veth, but no vxlan (%v); clusters of several machines need it", err), "modprobe vxlan; if it is missing, install the kernel's extra modules (linux-modules-extra, on Raspberry Pi linux-modules-extra-raspi)")
		return
	}
	r.ok("interfaces", "bridge, veth, vxlan")
}

func (r *run) nat() {
	if !r.Root {
		r.needsRoot("nftables")
		return
	}
	if err := r.Probe.NAT(); err != nil {
		r.fail("nftables", fmt.Sprintf("the kernel cannot translate addresses with nftables (%v)", err), "load the modules: modprobe -a nf_tables nft_chain_nat nft_masq; no nft or iptables program is needed")
		return
	}
	r.ok("nftables", "with address translation")
}

// forwarding only has to be possible: coracle switches it on.
func (r *run) forwarding() {
	if !r.exists("proc/sys/net/ipv4/ip_forward") {
		r.fail("forwarding", "/proc/sys/net/ipv4/ip_forward is missing", "mount /proc, or use a kernel with IPv4")
		return
	}
	for line := range strings.Lines(r.read("proc/self/mountinfo")) {
		if m, ok := parseMount(line); ok && m.point == "/proc/sys" && m.has("ro") {
			r.fail("forwarding", "/proc/sys is read-only, so that packets cannot be forwarded to pods", "this looks like a container: make it a privileged one")
			return
		}
	}
	r.ok("forwarding", "can be switched on")
}

// filters finds firewalls that would drop what coracle needs.
func (r *run) filters() {
	if r.exists("etc/ufw/ufw.conf") && strings.Contains(r.read("etc/ufw/ufw.conf"), "ENABLED=yes") {
		r.warn("firewall", "ufw is on", "let the cluster through: "+r.allow("ufw allow 6443"+r.tunnel("; ufw allow %d/udp"), "ufw allow from %s", "; ")+"; ufw default allow routed")
		return
	}
	if r.exists("run/firewalld.pid") || r.exists("run/firewalld") {
		r.warn("firewall", "firewalld is on", "let the cluster through: "+r.allow("firewall-cmd --permanent --add-port=6443/tcp --add-port=6443/udp"+r.tunnel(" --add-port=%d/udp"), "firewall-cmd --permanent --zone=trusted --add-source=%s", "; ")+"; firewall-cmd --reload")
		return
	}
	if !r.Root {
		r.needsRoot("firewall")
		return
	}
	for _, hook := range []string{"forward", "input"} {
		chains, err := r.Probe.Dropping(hook)
		if err != nil || len(chains) == 0 {
			continue // no nftables here: the check above says so
		}
		what := map[string]string{"forward": "traffic of pods", "input": "connections to this machine"}[hook]
		r.warn("firewall", fmt.Sprintf("packet filter chain %s drops %s that no rule accepts", strings.Join(chains, ", "), what), "accept the cluster's networks there: "+r.allow("TCP and UDP port 6443"+r.tunnel(", UDP port %d from the other nodes"), "%s", ", ")+" (Docker sets such a chain: its DOCKER-USER chain is the place)")
		return
	}
	r.ok("firewall", "nothing drops the cluster's traffic")
}

// tunnel is a part of a text about the tunnel's port, where there is a tunnel.
func (r *run) tunnel(format string) string {
	if r.Tunnel == 0 {
		return ""
	}
	return fmt.Sprintf(format, r.Tunnel)
}

// allow lists what has to be let through: the API server's port, then each of the cluster's networks.
func (r *run) allow(port, network, separator string) string {
	parts := []string{port}
	for _, n := range r.Networks {
		parts = append(parts, fmt.Sprintf(network, n))
	}
	return strings.Join(parts, separator)
}

// ownDevice tells devices of the pod network (package cni names them): pods go on while coracle is stopped.
func ownDevice(name string) bool {
	return strings.HasPrefix(name, "coracle") || strings.HasPrefix(name, "vethcor")
}

// routes finds networks of the host's that the cluster's hide.
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
			r.fail("routes", fmt.Sprintf("the host has a route to %s by %s, which the cluster's network %s overlaps", route.Network, route.Interface, n), "choose other networks with --cluster-cidr and --service-cidr")
			return
		}
	}
	r.ok("routes", "none overlaps the cluster's networks")
}

func (r *run) address() {
	if len(r.NodeIPs) == 0 {
		return // the settings' own complaint says so
	}
	var texts []string
	for _, ip := range r.NodeIPs {
		texts = append(texts, ip.String())
		if !r.Running && r.Probe.Listen(Port{Network: "tcp", Address: ip, Number: 0}) != nil {
			r.fail("address", ip.String()+" is not an address of this machine", "name one with --node-ip; ip address shows them")
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
		if err := r.Probe.Listen(p); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) { // the check above tells of that
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
	r.fail("ports", "in use: "+strings.Join(taken, "; "), do)
}

func joinPorts(ports []Port) string {
	var texts []string
	for _, p := range ports {
		texts = append(texts, fmt.Sprintf("%d/%s", p.Number, p.Network))
	}
	return strings.Join(texts, ", ")
}
