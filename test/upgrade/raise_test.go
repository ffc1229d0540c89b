//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/ha"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRaiseChangesKubernetesMinor: a cluster gets a version that knows a level more. At the old level everything in its
// processes is the minor version of Kubernetes before: the API server, its own kubelet and an agent's. An agent of the
// old version holds the raise up. After the raise and a restart everything is the next minor version.
func TestRaiseChangesKubernetesMinor(t *testing.T) {
	next := twoLevels(t)
	c := ha.NewOfNodes(t, 1, 1)
	s, a := c.Servers[0], c.Agents[0]
	l := startLoad(t, c)
	testenv.True(t, strings.Contains(l.output(s, "upgrade", "raise"),
		"level 1 (Kubernetes 1.37), the newest that this coracle knows; there is nothing to raise"),
		"the product has something to raise")

	l.exchange(s, next)
	held := l.output(s, "upgrade", "raise", "--check")
	testenv.True(t, strings.Contains(held, "! the agent "+a.NodeName()+" runs coracle"), "the older agent does not hold the raise up:\n%s",
		held)
	testenv.True(t, strings.Contains(l.output(s, "upgrade", "raise"), "Nothing was changed"), "the raise is not held up")
	l.exchange(a, next)
	l.isKubernetes("1.36", "1.35", false)

	harness.Eventually(t, harness.Soon, "nothing holds the raise up", func() error {
		return harness.Succeeds(s.Run(s.Coracle(), "upgrade", "raise", "--check", "--data-dir", s.DataDir))
	})
	said := l.output(s, "upgrade", "raise")
	testenv.True(t, strings.Contains(said, fmt.Sprintf("in this order. Pods keep running:\n  %s\n  %s\n", s.NodeName(), a.NodeName())),
		"the raise says\n%s", said)
	l.isKubernetes("1.36", "1.35", false) // until it restarts
	l.exchange(s, next)
	testenv.Equal(t, l.level(s).Running, 2, "after its restart, the server runs at level")
	testenv.Equal(t, l.level(a).Running, 1, "before its restart, the agent runs at level")
	testenv.EqualSlices(t, l.level(a).Restart, []string{a.NodeName()}, "an agent that was not restarted says to restart")
	l.exchange(a, next)
	l.isKubernetes("1.37", "1.36", true)
	for _, m := range []*harness.Server{s, a} {
		testenv.Equal(t, l.level(m).Cluster, 2, "machine %d knows of level", m.Number)
		testenv.True(t, len(l.level(m).Restart) == 0, "machine %d says that %s have to restart", m.Number, l.level(m).Restart)
	}
	l.formats[s] = numbers(t, s.Seen("server")) // the raise changes them
	l.holds("after the raise")

	// The version before is refused with words, and changes nothing.
	testenv.NoError(t, s.Stop())
	s.Bin = ""
	s.Start()
	s.WaitExit(harness.Soon)
	testenv.NoError(t, s.LogSays("Nothing was changed"))
}

// output is what a command on a machine prints, whatever its exit code is.
func (l *load) output(m *harness.Server, args ...string) string {
	l.t.Helper()
	out, err := m.Run(m.Coracle(), append(args, "--data-dir", m.DataDir)...)
	if err != nil {
		l.t.Logf("%s: %v", strings.Join(args, " "), err)
	}
	return out
}

// level is what a machine reports of the cluster's level.
func (l *load) level(m *harness.Server) (out struct {
	Cluster, Running int
	Restart          []string
}) {
	l.t.Helper()
	out.Running = -1
	report := struct{ Level any }{&out}
	testenv.NoError(l.t, json.Unmarshal([]byte(l.output(m, "status", "-o", "json")), &report))
	return out
}

// isKubernetes waits until everything in the cluster is a minor version. later says that it is the later one of the
// two, which serves more.
func (l *load) isKubernetes(minor, compatible string, later bool) {
	l.t.Helper()
	s := l.c.Servers[0]
	harness.Eventually(l.t, harness.Soon, "everything is Kubernetes "+minor, func() error {
		text, err := s.TryKubectl("get", "--raw", "/version")
		var v struct{ EmulationMajor, EmulationMinor, MinCompatibilityMajor, MinCompatibilityMinor string }
		err = errors.Join(err, json.Unmarshal([]byte(text), &v))
		if got := v.EmulationMajor + "." + v.EmulationMinor; err == nil && got != minor {
			err = fmt.Errorf("the API server emulates %s", got)
		}
		if got := v.MinCompatibilityMajor + "." + v.MinCompatibilityMinor; err == nil && got != compatible {
			err = fmt.Errorf("the API server's storage is compatible with %s", got)
		}
		groups, e := s.TryKubectl("api-versions")
		if err = errors.Join(err, e); err == nil && slices.Contains(strings.Fields(groups), "storagemigration.k8s.io/v1") != later {
			err = fmt.Errorf("storagemigration.k8s.io/v1 is served: %v", !later)
		}
		for _, m := range []*harness.Server{l.c.Servers[0], l.c.Agents[0]} {
			if err == nil && servesPods(m) != later {
				err = fmt.Errorf("the kubelet of %s serves the API of pods: %v", m.NodeName(), !later)
			}
		}
		return err
	})
}

// servesPods says whether a machine's kubelet serves the API of its pods, whose feature gate 1.37 turns on.
func servesPods(m *harness.Server) bool {
	c, err := net.DialTimeout("unix", m.Seen("agent", "kubelet", "pods-api", "pods-api.sock"), time.Second)
	if err == nil {
		err = c.Close()
	}
	return err == nil
}
