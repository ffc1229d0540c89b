// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// releasedPorts has, for each Service, the address ports that it has by its status but not in this plan: the Service or
// the cluster has dropped them. An address of a pool has the zero port here. No other Service gets an address port
// before that status is written. Otherwise a Service that takes one back would still have it by its status, and the new
// owner would lose it.
type releasedPorts map[types.NamespacedName][]addressPort

// releases returns what each Service loses. It must be called after keep and before any new allocation.
func (l *ledger) releases(services []*corev1.Service, c priorOwners) releasedPorts {
	out := releasedPorts{}
	for _, svc := range services {
		if meta.FindStatusCondition(svc.Status.Conditions, Condition) == nil {
			continue
		}
		for _, p := range statusPorts(svc) {
			if c[p] != serviceKey(svc) {
				out[serviceKey(svc)] = append(out[serviceKey(svc)], p)
			}
		}
		for _, a := range poolAddresses(svc) {
			if l.poolOf(a) != nil && !slices.Contains(l.addresses[svc], a) {
				out[serviceKey(svc)] = append(out[serviceKey(svc)], addressPort{Address: a})
				l.releasing[a] = svc
			}
		}
	}
	return out
}

// withReleased returns the prior owners, and the address ports that are being released and that no other Service has.
func (c priorOwners) withReleased(r releasedPorts) priorOwners {
	out := maps.Clone(c)
	for _, who := range slices.SortedFunc(maps.Keys(r), compareNames) {
		for _, p := range r[who] {
			if _, taken := out[p]; !taken && p.Port != (Port{}) {
				out[p] = who
			}
		}
	}
	return out
}

// poolAddresses returns the addresses in a Service's status that come from a pool: those without ports (StatusOf).
func poolAddresses(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if len(in.Ports) == 0 {
			out = append(out, parseAll([]string{in.IP})...)
		}
	}
	return out
}

// StatusWithoutReleased returns a Service's status without what the Service has released, and without anything new. It
// returns nil if nothing was released. It is for a Service so large that the desired status does not fit beside its
// spec.
func StatusWithoutReleased(svc *corev1.Service, v Allocation) *corev1.ServiceStatus {
	if len(v.released) == 0 {
		return nil
	}
	released := map[addressPort]bool{}
	for _, p := range v.released {
		released[p] = true
	}
	out := svc.Status.DeepCopy()
	out.LoadBalancer.Ingress = nil
	for _, in := range svc.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		ports := slices.DeleteFunc(slices.Clone(in.Ports), func(p corev1.PortStatus) bool {
			return released[addressPort{Address: a, Port: loadbalancer.PortOf(p.Protocol, p.Port)}]
		})
		if err == nil && (len(in.Ports) > 0 && len(ports) == 0 || released[addressPort{Address: a}]) {
			continue
		}
		in.Ports = ports
		out.LoadBalancer.Ingress = append(out.LoadBalancer.Ingress, in)
	}
	if c := meta.FindStatusCondition(out.Conditions, loadbalancer.Kept); c != nil {
		kept := slices.Collect(loadbalancer.ReadKept(c.Message))
		c.Message = loadbalancer.WriteKept(slices.DeleteFunc(kept, func(p addressPort) bool { return released[p] }))
		if c.Message == "" {
			meta.RemoveStatusCondition(&out.Conditions, loadbalancer.Kept)
		}
	}
	return out
}

// shrinkStatus removes released address ports from a Service's status when the whole status could not be written, since
// other Services wait for them. The next round tries the whole status again.
func (c *Controller) shrinkStatus(ctx context.Context, svc *corev1.Service, v Allocation) {
	less := StatusWithoutReleased(svc, v)
	if less == nil {
		return
	}
	patch, err := statusPatch(svc, less)
	var answer *corev1.Service
	if err == nil {
		answer, err = c.o.Client.CoreV1().Services(svc.Namespace).Patch(ctx, svc.Name, types.JSONPatchType, patch, metav1.PatchOptions{},
			"status")
		c.uncertain.record(svc, err)
	}
	switch {
	case err == nil:
		c.written.record(answer)
		c.o.Logger.Info("load balancer: what a Service has given up was taken from its status", "service", serviceKey(svc), "addresses",
			ingressText(less.LoadBalancer))
	case ctx.Err() == nil && !isTransient(err) && !apierrors.IsInvalid(err): // invalid: the status has changed meanwhile
		c.o.Logger.Warn("load balancer: what a Service has given up could not be taken from its status; no other Service gets it before that",
			"service", serviceKey(svc), "error", err)
	}
}

// statusPatch returns a patch that replaces a Service's status. It compares the Service's UID and status, and no
// resource version. A client that changes the Service's spec again and again thus does not block it.
func statusPatch(svc *corev1.Service, to *corev1.ServiceStatus) ([]byte, error) {
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/uid", "value": svc.UID},
		{"op": "test", "path": "/status", "value": svc.Status},
		{"op": "replace", "path": "/status", "value": to},
	})
	if err != nil {
		return nil, fmt.Errorf("writing a patch of the Service %s: %w", serviceKey(svc), err)
	}
	return patch, nil
}
