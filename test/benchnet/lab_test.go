//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/watchapi"
)

// site is a segment with nodes on it, and an API of its own.
type site struct {
	t     *testing.T
	api   *watchapi.API
	nodes []*labNode
}

type labNode struct {
	*process
	t      *testing.T
	site   *site
	c      nodeConfig
	object *corev1.Node
	ns     *netns.NS
	pods   int
}

// newSite starts nodes whose pods are on the networks 10.42.1.0/24 and so on. change may alter what each runs.
func newSite(t *testing.T, name string, nodes int, change func(*nodeConfig)) *site {
	t.Helper()
	s := &site{t: t, api: watchapi.New()}
	bridge := netns.NewBridge(t, "br-"+name, 0)
	for i := 1; i <= nodes; i++ {
		n := &labNode{t: t, site: s, ns: netns.New(t)}
		addr := fmt.Sprintf("192.0.2.%d", i)
		bridge.Join(t, n.ns, fmt.Sprintf("%s-%d", name, i), addr+"/24")
		netns.Route(t, n.ns, "192.0.2.254", "0.0.0.0/0")
		cidr := fmt.Sprintf("10.42.%d.0/24", i)
		n.object = &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)},
			Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}},
		}
		n.c = nodeConfig{Name: n.object.Name, Dir: t.TempDir(), IP: netip.MustParseAddr(addr), Pods: true}
		if change != nil {
			change(&n.c)
		}
		n.c.API = s.api.Serve(t, n.ns)
		s.nodes = append(s.nodes, n)
		s.api.Put(n.object)
	}
	for _, n := range s.nodes {
		n.process = startNode(t, n.ns, n.c)
		if n.key != "" {
			o := n.object.DeepCopy()
			o.Annotations = map[string]string{clusterconfig.WireGuardAnnotation: n.key}
			s.api.Put(o)
		}
	}
	for _, n := range s.nodes {
		eventually(t, "pods can be served", func() error {
			_, err := os.Stat(filepath.Join(n.c.Dir, "net.d", "10-coracle.conflist"))
			return err
		})
	}
	return s
}

// labPod is a namespace with a pod's network.
type labPod struct {
	*netns.NS
	id string
	ip netip.Addr
}

// pod gives a new namespace a pod's network.
func (n *labNode) pod(name string) *labPod {
	n.t.Helper()
	p := &labPod{NS: netns.New(n.t), id: name}
	testenv.NoError(n.t, n.add(p))
	return p
}

func (n *labNode) request(command string, p *labPod) wire.Request {
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"coracle","type":"coracle-cni","socket":%q}`, filepath.Join(n.c.Dir, "cni.sock"))
	return wire.Request{
		Command: command, ContainerID: p.id, Netns: p.Path, IfName: "eth0", Config: json.RawMessage(conf),
		Args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.id + ";K8S_POD_UID=" + p.id,
	}
}

// add asks the agent, as the plugin does.
func (n *labNode) add(p *labPod) error {
	resp, err := wire.Call(context.Background(), filepath.Join(n.c.Dir, "cni.sock"), n.request(wire.CommandAdd, p))
	if err == nil && resp.Error != nil {
		err = resp.Error
	}
	if err != nil {
		return fmt.Errorf("ADD %s: %w", p.id, err)
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(resp.Result, &result); err != nil || len(result.IPs) == 0 {
		return fmt.Errorf("ADD %s: %s, %w", p.id, resp.Result, err)
	}
	p.ip = result.IPs[0].Address.Addr()
	return nil
}

func (n *labNode) del(p *labPod) error {
	resp, err := wire.Call(context.Background(), filepath.Join(n.c.Dir, "cni.sock"), n.request(wire.CommandDel, p))
	if err == nil && resp.Error != nil {
		err = resp.Error
	}
	return err
}

// untilWritten returns how long it takes, from when change is called, until nftables have changed in a namespace.
func untilWritten(in netns.Doer, change func()) (took time.Duration, err error) {
	err = in.Do(func() error {
		before, err := nft.Generation()
		if err != nil {
			return err
		}
		start := time.Now()
		change()
		for {
			now, err := nft.Generation()
			took = time.Since(start)
			switch {
			case err != nil:
				return err
			case now != before:
				return nil
			case took > 2*time.Minute:
				return errors.New("nothing was written within two minutes")
			}
			time.Sleep(300 * time.Microsecond)
		}
	})
	return took, err
}

// settled returns when nftables have not changed for a while, and how long the last change was in coming: after a
// change both proxies rest for up to a second, and what was cut short comes then.
func settled(in netns.Doer, quiet time.Duration) (last time.Duration, err error) {
	began := time.Now()
	err = in.Do(func() error {
		seen, at := uint32(0), began
		for first := true; ; first = false {
			now, err := nft.Generation()
			switch {
			case err != nil:
				return err
			case first:
				seen = now
			case now != seen:
				seen, at = now, time.Now()
			case time.Since(at) > quiet:
				last = at.Sub(began)
				return nil
			case time.Since(began) > 3*time.Minute:
				return errors.New("nftables do not come to rest")
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return last, err
}
