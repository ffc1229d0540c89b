//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodepower

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/powercut"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// rest is how long pods must run undisturbed to count as well: one whose program is empty is Running and ready for a
// moment.
const rest = 4 * time.Second

// diskSize is how much the machine's disk holds. Its file takes only as much room as has been written.
const diskSize = 4 << 30

// node is a machine with a server and its node, whose data directory is on a disk that can lose its power.
type node struct {
	*harness.Server
	random   *rand.Rand
	registry *registry
	file     string // the disk's content
	power    *power
	booted   time.Time
	images   []*image
	counted  int // what the counter in the volume had reached, flushed, when it was read last
}

func newNode(t *testing.T) *node {
	t.Helper()
	testenv.RequireRoot(t, "it makes machines and block devices")
	for file, need := range map[string]testenv.Need{"/dev/fuse": testenv.FUSE, "/dev/loop-control": testenv.LoopDevice} {
		if _, err := os.Stat(file); err != nil {
			testenv.Missing(t, need, "%v", err)
		}
	}
	site := harness.NewSite(t)
	m := site.NewMachine()
	n := &node{random: rand.New(rand.NewPCG(testenv.Seed(t), 0)), registry: newRegistry(t, site), file: filepath.Join(m.Dir, "disk")}
	settings := filepath.Join(m.Dir, "registries.yaml")
	testenv.NoError(t, os.WriteFile(settings, []byte(n.registry.settings()), 0o600))
	n.Server = m.NewServer("--private-registry", settings)
	n.newDisk()
	return n
}

// newDisk gives the machine, which is switched off or has not used a disk yet, an empty disk.
func (n *node) newDisk() {
	n.T.Helper()
	n.images, n.counted = nil, 0
	testenv.NoError(n.T, os.WriteFile(n.file, nil, 0o600))
	testenv.NoError(n.T, os.Truncate(n.file, diskSize))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", n.file).CombinedOutput(); err != nil {
		testenv.Missing(n.T, testenv.LoopDevice, "mkfs.ext4: %v\n%s", err, out)
	}
}

// boot switches the disk on and starts the server.
func (n *node) boot() {
	n.T.Helper()
	n.power = switchOn(n.T, n.file)
	n.MountDisk(n.power.device)
	if n.counted > 0 {
		reached, err := n.counter("number")
		testenv.Require(n.T, err == nil && reached >= n.counted, "the counter went back from %d to %d: %v", n.counted, reached, err)
	}
	n.booted = time.Now()
	n.Start()
}

// cut cuts the power when that many more requests have changed the disk, and switches the machine on again, without
// starting anything. What was written and not flushed is lost in part.
func (n *node) cut(requests int, loss powercut.Loss) {
	n.T.Helper()
	if reached, err := n.counter("flushed"); err == nil {
		n.counted = max(n.counted, reached)
	}
	n.power.cutAfter(requests)
	n.PowerOff()
	left := n.power.settle(n.random.Uint64(), loss)
	n.T.Logf("power cut %v after the boot, after %d more requests; %s", time.Since(n.booted).Round(100*time.Millisecond), requests, left)
	n.PowerOn()
}

// stop takes the machine's disk away, which is not used again, and leaves the machine without one.
func (n *node) stop() {
	n.T.Helper()
	n.PowerOff()
	n.power.end()
	n.PowerOn()
}

// deploy has a pod with a new image, imported or pulled.
func (n *node) deploy(pulled bool) (app string) {
	n.T.Helper()
	app = fmt.Sprintf("app-%d", len(n.images))
	policy, reference := "Never", "coracle.test/"+app+":1"
	if pulled {
		policy, reference = "IfNotPresent", registryHost+"/app:"+app
	}
	im := newImage(n.T, n.random, reference)
	n.images = append(n.images, im)
	if pulled {
		n.registry.add(n.T, im)
	} else {
		im.put(n.T, n.Seen("images"), app+".tar")
	}
	n.InsistsOn(fmt.Sprintf(deployment, app, im.name, policy))
	return app
}

