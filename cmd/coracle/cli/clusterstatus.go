// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

const (
	// shownPods is how many pods status lists as problems: when a disk is full, every pod has the same problem.
	shownPods = 8
	// podLimit is how many pods, and how many Services, status reads of a big cluster.
	podLimit = 1000
	// podReadyTimeout is how long a pod may take to become ready, or to be deleted, before status reports it as a
	// problem.
	podReadyTimeout = 2 * time.Minute
)

// askCluster adds what the API server knows about nodes and pods. An error of the API server is reported as a problem
// only when the process says that it is ready.
func askCluster(ctx context.Context, t *config.Tool, r *status.Report, now time.Time) {
	state, err := readCluster(ctx, t, now)
	switch {
	case err == nil:
		r.Cluster, r.Notes, r.Problems = &state.counts, append(r.Notes, state.notes...), append(r.Problems, state.problems...)
	case !r.Ready.IsZero():
		r.Problems = append(r.Problems, fmt.Sprintf("the API server does not answer: %v", err))
	}
}

type clusterState struct {
	counts          status.Cluster
	problems, notes []string
}

func readCluster(ctx context.Context, t *config.Tool, now time.Time) (*clusterState, error) {
	rc, err := adminConfig(t)
	if err != nil {
		return nil, err
	}
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: podLimit, ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	out := &clusterState{}
	out.addNodes(nodes.Items)
	out.addPods(pods.Items, now, t.Paths.ImagesDir)
	if err := out.readImageGC(ctx, c, nodes.Items, pods.Items, now, t.Paths.ImagesDir); err != nil {
		return nil, err
	}
	out.notes, err = withoutLoadBalancer(ctx, c)
	return out, err
}

func (s *clusterState) addNodes(nodes []corev1.Node) {
	for i := range nodes {
		s.counts.Nodes++
		p := nodeProblem(&nodes[i])
		if p == "" {
			s.counts.NodesReady++
			continue
		}
		s.problems = append(s.problems, p)
	}
}

func (s *clusterState) addPods(pods []corev1.Pod, now time.Time, imagesDir string) {
	bad := 0
	for i := range pods {
		pod := &pods[i]
		if jobsFailure(pod) {
			continue
		}
		s.counts.Pods++
		if podServes(pod) {
			s.counts.PodsReady++
			continue
		}
		p := podProblem(pod, now, imagesDir)
		if p == "" {
			continue
		}
		if bad++; bad <= shownPods {
			s.problems = append(s.problems, p)
		}
	}
	if bad > shownPods {
		s.problems = append(s.problems, fmt.Sprintf("%d more pods are in trouble: coracle kubectl get pods -A", bad-shownPods))
	}
}

// withoutLoadBalancer returns a note that names a Service of type LoadBalancer without an address, and why it has none.
func withoutLoadBalancer(ctx context.Context, c kubernetes.Interface) ([]string, error) {
	services, err := c.CoreV1().Services("").List(ctx, metav1.ListOptions{Limit: podLimit, FieldSelector: "spec.type=LoadBalancer"})
	if err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	var notes []string
	for _, s := range services.Items {
		if len(s.Status.LoadBalancer.Ingress) == 0 {
			notes = append(notes, withoutAddress(&s))
			break
		}
	}
	return notes, nil
}

// withoutAddress says why a Service of type LoadBalancer has no address.
func withoutAddress(s *corev1.Service) string {
	for _, c := range s.Status.Conditions {
		if c.Type == "coracle.dev/LoadBalancer" { // servicelb.Condition
			return fmt.Sprintf("the Service %s/%s of type LoadBalancer has no address: %s", s.Namespace, s.Name, c.Message)
		}
	}
	return fmt.Sprintf("the Service %s/%s of type LoadBalancer has no address: its load balancer has assigned none", s.Namespace, s.Name)
}

// nodeProblem describes the problem of a node. It returns "" for a node without a problem.
func nodeProblem(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown: // LastHeartbeatTime may be half an hour older
			return fmt.Sprintf("node %s has been unreachable since %s: check that its machine is on and that coracle runs there", n.Name,
				c.LastTransitionTime.Local().Format(time.DateTime))
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse:
			return fmt.Sprintf("node %s is not ready: %s", n.Name, c.Message)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case corev1.NodeDiskPressure:
			return fmt.Sprintf("node %s is low on disk space: images that no pod uses are removed, but those that were imported and whose "+
				"archives are there, and then pods are evicted. Free space, or see what uses it with coracle ctr images ls", n.Name)
		case corev1.NodeMemoryPressure:
			return fmt.Sprintf("node %s is low on memory: pods are evicted. Set memory limits for pods, or run fewer pods on this node",
				n.Name)
		case corev1.NodePIDPressure:
			return fmt.Sprintf("node %s is low on process ids: pods are evicted. Find the pod that starts so many processes", n.Name)
		}
	}
	return ""
}

