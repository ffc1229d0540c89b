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

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// keepers is a pod on each of two nodes, of an ordinary user, with a volume of the default class.
var keepers = harness.Workload("StatefulSet", "keep", `
  serviceName: keep, replicas: 2, podManagementPolicy: Parallel,
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 5Mi}}}}]`, `
  terminationGracePeriodSeconds: 1, securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000},
  `+harness.OnePerNode("keep")+`,
  containers: [`+boxYAML+`, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}]`)

// hold fails unless both pods run with what was written into their volumes.
func hold(s *harness.Server) error {
	for _, pod := range []string{"keep-0", "keep-1"} {
		out, err := s.TryKubectl("get", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}{.metadata.deletionTimestamp}`)
		if err == nil && out != "True" {
			err = fmt.Errorf("%s is ready: %q", pod, out)
		}
		if err == nil {
			out, err = s.TryKubectl("exec", pod, "--", "cat", "/data/who")
		}
		if err == nil && strings.TrimSpace(out) != pod {
			err = fmt.Errorf("%s has %q in its volume", pod, out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inStorage fails unless a node's folder for volumes has so many entries.
func inStorage(node *harness.Server, want int) error {
	entries, err := os.ReadDir(filepath.Join(node.DataDir, "storage"))
	if want == 0 && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) != want {
		err = fmt.Errorf("%s has %d volumes, want %d: %v", node.NodeName(), len(entries), want, entries)
	}
	return err
}

// claimant is a claim of a class and a pod with it on a node.
func claimant(name, class, size string, node *harness.Server) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec: {storageClassName: %[2]s, accessModes: [ReadWriteOnce], resources: {requests: {storage: %[3]s}}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeSelector: {kubernetes.io/hostname: %[4]s}
  terminationGracePeriodSeconds: 1
  containers: [`+boxYAML+`, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: %[1]s}}]
---
`, name, class, size, node.NodeName())
}

