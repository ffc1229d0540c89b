// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// Server holds all settings of coracle server, checked and complete: every default is filled in.
type Server struct {
	Paths
	Logging Logging
	Node    Node

	// ServerURL is the URL of a server whose cluster this server joins. It is nil for a server that starts a cluster.
	ServerURL *url.URL
	// Given names the ClusterWide settings that were set. A server that joins gets the others from the cluster.
	Given []string

	BindAddress      netip.Addr // the zero value means all addresses
	HTTPSPort        int
	AdvertiseAddress netip.Addr
	LBPool           []loadbalancer.Range // without any, Services of type LoadBalancer get nodes' addresses
	LBReserved       []string             // in the form that loadbalancer.ParsePorts parses
	ConsoleListen    string               // ADDRESS:PORT, or empty
	ConsoleOIDC      ConsoleOIDC
	MetricsHistory   bool         // of the last day, while this server leads
	VIPs             []netip.Addr // at most one of each family; the cluster's present addresses may differ
	VIPInterface     string       // "" means the interface whose network holds the address
	TLSSANs          []string     // names and addresses besides those that the server adds itself

	// Cluster and ServerSettings are what a cluster begins with. Once this server has joined a cluster, they are that
	// cluster's.
	Cluster clusterconfig.Settings
	clusterconfig.ServerSettings

	Token      string // "" means: use the one in Paths.TokenFile, make one if there is none
	AgentToken string // likewise, in Paths.AgentTokenFile

	Kubeconfig Kubeconfig

	Snapshots Snapshots

	DisableAgent bool

	ACME ACME

	APIServer
	ControllerManagerArgs []string // name=value
	SchedulerArgs         []string // name=value

	// Warnings are messages for the log, about settings that have no effect but do no harm.
	Warnings []string
}

// APIServer holds the settings that the API server gets.
type APIServer struct {
	Profile       string   // "cis" or ""
	APIServerArgs []string // name=value
	Ingress       Ingress
}

// Kubeconfig says where and with which mode and group the administrator's kubeconfig is written.
type Kubeconfig struct {
	Path string
	Mode os.FileMode
	GID  int // -1 leaves the group unchanged
}

// Logging says what is logged, and to which file.
type Logging struct {
	Debug      bool
	Verbosity  int    // of klog
	VModule    string // of klog
	File       string // "" means standard error
	AlsoStderr bool
}

// SharedFlags returns the values of the Shared settings.
func (s *Server) SharedFlags() map[string]string {
	out := map[string]string{}
	for _, row := range Table(ServerCommand) {
		if row.Scope == Shared {
			out[row.Name] = row.Value(s)
		}
	}
	return out
}

