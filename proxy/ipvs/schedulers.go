// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/proxy"
)

// SchedulerAnnotation is the annotation with which a Service names the scheduler of its virtual servers.
const SchedulerAnnotation = "coracle.dev/ipvs-scheduler"

// DefaultScheduler is the scheduler of virtual servers that name none: round robin.
const DefaultScheduler = "rr"

// Schedulers are the schedulers that a Service or the node may name: round robin, weighted round robin, least
// connections, weighted least connections, source hashing, destination hashing, Maglev hashing, shortest expected
// delay, never queue.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq"}

// Flags of virtual servers, from the kernel's ip_vs.h.
const (
	flagPersistent = 0x1
	flagHashed     = 0x2 // the kernel's own
	// flagFallback makes sh and mh skip real servers that take no new connections. Without it a client whose hash
	// selects a draining one is rejected. Other schedulers ignore the flag.
	flagFallback = 0x8
)

func flagsOf(scheduler string) uint32 {
	if scheduler == "sh" || scheduler == "mh" {
		return flagFallback
	}
	return 0
}

// drains reports whether real servers may stay with weight 0. dh has no fallback: it would reject every client whose
// hash selects such a server. Since it hashes the Service's address, that is all clients.
func drains(scheduler string) bool { return scheduler != "dh" }

// ServicePort is upstream's type, with what IPVS needs in addition.
type ServicePort struct {
	*upstream.BaseServicePortInfo
	scheduler string // as in the Service, so it may be none of Schedulers; empty: the node's
}

var _ upstream.ServicePort = (*ServicePort)(nil)

// newServicePort makes a ServicePort for upstream's tracker.
func newServicePort(_ *corev1.ServicePort, svc *corev1.Service, base *upstream.BaseServicePortInfo) upstream.ServicePort {
	return &ServicePort{BaseServicePortInfo: base, scheduler: svc.Annotations[SchedulerAnnotation]}
}

// schedulerOf returns the Service's scheduler if it exists, and otherwise the node's.
func (v View) schedulerOf(svc *ServicePort) string {
	if slices.Contains(Schedulers, svc.scheduler) {
		return svc.scheduler
	}
	return v.Scheduler
}

// substitutes logs once which Services have another scheduler than the requested one: the Service's own, or the node's
// for Services that name none.
type substitutes struct {
	logged map[types.NamespacedName]string // the requested scheduler by Service; the zero name is the node's
}

// report checks all Services and logs changes.
func (s *substitutes) report(log klog.Logger, node string, families []*family) {
	lacking, now := map[string]bool{}, map[types.NamespacedName]string{}
	for _, f := range families {
		maps.Copy(lacking, f.apply.lacking)
	}
	if lacking[node] {
		now[types.NamespacedName{}] = node
	}
	for _, f := range families {
		for name, port := range f.services {
			svc, ok := port.(*ServicePort)
			if ok && svc.scheduler != "" && (lacking[svc.scheduler] || !slices.Contains(Schedulers, svc.scheduler)) {
				now[name.NamespacedName] = svc.scheduler
			}
		}
	}
	const missing = "; " + DefaultScheduler +
		" stands in for it. Load the module: coracle takes it when it starts, and else within the hour"
	for name, scheduler := range now {
		switch {
		case s.logged[name] == scheduler:
		case name == types.NamespacedName{}:
			log.Info("This kernel lacks the scheduler that --ipvs-scheduler names"+missing, "scheduler", scheduler, "module",
				"ip_vs_"+scheduler)
		case lacking[scheduler]:
			log.Info("This kernel lacks the scheduler that a Service asks for"+missing, "service", name, "scheduler", scheduler, "module",
				"ip_vs_"+scheduler)
		default:
			log.Info("A Service asks for a scheduler that does not exist; it has the node's", "service", name, "scheduler",
				fmt.Sprintf("%.20s", scheduler),
				"node", node, "schedulers", Schedulers)
		}
	}
	s.logged = now
}
