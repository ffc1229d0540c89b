//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestWipedMachineRejoinsUnderItsName: one machine after the other of three servers with nodes and an agent loses its
// disk together with its power, and comes back under its old name with nothing but the line by which machines join. It
// is the node that it was; a server takes the place of the one that it was, so that there are three as before; and
// clients lose nothing.
func TestWipedMachineRejoinsUnderItsName(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes")
	c := NewOfNodes(t, 3, 1)
	c.faults(t, []string{"wiped"}, nil)
	for _, s := range c.Servers {
		harness.Eventually(t, soon, "there are three servers, of which any one may fail", func() error {
			out, err := s.Run(s.Coracle(), "member", "list", "--data-dir", s.DataDir)
			if n := strings.Count(out, ":6443 "); err == nil && (n != 3 || !strings.Contains(out, mayFail[3])) {
				err = fmt.Errorf("there are %d:\n%s", n, out)
			}
			return err
		})
	}
}

// comesBackEmpty switches a machine on that has nothing any more on its disks, and joins it under its old name by the
// line for machines that are new. As a service manager does it starts coracle again when that has ended: as long as the
// cluster takes the node for alive that it was, it gets that answer and ends.
func (c *Cluster) comesBackEmpty(s *harness.Server) {
	t := c.T
	t.Helper()
	for _, path := range []string{s.DataDir, s.Kubeconfig, filepath.Join(s.Dir, "places")} {
		if path == "" { // an agent has no kubeconfig
			continue
		}
		testenv.NoError(t, os.RemoveAll(path))
	}
	if s.Role != "agent" && !slices.Contains(s.Args, "--server") { // it has started the cluster
		other := Without(c.Servers, s)[0]
		token := testenv.Must(os.ReadFile(other.Seen("server", "token")))(t)
		s.Args = append(s.Args, "--server", "https://"+net.JoinHostPort(other.IP, "6443"), "--token", strings.TrimSpace(string(token)))
	}
	if slices.Contains(c.Nodes(), s) {
		s.AddBoxImage()
	}
	letIn := s.Seen("server", "joined.json")
	if s.Role == "agent" {
		letIn = s.Seen("agent", "cluster.json")
	}
	s.PowerOn()
	s.Start()
	taken := fmt.Sprintf("there is a node named %s already", s.NodeName()) // it is alive still, or has joined within the last two minutes
	before, began := s.InLog(taken), time.Now()
	harness.Eventually(t, soon, fmt.Sprintf("machine %d is let in under its old name", s.Number), func() error {
		_, err := os.Stat(letIn)
		select {
		case <-s.Ended():
			if s.InLog(taken) == before {
				t.Fatalf("machine %d ended:\n%s", s.Number, s.LogTail(20))
			}
			s.Start()
		default:
		}
		return err
	})
	t.Logf("machine %d came back with nothing: it got the answer %d times that its name is taken, and was let in after %v", s.Number, s.InLog(taken)-before, time.Since(began).Round(100*time.Millisecond))
}
