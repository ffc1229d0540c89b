// SPDX-License-Identifier: Apache-2.0

package netinformers

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestWatchFollowsOptions runs the informers against a fake API and looks at what they listed.
func TestWatchFollowsOptions(t *testing.T) {
	const (
		ownNode  = "nodes fields=metadata.name=n1"
		services = "endpointslices labels=!service.kubernetes.io/headless, servicecidrs, services fields=spec.clusterIP!=None labels=!service.kubernetes.io/service-proxy-name"
		names    = "endpointslices, namespaces, nodes fields=metadata.name=n1, services"
		policies = "networkpolicies, nodes"
		peers    = "namespaces, networkpolicies, nodes, pods fields=status.phase!=Failed,status.phase!=Succeeded"
	)
	for _, c := range []struct {
		name string
		o    Options
		want string
		peer bool
	}{
		{"this node alone", Options{}, ownNode, false},
		{"all nodes", Options{AllNodes: true}, "nodes", false},
		{"a Service proxy", Options{Services: true}, strings.Replace(services, "servicecidrs", ownNode+", servicecidrs", 1), false},
		{"the cluster DNS", Options{Names: true}, names, false},
		{"a Service proxy and the cluster DNS", Options{Services: true, Names: true}, strings.Replace(names, "services", "servicecidrs, services", 1), false},
		{"policies and the cluster DNS", Options{AllNodes: true, Policies: true, Names: true}, "endpointslices, namespaces, networkpolicies, nodes, services", false},
		{"policies with those that they speak of, and the cluster DNS", Options{AllNodes: true, Policies: true, Names: true},
			"endpointslices, namespaces, networkpolicies, nodes, pods fields=status.phase!=Failed,status.phase!=Succeeded, services", true},
		{"policies and all nodes", Options{AllNodes: true, Policies: true}, policies, false},
		{"policies with those that they speak of", Options{AllNodes: true, Policies: true}, peers, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := fake.NewClientset()
			c.o.Client, c.o.NodeName = client, "n1"
			i := testenv.Must(New(c.o))(t)
			ctx, cancel := context.WithCancel(t.Context())
			if c.peer {
				p := testenv.Must(i.Policies())(t)
				p.WatchPeers()
				p.WatchPeers()
				i.peers.Start(ctx.Done())
			}
			i.factory.Start(ctx.Done()) // the wait knows only what has started
			wait := run(t, ctx, i)
			for kind, synced := range i.factory.WaitForCacheSync(ctx.Done()) {
				testenv.True(t, synced, "no %v", kind)
			}
			for kind, synced := range i.peers.WaitForCacheSync(ctx.Done()) {
				testenv.True(t, synced, "no %v", kind)
			}
			cancel()
			wait()
			testenv.Equal(t, listed(client.Actions()), c.want, "listed:")
		})
	}
}

// run returns what waits for the informers to end with ctx.
func run(t *testing.T, ctx context.Context, i *Informers) (wait func()) {
	done := make(chan error, 1) // read by wait only
	go func() { done <- i.Run(ctx) }()
	return func() {
		testenv.Check(t, <-done)
	}
}

// listed spells out the list and watch requests, each once.
func listed(actions []clienttesting.Action) string {
	var out []string
	for _, a := range actions {
		var r clienttesting.ListRestrictions
		switch a := a.(type) {
		case clienttesting.ListAction:
			r = a.GetListRestrictions()
		case clienttesting.WatchAction:
			w := a.GetWatchRestrictions()
			r = clienttesting.ListRestrictions{Labels: w.Labels, Fields: w.Fields}
		}
		s := a.GetResource().Resource
		if r.Fields != nil && !r.Fields.Empty() {
			terms := strings.Split(r.Fields.String(), ",")
			slices.Sort(terms)
			s += " fields=" + strings.Join(terms, ",")
		}
		if r.Labels != nil && !r.Labels.Empty() {
			s += " labels=" + r.Labels.String()
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestAskingForWhatIsNotWatched(t *testing.T) {
	i := testenv.Must(New(Options{Client: fake.NewClientset(), NodeName: "n1"}))(t)
	testenv.Fails(t, testenv.Err(i.Services()), "Services that are not watched were handed out: they would stay empty for ever")
	testenv.Fails(t, testenv.Err(i.Policies()), "policies that are not watched were handed out")
	testenv.Fails(t, testenv.Err(i.Names()), "what has a name and is not watched was handed out")
	testenv.Fails(t, testenv.Err(New(Options{NodeName: "n1"})), "no client, and no error")
}

// TestCachesHoldTrimmedObjects checks the way from the API to a cache, and that Run leaves nothing behind.
func TestCachesHoldTrimmedObjects(t *testing.T) {
	before := goleak.IgnoreCurrent()
	client := fake.NewClientset(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"a": "b"}},
		Status:     corev1.NodeStatus{Images: []corev1.ContainerImage{{Names: []string{"large"}}}},
	})
	i := testenv.Must(New(Options{Client: client, NodeName: "n1"}))(t)
	ctx, cancel := context.WithCancel(t.Context())
	wait := run(t, ctx, i)
	testenv.Require(t, cache.WaitForCacheSync(t.Context().Done(), i.Nodes().Informer().HasSynced), "no nodes")
	node, err := i.Nodes().Lister().Get("n1")
	testenv.False(t, err != nil || node.Labels["a"] != "b" || node.Status.Images != nil, "the cache holds %v, %v", node, err)
	cancel()
	wait()
	testenv.NoGoroutineLeft(t, before)
}