func (r *reader) server(h Host) Server {
	s := Server{
		Paths:         r.paths(),
		Logging:       r.logging(),
		BindAddress:   r.ip("bind-address"),
		HTTPSPort:     r.port("https-listen-port"),
		TLSSANs:       r.sans("tls-san"),
		VIPs:          r.ips("vip"),
		LBPool:        r.ranges("load-balancer-pool"),
		LBReserved:    r.portList("load-balancer-reserved-ports"),
		VIPInterface:  r.text("vip-interface"),
		ConsoleListen: r.listen("console-listen"),
		ConsoleOIDC:   r.consoleOIDC(),

		MetricsHistory: r.boolean("metrics-history"),

		Cluster: r.cluster(),

		Token:        r.secret("token", "token-file"),
		AgentToken:   r.secret("agent-token", "agent-token-file"),
		DisableAgent: r.boolean("disable-agent"),

		APIServer: APIServer{
			Profile:       r.text("profile"),
			APIServerArgs: r.args("kube-apiserver-arg"),
			Ingress:       r.ingress(),
		},
		ACME: r.acme(),

		ControllerManagerArgs: r.args("kube-controller-manager-arg"),
		SchedulerArgs:         r.args("kube-scheduler-arg"),
	}
	nodePorts := r.portRange("service-node-port-range")
	s.ServerSettings = clusterconfig.ServerSettings{NodePortRange: nodePorts.String(), EncryptResources: r.encryption()}
	s.Cluster.Balancer = clusterconfig.Balancer{Disabled: s.Cluster.Disabled.Has(clusterconfig.PartServiceLB),
		Pool: clusterconfig.Strings(s.LBPool), ReservedPorts: s.LBReserved}
	s.Snapshots = r.snapshots(s.Paths)
	s.Snapshots.Schedule, s.Snapshots.S3Secret = r.schedule(), r.text("snapshot-s3-config-secret")
	r.checkS3(&s.Snapshots)
	s.Kubeconfig = Kubeconfig{Path: r.path("write-kubeconfig"), Mode: r.mode("write-kubeconfig-mode"),
		GID: r.group("write-kubeconfig-group")}
	ranges := slices.Concat(s.Cluster.PodCIDRs, s.Cluster.ServiceCIDRs)
	r.checkNetworks(&s)
	if dns := r.clusterDNS(s.Cluster.ServiceCIDRs); !s.Cluster.Disabled.Has(clusterconfig.PartDNS) {
		s.Cluster.DNS = dns
	}
	s.Node = r.node(h, ranges)
	r.advertise(&s)
	if s.ServerURL = r.serverURL("server"); s.ServerURL != nil && s.Token == "" && len(r.problems) == 0 {
		r.addProblem(Source{Flag: "token"}, "is needed to join; a server prints it with: coracle token print --server")
	}
	for _, ip := range s.VIPs {
		if !isUsable(ip) || inNetworks(ip, ranges) {
			r.addProblem(r.src("vip"), "%s cannot be the cluster's address: it has to lie in the network that the servers share, outside of "+
				"--cluster-cidr and --service-cidr", ip)
		}
	}
	for _, p := range s.LBPool {
		if !isUsable(p.First) || !isUsable(p.Last) || slices.ContainsFunc(ranges, p.Overlaps) {
			r.addProblem(r.src("load-balancer-pool"), "%s-%s cannot be addresses of Services: they have to lie in the network of the nodes, "+
				"outside of --cluster-cidr and --service-cidr", p.First, p.Last)
		}
	}
	for _, row := range Table(ServerCommand) {
		if row.Scope == ClusterWide && r.isSet(row.Name) {
			s.Given = append(s.Given, row.Name)
		}
	}
	if s.BindAddress.IsValid() && !s.BindAddress.IsUnspecified() {
		r.owned(h, r.src("bind-address"), s.BindAddress)
	}
	r.checkDisabled(&s)
	if nodePorts.Contains(s.HTTPSPort) {
		r.addProblem(r.src("service-node-port-range"), "%s contains the API server's port %d; Services could take it away", nodePorts,
			s.HTTPSPort)
	}
	return s
}

// cluster reads the settings in which all machines of the cluster agree. Those that follow from others are set later.
func (r *reader) cluster() clusterconfig.Settings {
	return clusterconfig.Settings{
		PodCIDRs:          r.cidrs("cluster-cidr"),
		ServiceCIDRs:      r.cidrs("service-cidr"),
		Domain:            r.domain("cluster-domain"),
		NetworkBackend:    r.text("network-backend"),
		TolerationSeconds: r.integer("default-toleration-seconds", 1, 7*24*60*60),
		Disabled:          r.disable("disable"),
		NoServiceProxy:    r.boolean("disable-kube-proxy"),
	}
}

// checkDisabled refuses settings of parts that are disabled.
func (r *reader) checkDisabled(s *Server) {
	if s.ConsoleListen != "" && s.Cluster.Disabled.Has(clusterconfig.PartConsole) {
		r.addProblem(r.src("console-listen"), "contradicts --disable console; leave one of them out")
	}
	if s.MetricsHistory && s.Cluster.Disabled.Has(clusterconfig.PartMetrics) {
		r.addProblem(r.src("metrics-history"), "contradicts --disable metrics-server; leave one of them out")
	}
}

