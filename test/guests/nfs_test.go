//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testNFS: pods on both machines share a PersistentVolume of the kernel's NFS server on the first one, and nothing is
// mounted any more when they are gone.
func testNFS(t *testing.T, l *lab) {
	l.needNFS(t)
	first := l.nodes[0]
	l.shareNFS(first)
	l.kube.Apply(nfsPod(1) + "---" + nfsPod(2))
	for i := range l.nodes {
		l.prints(t, "true", "get", "pod", nfsName(i+1), "-o", "jsonpath={.status.containerStatuses[0].ready}")
	}
	l.exec(t, nfsName(2), "sh", "-c", "echo by the second > /data/file")
	testenv.Equal(t, l.exec(t, nfsName(1), "cat", "/data/file"), "by the second", "the first pod reads")
	l.exec(t, nfsName(1), "sh", "-c", "echo by the first > /data/other")
	testenv.Equal(t, l.exec(t, nfsName(2), "sh", "-c", "cat /data/other; ls /data"), "by the first\nfile\nother", "the second pod reads")
	testenv.Equal(t, first.sh("cat /run/disk/export/file /run/disk/export/other"), "by the second\nby the first", "the server has")
	for _, n := range l.nodes {
		t.Logf("%s: %s", n.Name, n.sh(nfsMounts))
	}
	l.kube.Kubectl("delete", "pod", nfsName(1), nfsName(2))
	for _, n := range l.nodes {
		l.await(t, n.Name+" has unmounted it", func() error {
			mounts, err := n.try(nfsMounts + " || true")
			if err == nil && mounts != "" {
				err = fmt.Errorf("it has:\n%s", mounts)
			}
			return err
		})
	}
	testenv.Equal(t, strings.Join(strings.Fields(first.sh("ls /run/disk/export")), " "), "file other", "the server has kept")
}

// shareNFS makes a machine an NFS server, and a claim of its folder /run/disk/export.
func (l *lab) shareNFS(server *node) {
	// NFSv4 alone, for which a server needs neither rpcbind nor statd. Clients that a server does not know wait for the
	// end of its grace time.
	server.sh(`set -e
mkdir -p /run/disk/export
touch /etc/exports /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t nfsd nfsd /proc/fs/nfsd
exportfs -o rw,no_root_squash,no_subtree_check,insecure,fsid=0 10.77.0.0/24:/run/disk/export
rpc.nfsd -N 3 -G 10 -L 10 2
rpc.mountd -N 3`)
	l.kube.Apply(fmt.Sprintf(`
{apiVersion: v1, kind: PersistentVolume, metadata: {name: shared}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteMany], storageClassName: "",
  nfs: {server: %s, path: /}}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: shared}, spec: {storageClassName: "", volumeName: shared, accessModes: [ReadWriteMany],
  resources: {requests: {storage: 1Gi}}}}
`, server.IP))
}

const nfsMounts = `grep -E ' nfs4? ' /proc/mounts`

func nfsName(number int) string { return fmt.Sprintf("nfs-%d", number) }

// TestShutdownUnmountsNFS: a machine that goes down stops its pods and unmounts their volumes while it has its network,
// so that the server has what a pod wrote at last. Its Node says that nothing is left of a StatefulSet's pod.
func TestShutdownUnmountsNFS(t *testing.T) {
	l := newLab(t)
	l.needNFS(t)
	for range 2 {
		l.add()
	}
	first, second := l.nodes[0], l.nodes[1]
	first.ready(t)
	second.ready(t)
	l.shareNFS(first)
	l.kube.Apply(fmt.Sprintf(`
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: writer}, spec: {serviceName: writer, selector: {matchLabels: {app: writer}}, template: {
  metadata: {labels: {app: writer}}, spec: {nodeSelector: {kubernetes.io/hostname: %s},
  volumes: [{name: data, persistentVolumeClaim: {claimName: shared}}], containers: [{name: box, image: "%s", imagePullPolicy: Never,
  command: [sh, -c, 'trap "echo at last > /data/last; exit 0" TERM; while true; do date >> /data/file; sleep 1; done'],
  volumeMounts: [{name: data, mountPath: /data}]}]}}}}
`, second.Name, harness.BoxImage))
	l.prints(t, "true", "get", "pod", "writer-0", "-o", "jsonpath={.status.containerStatuses[0].ready}")
	t.Logf("%s: %s", second.Name, second.sh(nfsMounts))
	// As a service manager's order has it. The shell needs the network, so it does not wait.
	second.sh(fmt.Sprintf(`(%s node stop-pods --data-dir /run/disk/data > /run/shared/stopped 2>&1
%s >> /run/shared/stopped
ip link set vec0 down
sync
touch /run/shared/off) > /dev/null 2>&1 < /dev/null &`, l.server.Coracle(), nfsMounts))
	file := filepath.Join(l.shared, "off")
	l.await(t, "the machine has left the network", func() error { _, err := os.Stat(file); return err })
	text := testenv.Must(os.ReadFile(filepath.Join(l.shared, "stopped")))(t)
	t.Logf("%s", text)
	testenv.True(t, strings.HasPrefix(string(text), "stopped ") && strings.Count(string(text), "\n") == 1,
		"the stop, and the mounts that were left:\n%s", text)
	testenv.Equal(t, first.sh("cat /run/disk/export/last"), "at last", "the server has")
	l.prints(t, "yes", "get", "node", second.Name, "-o",
		`go-template={{if eq (index .metadata.annotations "coracle.dev/stopped") .status.nodeInfo.bootID}}yes{{end}}`)
}

// nfsPod is a pod on a machine, with the claim at /data.
func nfsPod(number int) string {
	return fmt.Sprintf(`
{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeSelector: {kubernetes.io/hostname: guest-%d}, terminationGracePeriodSeconds: 0,
  volumes: [{name: data, persistentVolumeClaim: {claimName: shared}}], containers: [
  {name: box, image: "%s", imagePullPolicy: Never, command: [testbox, hold], volumeMounts: [{name: data, mountPath: /data}]}]}}
`, nfsName(number), number, harness.BoxImage)
}
