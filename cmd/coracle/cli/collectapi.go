// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/bugreport"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// collectedObjects is how many objects of a kind are collected.
	collectedObjects = 1000
	// messageLength is how much of a message of an event or a condition is collected: probes put what a program says
	// there.
	messageLength = 300
	// requestTime is the maximum duration of one request.
	requestTime = 8 * time.Second
)

// collectedKinds are the resources of which the columns are collected that kubectl get -o wide shows. Secrets are not
// among them; of ConfigMaps the names of the keys are collected.
var collectedKinds = []string{
	"/api/v1/nodes", "/api/v1/namespaces", "/api/v1/pods", "/api/v1/services", "/api/v1/events",
	"/api/v1/persistentvolumes", "/api/v1/persistentvolumeclaims", "/api/v1/resourcequotas", "/api/v1/replicationcontrollers",
	"/apis/apps/v1/deployments", "/apis/apps/v1/daemonsets", "/apis/apps/v1/statefulsets", "/apis/apps/v1/replicasets",
	"/apis/batch/v1/jobs", "/apis/batch/v1/cronjobs", "/apis/autoscaling/v2/horizontalpodautoscalers", "/apis/policy/v1/poddisruptionbudgets",
	"/apis/discovery.k8s.io/v1/endpointslices", "/apis/networking.k8s.io/v1/ingresses", "/apis/networking.k8s.io/v1/ingressclasses",
	"/apis/networking.k8s.io/v1/networkpolicies", "/apis/coordination.k8s.io/v1/leases", "/apis/node.k8s.io/v1/runtimeclasses",
	"/apis/storage.k8s.io/v1/storageclasses", "/apis/storage.k8s.io/v1/csidrivers", "/apis/storage.k8s.io/v1/csinodes",
	"/apis/storage.k8s.io/v1/volumeattachments",
	"/apis/scheduling.k8s.io/v1/priorityclasses", "/apis/apiregistration.k8s.io/v1/apiservices",
	"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
	"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", "/apis/certificates.k8s.io/v1/certificatesigningrequests",
	"/apis/helm.cattle.io/v1/helmcharts",
}

// collectedMetrics are the beginnings of the names of metrics that are collected.
var collectedMetrics = []string{"coracle_", "etcd_", "process_", "go_goroutines", "go_memstats_", "apiserver_storage_objects",
	"apiserver_current_inflight"}

