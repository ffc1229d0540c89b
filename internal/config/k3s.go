// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"strings"
)

// k3sOnly are settings of k3s that coracle does not have. Each value says what to use instead, or why there is no such
// setting. docs/coming-from-k3s.md lists the same flags.
var k3sOnly = map[string]string{
	"advertise-port":                   "the API server is reached at --https-listen-port",
	"airgap-extra-registry":            "imported images keep the names that their archives have; mirrors of registries are in --private-registry",
	"apiserver-bind-address":           "it is called --bind-address here",
	"apiserver-port":                   "it is called --https-listen-port here",
	"cluster-init":                     "every first server starts a cluster, with a store that others can join",
	"cluster-secret":                   "it is called --token here",
	"container-runtime-endpoint":       "containerd runs inside coracle",
	"cri-dockerd":                      "containerd runs inside coracle",
	"datastore-cafile":                 "the store is part of coracle",
	"datastore-certfile":               "the store is part of coracle",
	"datastore-endpoint":               "the store is part of coracle",
	"datastore-keyfile":                "the store is part of coracle",
	"disable-apiserver":                "a server always has all of its parts",
	"disable-apiserver-lb":             "an agent always finds the servers by itself",
	"disable-cloud-controller":         "there is no cloud controller",
	"disable-controller-manager":       "a server always has all of its parts",
	"disable-etcd":                     "the store is part of coracle",
	"disable-helm-controller":          "it is called --disable helm-controller here",
	"disable-network-policy":           "it is called --disable network-policy here",
	"disable-scheduler":                "a server always has all of its parts",
	"docker":                           "containerd runs inside coracle",
	"egress-selector-mode":             "servers reach kubelets and pods of nodes behind routers by the nodes' own connections, without a setting",
	"embedded-registry":                "images are imported from the folder images/ of the data directory",
	"enable-pprof":                     "use coracle debug profile, stacks and heap",
	"etcd-arg":                         "the store is no etcd",
	"etcd-disable-snapshots":           "it is called --disable-snapshots here",
	"etcd-expose-metrics":              "the store is no etcd",
	"etcd-snapshot-compress":           "snapshots are always compressed",
	"etcd-snapshot-dir":                "it is called --snapshot-dir here",
	"etcd-snapshot-name":               "scheduled snapshots are called scheduled-SERVER-TIME",
	"etcd-snapshot-reconcile-interval": "coracle snapshot list reads the folder and the object store itself",
	"etcd-snapshot-retention":          "it is called --snapshot-retention here",
	"etcd-snapshot-schedule-cron":      "it is called --snapshot-schedule-cron here",
	"flannel-backend":                  "it is called --network-backend here",
	"helm-controller-arg":              "Helm runs in the server, and its settings are in each HelmChart",
	"kine-tls":                         "the store is part of coracle",
	"kube-cloud-controller-arg":        "there is no cloud controller",
	"kube-controller-arg":              "it is called --kube-controller-manager-arg here",
	"supervisor-port":                  "everything is reached at --https-listen-port",
	"write-kubeconfig-name":            "use coracle kubeconfig --name NAME",
	"flannel-cni-conf": "coracle writes the CNI configuration of its own network; another plugin's needs " +
		"--network-backend none",
	"flannel-conf": "there is no flannel; --network-backend, --network-iface and --cluster-cidr say how pods of " +
		"other nodes are reached",
	"flannel-external-ip": "it is called --network-external-ip here, and is given to each machine that has a " +
		"--node-external-ip",
	"flannel-iface":                     "it is called --network-iface here",
	"flannel-ipv6-masq":                 "what pods send out of the cluster is masqueraded in both families",
	"helm-job-image":                    "Helm runs without a Job",
	"image-service-endpoint":            "containerd runs inside coracle",
	"kube-cloud-controller-manager-arg": "there is no cloud controller",
	"no-deploy":                         "it is called --disable here",
	"no-flannel":                        "it is called --network-backend none here",
	"node-external-dns":                 "a Node has addresses and its host name; further names belong into your own DNS",
	"node-internal-dns":                 "a Node has addresses and its host name; further names belong into your own DNS",
	"prefer-bundled-bin":                "the embedded programs are always used",
	"rootless":                          "coracle runs as root",
	"secrets-encryption-provider":       "Secrets are encrypted with secretbox",
	"selinux":                           "this version does not label containers for SELinux",
	"servicelb-namespace":               "no pods serve load balancer addresses",
	"supervisor-metrics":                "metrics are at the API server's and the kubelet's ports",
	"system-default-registry":           "coracle pulls no images of its own; mirrors of registries are in --private-registry",
	"tls-san-security": "the API server's certificate is valid for the servers' own names and addresses and those of " +
		"--tls-san alone",
	"vpn-auth":      "use --network-backend wireguard, or run the VPN's own service below the cluster",
	"vpn-auth-file": "use --network-backend wireguard, or run the VPN's own service below the cluster",
}

// k3sOfAgents are settings that k3s' agents and servers have, and coracle's agents do not have.
var k3sOfAgents = map[string]string{
	"bind-address": "an agent listens on all addresses of its machine",
}

// k3sVariables are k3s' environment variables whose settings have another name than the variable.
var k3sVariables = map[string]string{
	"K3S_KUBECONFIG_OUTPUT": "write-kubeconfig", "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode",
	"K3S_KUBECONFIG_GROUP": "write-kubeconfig-group", "K3S_URL": "server", "K3S_CONFIG_FILE": "config",
}

// k3sVariable explains a variable of k3s' environment. Coracle does not read it: k3s may run on the machine, too.
func k3sVariable(variable string) string {
	name := cmp.Or(k3sVariables[variable], strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, k3sPrefix), "_", "-")))
	text := "environment variable " + variable + " is one of k3s and has no effect"
	if s := Lookup(name); s != nil {
		return text + "; it is called " + s.EnvName() + " here"
	}
	return text + k3sHint(name)
}

// k3sPrefix begins the names of k3s' environment variables.
const k3sPrefix = "K3S_"

// k3sHint says why coracle does not have a setting of k3s. It returns "" when k3s has none with this name.
func k3sHint(name string) string {
	if rest, ok := strings.CutPrefix(name, "etcd-s3"); ok && Lookup("snapshot-s3"+rest) != nil {
		return "; it is called --snapshot-s3" + rest + " here"
	}
	if why := k3sOnly[name]; why != "" {
		return "; coracle does not have this setting of k3s: " + why
	}
	return ""
}
