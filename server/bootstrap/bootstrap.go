// SPDX-License-Identifier: Apache-2.0

// Package bootstrap makes the objects that every cluster has: the roles of coracle's own identities, the StorageClass
// of local storage, the Service of the cluster's DNS, that Service's endpoints, one for each node, and the
// RuntimeClasses of installed container runtimes.
//
// It owns those objects and corrects them at each start, by server-side apply: an apply that changes nothing writes
// nothing. Of objects that it did not make it changes only the default accounts of system namespaces, in a field that
// is not set.
//
// Its goroutines: one for each step of the first start, which Run waits for.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	rbacv1ac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// managerName is the field manager of the objects that this package applies.
	managerName = "coracle"
	// managedBy is a label of every object of ours that an administrator might take for their own.
	managedBy = "app.kubernetes.io/managed-by"

	dnsName = "kube-dns"
	// DNSPort is the port of each node's DNS. It is not 53, which the host's own resolver may have.
	DNSPort = 10053
)

// Options describe the cluster.
type Options struct {
	// Client has an administrator's rights.
	Client kubernetes.Interface
	// ClusterDNS is the address of the DNS Service. It is nil when the packaged DNS is disabled.
	ClusterDNS net.IP
	// Disabled are the parts without objects of their own.
	Disabled clusterconfig.Disabled
	// NetworkBackend is the cluster's initial network back end, one of clusterconfig.NetworkBackends.
	NetworkBackend string
	// LastBackend is the cluster's later back end, as far as this server knows. It is empty if there was none.
	LastBackend string
}

// Apply makes the objects or corrects them. It may be called at any time and by several servers concurrently.
func Apply(ctx context.Context, o Options) error {
	c := o.Client
	steps := append(roleSteps(ctx, c),
		func() error { return applyStorageClass(ctx, c, !o.Disabled.Has(clusterconfig.PartLocalStorage)) },
		func() error { return applyIngressClass(ctx, c, !o.Disabled.Has(clusterconfig.PartIngress)) },
		func() error { return beginBackend(ctx, o) },
		func() error { return withholdTokens(ctx, c) })
	if err := sideBySide(steps); err != nil {
		return err
	}
	if o.ClusterDNS == nil {
		return removeDNSService(ctx, c)
	}
	return applyDNSService(ctx, c, o.ClusterDNS) // last: after ErrDNSAddress the rest is applied
}

// sideBySide runs all steps concurrently and returns their errors. Their writes share flushes of the store. One after
// the other they take a second on an SD card.
func sideBySide(steps []func() error) error {
	errs := make([]error, len(steps))
	var running sync.WaitGroup
	for i, step := range steps {
		running.Go(func() { errs[i] = step() })
	}
	running.Wait()
	return errors.Join(errs...)
}

// ErrDNSAddress says that another Service has the address of the cluster's DNS, or that no Service can have it. The
// rest was applied.
var ErrDNSAddress = errors.New("the address of the cluster's DNS cannot be used")

func forceOptions() metav1.ApplyOptions {
	return metav1.ApplyOptions{FieldManager: managerName, Force: true}
}

// binding describes a ClusterRoleBinding of ours.
type binding struct {
	name, role  string
	user, group string // one of the two
}

var bindings = []binding{
	// The pod network, proxy and DNS of every node use one identity to read objects.
	{name: pki.NetworkUser, role: pki.NetworkUser, user: pki.NetworkUser},
	// The API server may request logs, run commands and so on at kubelets. The role is upstream's.
	{name: pki.KubeletClientUser, role: "system:kubelet-api-admin", user: pki.KubeletClientUser},
	// Nodes request the table of the ingress with their own identities.
	{name: ingressRole, role: ingressRole, group: user.NodesGroup},
	// Nodes learn which clocks are off.
	{name: clusterconfig.ClocksRole, role: clusterconfig.ClocksRole, group: user.NodesGroup},
	// Every user may learn whether the cluster has a console, in which namespaces they have rights, and the past use of
	// pods and nodes that metrics.k8s.io shows them.
	{name: clusterconfig.ConsoleRole, role: clusterconfig.ConsoleRole, group: user.AllAuthenticated},
}

