//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestImageOfOneServerIsOnAllNodes: an archive in the images folder of one server is enough for pods on each node. No
// registry can be reached.
func TestImageOfOneServerIsOnAllNodes(t *testing.T) {
	const app, late, unknown = "coracle.test/app:1", "coracle.test/late:1", "coracle.test/unknown:1"
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer()
	testenv.NoError(t, os.MkdirAll(filepath.Join(s.DataDir, "images"), 0o755))
	harness.WritePauseImage(t, filepath.Join(s.DataDir, "images", "app.tar"), app)
	s.StartAPI()
	a, b := site.NewMachine().NewAgent(s), site.NewMachine().NewAgent(s)
	for _, agent := range []*harness.Server{a, b} {
		agent.Start()
	}
	for _, agent := range []*harness.Server{a, b} {
		harness.Eventually(t, longer, "the agent's node is ready", func() error { return s.NodeReady(agent) })
	}
	pod := func(name, image, policy string, on *harness.Server) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: %s, terminationGracePeriodSeconds: 1, "+
			"containers: [{name: c, image: %q, imagePullPolicy: %s}]}}\n---\n", name, on.NodeName(), image, policy)
	}
	k := s.In(t)
	k.Apply(pod("never-a", app, "Never", a) + pod("twice-a", app, "Never", a) + pod("missing-b", app, "IfNotPresent", b) +
		pod("always-b", app, "Always", b) + pod("unknown-b", unknown, "Never", b))
	for _, name := range []string{"never-a", "twice-a", "missing-b"} {
		k.Await(longer, "pod/"+name, "{.status.phase}", "Running")
	}
	waits := func(name, reasons string) {
		t.Helper()
		harness.Eventually(t, soon, "the pod "+name+" waits", func() error {
			out, err := k.Try("get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
			if err == nil && (out == "" || !strings.Contains(reasons, out)) {
				err = fmt.Errorf("its reason is %q", out)
			}
			return err
		})
	}
	waits("always-b", "ErrImagePull ImagePullBackOff")
	waits("unknown-b", "ErrImageNeverPull")
	for _, agent := range []*harness.Server{a, b} {
		testenv.Equal(t, agent.InLog("fetched an image that a server has imported"), 1, "%s fetched the image", agent.NodeName())
		labels := imageLabels(t, agent, app)
		testenv.Contains(t, labels, "io.cri-containerd.pinned=pinned", "the labels of the image")
		testenv.Contains(t, labels, "coracle/server="+s.NodeName(), "the labels of the image")
	}

	// Another server has another image under that name.
	other := site.NewMachine().NewPeer(s)
	testenv.NoError(t, os.MkdirAll(filepath.Join(other.DataDir, "images"), 0o755))
	var archive bytes.Buffer
	testenv.NoError(t, imagetar.Write(&archive, imagetar.Image{Name: app, Architecture: runtime.GOARCH, Entrypoint: []string{"/x"},
		Files: []imagetar.File{{Path: "/x", Body: []byte("another image")}}}))
	testenv.NoError(t, os.WriteFile(filepath.Join(other.DataDir, "images", "app.tar"), archive.Bytes(), 0o644))
	other.StartAPI()
	for _, server := range []*harness.Server{s, other} {
		harness.Eventually(t, longer, "the status of "+server.NodeName()+" says that the servers differ", func() error {
			report, err := server.Status()
			notes := strings.Join(report.Notes, "\n")
			if err == nil && !strings.Contains(notes, "different images named "+app) {
				err = errors.New("notes: " + notes)
			}
			return err
		})
	}
	testenv.NoError(t, other.Stop())

	// A server that was restarted has its images, and what is new.
	testenv.NoError(t, s.Stop())
	harness.WritePauseImage(t, filepath.Join(s.DataDir, "images", "late.tar"), late)
	s.Start()
	other.Start() // for a majority
	s.WaitAPI()
	k.Apply(pod("late-a", late, "IfNotPresent", a))
	k.Await(longer, "pod/late-a", "{.status.phase}", "Running")
	for _, name := range []string{"never-a", "twice-a", "missing-b"} {
		k.Await(soon, "pod/"+name, "{.status.phase}", "Running")
	}
}

// imageLabels returns the labels of an image on a machine.
func imageLabels(t *testing.T, s *harness.Server, image string) string {
	t.Helper()
	return string(testenv.Must(s.Run(s.Coracle(), "ctr", "--address", filepath.Join(s.DataDir, "run", "containerd", "containerd.sock"), "-n", "k8s.io",
		"images", "ls", "name=="+image))(t))
}
