//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/test/netns"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPods measures a pod's network: from the runtime's call to its answer, with the plugin's program and without.
func TestPods(t *testing.T) {
	netns.RequireNFT(t)
	plugin := filepath.Join(filepath.Dir(built(t, "coracle-helper", "github.com/coracle-k8s/coracle/cmd/coracle-helper")), "coracle-cni")
	testenv.NoError(t, os.Symlink("coracle-helper", plugin))
	var variants []variant
	for i, c := range []struct {
		name    string
		objects []runtime.Object
	}{
		{"no policy", nil},
		{"a policy selects the pod", []runtime.Object{policy("default", "p", "pod", "pod")}},
		{"200 policies, 1,000 pods; ten select the pod", append(town(1000, 200, 10), policy("default", "p", "pod", "pod"))},
	} {
		s := newSite(t, fmt.Sprint("pods", i), 1, func(c *nodeConfig) { c.Policies = true; c.Sandboxes = residents(100) })
		s.api.Put(namespace("default"))
		s.api.Put(c.objects...)
		variants = append(variants, variant{c.name, func() (sample, error) { return s.nodes[0].comeAndGo(plugin, pick(15, 3)) }})
	}
	compare(t, "A pod's network, one pod after the other", pick(4, 1), []column{
		{name: "ADD p50 ms", ratio: true}, {name: "ADD p99 ms"}, {name: "DEL p50 ms", ratio: true}, {name: "DEL p99 ms"},
		{name: "CPU ms/pod", ratio: true}, {name: "agent's ADD p50 ms", format: "%.2f", ratio: true}, {name: "agent's DEL p50 ms", format: "%.2f"},
	}, variants)
}

// comeAndGo starts and ends a pod's network again and again: with the plugin's program, and by the call that it makes.
func (n *labNode) comeAndGo(plugin string, times int) (sample, error) {
	p := &labPod{NS: netns.New(n.t), id: "runner"}
	defer p.Close()
	took := map[string][]float64{}
	measure := func(what string, f func() error) error {
		began := time.Now()
		err := f()
		took[what] = append(took[what], milliseconds(time.Since(began)))
		time.Sleep(250 * time.Millisecond) // one after the other: what the end of a pod leaves to do is done
		return err
	}
	api := n.site.api
	cpu := n.cpu()
	for i := range times {
		p.id = fmt.Sprintf("run-%d-%d", n.pods, i)
		api.Put(pod("default", p.id, n.c.Name, "", map[string]string{"app": "pod"}))
		time.Sleep(20 * time.Millisecond) // the kubelet hears of a pod when the agent does
		for _, step := range []struct {
			what string
			f    func() error
		}{
			{"ADD", func() error { return n.exec(plugin, "ADD", p) }}, {"DEL", func() error { return n.exec(plugin, "DEL", p) }},
			{"agent's ADD", func() error { return n.add(p) }}, {"agent's DEL", func() error { return n.del(p) }},
		} {
			if err := measure(step.what, step.f); err != nil {
				return nil, err
			}
		}
		api.Remove(pod("default", p.id, n.c.Name, "", nil))
	}
	n.pods++
	out := sample{"CPU ms/pod": milliseconds(n.cpu()-cpu) / float64(2*times)}
	for what, all := range took {
		out[what+" p50 ms"], out[what+" p99 ms"] = quantile(all, 0.5), quantile(all, 0.99)
	}
	return out, nil
}

// exec calls the plugin as containerd does.
func (n *labNode) exec(plugin, command string, p *labPod) error {
	r := n.request(command, p)
	cmd := exec.Command(plugin)
	cmd.Env = []string{
		"CNI_COMMAND=" + r.Command, "CNI_CONTAINERID=" + r.ContainerID, "CNI_NETNS=" + r.Netns, "CNI_IFNAME=" + r.IfName, "CNI_ARGS=" + r.Args,
		"CNI_PATH=" + filepath.Dir(plugin),
	}
	cmd.Stdin = bytes.NewReader(r.Config)
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
}

func pod(namespace, name, node, ip string, labels map[string]string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: labels}, Spec: corev1.PodSpec{NodeName: node}}
	if ip != "" {
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	}
	return p
}

// policy lets pods of an app be reached, and reach, pods of another one in the namespace alone.
func policy(namespace, name, app, other string) *networkingv1.NetworkPolicy {
	of := func(app string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	peer := of(other)
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: of(app),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &peer}}}},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &peer}}}},
		},
	}
}

// town are pods of twenty namespaces, a tenth of them on this node, and policies among them; own more select the apps
// "pod" of the namespace default.
func town(pods, policies, own int) []runtime.Object {
	var out []runtime.Object
	cidr := "10.42.128.0/17"
	out = append(out, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "far"}, Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}})
	for n := range 20 {
		out = append(out, namespace(fmt.Sprint("ns", n)))
	}
	for i := range pods {
		ns, name, node, ip := fmt.Sprint("ns", i%20), fmt.Sprint("p", i), "far", fmt.Sprintf("10.42.%d.%d", 128+i/250, 1+i%250)
		if i < pods/10 {
			node, ip = "n1", residentIP(i)
		}
		out = append(out, pod(ns, name, node, ip, map[string]string{"app": fmt.Sprint("a", i/20%10)}))
	}
	for i := range policies - own {
		out = append(out, policy(fmt.Sprint("ns", i%20), fmt.Sprint("p", i), fmt.Sprint("a", i/20%10), fmt.Sprint("a", (i/20+1)%10)))
	}
	for i := range own {
		out = append(out, policy("default", fmt.Sprint("own", i), "pod", fmt.Sprint("pod", i)))
	}
	return out
}

// residentIP is outside of what the node gives to new pods.
func residentIP(i int) string { return fmt.Sprintf("10.42.120.%d", 1+i) }

// residents are the first pods of a town, which have their network since an earlier run.
func residents(n int) []cni.Sandbox {
	var out []cni.Sandbox
	for i := range n {
		out = append(out, cni.Sandbox{
			ID: fmt.Sprint("resident", i), Namespace: fmt.Sprint("ns", i%20), Name: fmt.Sprint("p", i), UID: fmt.Sprint("p", i),
			IPs: []netip.Addr{netip.MustParseAddr(residentIP(i))},
		})
	}
	return out
}
