// SPDX-License-Identifier: Apache-2.0

package policymodel

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Namespaces are the labels of those of the dozen pods, beside the name that the API gives them.
func Namespaces() map[string]map[string]string {
	return map[string]map[string]string{
		"x": {"team": "x", "env": "test"},
		"y": {"team": "y", "env": "test"},
		"z": {"team": "z", "env": "live"},
	}
}

// Pods are a dozen, four in each namespace, that have neither a node nor an address yet.
func Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, namespace := range []string{"x", "y", "z"} {
		for i, its := range []map[string]string{{"app": "a"}, {"app": "b", "tier": "front"}, {"app": "c", "tier": "back"}, nil} {
			web := int32(80)
			if i == 1 {
				web = 8080
			}
			out = append(out, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("p", i), Labels: its},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
					{Name: "web", ContainerPort: web, Protocol: corev1.ProtocolTCP}, {Name: "names", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
				}}}},
			})
		}
	}
	return out
}

// Served are the ports at which tests have all pods serve, by TCP and UDP.
func Served() []int32 { return []int32{53, 80, 81, 8080} }

// Case is a policy for the dozen, by the name p.
type Case struct{ Name, Namespace, Spec string }

// Policy reads a specification as the API does, which fills policyTypes in.
func Policy(namespace, name, spec string) (*networkingv1.NetworkPolicy, error) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		return nil, fmt.Errorf("policy %s: %w", name, err)
	}
	FillIn(p)
	return p, nil
}

// FillIn gives a policy without policyTypes those that the API gives it.
func FillIn(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

// Listed are policies that people write, and such as are easily misread. Addresses are of the networks 10.42.1.0/24 and
// fd00:42:0:1::/64 of a node, and of 10.42.2.0/24 and fd00:42:0:2::/64 of another one.
func Listed() []Case {
	return []Case{
		{"deny all ingress", "x", `{podSelector: {}, policyTypes: [Ingress]}`},
		{"deny all egress", "x", `{podSelector: {}, policyTypes: [Egress]}`},
		{"deny both", "x", `{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress]}`},
		{"allow all ingress", "x", `{podSelector: {}, ingress: [{}]}`},
		{"allow all egress", "x", `{podSelector: {}, egress: [{}], policyTypes: [Egress]}`},
		{"from the same namespace", "x", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
		{"from an app", "x", `{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}`},
		{"from every namespace", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`},
		{"from a namespace by its labels", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: "y"}}}]}]}`},
		{"from a namespace by its name", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}`},
		{"both selectors of one peer", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: "y"}}, podSelector: {matchLabels: {app: a}}}]}]}`},
		{"two peers", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: "y"}}}, {podSelector: {matchLabels: {app: a}}}]}]}`},
		{"expressions", "x", `{podSelector: {matchExpressions: [{key: app, operator: In, values: [a, c]}]}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: env, operator: NotIn, values: [live]}, {key: team, operator: Exists}]}, podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]}]}`},
		{"a port", "x", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`},
		{"ports of two protocols", "x", `{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 81, protocol: SCTP}]}]}`},
		{"all ports of a protocol", "x", `{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}`},
		{"a named port", "x", `{podSelector: {}, ingress: [{ports: [{port: web}]}]}`},
		{"a named port with the wrong protocol", "x", `{podSelector: {}, ingress: [{ports: [{port: web, protocol: UDP}]}]}`},
		{"a range of ports", "x", `{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 9000}]}]}`},
		{"several ranges and ports", "x", `{podSelector: {}, ingress: [{ports: [{port: 443, endPort: 8080}, {port: 80}, {port: 8000, endPort: 9000}, {port: web}]}]}`},
		{"a block", "x", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.42.1.0/24}}, {ipBlock: {cidr: "fd00:42:0:1::/64"}}]}]}`},
		{"a block with exceptions", "x", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.42.1.12/31, 10.42.2.0/24]}}, {ipBlock: {cidr: "::/0", except: ["fd00:42:0:1::c/127"]}}]}]}`},
		{"a block and ports", "x", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/16}}], ports: [{port: 80}]}]}`},
		{"from ingress-nginx", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}, podSelector: {matchLabels: {app.kubernetes.io/name: ingress-nginx, app.kubernetes.io/component: controller}}}]}]}`},
		{"from ingress-nginx as once, at a port", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: ingress-nginx}}, podSelector: {matchLabels: {app: ingress-nginx}}}], ports: [{port: web}]}]}`},
		{"from Traefik of k3s", "x", `{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app.kubernetes.io/name: traefik}}}]}]}`},
		{"from another part of ingress-nginx", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}, podSelector: {matchLabels: {app.kubernetes.io/component: admission-webhook}}}]}]}`},
		{"egress to ingress-nginx", "x", `{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]}], policyTypes: [Egress]}`},
		{"rules add up", "x", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 81}]}]}`},
		{"egress to an app", "x", `{podSelector: {}, egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}], policyTypes: [Egress]}`},
		{"egress to a namespace at a port", "x", `{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {team: "y"}}}], ports: [{port: 80}]}], policyTypes: [Egress]}`},
		{"egress to a named port", "x", `{podSelector: {}, egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}], policyTypes: [Egress]}`},
		{"egress to a named port of anybody", "x", `{podSelector: {}, egress: [{ports: [{port: web}, {port: 81}]}], policyTypes: [Egress]}`},
		{"egress to a named port and blocks", "x", `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.42.0.0/16}}], ports: [{port: web}]}], policyTypes: [Egress]}`},
		{"egress to the outside", "x", `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: "2000::/3"}}]}], policyTypes: [Egress]}`},
		{"egress in ranges", "x", `{podSelector: {}, egress: [{ports: [{port: 1, endPort: 80, protocol: UDP}, {port: 81, endPort: 65535}]}], policyTypes: [Egress]}`},
		{"both directions", "x", `{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{namespaceSelector: {matchLabels: {team: z}}}]}], policyTypes: [Ingress, Egress]}`},
		{"egress rules, policyTypes left out", "x", `{podSelector: {}, egress: [{to: [{podSelector: {}}]}]}`},
		{"no pod is selected", "x", `{podSelector: {matchLabels: {app: nobody}}}`},
		{"no pod is a peer", "x", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]}`},
	}
}
