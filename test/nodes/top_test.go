//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// top fails unless kubectl top has figures of the nodes in has, and none of those in lacks. It says how long that took.
func top(s *harness.Server, has, lacks []*harness.Server) (time.Duration, error) {
	began := time.Now()
	out, err := s.TryKubectl("top", "node")
	took := time.Since(began)
	if err != nil {
		return took, err
	}
	figures := func(a *harness.Server) bool {
		return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(a.NodeName()) + `\s+\d+m\s`).MatchString(out)
	}
	for _, a := range has {
		if !figures(a) {
			return took, fmt.Errorf("nothing of %s in\n%s", a.NodeName(), out)
		}
	}
	for _, a := range lacks {
		if figures(a) {
			return took, fmt.Errorf("old figures of %s in\n%s", a.NodeName(), out)
		}
	}
	return took, nil
}

// topSeesBoth waits until a client gets the figures of all nodes.
func topSeesBoth(t *testing.T, s *harness.Server, agents []*harness.Server) {
	t.Helper()
	harness.Eventually(t, harness.Longer, "figures of both nodes", func() error {
		_, err := top(s, agents, nil)
		return err
	})
}

// topWithoutStalled asks until the figures of a node whose kubelet is stalled are given up and the other one's are
// there still.
func topWithoutStalled(t *testing.T, s, stalled, fine *harness.Server) {
	t.Helper()
	began := time.Now()
	var longest time.Duration
	asked, without := 0, 0
	harness.Eventually(t, harness.Soon, "a stalled kubelet is given up, and only that one", func() error {
		took, err := top(s, []*harness.Server{fine}, nil)
		longest = max(longest, took)
		asked++
		if err != nil { // on a busy machine the other kubelet may be too slow as well, now and then
			without++
			return err
		}
		_, err = top(s, []*harness.Server{fine}, []*harness.Server{stalled})
		return err
	})
	t.Logf("kubectl top beside a stalled kubelet took %v at most; that one is given up after %v; %d of %d answers had nothing of the other one",
		longest.Round(10*time.Millisecond), time.Since(began).Round(10*time.Millisecond), without, asked)
	// A client that asks for its figures alone gets the reason.
	harness.Eventually(t, harness.Soon, "kubectl top of the node whose kubelet is stalled says so", func() error {
		if out, err := s.TryKubectl("top", "node", stalled.NodeName()); err == nil || !strings.Contains(err.Error(), "does not answer") {
			return fmt.Errorf("%s, %w", out, err)
		}
		return nil
	})
}
