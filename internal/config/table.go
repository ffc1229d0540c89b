// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// Defaults that other packages name in messages.
const (
	DefaultConfigFile     = "/etc/coracle/config.yaml"
	DefaultDataDir        = "/var/lib/coracle"
	DefaultRunDir         = "/run/coracle"
	DefaultKubeconfig     = "/etc/coracle/coracle.yaml"
	DefaultRegistriesFile = "/etc/coracle/registries.yaml"
)

const (
	groupGeneral    = "General"
	groupLogging    = "Logging"
	groupListener   = "Listening"
	groupNetwork    = "Cluster network"
	groupCluster    = "Cluster membership"
	groupClient     = "Admin kubeconfig"
	groupEncryption = "Encryption at rest"
	groupSnapshots  = "Snapshots"
	groupNode       = "Node"
	groupRuntime    = "Container runtime"
	groupParts      = "Parts"
	groupIngress    = "Ingress"
	groupArgs       = "Extra arguments for Kubernetes components"
)

// disableAliases maps names that --disable takes beside clusterconfig.Parts to the parts that each disables.
var disableAliases = map[string][]string{
	"dns": {clusterconfig.PartDNS}, "metrics": {clusterconfig.PartMetrics}, "helm": {clusterconfig.PartHelm},
	"traefik": {clusterconfig.PartIngress, clusterconfig.PartGateway},
}

// snapshotters are the values of --snapshotter.
var snapshotters = []string{"auto", "overlayfs", "native"}

// Values of --proxy-mode and --ipvs-scheduler, as the packages proxy and proxy/ipvs have them.
var (
	proxyModes     = []string{"auto", "ipvs", "nftables"}
	ipvsSchedulers = []string{"rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq"}
)

