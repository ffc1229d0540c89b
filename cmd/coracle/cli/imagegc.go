// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/embedded"
)

const (
	// imageGCFailed is the reason of the kubelet's event when it finds too few images to remove (upstream's
	// pkg/kubelet/events). The kubelet tries every five minutes.
	imageGCFailed = "ImageGCFailed"
	imageGCRecent = 11 * time.Minute
	// shownImages is how many unused images status lists for a node.
	shownImages = 8
)

// readImageGC adds the nodes whose kubelet could not remove as many images as the disk needs.
func (s *clusterState) readImageGC(ctx context.Context, c kubernetes.Interface, nodes []corev1.Node, pods []corev1.Pod, now time.Time,
	imagesDir string) error {
	events, err := c.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{ // events of nodes are there
		Limit: podLimit, FieldSelector: "involvedObject.kind=Node,reason=" + imageGCFailed,
	})
	if err != nil {
		return fmt.Errorf("listing events of nodes: %w", err)
	}
	last := map[string]*corev1.Event{}
	for i := range events.Items {
		e := &events.Items[i]
		of := e.InvolvedObject.Name
		if e.Reason == imageGCFailed && now.Sub(e.LastTimestamp.Time) < imageGCRecent &&
			(last[of] == nil || e.LastTimestamp.After(last[of].LastTimestamp.Time)) {
			last[of] = e
		}
	}
	for i := range nodes {
		if e := last[nodes[i].Name]; e != nil {
			s.problems = append(s.problems, imageGCProblem(&nodes[i], pods, e.Message, imagesDir))
		}
	}
	return nil
}

// imageGCProblem says why a node's images fill its disk: those that no pod uses are left because they are pinned.
func imageGCProblem(n *corev1.Node, pods []corev1.Pod, message, imagesDir string) string {
	used := map[string]bool{embedded.PauseImage: true}
	for i := range pods {
		if p := &pods[i]; p.Spec.NodeName == n.Name {
			for _, name := range imagesOf(p) {
				used[fullImage(name)] = true
			}
		}
	}
	var unused []string
	for _, im := range n.Status.Images {
		shown := ""
		for _, name := range im.Names {
			if used[fullImage(name)] {
				shown = ""
				break
			}
			if shown == "" || !strings.Contains(name, "@") { // a tag says more than a digest
				shown = name
			}
		}
		if shown != "" {
			unused = append(unused, fmt.Sprintf("%s (%s)", shown, formatMB(im.SizeBytes)))
		}
	}
	text := fmt.Sprintf("node %s is low on disk space, and its kubelet cannot remove enough images (%s): %s", n.Name, imageGCFailed,
		strings.TrimSuffix(message, "."))
	if len(unused) == 0 {
		return text + ". Pods use all of its images: free space otherwise"
	}
	more := ""
	if len(unused) > shownImages {
		more = fmt.Sprintf(" and %d more", len(unused)-shownImages)
		unused = unused[:shownImages]
	}
	return fmt.Sprintf("%s. No pod uses %s%s. Imported images are kept as long as their archive is in %s on that machine, or on the server "+
		"from which it has them, and for some time after. Remove the archives of those that you do not need, or an image itself: coracle ctr images rm NAME", text,
		strings.Join(unused, ", "), more, imagesDir)
}

// imagesOf returns the names by which a pod has images.
func imagesOf(p *corev1.Pod) (names []string) {
	for _, c := range p.Spec.InitContainers {
		names = append(names, c.Image)
	}
	for _, c := range p.Spec.Containers {
		names = append(names, c.Image)
	}
	for _, c := range p.Spec.EphemeralContainers {
		names = append(names, c.Image)
	}
	for _, all := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses,
		p.Status.EphemeralContainerStatuses} {
		for _, s := range all {
			names = append(names, s.Image, s.ImageID)
		}
	}
	return names
}

// fullImage completes an image's name as the kubelet does.
func fullImage(name string) string {
	if ref, err := reference.ParseDockerRef(name); err == nil {
		return ref.String()
	}
	return name
}
