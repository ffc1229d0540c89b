//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"cmp"
	"context"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// shop is what the pictures of docs/console.md show.
var shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: ` + harness.BoxImage + `
        imagePullPolicy: Never
        resources: {requests: {cpu: 10m, memory: 16Mi}}
        command:
        - sh
        - -c
        - |
          i=0
          for path in / /cart /search?q=tea /img/logo.svg /checkout /product/17 /product/4 /cart /login /; do
            i=$((i+1)); usleep 300000
            printf 'GET %-16s \033[32m200\033[0m %dms\n' $path $((i*13%40+2))
          done
          printf 'POST %-15s \033[31m502\033[0m upstream payments: connection refused\n' /checkout
          exec testbox hold
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: payments, namespace: shop, labels: {app: payments}}
spec:
  replicas: 1
  selector: {matchLabels: {app: payments}}
  template:
    metadata: {labels: {app: payments}}
    spec:
      containers:
      - name: payments
        image: ` + harness.BoxImage + `
        imagePullPolicy: Never
        command: [sh, -c, 'echo "reading /etc/payments/key.pem"; echo "error: no such file: is the Secret payments-key mounted?"; exit 1']
---
` + harness.Workload("StatefulSet", "shop/database", "serviceName: database, replicas: 2", `
  terminationGracePeriodSeconds: 0,
  containers: [{name: database, image: `+harness.BoxImage+`, imagePullPolicy: Never, command: [testbox, hold]}]`) + `
apiVersion: batch/v1
kind: Job
metadata: {name: import-29731, namespace: shop}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: import, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [sh, -c, 'echo 1,204 products imported']}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: uploads, namespace: shop}
spec: {storageClassName: fast, accessModes: [ReadWriteOnce], resources: {requests: {storage: 20Gi}}}
`

// picture keeps a picture for the docs: in as few colours as a small file takes.
func (p *page) picture(name string) {
	p.T.Helper()
	folder := os.Getenv("CORACLE_TEST_SHOTS")
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	shot := testenv.Must(chromedp.Run(ctx, chromedp.CaptureScreenshot()))(p.T)
	full := testenv.Must(png.Decode(bytes.NewReader(shot)))(p.T)
	var out bytes.Buffer
	testenv.NoError(p.T, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, fewColors(full, 160)))
	testenv.False(p.T, out.Len() > 60<<10, "%s has %d KB", name, out.Len()>>10)
	testenv.NoError(p.T, os.WriteFile(filepath.Join(folder, name+".png"), out.Bytes(), 0o644))
}

// fewColors makes each pixel the nearest of the colours that most have.
func fewColors(full image.Image, most int) *image.Paletted {
	count := map[color.RGBA]int{}
	bounds := full.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c, _ := color.RGBAModel.Convert(full.At(x, y)).(color.RGBA)
			count[c]++
		}
	}
	byCount := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a.R, b.R), cmp.Compare(a.G, b.G), cmp.Compare(a.B, b.B))
	})
	palette := make(color.Palette, 0, most)
	for _, c := range byCount[:min(most, len(byCount))] {
		palette = append(palette, c)
	}
	nearest := map[color.RGBA]uint8{}
	out := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c, _ := color.RGBAModel.Convert(full.At(x, y)).(color.RGBA)
			at, known := nearest[c]
			if !known {
				at = uint8(palette.Index(c)) //nolint:gosec // below 256
				nearest[c] = at
			}
			out.SetColorIndex(x, y, at)
		}
	}
	return out
}

// TestEachPictureOfTheDocsIsMade makes the pictures of docs/console.md in the folder that CORACLE_TEST_SHOTS names.
func TestEachPictureOfTheDocsIsMade(t *testing.T) {
	if os.Getenv("CORACLE_TEST_SHOTS") == "" {
		t.Skip("CORACLE_TEST_SHOTS names no folder for the pictures") // they are made by hand, for the docs
	}
	k := newServer(t)
	k.Apply(shop)
	k.Kubectl("-n", "shop", "rollout", "status", "deployment/web", "--timeout=120s")
	k.Kubectl("-n", "shop", "rollout", "status", "statefulset/database", "--timeout=120s")
	harness.Eventually(t, harness.Longer, "a pod fails again and again", func() error {
		_, err := k.Try("-n", "shop", "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=3", "pod", "-l", "app=payments", "--timeout=60s")
		return err
	})
	p := newBrowser(t, k.Machine.Site).admin(k)
	p.size(1040, 640)

	p.keys(":", "po shop", kb.Enter)
	p.shows("web-", "database-1", "payments-")
	p.keys("0")
	p.shows("payments", "Details", "key.pem")
	p.picture("overview-light")
	p.dark(true)
	p.size(360, 640)
	p.picture("overview-phone")
	p.size(1040, 640)
	p.list("po shop")
	p.shows("web-", "payments-")
	p.keys("g", "j", "j")
	p.picture("list-dark")
	p.dark(false)
	p.size(360, 640)
	p.picture("list-phone")
	p.size(1040, 640)
	p.find("deploy shop", "web")
	p.dark(true)
	p.keys("l")
	p.shows("connection refused")
	p.until("the lines of three pods", func(string) bool { return eval[int](p, `document.querySelectorAll(".log-line").length`) >= 33 })
	p.picture("log-dark")
	p.dark(false)
	p.back()
	p.until("the cursor is on a row again", func(string) bool { return p.cursor() != "" })
	p.keys("e")
	p.editor("replicas: 3")
	p.replace("replicas: 3", "replicas: 5")
	p.replace("memory: 16Mi", "memory: 32Mi")
	p.ctrl(ctrlEnter)
	p.shows("What will change")
	p.picture("edit-light")
	p.saysNothing()
}
