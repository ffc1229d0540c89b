//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// chartByHand: a user installs a chart from a folder with coracle helm, upgrades it, goes back and uninstalls it,
// beside a release of a HelmChart of the same namespace, which stays as it is.
func chartByHand(k *harness.Kube) {
	k.T.Helper()
	folder := filepath.Join(k.Dir, "chart-by-hand")
	for path, text := range webChart("1.0.0") {
		file := filepath.Join(folder, path)
		testenv.NoError(k.T, os.MkdirAll(filepath.Dir(file), 0o755))
		testenv.NoError(k.T, os.WriteFile(file, []byte(text), 0o644))
	}
	helm := func(args ...string) (out string) {
		k.T.Helper()
		err := harness.Reaching(func() (err error) {
			out, err = k.Run(k.Coracle(), append([]string{"helm", "--kubeconfig", k.Kubeconfig, "--namespace", k.NS}, args...)...)
			return err
		})
		testenv.NoError(k.T, err, "coracle helm %s", strings.Join(args, " "))
		return out
	}
	greets := func(want string) {
		k.T.Helper()
		testenv.Equal(k.T, k.Kubectl("get", "configmap/hand-greeting", "-o", "jsonpath={.data.greeting}"), want, "it greets with")
	}
	others := func() string { // what the HelmChart's release wants, and its revisions; the Deployment's status may change by itself
		return k.Kubectl("get", "deployment/web", "-o", "jsonpath={.metadata.uid} {.metadata.generation}") + "\n" +
			k.Kubectl("get", "configmap/web-greeting", "-o", "jsonpath={.metadata.uid} {.metadata.resourceVersion}") + "\n" + helm("history", "web", "--output", "json")
	}
	before := others()

	helm("install", "hand", folder, "--set", "greeting=first,replicas=1", "--wait", "--timeout", "3m")
	greets("first")
	if ready := k.Kubectl("get", "deployment/hand", "-o", "jsonpath={.status.readyReplicas}"); ready != "1" {
		k.T.Errorf("helm --wait has waited for %q pods", ready)
	}
	helm("upgrade", "hand", folder, "--set", "greeting=second,replicas=0")
	greets("second")
	helm("rollback", "hand", "1")
	greets("first")
	k.Await(soon, "deployment/hand", "{.spec.replicas}", "1")
	harness.Says(k.T, helm("history", "hand"), "Install complete", "Upgrade complete", "Rollback to 1")
	harness.Says(k.T, helm("list"), "hand", "web", "deployed")
	helm("uninstall", "hand", "--wait", "--timeout", "3m")
	if out := k.Kubectl("get", "deployments,configmaps", "-o", "name"); strings.Contains(out, "hand") {
		k.T.Errorf("a release that was uninstalled has left %s", out)
	}
	testenv.Equal(k.T, others(), before, "the HelmChart's release was\n%s\nand is", before)
	awaitChart(k, "web", "Deployed")
}
