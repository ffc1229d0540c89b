// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDefaultRuntimeIsInstalled: a node whose default runtime is not there does not start, and says what it found.
func TestDefaultRuntimeIsInstalled(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{"crun": "#!/bin/sh\n", "containerd-shim-wws-v1": "#!/bin/sh\n", "containerd-shim-kata-v2": "no program"} {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	}
	for _, c := range []struct {
		name, want string
		dirs       []string
		line       status.State
	}{
		{"", "", []string{dir}, status.Degraded},
		{"runc", "", []string{dir}, status.Degraded},
		{"runc", "", nil, ""},
		{"crun", "", []string{dir}, status.Degraded},
		{"nvidia", "nvidia is not installed in " + dir, []string{dir}, status.Failed},
		{"kata", "kata cannot be run", []string{dir}, status.Failed},
	} {
		board := status.NewBoard(time.Now)
		found, err := findRuntimes(t.Context(), Options{Node: config.Node{Runtime: config.Runtime{DefaultRuntime: c.name}}, Board: board, Logger: slog.New(slog.DiscardHandler)}, c.dirs)
		switch {
		case c.want != "":
			testenv.WantError(t, err, "--default-runtime "+c.name, c.want)
		case len(c.dirs) > 0:
			testenv.NoError(t, err)
			testenv.Require(t, len(found) == 2 && found[0].Name == "crun" && found[1].Name == "wws", "%q: found %v", c.name, found)
		}
		var state status.State
		for _, line := range board.Components() {
			state = line.State
			testenv.True(t, state != status.Degraded || strings.Contains(line.Message, "kata cannot be run"), "the line: %s", line.Message)
		}
		testenv.Equal(t, state, c.line, "%q: the status line:", c.name)
	}
	testenv.NoError(t, os.Remove(filepath.Join(dir, "containerd-shim-kata-v2")))
	board := status.NewBoard(time.Now)
	_, err := findRuntimes(t.Context(), Options{Node: config.Node{Runtime: config.Runtime{DefaultRuntime: "nvidia"}}, Board: board, Logger: slog.New(slog.DiscardHandler)}, []string{dir})
	testenv.WantError(t, err, "nvidia is not installed in "+dir, "found: runc, crun, wws")
	testenv.Must(findRuntimes(t.Context(), Options{Board: board}, []string{dir}))(t)
	testenv.Equal(t, board.Components()[0].Message, "runc, crun, wws", "the status line:")
}

// TestNodeLabelsItsRuntimes: the labels are those of the runtimes of this start; no other label is touched, and nothing
// is written if they are right.
func TestNodeLabelsItsRuntimes(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{
		"zone": "a", clusterconfig.RuntimeLabel + "wws": "true", clusterconfig.RuntimeLabel + "crun": "false", clusterconfig.RuntimeLabel + "mine": "true"}}})
	nodes := client.CoreV1().Nodes()
	for _, found := range [][]string{{"crun", "nvidia"}, {"crun", "nvidia"}, nil} {
		var list []runtimes.Runtime
		want := []string{clusterconfig.RuntimeLabel + "mine=true", "zone=a"}
		for _, name := range found {
			list = append(list, runtimes.Runtime{Name: name})
			want = append(want, clusterconfig.RuntimeLabel+name+"=true")
		}
		testenv.NoError(t, labelRuntimes(t.Context(), nodes, testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t), list))
		var got []string
		for k, v := range maps.All(testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t).Labels) {
			got = append(got, k+"="+v)
		}
		slices.Sort(got)
		slices.Sort(want)
		testenv.EqualSlices(t, got, want, "labels with %s", strings.Join(found, " "))
	}
	patches := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "patch" {
			patches++
		}
	}
	testenv.Equal(t, patches, 2, "patches:")
}
