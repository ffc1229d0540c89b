//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// quotaMemory is the memory of a machine whose store has a quota of 21 MB.
const quotaMemory = 256 << 20

// condemned is what is there before the quota is used up, and is deleted then.
const condemned = `
apiVersion: v1
kind: Namespace
metadata: {name: doomed}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: inside, namespace: doomed, finalizers: [example.com/wait]}
---
apiVersion: v1
kind: Pod
metadata: {name: inside, namespace: doomed}
spec:
  terminationGracePeriodSeconds: 1
  containers: [` + boxYAML + `, command: [testbox, hold]}]
---
apiVersion: v1
kind: Pod
metadata: {name: runs}
spec:
  terminationGracePeriodSeconds: 1
  containers: [` + boxYAML + `, command: [testbox, hold]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: held, finalizers: [example.com/wait]}
`

// filler fills a store's quota.
type filler struct {
	k    *harness.Kube
	dir  string
	made int
}

// fill makes ConfigMaps, large ones first, until none of some size fits in.
func (f *filler) fill(t *testing.T, largest int) {
	t.Helper()
	for size := largest; size > 0; size /= 6 {
		for ; ; f.made++ {
			path := filepath.Join(f.dir, "data")
			data := make([]byte, size)
			for i := range data {
				data[i] = byte('a' + rand.IntN(26))
			}
			testenv.NoError(t, os.WriteFile(path, data, 0o600))
			_, err := f.k.Try("create", "configmap", "-n", "fill", fmt.Sprintf("fill-%d", f.made), "--from-file="+path)
			if err != nil {
				testenv.Contains(t, err.Error(), "space exceeded", "filling up:")
				break
			}
		}
	}
}

// TestStoreQuota uses up the quota of the store. The status says so with the exit code 1, and what takes most. Pods,
// objects with finalizers and a namespace can be deleted all the same, as people do it. What takes the space is counted
// while no server runs, too. Once it is deleted, all is well again.
func TestStoreQuota(t *testing.T) {
	m := harness.NewMachine(t)
	m.LimitMemory(quotaMemory)
	s := m.NewServer()
	s.AddBoxImage()
	k := s.In(t)
	s.StartNode()
	k.Await(soon, "serviceaccount/default", "{.metadata.name}", "default")
	k.Apply(condemned)
	k.Kubectl("create", "namespace", "fill")
	k.Kubectl("wait", "--for=condition=Ready", "pod/runs", "--timeout=900s")
	k.Kubectl("wait", "--for=condition=Ready", "-n", "doomed", "pod/inside", "--timeout=900s")
	coracle := func(args ...string) (string, error) {
		return s.Run(s.Coracle(), append(args, "--data-dir", s.DataDir)...)
	}
	refuses := func(want bool) {
		t.Helper()
		harness.Eventually(t, soon, fmt.Sprintf("status says that writes are refused: %v", want), func() error {
			out, err := coracle("status")
			if says := strings.Contains(out, "! store: writes are refused: the store's quota is used up."); says != want || want && err == nil {
				return errors.Join(err, errors.New(out))
			}
			return nil
		})
	}
	refuses(false)
	f := &filler{k: k, dir: t.TempDir()}
	f.fill(t, 900_000)
	refuses(true)
	out, err := coracle("status")
	testenv.True(t, err != nil, "the exit code of status is 0")
	harness.Says(t, out, "note: the objects in the store take 9", "Most is taken by configmaps (")
	out, err = coracle("store", "status")
	testenv.True(t, err != nil, "the exit code of store status is 0")
	harness.Says(t, out, "! writes are refused: the store's quota is used up.")
	harness.Says(t, k.Kubectl("get", "--raw", "/metrics"), `coracle_store_writes_refused{reason="quota"} 1`)
	usage := func() {
		t.Helper()
		out, err := coracle("store", "usage")
		testenv.NoError(t, err, "store usage")
		lines := strings.Split(out, "\n")
		testenv.True(t, len(lines) > 3 && strings.HasPrefix(lines[3], "configmaps "), "store usage prints\n%s", out)
		testenv.Contains(t, strings.Join(strings.Fields(out), " "), "configmaps fill ", "store usage:")
	}
	usage()

	f.fill(t, 5000)
	k.Kubectl("delete", "pod", "runs", "--timeout=120s")
	k.Refused("not found", "get", "pod", "runs")
	f.fill(t, 5000)
	k.Kubectl("delete", "configmap", "held", "--wait=false")
	k.Kubectl("patch", "configmap", "held", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	k.Refused("not found", "get", "configmap", "held")
	f.fill(t, 5000)
	k.Kubectl("delete", "namespace", "doomed", "--wait=false")
	k.Await(longer, "namespace/doomed", "{.status.phase}", "Terminating")
	k.Kubectl("wait", "--for=jsonpath={.metadata.deletionTimestamp}", "-n", "doomed", "configmap/inside", "--timeout=900s")
	f.fill(t, 5000)
	k.Kubectl("patch", "configmap", "-n", "doomed", "inside", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	k.Kubectl("wait", "--for=delete", "namespace/doomed", "--timeout=900s")

	// What takes the space is known without an API server, and a new process refuses as well.
	s.Kill()
	usage()
	s.Start()
	awaitAPI(t, s)
	f.fill(t, 5000)
	refuses(true)
	k.Kubectl("delete", "namespace", "fill", "--timeout=900s")
	refuses(false)
	k.Kubectl("create", "configmap", "again", "--from-literal=a=b")
	testenv.NoError(t, s.Stop())
}
