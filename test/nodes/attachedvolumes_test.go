//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/csi"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// attaching has a driver whose volumes have to be attached, with the rights that its provisioner's and its attacher's
// documentation ask for.
const attaching = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: csi.coracle.test}
spec: {attachRequired: true}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: csi}
provisioner: csi.coracle.test
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: csi}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: csi}
rules:
- {apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch, update]}
- {apiGroups: [""], resources: [events], verbs: [list, watch, create, update, patch]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [storage.k8s.io], resources: [storageclasses, csinodes], verbs: [get, list, watch]}
- {apiGroups: [storage.k8s.io], resources: [volumeattachments], verbs: [get, list, watch, patch]}
- {apiGroups: [storage.k8s.io], resources: [volumeattachments/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: csi}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: csi}
subjects: [{kind: ServiceAccount, name: csi, namespace: default}]
`

// attachingNode is that driver on NODE. CONTROLLERS are more containers.
const attachingNode = `
apiVersion: v1
kind: Pod
metadata: {name: csi-NODE}
spec:
  nodeName: NODE
  serviceAccountName: csi
  containers:
  - name: driver
    image: "` + harness.BoxImage + `"
    imagePullPolicy: Never
    securityContext: {privileged: true}
    command: [PROGRAMS/driver, -shared, -node, NODE, -kubelet, KUBELET, -volumes, VOLUMES, -socket, KUBELET/plugins/csi.coracle.test/csi.sock]
    volumeMounts:
    - {name: programs, mountPath: PROGRAMS, readOnly: true}
    - {name: kubelet, mountPath: KUBELET, mountPropagation: Bidirectional}
    - {name: volumes, mountPath: VOLUMES}
  CONTROLLERS
  volumes:
  - {name: programs, hostPath: {path: PROGRAMS, type: Directory}}
  - {name: kubelet, hostPath: {path: KUBELET, type: Directory}}
  - {name: volumes, hostPath: {path: VOLUMES, type: Directory}}
`

// attachingControllers make volumes and attach them.
const attachingControllers = `- name: provisioner
    image: "` + harness.BoxImage + `"
    imagePullPolicy: Never
    command: [PROGRAMS/provisioner, --csi-address=KUBELET/plugins/csi.coracle.test/csi.sock]
    volumeMounts: &controllers
    - {name: programs, mountPath: PROGRAMS, readOnly: true}
    - {name: kubelet, mountPath: KUBELET}
  - name: attacher
    image: "` + harness.BoxImage + `"
    imagePullPolicy: Never
    command: [PROGRAMS/attacher, --csi-address=KUBELET/plugins/csi.coracle.test/csi.sock]
    volumeMounts: *controllers`

// attachedTo is a StatefulSet NAME with a volume that has to be attached.
var attachedTo = harness.Workload("StatefulSet", "NAME", `
  serviceName: NAME, volumeClaimTemplates: [{metadata: {name: data},
  spec: {accessModes: [ReadWriteOnce], storageClassName: csi, resources: {requests: {storage: 1Mi}}}}]`, `
  terminationGracePeriodSeconds: 1, nodeSelector: {for: volumes},
  containers: [`+harness.BoxYAML+`, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}]`)

// attachments fails unless there are so many VolumeAttachments, all attached and to this node, and the driver has as
// many volumes attached, there too.
func attachments(s *harness.Server, volumes, node string, count int) error {
	out, err := s.TryKubectl("get", "volumeattachments", "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.status.attached}{"\n"}{end}`)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(volumes, "*.node"))
	if err != nil {
		return err
	}
	at := strings.Repeat(node+" true\n", count)
	driver := ""
	for _, f := range files {
		to, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		driver += string(to) + " true\n"
	}
	if out != at || driver != at {
		return fmt.Errorf("the API says\n%sand the driver\n%swant\n%s", out, driver, at)
	}
	return nil
}