// podServes says whether a pod is ready or has finished its work.
func podServes(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded {
		return true
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// jobsFailure says whether a pod is a failed attempt of a Job. The Job makes another pod, or has failed itself and says
// so. The failed pod is kept only for its log.
func jobsFailure(p *corev1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	return p.Status.Phase == corev1.PodFailed && owner != nil && owner.Kind == "Job" && strings.HasPrefix(owner.APIVersion, "batch/")
}

// podProblem says what is wrong with a pod that does not serve. It returns "" when the pod is only starting or ending.
func podProblem(p *corev1.Pod, now time.Time, imagesDir string) string {
	name := p.Namespace + "/" + p.Name
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && now.Sub(c.LastTransitionTime.Time) > podReadyTimeout/4 {
			return fmt.Sprintf("pod %s cannot be scheduled: %s", name, c.Message)
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil {
			if text := waitProblem(p, c, w, imagesDir); text != "" {
				return "pod " + name + ": " + text
			}
		}
		if t := c.State.Terminated; t != nil && p.Status.Phase != corev1.PodFailed && startsAgain(p, c) {
			return "pod " + name + ": " + crashLoop(p, c, t)
		}
	}
	if p.Status.Phase == corev1.PodFailed {
		if p.Status.Reason != "" {
			return fmt.Sprintf("pod %s has failed: %s", name, strings.TrimSpace(p.Status.Reason+" "+p.Status.Message))
		}
		return fmt.Sprintf("pod %s has failed: coracle kubectl logs -n %s %s", name, p.Namespace, p.Name)
	}
	if p.DeletionTimestamp != nil {
		if now.Sub(p.DeletionTimestamp.Time) > podReadyTimeout {
			return fmt.Sprintf("pod %s should have been deleted by %s: coracle kubectl describe pod -n %s %s", name,
				p.DeletionTimestamp.Local().Format(time.DateTime), p.Namespace, p.Name)
		}
		return ""
	}
	if start := p.Status.StartTime; start != nil && now.Sub(start.Time) > podReadyTimeout {
		return fmt.Sprintf("pod %s runs but is not ready: coracle kubectl describe pod -n %s %s", name, p.Namespace, p.Name)
	}
	return ""
}

func waitProblem(p *corev1.Pod, c corev1.ContainerStatus, w *corev1.ContainerStateWaiting, imagesDir string) string {
	switch w.Reason {
	case "CrashLoopBackOff":
		return crashLoop(p, c, c.LastTerminationState.Terminated)
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull":
		text := fmt.Sprintf("container %s cannot get its image %s; without a registry, put an archive of the image into %s", c.Name, c.Image,
			imagesDir)
		if pullsAlways(p, c.Name) {
			text += ". Its imagePullPolicy is Always, which is the default for an image without a tag, so even an image on this node is requested " +
				"from the registry: set IfNotPresent"
		}
		return text
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
		return startProblem(p, c, w.Message)
	}
	return ""
}

// startsAgain says whether a container has ended more than once and only waits for the kubelet to start it again.
// During most of a back-off the kubelet shows the container as terminated, not as waiting (docs/adr/0055).
func startsAgain(p *corev1.Pod, c corev1.ContainerStatus) bool {
	main := slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == c.Name })
	failed := c.State.Terminated.ExitCode != 0
	return c.RestartCount > 0 && p.Spec.RestartPolicy != corev1.RestartPolicyNever &&
		(failed || main && p.Spec.RestartPolicy != corev1.RestartPolicyOnFailure)
}

// crashLoop says that a container ends again and again, and how it ended last. last is nil when that is not known.
func crashLoop(p *corev1.Pod, c corev1.ContainerStatus, last *corev1.ContainerStateTerminated) string {
	why := ""
	if last != nil && last.Reason == "StartError" { // containerd's: there are no logs
		return startProblem(p, c, last.Message)
	}
	if last != nil {
		why = fmt.Sprintf(" with exit code %d", last.ExitCode)
		if last.Reason == "OOMKilled" {
			why = " because it needs more memory than its limit"
		}
	}
	return fmt.Sprintf("container %s keeps exiting%s (%d times): coracle kubectl logs -n %s %s -c %s --previous", c.Name, why,
		c.RestartCount, p.Namespace, p.Name, c.Name)
}

// startProblem says why the runtime could not start a container.
func startProblem(p *corev1.Pod, c corev1.ContainerStatus, message string) string {
	pause := ""
	if strings.Contains(message, "sandbox container") || strings.Contains(message, "sandbox task") {
		pause = fmt.Sprintf("the pod's sandbox has ended, so the program pause does not run on node %s; restart coracle there, which replaces "+
			"a damaged pause: ", p.Spec.NodeName)
	}
	return fmt.Sprintf("container %s cannot be started: %s%s", c.Name, pause, message)
}

// pullsAlways says whether the kubelet asks the registry each time the container starts.
func pullsAlways(p *corev1.Pod, container string) bool {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name == container {
			return c.ImagePullPolicy == corev1.PullAlways
		}
	}
	return false
}