// ingressRole lets nodes request the table of the ingress.
const ingressRole = "system:coracle:ingress"

// clusterRoles returns the rules of ClusterRoles of ours, by name. The roles aggregate to no others.
func clusterRoles() map[string][]*rbacv1ac.PolicyRuleApplyConfiguration {
	rule := rbacv1ac.PolicyRule
	read := func(group string, resources ...string) *rbacv1ac.PolicyRuleApplyConfiguration {
		return rule().WithAPIGroups(group).WithResources(resources...).WithVerbs("get", "list", "watch")
	}
	paths := func(paths ...string) *rbacv1ac.PolicyRuleApplyConfiguration {
		return rule().WithNonResourceURLs(paths...).WithVerbs("get")
	}
	return map[string][]*rbacv1ac.PolicyRuleApplyConfiguration{
		pki.NetworkUser: {
			read("", "nodes", "services", "endpoints", "namespaces", "pods"),
			read("discovery.k8s.io", "endpointslices"),
			read("networking.k8s.io", "networkpolicies", "servicecidrs"),
			paths(clustersettings.Path), // the Role of applyHoldersRole limits what it gets there
			rule().WithAPIGroups("", "events.k8s.io").WithResources("events").WithVerbs("create", "patch", "update"),
		},
		ingressRole: {paths(table.Path)},
		// Administrators bind it to users who may set Services' external IPs, and so can receive the traffic to
		// addresses outside the cluster.
		clusterconfig.ExternalIPsRole: {rule().WithAPIGroups(clusterconfig.ExternalIPsGroup).
			WithResources(clusterconfig.ExternalIPsResource).WithVerbs(clusterconfig.ExternalIPsVerb)},
		clusterconfig.StatusRole:  {paths(status.ClusterPath)}, // shows the cluster's servers with their addresses
		clusterconfig.ClocksRole:  {paths(status.ClocksPath)},
		clusterconfig.ConsoleRole: {paths(status.ConsoleSettingPath, clusterconfig.NamespacesPath, clusterconfig.MetricsHistoryPath)},
	}
}

// roleSteps returns functions that make the roles and bindings. They can run in any order.
func roleSteps(ctx context.Context, c kubernetes.Interface) []func() error {
	steps := []func() error{
		func() error { return applyHoldersRole(ctx, c) },
		func() error { return applyMetricsRole(ctx, c) },
	}
	for name, rules := range clusterRoles() {
		steps = append(steps, func() error {
			_, err := c.RbacV1().ClusterRoles().Apply(ctx, rbacv1ac.ClusterRole(name).
				WithLabels(map[string]string{managedBy: managerName}).WithRules(rules...), forceOptions())
			return wrapError("ClusterRole", name, err)
		})
	}
	for _, b := range bindings {
		steps = append(steps, func() error { return b.apply(ctx, c) })
	}
	return steps
}

func (b binding) apply(ctx context.Context, c kubernetes.Interface) error {
	subject := rbacv1ac.Subject().WithAPIGroup(rbacv1.GroupName)
	if b.user != "" {
		subject.WithKind(rbacv1.UserKind).WithName(b.user)
	} else {
		subject.WithKind(rbacv1.GroupKind).WithName(b.group)
	}
	_, err := c.RbacV1().ClusterRoleBindings().Apply(ctx, rbacv1ac.ClusterRoleBinding(b.name).
		WithLabels(map[string]string{managedBy: managerName}).
		WithRoleRef(rbacv1ac.RoleRef().WithAPIGroup(rbacv1.GroupName).WithKind("ClusterRole").WithName(b.role)).
		WithSubjects(subject), forceOptions())
	return wrapError("ClusterRoleBinding", b.name, err)
}

// metricsRole is the name that metrics-server uses.
const metricsRole = "system:aggregated-metrics-reader"

