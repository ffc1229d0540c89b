//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// volumeClaim is a claim of the default class.
func volumeClaim(name string) string {
	return `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: ` + name + `}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
`
}

// volumeUser is a pod on a node with claims.
func volumeUser(name string, node *harness.Server, claims ...string) string {
	var mounts, volumes []string
	for _, c := range claims {
		mounts = append(mounts, fmt.Sprintf("{name: %s, mountPath: /%[1]s}", c))
		volumes = append(volumes, fmt.Sprintf("{name: %s, persistentVolumeClaim: {claimName: %[1]s}}", c))
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 1
  containers: [`+harness.BoxYAML+`, command: [testbox, serve], volumeMounts: [%s]}]
  volumes: [%s]
`, name, node.NodeName(), strings.Join(mounts, ", "), strings.Join(volumes, ", "))
}

// silentVolumes is what a node is asked for while it does not answer: the claim shrink is deleted, grow grows, and make
// is new.
type silentVolumes struct {
	t             *testing.T
	s, node       *harness.Server
	removedVolume string // the PersistentVolume of shrink
	path          string // its directory
}

// volumesBefore makes what the node has already when it falls silent: two volumes that no pod uses any more.
func volumesBefore(t *testing.T, s, node *harness.Server) *silentVolumes {
	t.Helper()
	s.Apply(volumeClaim("shrink") + volumeClaim("grow") + volumeUser("before", node, "shrink", "grow"))
	s.Kubectl("wait", "--for=condition=Ready", "pod/before", "--timeout=180s")
	s.Kubectl("delete", "pod", "before")
	v := &silentVolumes{t: t, s: s, node: node, removedVolume: s.Kubectl("get", "pvc", "shrink", "-o", "jsonpath={.spec.volumeName}")}
	v.path = s.Kubectl("get", "pv", v.removedVolume, "-o", "jsonpath={.spec.local.path}")
	return v
}

// ask has the node asked for something of each kind. The pod goes to a node that is not ready, too: a busy server may
// have taken it for dead already.
func (v *silentVolumes) ask() {
	v.t.Helper()
	v.s.Kubectl("delete", "pvc", "shrink", "--wait=false")
	v.s.Kubectl("patch", "pvc", "grow", "-p", `{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}`)
	v.s.Apply(volumeClaim("make") + strings.Replace(volumeUser("after", v.node, "make"), "spec:\n", "spec:\n  tolerations: [{operator: Exists}]\n", 1))
}

// unanswered waits until events say of each of them that the node was asked without an answer, and nothing has
// happened.
func (v *silentVolumes) unanswered(since time.Time) {
	v.t.Helper()
	for _, e := range []struct{ kind, name, reason, message string }{
		{"PersistentVolumeClaim", "make", "ProvisioningFailed", "node " + v.node.NodeName() + ": the node has no connection to the server that leads"},
		{"PersistentVolumeClaim", "grow", "VolumeResizeFailed", "node " + v.node.NodeName() + ": the node has no connection to the server that leads"},
		{"PersistentVolume", v.removedVolume, "VolumeDelete", "node " + v.node.NodeName() + " is away"},
	} {
		eventually(v.t, since, "an event "+e.reason+" says that the node does not answer", func() error {
			out, err := v.s.TryKubectl("get", "events", "--field-selector", "involvedObject.kind="+e.kind+",involvedObject.name="+e.name+",reason="+e.reason, "-o", "jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(out, e.message) {
				err = fmt.Errorf("%s %s: no %q in %q", e.kind, e.name, e.message, out)
			}
			return err
		})
	}
	testenv.Fails(v.t, v.done(), "a node that is stopped has done what it was asked for")
	testenv.Check(v.t, testenv.Err(os.Stat(v.path)), "the directory on a node that is stopped")
}

// done fails unless all three have happened.
func (v *silentVolumes) done() error {
	ready, err := v.s.TryKubectl("get", "pod", "after", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	if err == nil && ready != "True" {
		err = fmt.Errorf("the pod with a new claim is ready: %q", ready)
	}
	size, e := v.s.TryKubectl("get", "pvc", "grow", "-o", "jsonpath={.status.capacity.storage}")
	if e == nil && size != "2Mi" {
		e = fmt.Errorf("the claim that is to grow has %s", size)
	}
	err = errors.Join(err, e)
	if out, e := v.s.TryKubectl("get", "pv", v.removedVolume, "--ignore-not-found", "-o", "name"); e != nil || out != "" {
		err = errors.Join(err, e, fmt.Errorf("there is still %s", out))
	}
	if _, e := os.Stat(v.path); !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("%s is there still, or cannot be looked at: %v", v.path, e))
	}
	return err
}

// answered waits until all three have happened, and takes them away.
func (v *silentVolumes) answered(since time.Time) {
	v.t.Helper()
	eventually(v.t, since, "the node has made, grown and removed volumes", v.done)
	v.s.Kubectl("delete", "pod", "after", "--wait=false")
	v.s.Kubectl("delete", "pvc", "grow", "make", "--wait=false")
}