var deployment = harness.Workload("Deployment", "%[1]s", "", `
  terminationGracePeriodSeconds: 0,
  containers: [{name: c, image: "%[2]s", imagePullPolicy: %[3]s, command: [/bin/busybox, sleep, "1000000"]}]`)

// count has a pod count in a local volume. It writes how far it has got to "flushed" once that is on the disk.
func (n *node) count() {
	n.T.Helper()
	im := newImage(n.T, n.random, "coracle.test/counter:1")
	n.images = append(n.images, im)
	im.put(n.T, n.Seen("images"), "counter.tar")
	n.InsistsOn(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: counter}
spec:
  serviceName: counter
  selector: {matchLabels: {app: counter}}
  volumeClaimTemplates:
  - metadata: {name: d}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
  template:
    metadata: {labels: {app: counter}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: coracle.test/counter:1
        imagePullPolicy: Never
        command:
        - /bin/sh
        - -c
        - |
          n=$(cat /d/number || echo 0)
          while true; do
            n=$((n+1))
            echo $n > /d/new; sync /d/new; mv /d/new /d/number; sync /d
            echo $n > /d/flushed
            sleep 1
          done
        volumeMounts: [{name: d, mountPath: /d}]
`)
}

// counter reads one of the counter's files.
func (n *node) counter(file string) (int, error) {
	found, err := filepath.Glob(n.Seen("storage", "*", file))
	if err != nil || len(found) != 1 {
		return 0, fmt.Errorf("%d files %s: %w", len(found), file, err)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// ready waits until the pods of an app, or of all for "", have a container that runs since the boot.
func (n *node) ready(app string) {
	n.T.Helper()
	harness.Eventually(n.T, harness.Soon, "pods "+app+" run", func() error { _, err := n.containers(app); return err })
}

// containers lists the containers of an app's pods, or of all, and fails unless each of them runs since the boot.
func (n *node) containers(app string) (ids []string, err error) {
	args := []string{"get", "pods", "-o", "json"}
	if app != "" {
		args = append(args, "-l", "app="+app)
	}
	out, err := n.TryKubectl(args...)
	if err != nil {
		return nil, err
	}
	var pods corev1.PodList
	if err := json.Unmarshal([]byte(out), &pods); err != nil {
		return nil, err
	}
	if len(pods.Items) == 0 {
		return nil, errors.New("there is no pod")
	}
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Running == nil || s.State.Running.StartedAt.Time.Before(n.booted.Truncate(time.Second)) || !s.Ready {
				state := testenv.Must(json.Marshal(s.State))(n.T)
				return nil, fmt.Errorf("%s was started %d times, and is %s", p.Name, s.RestartCount, state)
			}
			ids = append(ids, s.ContainerID)
		}
		if len(p.Status.ContainerStatuses) == 0 {
			return nil, fmt.Errorf("%s is %s: %s", p.Name, p.Status.Phase, p.Status.Message)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// checkWell waits until all pods have run since the boot and have rested, and compares what is on the disk.
func (n *node) checkWell() {
	n.T.Helper()
	var since time.Time
	var last []string
	harness.Eventually(n.T, harness.Soon, "all pods run as before the power cut", func() error {
		_ = n.Alive()
		ids, err := n.containers("")
		if err != nil {
			since = time.Time{}
			return err
		}
		if since.IsZero() || !slices.Equal(ids, last) {
			since, last = time.Now(), ids
		}
		if rested := time.Since(since); rested < rest {
			return fmt.Errorf("they have rested for %v", rested)
		}
		return nil
	})
	n.T.Logf("well %v after the boot", time.Since(n.booted).Round(100*time.Millisecond))
	for _, im := range n.images {
		testenv.Check(n.T, im.differs(n.Seen("agent", "containerd")))
	}
}
