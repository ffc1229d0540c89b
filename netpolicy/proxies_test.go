// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	clusterconfig "github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// asProxy runs something on the node as the user of the ingress proxy.
type asProxy struct{}

// Do implements netns.Doer. A socket belongs to the user that its thread has for files.
func (asProxy) Do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	user := func(id uintptr) { _, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, id, 0, 0) }
	user(clusterconfig.IngressUser)
	defer user(0)
	return f()
}

// plugProxies makes where the proxies of this node and of n2 are.
func (l *lab) plugProxies() {
	for _, ip := range proxySources[:2] {
		l.ofNode(l.t, ip)
	}
	l.plug(proxySources[2:])
}

// TestRuleForIngressControllersAdmitsProxies: a rule admits the ingress proxies of all nodes where it would admit a pod
// of an ingress controller.
func TestRuleForIngressControllersAdmitsProxies(t *testing.T) {
	for _, c := range []struct {
		name, peers string
		want        bool
		namespace   map[string]string // labels of a namespace ingress-nginx; nil: there is none
	}{
		{"ingress-nginx by name", `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]`, true, nil},
		{"its older label", `[{namespaceSelector: {matchLabels: {name: ingress-nginx}}, podSelector: {matchLabels: {app: ingress-nginx}}}]`, true, nil},
		{"the labels of its chart", `[{namespaceSelector: {matchLabels: {app.kubernetes.io/name: ingress-nginx}}, podSelector: {matchLabels: {app.kubernetes.io/component: controller, app.kubernetes.io/instance: ingress-nginx}}}]`, true, nil},
		{"Traefik of k3s", `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app.kubernetes.io/name: traefik}}}]`, true, nil},
		{"Traefik in a namespace of its own", `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: traefik}}}]`, true, nil},
		{"this ingress", `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app.kubernetes.io/name: coracle-ingress}}}]`, true, nil},
		{"all namespaces", `[{namespaceSelector: {}}]`, true, nil},
		{"everybody", `[]`, true, nil},
		{"the policy's own namespace", `[{podSelector: {}}]`, false, nil},
		{"another component", `[{namespaceSelector: {}, podSelector: {matchLabels: {app.kubernetes.io/component: admission-webhook}}}]`, false, nil},
		{"labels of two versions at once", `[{namespaceSelector: {}, podSelector: {matchLabels: {app: ingress-nginx, app.kubernetes.io/name: ingress-nginx}}}]`, false, nil},
		{"the pods of another namespace", `[{namespaceSelector: {matchLabels: {team: "y"}}}]`, false, nil},
		{"the block of the pods of n2", `[{ipBlock: {cidr: 10.42.2.0/24}}]`, false, nil}, // this node's proxy is not in it
		{"a label that a cluster's own namespace has", `[{namespaceSelector: {matchLabels: {use: ingress}}}]`, true, map[string]string{"use": "ingress"}},
		{"a label that it has not", `[{namespaceSelector: {matchLabels: {name: ingress-nginx}}}]`, false, map[string]string{"use": "ingress"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := dozen()
			if c.namespace != nil {
				w.namespace("ingress-nginx", c.namespace)
			}
			w.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: `+c.peers+`, ports: [{port: 80}]}]}`)
			w.compare(t)
			r := Desired(w.State, DefaultLimits()).Ruleset
			for port, want := range map[int32]bool{80: c.want, 81: false} {
				if got := r.allows(connection{proxySources[0], netip.MustParseAddr("10.42.1.11"), corev1.ProtocolTCP, port}); got != want {
					t.Errorf("port %d: admitted %v, want %v", port, got, want)
				}
			}
		})
	}
}

// TestProxySourceIsNoPods: no pod counts as having the address of another node's proxy, whatever its status says.
func TestProxySourceIsNoPods(t *testing.T) {
	w := dozen()
	liar := w.pod("y", "liar", "n2", 255, map[string]string{"app": "a"})
	liar.Status.PodIPs[1].IP = proxySources[3].String()
	delete(w.model.Pods, proxySources[2])
	delete(w.model.Pods, netip.MustParseAddr("fd00:42:0:2::ff"))
	w.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: "y"}}, podSelector: {matchLabels: {app: a}}}]}]}`)
	w.compare(t)
}
