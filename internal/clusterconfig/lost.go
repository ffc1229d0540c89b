// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"fmt"
	"time"
)

// Annotations of a Node that decide what happens to its pods while it is lost.
const (
	// StoppedAnnotation says that no container of a pod runs on the machine any more and that no volume is mounted. Its
	// value is the boot ID (Node.status.nodeInfo.bootID) of the boot in which that is so. A node writes it on its own
	// Node when it has stopped its pods for a shutdown. At its next start it removes the annotation, and waits until
	// that is written, before its kubelet starts: until then the leader lets other nodes have its pods and volumes
	// (controllers/lostnodes).
	StoppedAnnotation = "coracle.dev/stopped"
	// StoppedTaint is the value of the taint node.kubernetes.io/out-of-service by which the leader does so.
	StoppedTaint = "coracle-stopped"
	// AutonomyAnnotation is how long a node may be lost before its pods are evicted ([ParseAutonomy]). It is set by
	// users who may edit Nodes, and never by the node itself.
	AutonomyAnnotation = "coracle.dev/autonomy"
)

// ParseAutonomy parses the value of [AutonomyAnnotation]: a duration above 0 such as 24h. An empty value is 0, no
// autonomy.
func ParseAutonomy(value string) (time.Duration, error) {
	if value == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("the annotation %s is %q: it has to be a duration in hours, minutes or seconds, such as 24h. Until it is, "+
			"the pods of the node are evicted as those of any node", AutonomyAnnotation, value)
	}
	return d, nil
}
