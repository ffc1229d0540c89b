//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// roomFolder is a folder for volumes on every node of a scenario, whose filesystem has a size of its own on each.
const roomFolder = "/opt/volumes"

// giveRoom gives a machine that folder, until it is switched off.
func giveRoom(t *testing.T, node *harness.Server, size string) {
	t.Helper()
	if out, err := node.Run("sh", "-c", "mkdir -p "+roomFolder+" && mount -t tmpfs -o mode=755,size="+size+" room "+roomFolder); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// roomy is a class of that folder whose volumes are retained, and a claim and a pod that would rather run on one node.
const roomy = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: room}
provisioner: rancher.io/local-path
parameters: {nodePath: ` + roomFolder + `}
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Retain
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: room}
spec: {storageClassName: room, accessModes: [ReadWriteOnce], resources: {requests: {storage: 24Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: room}
spec:
  affinity:
    nodeAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}}
  terminationGracePeriodSeconds: 1
  containers: [` + boxYAML + `, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: room}}]
`

// goesWhereRoomIs: a claim that is refused by the node that its pod likes best gets its volume on the other one. It
// grows there as far as there is room, and what is retained stays, without its claim and without its PersistentVolume.
func goesWhereRoomIs(t *testing.T, s, small, large *harness.Server) {
	t.Helper()
	k := s.In(t)
	expectEvent := func(reason, want string) {
		t.Helper()
		k.Prints([]string{want}, "get", "events", "--field-selector",
			"involvedObject.kind=PersistentVolumeClaim,involvedObject.name=room,reason="+reason, "-o", "jsonpath={.items[*].message}")
	}
	grow := func(to string) {
		t.Helper()
		k.Kubectl("patch", "pvc", "room", "-p", `{"spec":{"resources":{"requests":{"storage":"`+to+`"}}}}`)
	}
	k.Apply(fmt.Sprintf(roomy, small.NodeName()))
	k.Kubectl("wait", "--for=condition=Ready", "pod/room", "--timeout=300s")
	testenv.Equal(t, k.Kubectl("get", "pod", "room", "-o", "jsonpath={.spec.nodeName}"), large.NodeName(), "the pod is on")
	expectEvent("ProvisioningFailed", "node "+small.NodeName()+": 24.0 MiB are asked for and 8.0 MiB are free in "+roomFolder)
	k.Kubectl("exec", "room", "--", "sh", "-c", "echo kept > /data/file")

	grow("40Mi")
	k.Await(soon, "pvc/room", "{.status.capacity.storage}", "40Mi")
	grow("1Gi")
	expectEvent("VolumeResizeFailed", "left in "+roomFolder+", and the volume is to grow by 984.0 MiB")
	volume := k.Kubectl("get", "pvc", "room", "-o", "jsonpath={.spec.volumeName}")
	k.Await(soon, "pv/"+volume, "{.spec.capacity.storage} {.status.phase}", "40Mi Bound")

	path := k.Kubectl("get", "pv", volume, "-o", "jsonpath={.spec.local.path}")
	kept := func() {
		t.Helper()
		if out, err := large.Run("cat", path+"/file"); err != nil || strings.TrimSpace(out) != "kept" {
			t.Errorf("a volume that is retained holds %q: %v", out, err)
		}
	}
	k.Kubectl("delete", "pod,pvc", "room", "--timeout=180s")
	k.Await(soon, "pv/"+volume, "{.status.phase}", "Released")
	kept()
	k.Kubectl("delete", "pv", volume, "--timeout=180s")
	kept()
}
