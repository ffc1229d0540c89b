//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// says waits until a command on a server's machine says something, whatever its exit code is.
func says(t *testing.T, s *harness.Server, want string, args ...string) string {
	t.Helper()
	var said string
	harness.Eventually(t, soon, fmt.Sprintf("coracle %s says %q", strings.Join(args, " "), want), func() error {
		out, err := s.Run(s.Coracle(), append(args, "--data-dir", s.DataDir)...)
		if said = out; !strings.Contains(out, want) {
			return fmt.Errorf("%w, and:\n%s", err, out)
		}
		return nil
	})
	return said
}

// TestLostMajority: one of three servers is left. It lives on, also when it is restarted, says what is the matter,
// and is made the only server by one command; a new one and one of the lost ones that was emptied join it. What it had
// is there all along. What was acknowledged by the two others alone, and had not reached it when they ended, may be
// lost: the command says so.
func TestLostMajority(t *testing.T) {
	besideOthers(t)
	c := New(t, 3, 1)
	x := startClients(t, c, "load", "")
	x.some(t)
	left := c.Servers[2]
	lost := c.Servers[:2]
	names := x.names()
	harness.Eventually(t, soon, "the server that will be left has what was acknowledged so far", func() error { return x.has(t, left, names) })
	for _, s := range lost {
		s.PowerOff()
	}
	x.stop()

	alone := 5 * time.Second
	if whole {
		alone = 10 * time.Minute
	}
	time.Sleep(alone) // that nothing happens in a time has no event that ends it
	testenv.NoError(t, left.Alive())
	const noLeader = "there is no leader"
	t.Log(says(t, left, noLeader, "store", "status"))
	left.Kill()
	left.Start()
	t.Log(says(t, left, noLeader, "store", "status"))
	t.Log(says(t, left, "no other server answers", "status"))
	testenv.NoError(t, left.Alive())

	testenv.Check(t, left.Stop(), "a server without a majority cannot be stopped")
	t.Log(says(t, left, "--yes", "store", "recover"))
	began := time.Now()
	said, err := left.Run(left.Coracle(), "store", "recover", "--yes", "--data-dir", left.DataDir)
	testenv.NoError(t, err, "%s", said)
	t.Log(said)
	left.Start()
	c.Servers = []*harness.Server{left}
	harness.Eventually(t, soon, "the only server serves and has all", func() error { return x.has(t, left, names) })
	t.Logf("the API is back %v after coracle store recover began", time.Since(began).Round(100*time.Millisecond))
	harness.Eventually(t, soon, "the node is ready", func() error { return c.nodesReady(t.Context(), c.Ask(left)) })

	// One of the lost ones comes back without its store, and one on a machine that is new.
	back := lost[0]
	back.PowerOn()
	testenv.NoError(t, os.RemoveAll(filepath.Join(back.DataDir, "server", "store")))
	back.Start()
	c.Servers = append(c.Servers, back)
	c.Join()
	c.WaitWhole()
	x.allHave(t, names)
}

// allHave waits until each server has all of the ConfigMaps.
func (x *clients) allHave(t *testing.T, names []string) {
	t.Helper()
	for _, s := range x.c.Servers {
		harness.Eventually(t, soon, fmt.Sprintf("server %d has all of %d writes", s.Number, len(names)), func() error { return x.has(t, s, names) })
	}
}

// has fails unless a server has all of the ConfigMaps.
func (x *clients) has(t *testing.T, s *harness.Server, names []string) error {
	list, err := x.c.Ask(s).CoreV1().ConfigMaps(x.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return errors.Join(err, s.Alive())
	}
	there := map[string]bool{}
	for i := range list.Items {
		there[list.Items[i].Name] = true
	}
	var lost []string
	for _, n := range names {
		if !there[n] {
			lost = append(lost, n)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("server %d has lost %d of %d acknowledged writes: %v", s.Number, len(lost), len(names), lost[:min(len(lost), 5)])
	}
	return nil
}
