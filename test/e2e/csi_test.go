//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/csi"
	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// csiDriver are a driver and its provisioner in a pod, as makers of drivers have them, with the rights that the
// provisioner's documentation asks for. PROGRAMS, KUBELET, VOLUMES and NODE are to be replaced.
const csiDriver = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: csi.coracle.test}
spec: {attachRequired: false, fsGroupPolicy: File}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: csi}
provisioner: csi.coracle.test
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: csi}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: csi-provisioner}
rules:
- {apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch, update]}
- {apiGroups: [""], resources: [events], verbs: [list, watch, create, update, patch]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [storage.k8s.io], resources: [storageclasses, csinodes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: csi-provisioner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: csi-provisioner}
subjects: [{kind: ServiceAccount, name: csi, namespace: default}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: csi}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: csi}}
  template:
    metadata: {labels: {app: csi}}
    spec:
      serviceAccountName: csi
      terminationGracePeriodSeconds: 5
      containers:
      - name: driver
        image: "` + harness.BoxImage + `"
        imagePullPolicy: Never
        securityContext: {privileged: true}
        command: [/programs/driver, -node, NODE, -kubelet, KUBELET, -volumes, VOLUMES, -socket, KUBELET/plugins/csi.coracle.test/csi.sock]
        volumeMounts:
        - {name: programs, mountPath: /programs, readOnly: true}
        - {name: kubelet, mountPath: KUBELET, mountPropagation: Bidirectional}
        - {name: volumes, mountPath: VOLUMES}
      - name: provisioner
        image: "` + harness.BoxImage + `"
        imagePullPolicy: Never
        command: [/programs/provisioner, --csi-address=KUBELET/plugins/csi.coracle.test/csi.sock]
        volumeMounts:
        - {name: programs, mountPath: /programs, readOnly: true}
        - {name: kubelet, mountPath: KUBELET}
      volumes:
      - {name: programs, hostPath: {path: PROGRAMS, type: Directory}}
      - {name: kubelet, hostPath: {path: KUBELET, type: Directory}}
      - {name: volumes, hostPath: {path: VOLUMES, type: DirectoryOrCreate}}
`

// csiUser is a pod of an ordinary user with a volume of that driver.
var csiUser = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: csi, accessModes: [ReadWriteOnce], resources: {requests: {storage: 5Mi}}}
---
` + harness.Workload("StatefulSet", "user", "serviceName: user", `
  terminationGracePeriodSeconds: 1, securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000},
  containers: [`+boxYAML+`, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}],
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]`)

// TestCSIDriver: a storage driver as others make them, with upstream's provisioner, makes a volume for a claim, which
// outlives its pod, the driver and coracle's process, and removes it.
func TestCSIDriver(t *testing.T) {
	t.Parallel() // it mostly waits
	s := harness.NewMachine(t).NewServer()
	programs, kubelet, volumes := filepath.Join(s.Dir, "programs"), filepath.Join(s.DataDir, "agent", "kubelet"), filepath.Join(s.Dir, "volumes")
	testenv.NoError(t, os.Mkdir(programs, 0o755))
	for _, p := range []string{csi.Driver, csi.Provisioner} {
		csi.Build(t, p, filepath.Join(programs, filepath.Base(p)))
	}
	s.AddBoxImage()
	s.StartNode()
	t.Cleanup(func() {
		if t.Failed() {
			for _, c := range []string{"driver", "provisioner"} {
				out, err := s.TryKubectl("logs", "deployment/csi", "-c", c, "--tail=40")
				t.Logf("%s: %v\n%s", c, err, out)
			}
			s.In(t).Dump()
		}
	})
	s.Apply(strings.NewReplacer("PROGRAMS", programs, "KUBELET", kubelet, "VOLUMES", volumes, "NODE", s.NodeName()).Replace(csiDriver))
	harness.Eventually(t, longer, "the kubelet knows the driver", func() error {
		out, err := s.TryKubectl("get", "csinode", s.NodeName(), "-o", "jsonpath={.spec.drivers[*].name} {.spec.drivers[*].topologyKeys}")
		if err == nil && !strings.Contains(out, `csi.coracle.test ["csi.coracle.test/node"]`) {
			err = errors.New(out)
		}
		return err
	})
	s.Apply(csiUser)
	ready := func() error {
		out, err := s.TryKubectl("get", "pod", "user-0", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}{.metadata.deletionTimestamp}`)
		if err == nil && out != "True" {
			claims, _ := s.TryKubectl("describe", "pvc", "data")
			err = fmt.Errorf("ready: %q\n%s", out, claims)
		}
		return err
	}
	harness.Eventually(t, longer, "the pod has its volume", ready)
	if out := s.Kubectl("exec", "user-0", "--", "sh", "-c", "echo kept > /data/file && stat -c '%u %g' /data/file"); strings.TrimSpace(out) != "1000 2000" {
		t.Errorf("the pod writes as %s, want its user and fsGroup", out)
	}
	harness.Says(t, s.Kubectl("get", "pv", "-o", "jsonpath={.items[*].spec.csi.driver} {.items[*].spec.nodeAffinity}"), "csi.coracle.test", "csi.coracle.test/node", s.NodeName())

	// The driver, coracle and the pod go and come again.
	s.Kubectl("delete", "pod", "-l", "app=csi", "--wait=false")
	s.Kill()
	s.StartAPI()
	s.Kubectl("rollout", "status", "deployment/csi", "--timeout=300s")
	s.Kubectl("delete", "pod", "user-0", "--wait=false") // its end waits for the driver, which the kubelet asks less and less often
	harness.Eventually(t, longer, "the new pod has the data", func() error {
		if err := ready(); err != nil {
			return err
		}
		out, err := s.TryKubectl("exec", "user-0", "--", "cat", "/data/file")
		if err == nil && strings.TrimSpace(out) != "kept" {
			err = fmt.Errorf("the volume has %q", out)
		}
		return err
	})

	s.Kubectl("delete", "statefulset", "user")
	s.Kubectl("delete", "pvc", "data", "--wait=false")
	harness.Eventually(t, longer, "the volume is gone", func() error {
		out, err := s.TryKubectl("get", "pv,pvc", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("there is still %s", out)
		}
		left, e := os.ReadDir(volumes)
		if e == nil && len(left) > 0 {
			e = fmt.Errorf("the driver has %v", left)
		}
		return errors.Join(err, e)
	})
}