func (r *reader) advertise(s *Server) {
	s.AdvertiseAddress = r.ip("advertise-address")
	if s.AdvertiseAddress.IsValid() && !isUsable(s.AdvertiseAddress) {
		r.addProblem(r.src("advertise-address"), "%s cannot be advertised: pods must be able to reach it", s.AdvertiseAddress)
	}
	if !s.AdvertiseAddress.IsValid() {
		if isUsable(s.BindAddress) {
			s.AdvertiseAddress = s.BindAddress
		} else if len(s.Node.IPs) > 0 {
			s.AdvertiseAddress = s.Node.IPs[0]
		}
	}
}

// subnetSizes are the prefix lengths that upstream's API server and node CIDR allocator accept (nodes get a /24 or a
// /64).
var subnetSizes = map[string]struct{ v4Min, v4Max, v6Min, v6Max int }{
	"cluster-cidr": {8, 24, 48, 64},
	"service-cidr": {12, 28, 64, 124},
}

func (r *reader) checkNetworks(s *Server) {
	for _, c := range []struct {
		name string
		nets []netip.Prefix
	}{{"cluster-cidr", s.Cluster.PodCIDRs}, {"service-cidr", s.Cluster.ServiceCIDRs}} {
		limits := subnetSizes[c.name]
		for _, n := range c.nets {
			low, high := limits.v6Min, limits.v6Max
			if n.Addr().Is4() {
				low, high = limits.v4Min, limits.v4Max
			}
			if n.Bits() < low || n.Bits() > high {
				r.addProblem(r.src(c.name), "%s: the prefix has to be from /%d to /%d", n, low, high)
			}
		}
	}
	for _, a := range s.Cluster.PodCIDRs {
		for _, b := range s.Cluster.ServiceCIDRs {
			if a.Overlaps(b) {
				r.addProblem(r.src("service-cidr"), "%s overlaps --cluster-cidr %s; Services and pods need networks of their own", b, a)
			}
		}
	}
	if !slices.Equal(familiesOf(s.Cluster.PodCIDRs), familiesOf(s.Cluster.ServiceCIDRs)) {
		r.addProblem(r.src("service-cidr"), "and --cluster-cidr are of different address families; give both the same families in the same order")
	}
}

// clusterDNS returns the address of the cluster's DNS. The default is the tenth address of the first Service network.
func (r *reader) clusterDNS(services []netip.Prefix) netip.Addr {
	ip := r.ip("cluster-dns")
	if len(services) == 0 {
		return ip
	}
	if !ip.IsValid() {
		ip = services[0].Addr()
		for range 10 {
			ip = ip.Next()
		}
		return ip // if the network is too small, which is an error already, the address is outside of it
	}
	for _, n := range services {
		if n.Addr().Next() == ip {
			r.addProblem(r.src("cluster-dns"), "%s is the address of the Service kubernetes; choose another in %s", ip, n)
			return ip
		}
	}
	if !inNetworks(ip, services) {
		r.addProblem(r.src("cluster-dns"), "%s is not inside --service-cidr %s", ip, strings.Join(clusterconfig.Strings(services), ","))
	}
	return ip
}

func (r *reader) domain(name string) string {
	it := r.single(name)
	text := strings.TrimSuffix(it.text, ".")
	if p := validation.IsDNS1123Subdomain(text); len(p) > 0 {
		r.addProblem(it.src, "%q is not a DNS domain: %s", it.text, p[0])
	}
	return text
}

func (r *reader) sans(name string) []string {
	var out []string
	for _, it := range r.elements(name) {
		if net.ParseIP(it.text) == nil && len(validation.IsDNS1123Subdomain(strings.ToLower(it.text))) > 0 &&
			len(validation.IsWildcardDNS1123Subdomain(strings.ToLower(it.text))) > 0 {
			r.addProblem(it.src, "%q is neither a host name nor an IP address", it.text)
			continue
		}
		out = append(out, it.text)
	}
	return out
}