// TestVolumesOfOutOfServiceNodeDetach: a machine is switched off on which volumes are that have to be detached from it
// before another one may have them. That happens when a user says by the taint that the node is out of service, and
// not before: neither for a StatefulSet's pod whose end was not seen, nor for the replacement of one that was
// deleted by force.
func TestVolumesOfOutOfServiceNodeDetach(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	shared := t.TempDir()
	programs, volumes := filepath.Join(shared, "programs"), filepath.Join(shared, "volumes")
	for _, dir := range []string{programs, volumes} {
		testenv.NoError(t, os.Mkdir(dir, 0o755))
	}
	for _, p := range []string{csi.Driver, csi.Provisioner, csi.Attacher} {
		csi.Build(t, p, filepath.Join(programs, filepath.Base(p)))
	}
	site.Needs = append(site.Needs, shared)
	s := site.NewMachine().NewServer("--default-toleration-seconds", "5")
	s.AddBoxImage()
	agents := withAgents(t, s, 2)
	harness.Eventually(t, harness.Soon, "the server's node is ready", func() error { return s.NodeReady(s) })
	victim, left := agents[0], agents[1]
	t.Cleanup(func() {
		if t.Failed() {
			for _, args := range [][]string{
				{"get", "pods,pv,pvc,volumeattachments", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"},
				{"logs", "csi-" + s.NodeName(), "-c", "provisioner", "--tail=30"}, {"logs", "csi-" + s.NodeName(), "-c", "attacher", "--tail=60"},
			} {
				out, err := s.TryKubectl(args...)
				t.Logf("%s: %v\n%s", args, err, out)
			}
		}
	})
	s.InsistsOn(attaching)
	for _, n := range append(slices.Clone(agents), s) {
		controllers := ""
		if n == s {
			controllers = attachingControllers
		}
		s.InsistsOn(strings.NewReplacer("PROGRAMS", programs, "KUBELET", filepath.Join(n.DataDir, "agent", "kubelet"), "VOLUMES", volumes, "NODE", n.NodeName()).
			Replace(strings.Replace(attachingNode, "CONTROLLERS", controllers, 1)))
		s.In(t).Await(harness.Soon, "csinode/"+n.NodeName(), "{.spec.drivers[*].name}", "csi.coracle.test")
	}

	s.Insists("label", "node", victim.NodeName(), "for=volumes") // and no other one yet: both are to be on one machine
	for _, name := range []string{"s", "f"} {
		s.InsistsOn(strings.ReplaceAll(attachedTo, "NAME", name))
	}
	for _, name := range []string{"s", "f"} {
		harness.Eventually(t, harness.Soon, "the pod runs with its volume", func() error { return runningOn(s, name, victim.NodeName()) })
		s.Insists("exec", name+"-0", "--", "sh", "-c", "echo of "+name+" > /data/file")
	}
	s.Insists("label", "node", left.NodeName(), "for=volumes")
	attached := func() error { return attachments(s, volumes, victim.NodeName(), 2) }
	harness.Eventually(t, harness.Soon, "both volumes are attached", attached)

	victim.PowerOff()
	off := time.Now()
	for _, name := range []string{"s", "f"} {
		eventually(t, off, "the pod is being deleted", func() error {
			out, err := s.TryKubectl("get", "pod", name+"-0", "-o", "jsonpath={.metadata.deletionTimestamp}")
			if err == nil && out == "" {
				err = errors.New("it is not")
			}
			return err
		})
	}
	s.Insists("delete", "pod", "f-0", "--force", "--grace-period=0")
	eventually(t, off, "the replacement waits for its volume, which another node has", func() error {
		out, err := s.TryKubectl("get", "events", "--field-selector", "involvedObject.name=f-0,reason=FailedAttachVolume", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "is already exclusively attached to one node") { // "Multi-Attach error" where a pod of the other node still has it
			err = fmt.Errorf("the events say %q", out)
		}
		return err
	})
	harness.Eventually(t, harness.Soon, "before anybody says that the node is out of service nothing has moved", func() error {
		return errors.Join(runningOn(s, "s"), runningOn(s, "f"), attached())
	})

	taintedAt := time.Now()
	s.Insists("taint", "--overwrite", "node", victim.NodeName(), "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
	for _, name := range []string{"s", "f"} {
		eventually(t, taintedAt, "the pod of "+name+" runs with its volume on the node that is left", func() error { return runningOn(s, name, left.NodeName()) })
		testenv.Equal(t, s.Insists("exec", name+"-0", "--", "cat", "/data/file"), "of "+name, "the volume of %s has", name)
	}
	eventually(t, taintedAt, "nothing is attached to the node that is off", func() error { return attachments(s, volumes, left.NodeName(), 2) })
}