func TestTrimKeepsWhatProxyAndPoliciesRead(t *testing.T) {
	full := metav1.ObjectMeta{
		Namespace: "ns", Name: "x", UID: "u", ResourceVersion: "7", Labels: map[string]string{"app": "web"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}, OwnerReferences: []metav1.OwnerReference{{Name: "o"}},
		Finalizers: []string{"f"},
	}
	port, node, zone, host, yes := int32(80), "n1", "z", "h", true
	for _, c := range []struct{ in, want any }{
		{
			&corev1.Service{ObjectMeta: annotated(full, corev1.LastAppliedConfigAnnotation, "{}"), Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.1"},
				Status: corev1.ServiceStatus{
					LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}},
					Conditions:   []metav1.Condition{{Type: "c"}},
				}},
			&corev1.Service{ObjectMeta: labelled(map[string]string{}), Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.1"},
				Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}}}},
		},
		{
			&discoveryv1.EndpointSlice{ObjectMeta: annotated(full, corev1.EndpointsLastChangeTriggerTime, "now"), AddressType: "IPv4",
				Ports: []discoveryv1.EndpointPort{{Port: &port}},
				Endpoints: []discoveryv1.Endpoint{{
					Addresses: []string{"10.42.0.2"}, NodeName: &node, Zone: &zone, Hostname: &host, TargetRef: &corev1.ObjectReference{Name: "p"},
				}}},
			&discoveryv1.EndpointSlice{ObjectMeta: labelled(map[string]string{corev1.EndpointsLastChangeTriggerTime: "now"}), AddressType: "IPv4",
				Ports:     []discoveryv1.EndpointPort{{Port: &port}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.2"}, Hostname: &host, NodeName: &node, Zone: &zone}}},
		},
		{
			&corev1.Service{ObjectMeta: annotated(full, "a", "b"), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}, Type: corev1.ServiceTypeClusterIP,
				Selector: map[string]string{"app": "db"}, Ports: []corev1.ServicePort{{Port: 80}}, ExternalIPs: []string{"192.0.2.9"}}},
			&corev1.Service{ObjectMeta: bare(), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}, Type: corev1.ServiceTypeClusterIP,
				Ports: []corev1.ServicePort{{Port: 80}}, ExternalIPs: []string{"192.0.2.9"}}},
		},
		{
			&discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "u", ResourceVersion: "7", Annotations: map[string]string{"a": "b"}, Labels: map[string]string{
					discoveryv1.LabelServiceName: "db", corev1.IsHeadlessService: "", "app": "db"}},
				AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Port: &port}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}, NodeName: &node, Zone: &zone, Hostname: &host}}},
			&discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "u", ResourceVersion: "7", Labels: map[string]string{
					discoveryv1.LabelServiceName: "db", corev1.IsHeadlessService: ""}},
				AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Port: &port}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}, Hostname: &host}}},
		},
		{
			&corev1.Node{ObjectMeta: full, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.0.0/24"}, ProviderID: "p"},
				Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "192.0.2.1"}}, NodeInfo: corev1.NodeSystemInfo{BootID: "b"},
					Conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: "False"}, {Type: corev1.NodeReady, Status: "Unknown", Message: "m"}}}},
			&corev1.Node{ObjectMeta: labelled(nil), Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.0.0/24"}},
				Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "192.0.2.1"}}, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: "Unknown"}}}},
		},
		{
			&corev1.Pod{ObjectMeta: annotated(full, corev1.MirrorPodAnnotationKey, "hash"), Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "s",
				InitContainers: []corev1.Container{{Name: "side", Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 81}}}},
				Containers: []corev1.Container{
					{Image: "i", Env: []corev1.EnvVar{{Name: "E"}}, Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80, HostPort: 8080}, {ContainerPort: 82}}},
					{Image: "no named port"},
				}},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.42.0.2"}}, Message: "m"}},
			&corev1.Pod{ObjectMeta: labelled(map[string]string{corev1.MirrorPodAnnotationKey: "hash"}), Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 81}}}, {Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}},
			}}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.42.0.2"}}}},
		},
		{
			&corev1.Namespace{ObjectMeta: full, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}},
			&corev1.Namespace{ObjectMeta: labelled(nil)},
		},
		{
			&networkingv1.NetworkPolicy{ObjectMeta: full, Spec: networkingv1.NetworkPolicySpec{
				Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{IntVal: 80}}}}}}},
			&networkingv1.NetworkPolicy{ObjectMeta: bare(), Spec: networkingv1.NetworkPolicySpec{
				Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{IntVal: 80}}}}}}},
		},
		{
			&networkingv1.ServiceCIDR{ObjectMeta: full, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}},
			&networkingv1.ServiceCIDR{ObjectMeta: bare(), Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}},
		},
	} {
		name := fmt.Sprintf("%T", c.in)
		got, err := trim(c.in)
		testenv.Check(t, err, "%s", name)
		testenv.True(t, reflect.DeepEqual(got, c.want), "%s: got\n%+v\nwant\n%+v", name, got, c.want)
	}
}

func bare() metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "u", ResourceVersion: "7"}
}

func labelled(annotations map[string]string) metav1.ObjectMeta {
	m := bare()
	m.Labels, m.Annotations = map[string]string{"app": "web"}, annotations
	return m
}

func annotated(m metav1.ObjectMeta, key, value string) metav1.ObjectMeta {
	m.Annotations = map[string]string{key: value}
	return m
}
