// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// k3sOnly are settings of k3s that coracle does not have. Each value says what to use instead, or why there is no such
// setting. docs/coming-from-k3s.md lists the same flags.
var k3sOnly = map[string]string{
	"advertise-port":                    "the API server is reached at --https-listen-port",
	"cluster-init":                      "every first server starts a cluster, with a store that others can join",
	"cluster-secret":                    "it is called --token here",
	"container-runtime-endpoint":        "containerd runs inside coracle",
	"cri-dockerd":                       "containerd runs inside coracle",
	"datastore-cafile":                  "the store is part of coracle",
	"datastore-certfile":                "the store is part of coracle",
	"datastore-endpoint":                "the store is part of coracle",
	"datastore-keyfile":                 "the store is part of coracle",
	"disable-apiserver":                 "a server always has all of its parts",
	"disable-apiserver-lb":              "an agent always finds the servers by itself",
	"disable-cloud-controller":          "there is no cloud controller",
	"disable-controller-manager":        "a server always has all of its parts",
	"disable-default-registry-endpoint": "the registry is asked after its mirrors",
	"disable-etcd":                      "the store is part of coracle",
	"disable-helm-controller":           "it is called --disable helm-controller here",
	"disable-network-policy":            "it is called --disable network-policy here",
	"disable-scheduler":                 "a server always has all of its parts",
	"docker":                            "containerd runs inside coracle",
	"egress-selector-mode":              "servers reach kubelets and pods of nodes behind routers by the nodes' own connections, without a setting",
	"embedded-registry":                 "images are imported from the folder images/ of the data directory",
	"enable-pprof":                      "use coracle debug profile, stacks and heap",
	"etcd-arg":                          "the store is no etcd",
	"etcd-disable-snapshots":            "it is called --disable-snapshots here",
	"etcd-expose-metrics":               "the store is no etcd",
	"etcd-snapshot-compress":            "snapshots are always compressed",
	"etcd-snapshot-dir":                 "it is called --snapshot-dir here",
	"etcd-snapshot-name":                "scheduled snapshots are called scheduled-SERVER-TIME",
	"etcd-snapshot-retention":           "it is called --snapshot-retention here",
	"etcd-snapshot-schedule-cron":       "it is called --snapshot-schedule-cron here",
	"flannel-backend":                   "it is called --network-backend here",
	"flannel-cni-conf": "coracle writes the CNI configuration of its own network; another plugin's needs " +
		"--network-backend none",
	"flannel-conf": "there is no flannel; --network-backend, --network-iface and --cluster-cidr say how pods of " +
		"other nodes are reached",
	"flannel-external-ip": "it is called --network-external-ip here, and is given to each machine that has a " +
		"--node-external-ip",
	"flannel-iface":                     "it is called --network-iface here",
	"flannel-ipv6-masq":                 "what pods send out of the cluster is masqueraded in both families",
	"helm-job-image":                    "Helm runs without a Job",
	"image-credential-provider-bin-dir": "use --kubelet-arg image-credential-provider-bin-dir=DIR",
	"image-credential-provider-config":  "use --kubelet-arg image-credential-provider-config=FILE",
	"image-service-endpoint":            "containerd runs inside coracle",
	"kube-cloud-controller-manager-arg": "there is no cloud controller",
	"no-deploy":                         "it is called --disable here",
	"no-flannel":                        "it is called --network-backend none here",
	"node-external-dns":                 "a Node has addresses and its host name; further names belong into your own DNS",
	"node-internal-dns":                 "a Node has addresses and its host name; further names belong into your own DNS",
	"nonroot-devices":                   "devices belong to root",
	"prefer-bundled-bin":                "the embedded programs are always used",
	"protect-kernel-defaults":           "use --kubelet-arg protect-kernel-defaults=true",
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