func (r *reader) group(name string) int {
	it := r.single(name)
	if it.text == "" {
		return -1
	}
	if gid, err := strconv.Atoi(it.text); err == nil && gid >= 0 {
		return gid
	}
	g, err := user.LookupGroup(it.text)
	if err != nil {
		r.addProblem(it.src, "there is no group %q on this machine", it.text)
		return -1
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		r.addProblem(it.src, "group %q has no number: %v", it.text, err)
		return -1
	}
	return gid
}

func (r *reader) encryption() []string {
	extra := r.elements("encrypt-resources")
	if !r.boolean("secrets-encryption") {
		if len(extra) > 0 {
			r.addProblem(extra[0].src, "needs --secrets-encryption, which is switched off by %s", r.src("secrets-encryption"))
		}
		return nil
	}
	out := []string{"secrets"}
	for _, it := range extra {
		if len(validation.IsDNS1123Subdomain(it.text)) > 0 {
			r.addProblem(it.src, "%q is not a resource; write it in the plural and in lower case, with its group if it has one, like "+
				"widgets.example.com", it.text)
			continue
		}
		if !slices.Contains(out, it.text) {
			out = append(out, it.text)
		}
	}
	return out
}

func (r *reader) ranges(name string) []loadbalancer.Range {
	var out []loadbalancer.Range
	for _, it := range r.elements(name) {
		p, err := loadbalancer.ParseRange(it.text)
		if err != nil {
			r.addProblem(it.src, "%v", err)
			continue
		}
		out = append(out, p)
	}
	return out
}

// portList checks a list of ports and returns its texts unchanged.
func (r *reader) portList(name string) []string {
	out := convert.Slice(r.elements(name), func(it item) string { return it.text })
	if _, err := loadbalancer.ParsePorts(out); err != nil {
		r.addProblem(r.src(name), "%v; %s alone is for none", err, loadbalancer.NoPorts)
	}
	return out
}

func (r *reader) disable(name string) (out clusterconfig.Disabled) {
	known := Lookup(name).Values
	given := map[string]bool{}
	for _, it := range r.elements(name) {
		parts := disableAliases[it.text]
		if slices.Contains(known, it.text) {
			parts = []string{it.text}
		}
		for _, part := range parts {
			given[part] = true
		}
		if parts == nil {
			names := slices.Sorted(slices.Values(slices.AppendSeq(slices.Clone(known), maps.Keys(disableAliases))))
			r.addProblem(it.src, "%q is no part of coracle%s (there is: %s)", it.text, didYouMean(it.text, "", names),
				strings.Join(known, ", "))
		}
	}
	for _, part := range known {
		if given[part] {
			out = append(out, part)
		}
	}
	return out
}

func (r *reader) paths() Paths {
	p := NewPaths(r.path("data-dir"), r.path("run-dir"))
	p.ConfigFile = r.path("config")
	if over := len(p.longestSocket()) - maxSocketPath; over > 0 {
		r.addProblem(r.src("data-dir"), "the folder for sockets, %s, is %d characters too long for the kernel; give a shorter one with --run-dir",
			p.RunDir, over)
	}
	return p
}

func (r *reader) logging() Logging {
	l := Logging{
		Debug:      r.boolean("debug"),
		Verbosity:  r.integer("v", 0, 10),
		File:       r.path("log"),
		AlsoStderr: r.boolean("alsologtostderr"),
	}
	var patterns []string
	for _, it := range r.elements("vmodule") {
		pattern, level, ok := strings.Cut(it.text, "=")
		if _, err := strconv.ParseUint(level, 10, 8); !ok || err != nil || pattern == "" {
			r.addProblem(it.src, "%q is not of the form file=N, such as kubelet_pods=4", it.text)
			continue
		}
		patterns = append(patterns, it.text)
	}
	l.VModule = strings.Join(patterns, ",")
	return l
}