// inFolder is a StorageClass for one of the nodes' folders.
func inFolder(name, folder string) string {
	return fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: rancher.io/local-path
parameters: {nodePath: %s}
volumeBindingMode: WaitForFirstConsumer
---
`, name, folder)
}

// TestLocalStorage: volumes of a StatefulSet on two nodes outlive its pods, the processes and a node's machine; and
// they are removed with their claims, from a node that was off at that moment as well, and from one that was not even
// of the cluster. A node may have further folders for them, some of which cannot be used, or have no room while another
// node's have.
func TestLocalStorage(t *testing.T) {
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer()
	s.AddBoxImage()
	s.Args = append(s.Args, "--default-local-storage-path", filepath.Join(s.DataDir, "storage")+","+roomFolder)
	giveRoom(t, s, "8m")
	s.StartAPI()
	a := site.NewMachine().NewAgent(s)
	giveRoom(t, a, "128m")
	folder := func(name string) string { return filepath.Join(a.Dir, name) }
	a.Args = append(a.Args, "--default-local-storage-path", strings.Join([]string{filepath.Join(a.DataDir, "storage"), folder("second"), folder("gone"), folder("frozen"), roomFolder}, ","))
	testenv.NoError(t, errors.Join(os.Mkdir(folder("second"), 0o755), os.Mkdir(folder("frozen"), 0o755)))
	if _, err := a.Run("mount", "-t", "tmpfs", "-o", "ro,mode=700", "frozen", folder("frozen")); err != nil { // until the machine is switched off
		t.Fatal(err)
	}
	a.AddBoxImage()
	a.Start()
	for _, n := range []*harness.Server{s, a} {
		harness.Eventually(t, longer, "the nodes are ready", func() error { return s.NodeReady(n) })
	}
	s.Apply(keepers)
	harness.Eventually(t, soon, "both pods run", func() error {
		out, err := s.TryKubectl("get", "statefulset", "keep", "-o", "jsonpath={.status.readyReplicas}")
		if err == nil && out != "2" {
			claims, _ := s.TryKubectl("describe", "pvc")
			err = fmt.Errorf("%q are ready\n%s", out, claims)
		}
		return err
	})
	for _, n := range []*harness.Server{s, a} {
		testenv.Check(t, inStorage(n, 1))
	}
	for _, pod := range []string{"keep-0", "keep-1"} {
		if out := s.Kubectl("exec", pod, "--", "sh", "-c", "echo "+pod+" > /data/who && stat -c '%u %g' /data/who"); strings.TrimSpace(out) != "1000 2000" {
			t.Errorf("%s writes as %s, want its user and fsGroup", pod, out)
		}
	}
	harness.Says(t, s.Kubectl("get", "pv", "-o", "jsonpath={.items[*].spec.local.path}"), filepath.Join(a.DataDir, "storage", "pvc-"), "_default_data-keep-0", "_default_data-keep-1")

	expectStatus(t, s, "local storage", "local volumes", filepath.Join(s.DataDir, "storage"))
	refuseVolumes(t, s, a)
	goesWhereRoomIs(t, s, s, a)

	s.Kubectl("delete", "pod", "keep-0", "keep-1")
	harness.Eventually(t, soon, "new pods have the data", func() error { return hold(s) })
	// The server's process dies, and the agent's machine loses its power.
	s.Kill()
	a.PowerOff()
	a.PowerOn()
	s.Start()
	a.Start()
	s.WaitAPI()
	harness.Eventually(t, longer, "the node is ready again", func() error { return s.NodeReady(a) })
	harness.Eventually(t, longer, "pods have the data after restarts", func() error { return hold(s) })

	a.PowerOff()
	s.Kubectl("delete", "statefulset", "keep", "--cascade=orphan")
	s.Kubectl("delete", "pod", "keep-0", "keep-1", "--force", "--grace-period=0")
	s.Kubectl("delete", "pvc", "--all")
	harness.Eventually(t, soon, "the volume of the node that is there is removed", func() error { return inStorage(s, 0) })
	s.In(t).Prints([]string{"node " + a.NodeName() + " is away"}, "get", "events", "--field-selector",
		"involvedObject.kind=PersistentVolume", "-o", "jsonpath={.items[*].message}")
	testenv.Check(t, inStorage(a, 1))
	a.PowerOn()
	a.Start()
	harness.Eventually(t, longer, "the volume of the node that was off is removed", func() error {
		out, err := s.TryKubectl("get", "pv", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("there is still %s", out)
		}
		return errors.Join(err, inStorage(a, 0))
	})
	returnWithVolume(t, s, a)
}

// refuseVolumes has claims refused, each for a reason that its event says.
func refuseVolumes(t *testing.T, s, a *harness.Server) {
	t.Helper()
	manifest := ""
	for _, name := range []string{"second", "gone", "frozen"} {
		manifest += inFolder(name, filepath.Join(a.Dir, name))
	}
	refused := map[string]string{"gone": "is not there", "frozen": "read-only file system", "large": "1048576.0 TiB are asked for and"}
	s.Apply(manifest + claimant("gone", "gone", "1Mi", a) + claimant("frozen", "frozen", "1Ki", a) + claimant("large", "second", "1Ei", a))
	for claim, why := range refused {
		harness.Eventually(t, soon, "the claim says why it gets no volume", func() error {
			out, err := s.TryKubectl("get", "events", "--field-selector", "involvedObject.kind=PersistentVolumeClaim,involvedObject.name="+claim, "-o", "jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(out, "node "+a.NodeName()) || !strings.Contains(out, why) {
				err = fmt.Errorf("%s: no %q in %s", claim, why, out)
			}
			return err
		})
		s.Kubectl("delete", "pod,pvc", claim, "--wait=false")
	}
}

// returnWithVolume takes a node out of the cluster while it is off, with a volume in one of its further folders: the
// claim goes at once, and the directory when the node comes back.
func returnWithVolume(t *testing.T, s, a *harness.Server) {
	t.Helper()
	s.Apply(claimant("left", "second", "1Mi", a))
	s.Kubectl("wait", "--for=condition=Ready", "pod/left", "--timeout=300s") // its node has just been switched on
	volume := s.Kubectl("get", "pv", "-o", "jsonpath={.items[*].spec.local.path}")
	if dir, name := filepath.Split(volume); dir != filepath.Join(a.Dir, "second")+"/" || !strings.HasSuffix(name, "_default_left") {
		t.Errorf("the volume is in %s", volume)
	}
	s.Kubectl("exec", "left", "--", "sh", "-c", "echo x > /data/file")
	a.PowerOff()
	s.Kubectl("delete", "node", a.NodeName())
	s.Kubectl("delete", "pod", "left", "--force", "--grace-period=0")
	s.Kubectl("delete", "pvc", "left")
	s.In(t).Becomes(soon, "", "get", "pv", "-o", "name")
	const record = "local-storage.coracle"
	harness.Says(t, s.Kubectl("get", "configmap", record, "-n", "kube-system", "-o", "jsonpath={.data."+a.NodeName()+"}"), volume)
	testenv.Check(t, testenv.Err(os.Stat(filepath.Join(volume, "file"))), "the directory on a node that is off")
	a.PowerOn()
	a.Start()
	harness.Eventually(t, longer, "the directory goes when the node comes back", func() error {
		out, err := s.TryKubectl("get", "configmap", record, "-n", "kube-system", "--ignore-not-found", "-o", "name")
		if err == nil && out != "" {
			err = errors.New("it is still written down")
		}
		left, e := os.ReadDir(filepath.Dir(volume))
		if e == nil && len(left) > 0 {
			e = fmt.Errorf("there is %v", left)
		}
		return errors.Join(err, e)
	})
}
