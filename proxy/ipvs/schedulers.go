// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	upstream "k8s.io/kubernetes/pkg/proxy"
)

// SchedulerAnnotation of a Service names the scheduler of its virtual servers.
const SchedulerAnnotation = "coracle.dev/ipvs-scheduler"

// DefaultScheduler takes real servers in turn.
const DefaultScheduler = "rr"

// Schedulers are those that a Service or the node may name: round robin, weighted round robin, least connections, weighted least
// connections, source hashing, destination hashing, Maglev hashing, shortest expected delay, never queue.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq"}

// Flags of virtual servers, from the kernel's ip_vs.h.
const (
	flagPersistent = 0x1
	flagHashed     = 0x2 // the kernel's own
	// flagFallback makes sh and mh pass over real servers that take no new connections. Without it a client whose hash leads
	// to one that drains is refused. Others do not look at it.
	flagFallback = 0x8
)

func flagsOf(scheduler string) uint32 {
	if scheduler == "sh" || scheduler == "mh" {
		return flagFallback
	}
	return 0
}

// drains says whether real servers may stay with weight 0. dh has no fallback: it would refuse every client that the hash
// leads to such a one, and since the hash is of the Service's address, that is all clients.
func drains(scheduler string) bool { return scheduler != "dh" }

// ServicePort is upstream's, with what IPVS needs beside that.
type ServicePort struct {
	*upstream.BaseServicePortInfo
	scheduler string // empty: the node's
}

var _ upstream.ServicePort = (*ServicePort)(nil)

// newServicePort is for upstream's tracker. A scheduler that does not exist counts as none.
func newServicePort(_ *corev1.ServicePort, svc *corev1.Service, base *upstream.BaseServicePortInfo) upstream.ServicePort {
	p := &ServicePort{BaseServicePortInfo: base}
	if name := svc.Annotations[SchedulerAnnotation]; slices.Contains(Schedulers, name) {
		p.scheduler = name
	}
	return p
}