var table = []Setting{
	{Name: "config", Short: "c", Commands: allCommands, Group: groupGeneral, Holder: "FILE", Default: DefaultConfigFile, Files: true,
		FlagOnly: true, Env: EnvPrefix + "CONFIG_FILE",
		Help: "Configuration file; files named *.yaml in the folder FILE.d are read after it, in alphabetical order"},
	{Name: "data-dir", Short: "d", Commands: allCommands, Group: groupGeneral, Holder: "DIR", Default: DefaultDataDir, Dirs: true,
		Help: "Folder that holds all lasting state: store, certificates, images, containers"},
	{Name: "run-dir", Commands: allCommands, Group: groupGeneral, Holder: "DIR", Computed: DefaultRunDir +
		"; DIR/run when --data-dir is not " + DefaultDataDir, Dirs: true,
		Help: "Folder for sockets and other state that does not outlive the machine's boot"},

	{Name: "profile", Commands: ServerCommand, Group: groupGeneral, Holder: "NAME", Values: []string{"cis"},
		Scope: Shared, Value: func(s *Server) string { return s.Profile },
		Help: "cis keeps to the CIS Kubernetes Benchmark where that costs something: an audit log, Pod Security's level restricted " +
			"outside of kube-system, limits on events, and no external IPs; see docs/hardening.md. Give all servers the same"},

	{Name: "debug", Commands: nodeCommands, Group: groupLogging, Kind: Bool, Default: "false",
		Help: "Log debug messages"},
	{Name: "v", Short: "v", Commands: nodeCommands, Group: groupLogging, Kind: Int, Holder: "N", Default: "0",
		Help: "Verbosity of the Kubernetes components' logs, 0 to 10"},
	{Name: "vmodule", Commands: nodeCommands, Group: groupLogging, Kind: List, Holder: "PATTERN=N",
		Help: "Verbosity for single source files of the Kubernetes components, such as kubelet_pods=4"},
	{Name: "log", Short: "l", Commands: nodeCommands, Group: groupLogging, Holder: "FILE", Files: true,
		Help: "Append the log to this file instead of writing it to standard error; at 50 MB it becomes FILE.1 and a new one begins"},
	{Name: "alsologtostderr", Commands: nodeCommands, Group: groupLogging, Kind: Bool, Default: "false",
		Help: "With --log, write to standard error too"},

	{Name: "bind-address", Commands: ServerCommand, Group: groupListener, Holder: "IP", Computed: "all addresses",
		Help: "Address on which the API server listens. The machine's own kubeconfigs name it, with `tls-server-name: 127.0.0.1`, so " +
			"that they serve where another server answers in its place"},
	{Name: "https-listen-port", Commands: nodeCommands, Group: groupListener, Kind: Int, Holder: "PORT", Default: "6443",
		Help: "Port at which other machines reach this one: the API server on a server (TCP), and gossip between all machines (TCP and UDP)"},
	{Name: "advertise-address", Commands: ServerCommand, Group: groupListener, Holder: "IP", Computed: "the first of --node-ip",
		Help: "Address under which the members of the cluster and its pods reach this API server"},
	{Name: "tls-san", Commands: ServerCommand, Group: groupListener, Kind: List, Holder: "NAME",
		Help: "Further host names and addresses for which the API server's certificate is valid"},

	{Name: "vip", Commands: ServerCommand, Group: groupListener, Kind: List, Holder: "IP",
		Help: "Address for the whole cluster, one for each address family: a live server answers at it, and another one within seconds " +
			"when that one dies. It lies in the servers' network, and no machine has it. One server's flag is enough: what the cluster " +
			"has counts over another server's, which warns"},
	{Name: "vip-interface", Commands: ServerCommand, Group: groupListener, Holder: "NAME",
		Computed: "the interface whose network holds the address",
		Help:     "Interface of this machine on which --vip is announced"},

	{Name: "cluster-cidr", Commands: ServerCommand, Group: groupNetwork, Kind: List, Holder: "CIDR", Default: "10.42.0.0/16",
		Scope: ClusterWide, Value: func(s *Server) string { return clusterconfig.FlagValue(s.Cluster.PodCIDRs) },
		Help: "Network from which pods get their addresses; one for each address family"},
	{Name: "service-cidr", Commands: ServerCommand, Group: groupNetwork, Kind: List, Holder: "CIDR", Default: "10.43.0.0/16",
		Scope: ClusterWide, Value: func(s *Server) string { return clusterconfig.FlagValue(s.Cluster.ServiceCIDRs) },
		Help: "Network from which Services get their cluster addresses; one for each address family, in the order of --cluster-cidr"},
	{Name: "service-node-port-range", Commands: ServerCommand, Group: groupNetwork, Holder: "FROM-TO", Default: "30000-32767",
		Scope: ClusterWide, Value: func(s *Server) string { return s.NodePortRange },
		Help: "Ports for Services of type NodePort"},
	{Name: "cluster-dns", Commands: ServerCommand, Group: groupNetwork, Holder: "IP", Computed: "the tenth address of --service-cidr",
		Scope: ClusterWide, Value: func(s *Server) string { return s.Cluster.DNS.String() },
		Help: "Address of the cluster's DNS Service, inside --service-cidr"},
	{Name: "cluster-domain", Commands: ServerCommand, Group: groupNetwork, Holder: "DOMAIN", Default: clusterconfig.DefaultDomain,
		Scope: ClusterWide, Value: func(s *Server) string { return s.Cluster.Domain },
		Help: "DNS domain of the cluster"},
	{Name: "network-backend", Commands: ServerCommand, Group: groupNetwork, Holder: "NAME", Default: clusterconfig.NetworkBackends[0],
		Values: clusterconfig.NetworkBackends,
		Scope:  ClusterWide,
		Help: "How packets reach pods of other nodes: vxlan wraps them, host-gw routes them between nodes of one network segment, " +
			"wireguard encrypts them, none leaves the pod network to another plugin that you install; the cluster begins with it, and " +
			"coracle network-backend set changes it"},
	{Name: "network-iface", Commands: nodeCommands, Group: groupNetwork, Holder: "NAME", Computed: "the interface that has --node-ip",
		Help: "Interface of this machine for traffic between nodes' pods; NAME may be a pattern, such as wg* or enp?s0"},
	{Name: "network-external-ip", Commands: nodeCommands, Group: groupNetwork, Kind: Bool, Default: "false",
		Help: "Other nodes send packets for this machine's pods to its --node-external-ip, as behind address translation that leads from " +
			"there to this machine"},
	{Name: "load-balancer-pool", Commands: ServerCommand, Group: groupNetwork, Kind: List, Holder: "RANGE",
		Scope: ClusterWide, Value: func(s *Server) string { return strings.Join(s.Cluster.Balancer.Pool, ",") },
		Help: "Addresses of the nodes' network for Services of type LoadBalancer, instead of the nodes' own: FIRST-LAST, a network in " +
			"CIDR notation, or one address. No machine has them, and no DHCP server gives them out; all servers have the same"},
	{Name: "load-balancer-reserved-ports", Commands: ServerCommand, Group: groupNetwork, Kind: List, Holder: "PORT", Default: "22",
		Scope: ClusterWide,
		Help: "Ports that Services of type LoadBalancer do not get at nodes' addresses, beside the cluster's own, since programs of the " +
			"machines listen there: PORT or PORT/PROTOCOL; none for none; all servers have the same"},
	{Name: "default-toleration-seconds", Commands: ServerCommand, Group: groupCluster, Kind: Int, Holder: "N",
		Default: strconv.Itoa(clusterconfig.DefaultTolerationSeconds),
		Scope:   ClusterWide, Value: func(s *Server) string { return strconv.Itoa(s.Cluster.Toleration()) },
		Help: "How long pods stay on a node that is lost before others take their place, unless a pod says something else; all " +
			"servers have the same"},

	{Name: "server", Short: "s", Commands: nodeCommands, Group: groupCluster, Holder: "URL", Env: EnvPrefix + "URL",
		Computed: "a server starts a cluster of its own",
		Help:     "Server to join, such as https://10.0.0.5:6443"},
	{Name: "lb-server-port", Commands: AgentCommand, Group: groupCluster, Kind: Int, Holder: "PORT", Default: "6444",
		Help: "Port on 127.0.0.1 at which this node reaches whichever server answers"},
	{Name: "token", Short: "t", Commands: nodeCommands | SnapshotCommand, Group: groupCluster, Holder: "TOKEN",
		Computed: "a server makes one at its first start",
		Help:     "Secret that lets a server or an agent join the cluster"},
	{Name: "token-file", Commands: nodeCommands | SnapshotCommand, Group: groupCluster, Holder: "FILE", Files: true,
		Help: "File that holds the token, instead of --token"},
	{Name: "agent-token", Commands: ServerCommand, Group: groupCluster, Holder: "TOKEN", Computed: "a server makes one at its first start",
		Help: "Secret that lets agents join the cluster, but not servers"},
	{Name: "agent-token-file", Commands: ServerCommand, Group: groupCluster, Holder: "FILE", Files: true,
		Help: "File that holds the agent token, instead of --agent-token"},

	{Name: "write-kubeconfig", Short: "o", Commands: ServerCommand | ToolCommand, Group: groupClient, Holder: "FILE",
		Default: DefaultKubeconfig, Files: true,
		Help: "Where to write the kubeconfig of the cluster's administrator"},
	{Name: "write-kubeconfig-mode", Commands: ServerCommand, Group: groupClient, Holder: "MODE", Default: "0600",
		Help: "Permissions of that file, in octal. A user who reads it is an administrator of the cluster"},
	{Name: "write-kubeconfig-group", Commands: ServerCommand, Group: groupClient, Holder: "GROUP",
		Help: "Group that owns that file, by name or number; goes with a mode such as 0640"},

	{Name: "secrets-encryption", Commands: ServerCommand, Group: groupEncryption, Kind: Bool, Default: "true",
		Scope: ClusterWide, Value: func(s *Server) string { return strconv.FormatBool(len(s.EncryptResources) > 0) },
		Help: "Encrypt Secrets in the store"},
	{Name: "encrypt-resources", Commands: ServerCommand, Group: groupEncryption, Kind: List, Holder: "RESOURCE",
		Scope: ClusterWide, Value: func(s *Server) string { return strings.Join(s.EncryptResources, ",") },
		Help: "Resources to encrypt besides secrets, such as configmaps or widgets.example.com"},

	{Name: "disable-snapshots", Commands: ServerCommand, Group: groupSnapshots, Kind: Bool, Default: "false",
		Help: "Take no snapshots by schedule, only when asked to"},
	{Name: "snapshot-schedule-cron", Commands: ServerCommand, Group: groupSnapshots, Holder: "CRON", Default: "0 */12 * * *",
		Help: "When to take a snapshot of the cluster, as minute, hour, day, month and day of the week of the machine's time; none is " +
			"taken when nothing has changed. Several servers take turns: each is later by its share of the time in between"},
	{Name: "snapshot-dir", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "DIR",
		Computed: "snapshots/ in --data-dir", Dirs: true,
		Help: "Folder for the cluster's snapshots"},
	{Name: "snapshot-retention", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Kind: Int, Holder: "N", Default: "5",
		Help: "How many scheduled snapshots of this server are kept"},
	{Name: "snapshot-key-file", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "FILE", Files: true,
		Help: "File with the secret that encrypts snapshots, instead of the server token; keep a copy of it elsewhere"},
	{Name: "snapshot-s3", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Kind: Bool, Default: "false",
		Help: "Keep snapshots in an S3-compatible object store, too"},
	{Name: "snapshot-s3-config-secret", Commands: ServerCommand, Group: groupSnapshots, Holder: "NAME",
		Help: "Secret in kube-system with the settings for S3, in the form that k3s has: keys such as etcd-s3-bucket. Settings that are " +
			"given otherwise go before"},
	{Name: "snapshot-s3-endpoint", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "HOST",
		Default: S3Defaults[S3Endpoint],
		Help:    "S3 server, as HOST or HOST:PORT"},
	{Name: "snapshot-s3-bucket", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "NAME",
		Help: "Bucket for snapshots; it has to exist"},
	{Name: "snapshot-s3-folder", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "PATH",
		Help: "Folder in the bucket"},
	{Name: "snapshot-s3-region", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "NAME",
		Default: S3Defaults[S3Region],
		Help:    "Region of the bucket"},
	{Name: "snapshot-s3-bucket-lookup-type", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "TYPE",
		Default: S3Defaults[S3Lookup], Values: S3Lookups,
		Help: "Where the bucket's name goes: in front of the endpoint's name (dns), behind it (path), or as the endpoint's name suggests (auto)"},
	{Name: "snapshot-s3-access-key", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "KEY",
		Computed: "AWS_ACCESS_KEY_ID of the environment",
		Help:     "Access key for S3"},
	{Name: "snapshot-s3-secret-key", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "KEY",
		Computed: "AWS_SECRET_ACCESS_KEY of the environment",
		Help: "Secret key for S3; better in the configuration file or in a Secret than on a command line, which every user of the " +
			"machine can read"},
	{Name: "snapshot-s3-session-token", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "TOKEN",
		Computed: "AWS_SESSION_TOKEN of the environment",
		Help:     "Session token for S3, if the keys are temporary ones"},
	{Name: "snapshot-s3-endpoint-ca", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "FILE", Files: true,
		Computed: "the machine's authorities",
		Help:     "Certificate of the authority that signed the S3 server's certificate"},
	{Name: "snapshot-s3-skip-ssl-verify", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Kind: Bool, Default: "false",
		Help: "Accept any certificate of the S3 server"},
	{Name: "snapshot-s3-insecure", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Kind: Bool, Default: "false",
		Help: "Speak HTTP to the S3 server, and not HTTPS"},
	{Name: "snapshot-s3-proxy", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "URL",
		Computed: "what HTTPS_PROXY and NO_PROXY of the environment say",
		Help:     "Proxy on the way to the S3 server"},
	{Name: "snapshot-s3-timeout", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Holder: "DURATION",
		Default: S3Defaults[S3Timeout],
		Help:    "How long a snapshot's way to the S3 server or back may take"},
	{Name: "snapshot-s3-retention", Commands: ServerCommand | SnapshotCommand, Group: groupSnapshots, Kind: Int, Holder: "N",
		Default: S3Defaults[S3Retention],
		Help:    "How many scheduled snapshots of each server are kept there"},

	{Name: "node-name", Commands: nodeCommands, Group: groupNode, Holder: "NAME", Computed: "the host name in lower case",
		Help: "Name of this node"},
	{Name: "node-ip", Short: "i", Commands: nodeCommands, Group: groupNode, Kind: List, Holder: "IP",
		Computed: "the address of the interface with the default route",
		Help:     "Address of this node, on the network that the nodes share; one for each address family"},
	{Name: "node-external-ip", Commands: nodeCommands, Group: groupNode, Kind: List, Holder: "IP",
		Help: "Address at which this node is reached from outside its network; one for each address family. It is shown as the node's " +
			"ExternalIP, and a server's certificate is valid for it"},
	{Name: "with-node-id", Commands: nodeCommands, Group: groupNode, Kind: Bool, Default: "false",
		Help: "Append an id to the node's name that this machine makes once and keeps, for machines that have one host name"},
	{Name: "node-label", Commands: nodeCommands, Group: groupNode, Kind: List, Holder: "KEY=VALUE",
		Help: "Label of the node. One that is changed here is applied at the next start. One that is taken out stays, and the log " +
			"has the line that removes it"},
	{Name: "node-taint", Commands: nodeCommands, Group: groupNode, Kind: List, Holder: "KEY=VALUE:EFFECT",
		Help: "Taint that the node gets when it registers; EFFECT is NoSchedule, PreferNoSchedule or NoExecute. A node may not change " +
			"its taints later: the log has the line that does so"},
	{Name: "shutdown-grace-period", Commands: nodeCommands, Group: groupNode, Holder: "DURATION", Default: "60s",
		Help: "How long pods may take to end when the machine goes down; 10 seconds of it, at most half, are for those of kube-system " +
			"and critical ones. 0 means that nothing stops them in order, as when the kubelet's configuration has a shutdownGracePeriod"},
	{Name: "resolv-conf", Commands: nodeCommands, Group: groupNode, Holder: "FILE", Computed: "the host's, without loopback resolvers",
		Files: true,
		Help:  "File with the resolvers for names outside the cluster, in the form of /etc/resolv.conf"},

	{Name: "default-local-storage-path", Commands: nodeCommands, Group: groupNode, Kind: List, Holder: "DIR",
		Computed: "storage/ in --data-dir", Dirs: true,
		Help: "Folder of this node for volumes of the StorageClass local-path; further ones are for StorageClasses that name them in the " +
			"parameter nodePath. It has to be there, and no other users of the machine get into it"},

	{Name: "private-registry", Commands: nodeCommands, Group: groupRuntime, Holder: "FILE", Default: DefaultRegistriesFile, Files: true,
		Help: "File that describes mirrors of image registries and how to log in to them"},
	{Name: "disable-default-registry-endpoint", Commands: nodeCommands, Group: groupRuntime, Kind: Bool, Default: "false",
		Help: "Ask only its mirrors for the images of a registry that has mirrors in --private-registry, and never the registry itself: " +
			"without an outside network each pull would wait for it"},
	{Name: "content-rate", Commands: nodeCommands, Group: groupRuntime, Holder: "SIZE", Default: "0",
		Help: "Bytes per second, 1Mi or more, that other machines get at most from this one when they pull images; 0 is no limit"},
	{Name: "image-credential-provider-bin-dir", Commands: nodeCommands, Group: groupRuntime, Holder: "DIR", Dirs: true,
		Help: "Folder with the kubelet's credential provider programs"},
	{Name: "image-credential-provider-config", Commands: nodeCommands, Group: groupRuntime, Holder: "FILE", Files: true,
		Help: "File or folder with the configuration of the kubelet's credential providers"},
	{Name: "nonroot-devices", Commands: nodeCommands, Group: groupRuntime, Kind: Bool, Default: "false",
		Help: "Devices of a pod belong to the user and the group that its security context names"},
	{Name: "protect-kernel-defaults", Commands: nodeCommands, Group: groupNode, Kind: Bool, Default: "false",
		Help: "The kubelet does not start where the kernel's settings differ from those that it expects, instead of changing them"},
	{Name: "pause-image", Commands: nodeCommands, Group: groupRuntime, Holder: "IMAGE", Computed: "an image that the binary carries",
		Help: "Image of the container that holds a pod's namespaces"},
	{Name: "snapshotter", Commands: nodeCommands, Group: groupRuntime, Holder: "NAME", Default: "auto", Values: snapshotters,
		Help: "How containers' file systems are stacked: overlayfs, or native, which copies every layer and works on any file system; " +
			"auto takes overlayfs where the disk can"},
	{Name: "default-runtime", Commands: nodeCommands, Group: groupRuntime, Holder: "NAME", Default: clusterconfig.DefaultRuntime,
		Values: append([]string{clusterconfig.DefaultRuntime}, clusterconfig.Runtimes...),
		Help: "Runtime of this node's pods that name no RuntimeClass: runc, which the binary carries, or one that is installed here; " +
			"see docs/runtimes.md"},

	{Name: "disable", Commands: ServerCommand, Group: groupParts, Kind: List, Holder: "NAME", Values: clusterconfig.Parts(),
		Scope: ClusterWide, Value: func(s *Server) string { return strings.Join(s.Cluster.Disabled, ",") },
		Help: "Packaged part of the cluster that is not to run: cluster DNS (coredns), applying what lies in the manifests folder " +
			"(manifests), giving addresses to Services of type LoadBalancer (servicelb), enforcing NetworkPolicies (network-policy), " +
			"volumes in folders of nodes (local-storage), the metrics API of kubectl top and autoscalers (metrics-server), installing " +
			"HelmCharts (helm-controller), serving Ingresses (ingress), serving Gateways (gateway), of which traefik is both, the web " +
			"console (console), making RuntimeClasses of installed runtimes (runtimes), or machines that get layers of images from one another " +
			"(content); all servers have the same"},
	{Name: "console-listen", Commands: ServerCommand, Group: groupParts, Holder: "ADDRESS:PORT",
		Help: "Serve the web console to browsers of other machines there, by HTTPS; without an address, at all of this machine's. Users " +
			"log in with their own tokens. coracle console needs no such port"},
	{Name: "console-oidc-client-id", Commands: ServerCommand, Group: groupParts, Holder: "ID", Computed: "the API server's oidc-client-id",
		Help: "Client by which users of --console-listen log in at the issuer of the API server's oidc-issuer-url; see docs/console.md"},
	{Name: "console-oidc-client-secret-file", Commands: ServerCommand, Group: groupParts, Holder: "FILE", Files: true,
		Help: "File with the secret of that client, if it has one"},
	{Name: "console-oidc-scopes", Commands: ServerCommand, Group: groupParts, Kind: List, Holder: "SCOPE",
		Computed: "openid, and those of profile, email, groups and offline_access that the issuer has",
		Help:     "Scopes that the login asks for"},
	{Name: "metrics-history", Commands: ServerCommand, Group: groupParts, Kind: Bool, Default: "false",
		Help: "While this server leads, keep in memory the CPU and memory use of nodes and pods of the last day, a point a minute, for the " +
			"curves of the web console. Give it to all servers: the history is that of the leader"},
	{Name: "disable-agent", Commands: ServerCommand, Group: groupParts, Kind: Bool, Default: "false",
		Help: "Run no pods on this machine: only the server, without a node"},
	{Name: "disable-kube-proxy", Commands: ServerCommand, Group: groupParts, Kind: Bool, Default: "false",
		Scope: ClusterWide, Value: func(s *Server) string { return strconv.FormatBool(s.Cluster.NoServiceProxy) },
		Help: "Leave Services to another proxy that you install. The rules that coracle made before are removed at the start"},
	{Name: "proxy-mode", Commands: nodeCommands, Group: groupParts, Holder: "MODE", Default: "auto", Values: proxyModes,
		Help: "What serves Services on this node: ipvs, which needs Linux 5.9 with the modules ip_vs, ip_vs_rr and dummy, or nftables; " +
			"auto takes ipvs where the kernel has that, nftables elsewhere"},
	{Name: "ipvs-scheduler", Commands: nodeCommands, Group: groupParts, Holder: "NAME", Default: "rr", Values: ipvsSchedulers,
		Help: "With IPVS, which endpoint a connection goes to, for Services that do not say it by the annotation " +
			"coracle.dev/ipvs-scheduler"},

	{Name: "ingress-host-owner", Commands: ServerCommand, Group: groupIngress, Holder: "WHAT", Default: hostOwnerPath,
		Values: []string{hostOwnerPath, hostOwnerNamespace},
		Scope:  Shared, Value: func(s *Server) string { return s.Ingress.hostOwnerValue() },
		Help: "What Ingresses of several namespaces share of a host: path gives each path to the oldest Ingress that has it, namespace " +
			"the whole host to the namespace of the oldest Ingress that names it; all servers have the same"},
	{Name: "ingress-trusted-proxies", Commands: ServerCommand, Group: groupIngress, Kind: List, Holder: "CIDR", Computed: "none",
		Scope: Shared, Value: func(s *Server) string { return s.Ingress.trustedProxiesValue() },
		Help: "Networks and addresses of proxies in front of the ingress, whose X-Forwarded-* headers are trusted; all servers have the same"},
	{Name: "ingress-proxy-protocol", Commands: ServerCommand, Group: groupIngress, Kind: Bool, Default: "false",
		Scope: Shared, Value: func(s *Server) string { return strconv.FormatBool(s.Ingress.ProxyProtocol) },
		Help: "Each connection from --ingress-trusted-proxies begins with a header of the PROXY protocol, version 1 or 2; all servers " +
			"have the same"},
	{Name: "ingress-acme-email", Commands: ServerCommand, Group: groupIngress, Holder: "ADDRESS", Computed: "no certificates are ordered",
		Scope: Shared, Value: func(s *Server) string { return s.ACME.Email },
		Help: "Get certificates by ACME for Ingresses with the annotation kubernetes.io/tls-acme, and agree to the authority's terms; it " +
			"may write to this address. Give all servers the same; see docs/ingress.md"},
	{Name: "ingress-acme-server", Commands: ServerCommand, Group: groupIngress, Holder: "URL", Default: letsEncrypt,
		Scope: Shared, Value: func(s *Server) string { return s.ACME.Directory },
		Help: "Directory of the authority for --ingress-acme-email; all servers have the same"},
	{Name: "ingress-acme-ca-file", Commands: ServerCommand, Group: groupIngress, Holder: "FILE", Computed: "the machine's authorities",
		Files: true,
		Help:  "Authorities, in PEM, that the certificate of --ingress-acme-server may be from"},
	{Name: "ingress-memory", Commands: nodeCommands, Group: groupIngress, Holder: "SIZE", Default: "256Mi",
		Help: "Memory of this node's ingress proxy at most, 64Mi or more. An idle websocket over TLS takes 40 KB"},
	{Name: "ingress-max-connections", Commands: nodeCommands, Group: groupIngress, Kind: Int, Holder: "N", Default: "4000",
		Help: "Connections of clients that this node's ingress proxy has at most, and requests under way of HTTP/2 and HTTP/3; one " +
			"address may have half of them, and HTTP/3 an eighth"},

	{Name: "kube-apiserver-arg", Commands: ServerCommand, Group: groupArgs, Kind: Args, Holder: "NAME=VALUE",
		Help: "Flag for the API server"},
	{Name: "kube-controller-manager-arg", Commands: ServerCommand, Group: groupArgs, Kind: Args, Holder: "NAME=VALUE",
		Help: "Flag for the controllers"},
	{Name: "kube-scheduler-arg", Commands: ServerCommand, Group: groupArgs, Kind: Args, Holder: "NAME=VALUE",
		Help: "Flag for the scheduler"},
	{Name: "kubelet-arg", Commands: nodeCommands, Group: groupArgs, Kind: Args, Holder: "NAME=VALUE",
		Help: "Flag for the kubelet"},
	{Name: "kube-proxy-arg", Commands: nodeCommands, Group: groupArgs, Kind: Args, Holder: "NAME=VALUE",
		Help: "Setting of the Service proxy: nodeport-addresses=CIDR,CIDR are the local addresses on which Services of type NodePort answer"},
}