// applyMetricsRole lets users who may view, edit or administer a namespace see the resource use of its pods, whichever
// server reports it. The role of a user's own metrics-server is left alone.
func applyMetricsRole(ctx context.Context, c kubernetes.Interface) error {
	have, err := c.RbacV1().ClusterRoles().Get(ctx, metricsRole, metav1.GetOptions{})
	if err == nil && have.Labels[managedBy] != managerName {
		return nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return wrapError("ClusterRole", metricsRole, err)
	}
	labels := map[string]string{managedBy: managerName}
	for _, into := range []string{"view", "edit", "admin"} {
		labels["rbac.authorization.k8s.io/aggregate-to-"+into] = "true"
	}
	_, err = c.RbacV1().ClusterRoles().Apply(ctx, rbacv1ac.ClusterRole(metricsRole).WithLabels(labels).
		WithRules(rbacv1ac.PolicyRule().WithAPIGroups("metrics.k8s.io").WithResources("pods", "nodes").WithVerbs("get", "list", "watch")),
		forceOptions())
	return wrapError("ClusterRole", metricsRole, err)
}

// beginBackend records the cluster's back end of the pod network, where no record exists yet or the record was removed.
// From then on the administrator changes the record. Only a change to or from none (another plugin's pod network) is
// made here, from the flag of a server that is alone.
func beginBackend(ctx context.Context, o Options) error {
	maps := o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	have, err := maps.Get(ctx, clusterconfig.BackendConfigMap, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing || err == nil &&
		(have.Data[clusterconfig.BackendData] == clusterconfig.NetworkNone) == (o.NetworkBackend == clusterconfig.NetworkNone) {
		return wrapError("ConfigMap", clusterconfig.BackendConfigMap, err)
	}
	backend, err := presentBackend(ctx, o)
	if err != nil {
		return err
	}
	if missing {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.BackendConfigMap, Namespace: metav1.NamespaceSystem,
				Labels: map[string]string{managedBy: managerName}},
			Data: map[string]string{clusterconfig.BackendData: backend},
		}, metav1.CreateOptions{FieldManager: managerName})
		if apierrors.IsAlreadyExists(err) { // another server that starts was faster
			err = nil
		}
	} else {
		have.Data = map[string]string{clusterconfig.BackendData: backend}
		_, err = maps.Update(ctx, have, metav1.UpdateOptions{FieldManager: managerName})
	}
	return wrapError("ConfigMap", clusterconfig.BackendConfigMap, err)
}

// presentBackend returns the cluster's present back end, as far as it can be known without the ConfigMap. It returns
// the back end in the annotations of all Nodes. If these differ, it returns the last one that this server received. The
// server may have been off or unreachable at a later change. If it has received none, the Nodes do not count: their
// annotations may be from before another plugin had the pod network.
func presentBackend(ctx context.Context, o Options) (string, error) {
	if o.NetworkBackend == clusterconfig.NetworkNone || o.LastBackend == "" {
		return o.NetworkBackend, nil
	}
	nodes, err := o.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("reading the network back end from the Nodes: %w", err)
	}
	if len(nodes.Items) == 0 {
		return o.LastBackend, nil
	}
	annotated := nodes.Items[0].Annotations[clusterconfig.BackendAnnotation]
	differs := func(n corev1.Node) bool { return n.Annotations[clusterconfig.BackendAnnotation] != annotated }
	if !slices.Contains(clusterconfig.RunningBackends(), annotated) || slices.ContainsFunc(nodes.Items, differs) {
		return o.LastBackend, nil
	}
	return annotated, nil
}

// applyHoldersRole lets the network identity read these ConfigMaps and no others: the holders of the load balancer's
// pool addresses, the operator's configuration of the DNS, the API's virtual addresses, and the back end of the pod
// network.
func applyHoldersRole(ctx context.Context, c kubernetes.Interface) error {
	const name = pki.NetworkUser + ":holders"
	_, err := c.RbacV1().Roles(metav1.NamespaceSystem).Apply(ctx, rbacv1ac.Role(name, metav1.NamespaceSystem).
		WithLabels(map[string]string{managedBy: managerName}).
		WithRules(rbacv1ac.PolicyRule().WithAPIGroups("").WithResources("configmaps").WithResourceNames(clustersettings.Names()...).
			WithVerbs("get", "list", "watch")), forceOptions())
	if err != nil {
		return wrapError("Role", name, err)
	}
	_, err = c.RbacV1().RoleBindings(metav1.NamespaceSystem).Apply(ctx, rbacv1ac.RoleBinding(name, metav1.NamespaceSystem).
		WithLabels(map[string]string{managedBy: managerName}).
		WithRoleRef(rbacv1ac.RoleRef().WithAPIGroup(rbacv1.GroupName).WithKind("Role").WithName(name)).
		WithSubjects(rbacv1ac.Subject().WithAPIGroup(rbacv1.GroupName).WithKind(rbacv1.UserKind).WithName(pki.NetworkUser)), forceOptions())
	return wrapError("RoleBinding", name, err)
}

