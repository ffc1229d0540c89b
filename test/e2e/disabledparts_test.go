//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// disableFlags switch off what is there without being installed.
var disableFlags = []string{"--disable", "metrics-server,local-storage,helm-controller,content"}

// statusLine fails unless the line of a part in coracle status begins with a state.
func statusLine(s *harness.Server, part, want string) error {
	out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir) // it fails where a part is in trouble, and the line counts here
	if !regexp.MustCompile(`(?m)^\s*` + part + `\s+` + want).MatchString(out) {
		return fmt.Errorf("the line %q does not say %q, %v:\n%s", part, want, err, out)
	}
	return nil
}

// withChart lays a HelmChart into a server's folder of manifests, before the server starts. Its kind is defined for it,
// if anything is.
func withChart(t *testing.T, s *harness.Server) {
	t.Helper()
	dir := filepath.Join(s.DataDir, "manifests")
	testenv.NoError(t, os.MkdirAll(dir, 0o755))
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "chart.yaml"), []byte(helmChart("nothing", "chart: nothing-1.0.0.tgz")), 0o644))
}

// partsRun: a server without such a flag has all four parts, and the status says so.
func partsRun(t *testing.T, s *harness.Server) {
	t.Helper()
	k := s.In(t)
	testenv.True(t, testenv.Must(s.Status())(t).Content != nil, "the status does not say where images came from")
	for part, want := range map[string]string{"metrics API": "running.*idle until a client requests metrics", "local storage": "running", "helm charts": "running"} {
		harness.Eventually(t, soon, part+": "+want, func() error { return statusLine(s, part, want) })
	}
	k.Await(soon, "apiservice/v1beta1.metrics.k8s.io", `{.status.conditions[?(@.type=="Available")].status}`, "True")
	k.Await(soon, "storageclass/local-path", "{.provisioner}", "rancher.io/local-path")
	k.Await(soon, "crd/helmcharts.helm.cattle.io", `{.status.conditions[?(@.type=="Established")].status}`, "True")
	harness.Says(t, k.Kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"), "NodeMetricsList")
	harness.Eventually(t, soon, "the status says that clients ask", func() error {
		return statusLine(s, "metrics API", "running.*clients ask, so kubelets are asked every 15s")
	})
}

// partsDisabled: a server with that flag has none of the four, says so, and does nothing about what is asked of
// them.
func partsDisabled(t *testing.T, s *harness.Server) {
	t.Helper()
	k := s.In(t)
	testenv.True(t, testenv.Must(s.Status())(t).Content == nil, "the status says where images came from, and machines share none")
	for _, part := range []string{"metrics API", "local storage", "helm charts"} {
		harness.Eventually(t, soon, part+" is disabled", func() error { return statusLine(s, part, "disabled") })
	}
	k.Refused("Metrics API not available", "top", "node")
	k.Refused("not found", "get", "apiservice", "v1beta1.metrics.k8s.io")

	// The kind would have been defined for the manifest, before this was said.
	harness.Eventually(t, soon, "the manifest is not applied", func() error { return s.LogSays("the cluster has no kind HelmChart") })
	k.Refused("not found", "get", "crd", "helmcharts.helm.cattle.io")

	k.Refused("not found", "get", "storageclass", "local-path")
	const claims = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: default-class}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: that-class}
spec: {storageClassName: local-path, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`
	k.Apply(claims)
	for claim, why := range map[string]string{"default-class": "no storage class is set", "that-class": `storageclass.storage.k8s.io "local-path" not found`} {
		k.Prints([]string{why}, "get", "events", "--field-selector", "involvedObject.kind=PersistentVolumeClaim,involvedObject.name="+claim, "-o", "jsonpath={.items[*].message}")
		testenv.Equal(t, k.Kubectl("get", "pvc", claim, "-o", "jsonpath={.status.phase}"), "Pending", "the claim %s is", claim)
	}
	k.Kubectl("delete", "pvc", "--all")
}
