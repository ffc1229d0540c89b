//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// attachStick makes a disk with the label CORACLE of a folder's content.
func (h *installed) attachStick(folder string) {
	h.t.Helper()
	image := filepath.Join(h.t.TempDir(), "stick")
	testenv.NoError(h.t, os.WriteFile(image, nil, 0o600))
	testenv.NoError(h.t, os.Truncate(image, 64<<20))
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			testenv.Missing(h.t, testenv.LoopDevice, "%s: %v: %s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("mkfs.ext4", "-q", "-L", "CORACLE", "-d", folder, image)
	device := run("losetup", "--find", "--show", image)
	h.t.Cleanup(func() {
		out, err := exec.Command("losetup", "-d", device).CombinedOutput()
		testenv.Check(h.t, err)
		h.t.Logf("losetup -d: %s", out)
	})
}

// TestStickBringsImageAndChart takes a running machine without a network to a release of a bundled chart and to a pod
// of a bundled image, by a stick with one signed file. coracle status names the stick before.
func TestStickBringsImageAndChart(t *testing.T) {
	harness.ByHand(t)
	h := newInstalled(t, harness.NewMachine(t), "server --node-name board --node-ip 10.77.0.2")
	h.serves(h.state().Current)
	key := h.trustKey("")
	folder := filepath.Join(h.Dir, "places/var/lib/coracle")
	harness.WritePauseImage(t, filepath.Join(folder, "shop.tar"), "shop.test/hold:1")
	chart := charts.New("shop", "1.0.0", "").With("templates/config.yaml",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-chart}\ndata: {version: {{ .Chart.Version | quote }}}\n")
	h.place("/var/lib/coracle/shop-1.0.0.tgz", string(chart.Archive()), 0o644)
	h.place("/var/lib/coracle/shop.yaml", `apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: shop, namespace: kube-system}
spec: {chart: shop-1.0.0.tgz, targetNamespace: default}
---
`+harness.Workload("Deployment", "hold", "replicas: 1", `containers: [{name: c, image: "shop.test/hold:1", imagePullPolicy: Never}]`), 0o644)
	file := h.bundle("shop", 3, "--image", "/var/lib/coracle/shop.tar", "--chart", "/var/lib/coracle/shop-1.0.0.tgz", "--manifest", "/var/lib/coracle/shop.yaml")
	stick := t.TempDir()
	put := func() {
		data := testenv.Must(os.ReadFile(filepath.Join(folder, filepath.Base(file))))(t)
		testenv.NoError(t, os.WriteFile(filepath.Join(stick, "shop.bundle"), data, 0o644))
	}
	h.must("sh", "-c", "echo | coracle bundle sign --key "+key+" "+file)
	put()
	h.attachStick(stick)

	harness.Says(t, h.must("coracle", "status"), "CORACLE", "coracle bundle import CORACLE")
	harness.Says(t, h.must("coracle", "bundle", "import", "CORACLE"), "shop.test/hold:1", "shop-1.0.0.tgz", "shop.yaml")
	harness.Eventually(t, harness.Soon, "a pod of the image runs", func() error {
		return harness.Succeeds(h.Run("coracle", "kubectl", "rollout", "status", "deployment/hold", "--timeout=5s"))
	})
	harness.Eventually(t, harness.Longer, "the chart is installed", func() error {
		out, err := h.Run("coracle", "kubectl", "get", "configmap", "from-chart", "-o", "jsonpath={.data.version}")
		if err == nil && out != "1.0.0" {
			err = fmt.Errorf("its version is %q", out)
		}
		return err
	})
	again := h.must("coracle", "bundle", "import", "CORACLE")
	harness.Says(t, again, "counter 3, is imported")
}
