// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

const (
	clusterTimeout = 3 * time.Second
	// shownPods bounds the list: when a disk is full every pod has the same trouble.
	shownPods = 8
	// podLimit bounds what status reads of a big cluster.
	podLimit = 1000
	// podPatience is how long a pod may be on its way before that is trouble.
	podPatience = 2 * time.Minute
)

// askCluster adds what the API server knows about nodes and pods. What keeps it from being asked is a problem only
// when the process says that it is ready.
func askCluster(ctx context.Context, t *config.Tool, r *status.Report, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	cluster, problems, err := readCluster(ctx, t, now)
	switch {
	case err == nil:
		r.Cluster, r.Problems = cluster, append(r.Problems, problems...)
	case !r.Ready.IsZero():
		r.Problems = append(r.Problems, fmt.Sprintf("the API server does not answer: %v", err))
	}
}

func readCluster(ctx context.Context, t *config.Tool, now time.Time) (*status.Cluster, []string, error) {
	rc, err := adminConfig(t)
	if err != nil {
		return nil, nil, err
	}
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, nil, fmt.Errorf("making a client: %w", err)
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, nil, fmt.Errorf("listing nodes: %w", err)
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: podLimit, ResourceVersion: "0"})
	if err != nil {
		return nil, nil, fmt.Errorf("listing pods: %w", err)
	}
	out := &status.Cluster{}
	var problems []string
	for i := range nodes.Items {
		out.Nodes++
		p := nodeTrouble(&nodes.Items[i])
		if p == "" {
			out.NodesReady++
			continue
		}
		problems = append(problems, p)
	}
	bad := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		out.Pods++
		if podServes(pod) {
			out.PodsReady++
			continue
		}
		p := podTrouble(pod, now, t.Paths.ImagesDir)
		if p == "" {
			continue
		}
		if bad++; bad <= shownPods {
			problems = append(problems, p)
		}
	}
	if bad > shownPods {
		problems = append(problems, fmt.Sprintf("%d more pods are in trouble: coracle kubectl get pods -A", bad-shownPods))
	}
	return out, problems, nil
}

// nodeTrouble says what is wrong with a node, "" for nothing.
func nodeTrouble(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown:
			return fmt.Sprintf("node %s has not been heard of since %s: is its machine on, and does coracle run there?", n.Name, c.LastHeartbeatTime.Local().Format(time.DateTime))
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
			return fmt.Sprintf("node %s has little disk left: images and then pods are removed. Make room, or see what takes it with coracle ctr images ls", n.Name)
		case corev1.NodeMemoryPressure:
			return fmt.Sprintf("node %s has little memory left: pods are removed. Give pods memory limits, or fewer pods to this node", n.Name)
		case corev1.NodePIDPressure:
			return fmt.Sprintf("node %s has few process numbers left: pods are removed. Find the pod that starts so many processes", n.Name)
		}
	}
	return ""
}

// podServes says that nothing is wrong with a pod: it is ready or has done its work.
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

// podTrouble says what is wrong with a pod that does not serve, "" when it is only on its way.
func podTrouble(p *corev1.Pod, now time.Time, imagesDir string) string {
	name := p.Namespace + "/" + p.Name
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && now.Sub(c.LastTransitionTime.Time) > podPatience/4 {
			return fmt.Sprintf("pod %s finds no node: %s", name, c.Message)
		}
	}
	containers := append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...)
	for _, c := range containers {
		if w := c.State.Waiting; w != nil {
			if text := waitTrouble(p, c, w, imagesDir); text != "" {
				return "pod " + name + ": " + text
			}
		}
	}
	if p.Status.Phase == corev1.PodFailed {
		if p.Status.Reason != "" {
			return fmt.Sprintf("pod %s has failed: %s", name, strings.TrimSpace(p.Status.Reason+" "+p.Status.Message))
		}
		return fmt.Sprintf("pod %s has failed: coracle kubectl logs -n %s %s", name, p.Namespace, p.Name)
	}
	if p.DeletionTimestamp != nil {
		if now.Sub(p.DeletionTimestamp.Time) > podPatience {
			return fmt.Sprintf("pod %s should have been gone since %s: coracle kubectl describe pod -n %s %s", name, p.DeletionTimestamp.Local().Format(time.DateTime), p.Namespace, p.Name)
		}
		return ""
	}
	if start := p.Status.StartTime; start != nil && now.Sub(start.Time) > podPatience {
		return fmt.Sprintf("pod %s runs but is not ready: coracle kubectl describe pod -n %s %s", name, p.Namespace, p.Name)
	}
	return ""
}

func waitTrouble(p *corev1.Pod, c corev1.ContainerStatus, w *corev1.ContainerStateWaiting, imagesDir string) string {
	switch w.Reason {
	case "CrashLoopBackOff":
		why := ""
		if t := c.LastTerminationState.Terminated; t != nil {
			why = fmt.Sprintf(" with exit code %d", t.ExitCode)
			if t.Reason == "OOMKilled" {
				why = " because it needs more memory than its limit"
			}
		}
		return fmt.Sprintf("container %s ends again and again%s (%d times): coracle kubectl logs -n %s %s -c %s --previous", c.Name, why, c.RestartCount, p.Namespace, p.Name, c.Name)
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull":
		return fmt.Sprintf("container %s does not get its image %s; without a registry, put an archive of it into %s", c.Name, c.Image, imagesDir)
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
		return fmt.Sprintf("container %s cannot be started: %s", c.Name, w.Message)
	}
	return ""
}
