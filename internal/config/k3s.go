// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// k3sOnly are settings of k3s that coracle does not have, with what to know about it: whoever brings a k3s command line
// or file along should not have to guess.
var k3sOnly = map[string]string{
	"advertise-port":                    "the API server is reached at --https-listen-port",
	"cluster-init":                      "every first server starts a cluster, with a store that others can join",
	"container-runtime-endpoint":        "containerd runs inside coracle",
	"cri-dockerd":                       "containerd runs inside coracle",
	"datastore-endpoint":                "the store is part of coracle",
	"default-runtime":                   "pods choose with a RuntimeClass",
	"disable-apiserver":                 "a server always has all of its parts",
	"disable-cloud-controller":          "there is no cloud controller",
	"disable-controller-manager":        "a server always has all of its parts",
	"disable-etcd":                      "the store is part of coracle",
	"disable-helm-controller":           "it is called --disable helm-controller here",
	"disable-network-policy":            "it is called --disable network-policy here",
	"disable-scheduler":                 "a server always has all of its parts",
	"docker":                            "containerd runs inside coracle",
	"embedded-registry":                 "images are imported from the folder images/ of the data directory",
	"etcd-expose-metrics":               "the store is no etcd",
	"etcd-disable-snapshots":            "it is called --disable-snapshots here",
	"etcd-snapshot-compress":            "snapshots are always compressed",
	"etcd-snapshot-dir":                 "it is called --snapshot-dir here",
	"etcd-snapshot-name":                "scheduled snapshots are called scheduled-SERVER-TIME",
	"etcd-snapshot-retention":           "it is called --snapshot-retention here",
	"etcd-snapshot-schedule-cron":       "it is called --snapshot-schedule-cron here",
	"flannel-backend":                   "it is called --network-backend here",
	"flannel-iface":                     "it is called --network-iface here",
	"kube-cloud-controller-manager-arg": "there is no cloud controller",
	"prefer-bundled-bin":                "the carried programs are always used",
	"protect-kernel-defaults":           "use --kubelet-arg protect-kernel-defaults=true",
	"rootless":                          "coracle runs as root",
	"selinux":                           "this version does not label containers for SELinux",
	"system-default-registry":           "coracle pulls no images of its own; mirrors of registries are in --private-registry",
}

// k3sHint says why a setting of k3s is not here, "" when k3s has none of that name.
func k3sHint(name string) string {
	if rest, ok := strings.CutPrefix(name, "etcd-s3"); ok && Lookup("snapshot-s3"+rest) != nil {
		return "; it is called --snapshot-s3" + rest + " here"
	}
	if why := k3sOnly[name]; why != "" {
		return "; coracle does not have this setting of k3s: " + why
	}
	return ""
}
