// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// NewCluster starts servers that run pods and have the images of an archive, with their logs in a folder, and waits
// until all nodes are ready. It returns the first one.
func (s *Site) NewCluster(servers int, archive, folder string, args ...string) *Server {
	s.T.Helper()
	start := func(s *Server) *Server {
		data := testenv.Must(os.ReadFile(archive))(s.T)
		images := filepath.Join(s.DataDir, "images")
		testenv.NoError(s.T, os.MkdirAll(images, 0o755))
		testenv.NoError(s.T, os.WriteFile(filepath.Join(images, filepath.Base(archive)), data, 0o644))
		s.Log = filepath.Join(folder, fmt.Sprintf("coracle-%d.log", s.Number))
		fmt.Fprintf(os.Stderr, "starting server %d; its log is %s\n", s.Number, s.Log)
		_ = os.Remove(s.Log)
		s.Start()
		return s
	}
	first := start(s.NewMachine().NewServer(args...))
	first.WaitReady()
	for range servers - 1 {
		start(s.NewMachine().NewPeer(first, args...))
	}
	Eventually(s.T, Longer, fmt.Sprintf("%d nodes are ready", servers), func() error {
		return Exactly(strings.TrimSpace(strings.Repeat("True ", servers)))(first.TryKubectl("get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`))
	})
	return first
}