func (c *collector) collectAPI(ctx context.Context, f *bugreport.Files) {
	rc, node, err := c.apiConfig(ctx)
	if err != nil {
		f.Failed("", err)
		return
	}
	rc.Timeout = requestTime
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		f.Failed("", err)
		return
	}
	get := func(path string, params ...string) ([]byte, error) {
		r := client.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json,*/*")
		for i := 0; i+1 < len(params); i += 2 {
			r.Param(params[i], params[i+1])
		}
		return r.Do(ctx).Raw()
	}
	if _, err := get("/version"); err != nil {
		f.Failed("", fmt.Errorf("the API server does not answer, so nothing was asked of it: %w", err))
		return
	}
	listOptions := metav1.ListOptions{Limit: collectedObjects}
	if node != "" { // a node may read no more than its own pods
		listOptions.FieldSelector = "spec.nodeName=" + node
		n, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		f.Failed("node-conditions.json", err)
		if err == nil {
			addJSON(f, "node-conditions.json", []nodeState{nodeStateOf(n)})
		}
		addPods(ctx, client, f, listOptions)
		return
	}
	addPods(ctx, client, f, listOptions)
	addNodes(ctx, client, f)
	addConfigMaps(ctx, client, f)
	for _, path := range []string{"/readyz", "/livez"} {
		text, err := get(path, "verbose", "true")
		f.Text(path[1:]+".txt", string(text))
		f.Failed(path[1:]+".txt", err)
	}
	metrics, err := get("/metrics")
	f.Text("metrics.txt", chosenMetrics(string(metrics)))
	f.Failed("metrics.txt", err)
	for _, path := range collectedKinds {
		name := filepath.Base(path) + ".txt"
		text, err := get(path, "limit", strconv.Itoa(collectedObjects))
		var table string
		if err == nil {
			table, err = formatTable(text)
		}
		f.Text(name, table)
		f.Failed(name, err)
	}
}

// apiConfig returns how to reach the API server: as administrator, or on a machine without a server as its node, of
// which it then returns the name.
func (c *collector) apiConfig(ctx context.Context) (*rest.Config, string, error) {
	rc, err := adminConfig(c.tool)
	if err == nil || c.command != config.AgentCommand {
		return rc, "", err
	}
	rc, err = clientcmd.BuildConfigFromFlags("", nodecreds.In(filepath.Join(c.tool.Paths.AgentDir, "cred")).KubeletKubeconfig)
	if err != nil {
		return nil, "", fmt.Errorf("this machine has no credentials for the API: %w", err)
	}
	name := c.setting("node-name")
	if r, err := status.NewClient(c.tool.Paths.AdminSocket).Status(ctx); err == nil {
		name = r.Node
	}
	return rc, name, nil
}

func addJSON(f *bugreport.Files, name string, v any) {
	text, err := json.MarshalIndent(v, "", " ")
	f.Failed(name, err)
	f.Text(name, string(text)+"\n")
}

type condition struct {
	Type, Status, Reason, Message string
	Since                         metav1.Time
}

func conditionOf(of string, is corev1.ConditionStatus, reason, message string, since metav1.Time) condition {
	return condition{of, string(is), reason, truncate.Text(message, messageLength), since}
}

// nodeState has the collected fields of a Node.
type nodeState struct {
	Name        string
	Labels      map[string]string
	Taints      []corev1.Taint
	Conditions  []condition
	Capacity    corev1.ResourceList
	Allocatable corev1.ResourceList
	Info        corev1.NodeSystemInfo
	PodCIDRs    []string
	Images      int
}

func nodeStateOf(n *corev1.Node) nodeState {
	out := nodeState{Name: n.Name, Labels: n.Labels, Taints: n.Spec.Taints, Capacity: n.Status.Capacity, Allocatable: n.Status.Allocatable,
		Info: n.Status.NodeInfo, PodCIDRs: n.Spec.PodCIDRs, Images: len(n.Status.Images)}
	for _, x := range n.Status.Conditions {
		out.Conditions = append(out.Conditions, conditionOf(string(x.Type), x.Status, x.Reason, x.Message, x.LastTransitionTime))
	}
	return out
}

func addNodes(ctx context.Context, client kubernetes.Interface, f *bugreport.Files) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: collectedObjects})
	if err != nil {
		f.Failed("node-conditions.json", err)
		return
	}
	var out []nodeState
	for i := range list.Items {
		out = append(out, nodeStateOf(&list.Items[i]))
	}
	addJSON(f, "node-conditions.json", out)
}

// podState has the collected fields of a Pod.
type podState struct {
	Namespace, Name, UID, Node, Phase, Reason, Message string
	Owner, RuntimeClass                                string
	HostNetwork                                        bool
	Created                                            metav1.Time
	Deleted                                            *metav1.Time `json:",omitempty"`
	Conditions                                         []condition
	Containers                                         []containerState
	Volumes                                            []string
}

// containerState has the collected fields of a container. The message that it wrote when it ended is not collected.
type containerState struct {
	Name, Image, Runtime       string
	Ready                      bool
	Restarts                   int32
	Waiting, WaitingMessage    string `json:",omitempty"`
	Running                    *metav1.Time
	Ended, EndedBefore         string `json:",omitempty"`
	ExitCode, ExitCodeBefore   int32
	Requests, Limits           corev1.ResourceList `json:",omitempty"`
	Liveness, Readiness, Start bool
}

func addPods(ctx context.Context, client kubernetes.Interface, f *bugreport.Files, o metav1.ListOptions) {
	list, err := client.CoreV1().Pods("").List(ctx, o)
	if err != nil {
		f.Failed("pod-conditions.json", err)
		return
	}
	var out []podState
	for i := range list.Items {
		out = append(out, podStateOf(&list.Items[i]))
	}
	addJSON(f, "pod-conditions.json", out)
}

func podStateOf(p *corev1.Pod) podState {
	out := podState{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
		Created: p.CreationTimestamp, Deleted: p.DeletionTimestamp,
		Phase: string(p.Status.Phase), Reason: p.Status.Reason, Message: truncate.Text(p.Status.Message, messageLength)}
	if owner := metav1.GetControllerOf(p); owner != nil {
		out.Owner = owner.Kind + "/" + owner.Name
	}
	if p.Spec.RuntimeClassName != nil {
		out.RuntimeClass = *p.Spec.RuntimeClassName
	}
	for _, x := range p.Status.Conditions {
		out.Conditions = append(out.Conditions, conditionOf(string(x.Type), x.Status, x.Reason, x.Message, x.LastTransitionTime))
	}
	spec := map[string]*corev1.Container{}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			spec[list[i].Name] = &list[i]
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		out.Containers = append(out.Containers, containerStateOf(s, spec[s.Name]))
	}
	for i := range p.Spec.Volumes {
		out.Volumes = append(out.Volumes, p.Spec.Volumes[i].Name)
	}
	return out
}

func containerStateOf(s corev1.ContainerStatus, spec *corev1.Container) containerState {
	out := containerState{Name: s.Name, Image: s.Image, Runtime: s.ContainerID, Ready: s.Ready, Restarts: s.RestartCount}
	if w := s.State.Waiting; w != nil {
		out.Waiting, out.WaitingMessage = w.Reason, truncate.Text(w.Message, messageLength)
	}
	if r := s.State.Running; r != nil {
		out.Running = &r.StartedAt
	}
	if e := s.State.Terminated; e != nil {
		out.Ended, out.ExitCode = e.Reason, e.ExitCode
	}
	if e := s.LastTerminationState.Terminated; e != nil {
		out.EndedBefore, out.ExitCodeBefore = e.Reason, e.ExitCode
	}
	if spec != nil {
		out.Requests, out.Limits = spec.Resources.Requests, spec.Resources.Limits
		out.Liveness, out.Readiness, out.Start = spec.LivenessProbe != nil, spec.ReadinessProbe != nil, spec.StartupProbe != nil
	}
	return out
}

// addConfigMaps adds the names of ConfigMaps and of their keys.
func addConfigMaps(ctx context.Context, client kubernetes.Interface, f *bugreport.Files) {
	list, err := client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{Limit: collectedObjects})
	if err != nil {
		f.Failed("configmaps.txt", err)
		return
	}
	var b strings.Builder
	for i := range list.Items {
		m := &list.Items[i]
		keys := append(slices.Sorted(maps.Keys(m.Data)), slices.Sorted(maps.Keys(m.BinaryData))...)
		fmt.Fprintf(&b, "%s/%s: %s\n", m.Namespace, m.Name, strings.Join(keys, " "))
	}
	f.Binary("configmaps.txt", []byte(b.String())) // names, of which some look like names of secrets
}

func chosenMetrics(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if slices.ContainsFunc(collectedMetrics, func(name string) bool { return strings.HasPrefix(line, name) }) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// formatTable prints a list in the API's form of a table.
func formatTable(text []byte) (string, error) {
	var table metav1.Table
	if err := json.Unmarshal(text, &table); err != nil {
		return "", fmt.Errorf("reading a table: %w", err)
	}
	heads := []string{"NAMESPACE"}
	for _, column := range table.ColumnDefinitions {
		heads = append(heads, strings.ToUpper(column.Name))
	}
	var rows [][]string
	for _, row := range table.Rows {
		var object metav1.PartialObjectMetadata
		if err := json.Unmarshal(row.Object.Raw, &object); err != nil {
			return "", fmt.Errorf("reading a row: %w", err)
		}
		rows = append(rows, append([]string{object.Namespace}, convert.Slice(row.Cells, cellText)...))
	}
	var b strings.Builder
	err := printTable(&b, heads, rows)
	return b.String(), err
}

func cellText(cell any) string {
	if n, ok := cell.(float64); ok {
		return strconv.FormatFloat(n, 'f', -1, 64)
	}
	return strings.Join(strings.Fields(truncate.Text(fmt.Sprint(cell), messageLength)), " ")
}
