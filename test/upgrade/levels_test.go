//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/ha"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// scaledToNone is allowed by Kubernetes 1.37 alone: there HPAScaleToZero is beta.
const scaledToNone = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: none, namespace: load}
spec: {minReplicas: 0, maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: elsewhere},
  metrics: [{type: External, external: {metric: {name: queue}, target: {type: AverageValue, averageValue: 5}}}]}
`

// TestCompatRaise: a version of two levels runs at level 1 as the minor version of Kubernetes before, and at level 2,
// once the level was raised, as its own. Then the version that lacks that level refuses the directory and leaves it.
func TestCompatRaise(t *testing.T) {
	harness.ByHand(t)
	n, next := this(), twoLevels(t)
	c := ha.NewOfNodesOfProgram(t, n.program, 1)
	s := c.Servers[0]
	l := startLoad(t, c)
	l.exchange(s, next)
	l.holds(next.name + " at level 1")
	isMinor(t, s, "1.36")

	harness.Says(t, raise(t, s, "--check"), "The cluster has level 1", "Nothing holds level 2")
	isMinor(t, s, "1.36")
	testenv.Must(s.Run(next.program, "snapshot", "save", "--data-dir", s.DataDir))(t)
	harness.Says(t, raise(t, s), "The cluster has level 2", s.NodeName())
	raised := "IDENTITY format 3, identity.json 2"
	harness.Eventually(t, harness.Soon, "the directory has the level", func() error {
		return harness.Exactly(raised)(numbers(t, s.Seen("server")), nil)
	})
	l.formats[s] = raised
	isMinor(t, s, "1.36") // until it is restarted

	l.exchange(s, next)
	isMinor(t, s, "1.37")
	l.holds(next.name + " at level 2")
	harness.Says(t, raise(t, s), "nothing to raise")

	testenv.NoError(t, s.Stop())
	before := files(t, s.Seen("server"))
	s.Bin = n.program
	s.Start()
	testenv.True(t, s.WaitExit(harness.Soon) != 0, "%s runs on a directory of level 2", n.name)
	harness.Says(t, s.LogTail(5), "was written by a newer coracle", "Nothing was changed")
	for path, sum := range files(t, s.Seen("server")) {
		testenv.Equal(t, sum, before[path], "what %s has left of %s:", n.name, path)
	}
	s.Bin = next.program
	s.Start()
	c.WaitWhole()
	l.holds(next.name + " after the other was refused")
}

// raise has a server's own program raise the level, or check.
func raise(t *testing.T, s *harness.Server, args ...string) string {
	t.Helper()
	out, err := s.Run(cmp.Or(s.Bin, s.Coracle()), append([]string{"upgrade", "raise", "--data-dir", s.DataDir}, args...)...)
	testenv.NoError(t, err, "%s", out)
	return out
}

// isMinor fails the test unless a server is a minor version of Kubernetes: it says so, serves the APIs of that version,
// and has the values of its feature gates.
func isMinor(t *testing.T, s *harness.Server, minor string) {
	t.Helper()
	var version struct{ EmulationMajor, EmulationMinor string }
	testenv.NoError(t, json.Unmarshal([]byte(s.Insists("get", "--raw", "/version")), &version))
	testenv.Equal(t, version.EmulationMajor+"."+version.EmulationMinor, minor, "server %d is of Kubernetes", s.Number)
	served := slices.Contains(strings.Fields(s.Insists("api-versions")), "storagemigration.k8s.io/v1")
	testenv.Equal(t, served, minor == "1.37", "server %d serves storagemigration.k8s.io/v1, of 1.37:", s.Number)
	if minor == "1.37" {
		s.InsistsOn(scaledToNone)
		return
	}
	harness.Eventually(t, harness.Soon, "an autoscaler of 1.37 is refused", func() error {
		out, err := s.In(t).TryApply(scaledToNone)
		testenv.Require(t, err != nil, "a server of %s has %s", minor, out)
		if !strings.Contains(err.Error(), "spec.minReplicas") {
			return err
		}
		return nil
	})
}

// files are the checksums of a folder's files, but those that a process locks.
func files(t *testing.T, folder string) map[string]string {
	t.Helper()
	out := map[string]string{}
	testenv.NoError(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.EqualFold(d.Name(), "lock") {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, folder)] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	}))
	return out
}

// TestServersAreRaised: three servers and two agents get a version of two levels, one after the other. An agent without
// it holds the raise up. After that each machine is restarted in the order that the command names.
func TestServersAreRaised(t *testing.T) {
	harness.ByHand(t)
	n, next := this(), twoLevels(t)
	l := startLoad(t, ha.NewOfProgram(t, n.program, 3, 2))
	last := l.c.Agents[1]
	for _, s := range append(l.servers(), l.c.Agents[0]) {
		l.without(next.name+" at level 1", s, next)
	}
	first := l.c.Servers[0]
	harness.Eventually(t, harness.Soon, "the agent without the level holds the raise up", func() error {
		out, err := first.Run(next.program, "upgrade", "raise", "--data-dir", first.DataDir)
		if err == nil || !strings.Contains(out+err.Error(), last.NodeName()) {
			return fmt.Errorf("%w and %q, want a refusal that names %s", err, out, last.NodeName())
		}
		return nil
	})
	l.holds(next.name + " at level 1")
	l.without(next.name+" at level 1", last, next)
	for _, s := range l.c.Servers {
		isMinor(t, s, "1.36")
	}
	harness.Eventually(t, harness.Soon, "the level is raised", func() error {
		return harness.Succeeds(first.Run(next.program, "upgrade", "raise", "--data-dir", first.DataDir))
	})
	for _, s := range l.c.Servers {
		raised := "IDENTITY format 3, identity.json 2"
		harness.Eventually(t, harness.Soon, fmt.Sprintf("server %d has the level", s.Number), func() error {
			return harness.Exactly(raised)(numbers(t, s.Seen("server")), nil)
		})
		l.formats[s] = raised
	}
	l.exchangeAll(next.name+" at level 2", next)
	for _, s := range l.c.Servers {
		isMinor(t, s, "1.37")
	}
	l.holds(next.name + " at level 2")

	testenv.NoError(t, last.Stop())
	last.Bin = n.program
	last.Start()
	testenv.True(t, last.WaitExit(harness.Soon) != 0, "an agent of %s runs in a cluster of level 2", n.name)
	t.Logf("the older agent: %s", last.LogTail(1))
	last.Bin = next.program
	began := time.Now()
	last.Start()
	l.lives(last, began)
	l.c.WaitWhole()
	l.holds("after the older agent was refused")
}