// applyDNSService makes the Service at the cluster DNS address. It has no selector, because DNS runs in every node's
// own process. It sends each client to its own node.
func applyDNSService(ctx context.Context, c kubernetes.Interface, ip net.IP) error {
	services := c.CoreV1().Services(metav1.NamespaceSystem)
	have, err := services.Get(ctx, dnsName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return wrapError("Service", dnsName, err)
	}
	// The address of a Service is immutable: with another --cluster-dns the Service is made again.
	if err == nil && have.Spec.ClusterIP != ip.String() {
		if err := checkAddress(ctx, c, ip); err != nil {
			return err // the existing Service remains at its address
		}
		if err := deleteExactly(ctx, c, have); err != nil {
			return err
		}
	}
	port := func(name string, p corev1.Protocol) *corev1ac.ServicePortApplyConfiguration {
		return corev1ac.ServicePort().WithName(name).WithProtocol(p).WithPort(53).WithTargetPort(intstr.FromInt32(DNSPort))
	}
	_, err = services.Apply(ctx, corev1ac.Service(dnsName, metav1.NamespaceSystem).
		WithLabels(map[string]string{
			managedBy:                       managerName,
			"k8s-app":                       dnsName, // the label that people and dashboards search for
			"kubernetes.io/cluster-service": "true",
			"kubernetes.io/name":            "CoreDNS",
		}).
		WithSpec(corev1ac.ServiceSpec().
			WithType(corev1.ServiceTypeClusterIP).
			WithClusterIP(ip.String()).
			WithInternalTrafficPolicy(corev1.ServiceInternalTrafficPolicyLocal).
			WithPorts(port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP))), forceOptions())
	if apierrors.IsInvalid(err) {
		return addressInUse(ip, err)
	}
	return wrapError("Service", dnsName, err)
}

// checkAddress returns an error if another Service has the address. (A dry run would not show it: it allocates
// nothing.)
func checkAddress(ctx context.Context, c kubernetes.Interface, ip net.IP) error {
	a, err := c.NetworkingV1().IPAddresses().Get(ctx, ip.String(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return wrapError("Service", dnsName, err)
	}
	owner := "something"
	if p := a.Spec.ParentRef; p != nil {
		owner = p.Resource + " " + p.Namespace + "/" + p.Name
	}
	return addressInUse(ip, fmt.Errorf("the address belongs to %s", owner))
}

func addressInUse(ip net.IP, why error) error {
	return fmt.Errorf("%w: %s: %w. Names do not resolve there until that object is deleted or another address is chosen with --cluster-dns",
		ErrDNSAddress, ip, why)
}

// removeDNSService removes the Service that an earlier start with DNS enabled made. It leaves alone a Service that an
// administrator made in its place.
func removeDNSService(ctx context.Context, c kubernetes.Interface) error {
	have, err := c.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, dnsName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return wrapError("Service", dnsName, err)
	}
	if have.Labels[managedBy] != managerName || len(have.Spec.Selector) > 0 {
		return nil
	}
	return deleteExactly(ctx, c, have)
}

// deleteExactly deletes this Service, and not one that has replaced it since.
func deleteExactly(ctx context.Context, c kubernetes.Interface, s *corev1.Service) error {
	err := c.CoreV1().Services(s.Namespace).Delete(ctx, s.Name,
		metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("deleting the Service %s/%s: %w", s.Namespace, s.Name, err)
}

func wrapError(kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("applying the %s %s: %w", kind, name, err)
}
