//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// threeServers starts servers without nodes, of which two join the first.
func threeServers(site *harness.Site) (servers []*harness.Server) {
	for i := range 3 {
		m := site.NewMachine()
		s := m.NewServer("--disable-agent")
		if i > 0 {
			s = m.NewPeer(servers[0], "--disable-agent")
		}
		s.StartAPI()
		servers = append(servers, s)
	}
	return servers
}

// TestRotateWithSeveralServers: the key that encrypts Secrets is replaced while three servers run and write; a server
// that is off holds the next rotation up before anything is written with its key; interrupted, and with the leader
// killed, it is brought to its end on another server. At the end every server, and one that joins, reads everything
// with the newest key alone.
func TestRotateWithSeveralServers(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	servers := threeServers(site)
	first := servers[0]
	first.Creates("secret", "generic", "kept", "--from-literal=a=b")
	readable := func(s *harness.Server) error {
		out, err := s.TryKubectl("get", "secrets", "-A", "-o", "jsonpath={.items[*].metadata.name}")
		if err == nil && !strings.Contains(out, "kept") {
			err = errors.New("it has: " + out)
		}
		return err
	}
	keys := func(s *harness.Server, want string) error {
		out, err := s.Run(s.Coracle(), "secrets-encrypt", "status", "--data-dir", s.DataDir, "-o", "json")
		if err == nil && (!strings.Contains(out, `"key": "`+want+`"`) || strings.Count(out, `"key`) != 3 || strings.Contains(out, "rotating")) {
			err = fmt.Errorf("machine %d, want %s alone:\n%s", s.Number, want, out)
		}
		return err
	}
	all := func(what, key string, of []*harness.Server) {
		t.Helper()
		for _, s := range of {
			harness.Eventually(t, soon, fmt.Sprintf("%s: machine %d has %s", what, s.Number, key), func() error { return errors.Join(keys(s, key), readable(s)) })
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	for i, s := range servers {
		writing.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				out, err := s.TryKubectl("create", "secret", "generic", fmt.Sprintf("by-%d-%d", i, n), "--from-literal=a=b")
				if err == nil {
					out, err = s.TryKubectl("get", "secrets", "-A")
				}
				if err != nil && (strings.Contains(out+err.Error(), "transform") || strings.Contains(out+err.Error(), "decrypt")) {
					t.Errorf("machine %d cannot read: %v\n%s", s.Number, err, out)
				}
			}
		})
	}
	defer writing.Wait()
	defer stop()
	rotates := func(s *harness.Server) error { // given again it goes on
		for _, s := range servers { // a rotation waits for one whose process has ended
			testenv.NoError(t, s.Alive())
		}
		return harness.Succeeds(s.Run(s.Coracle(), "secrets-encrypt", "rotate", "--data-dir", s.DataDir))
	}
	harness.Eventually(t, 2*soon, "the first rotation", func() error { return rotates(servers[1]) })
	stop()
	writing.Wait()
	all("after a rotation", "key2", servers)

	off := servers[2]
	off.Kill()
	// A leader may have to be elected.
	harness.Eventually(t, soon, "a rotation waits for the server that is off", func() error { return rotateUntilItWaits(t, servers[1]) })
	leader := first
	leader.Kill() // no client can write for a moment: one of three is left until the other is back
	off.StartAPI()
	leader.StartAPI()
	harness.Eventually(t, 2*soon, "the rotation is brought to its end on another server", func() error { return rotates(off) })
	all("after the second rotation", "key3", servers)
	late := site.NewMachine().NewPeer(first, "--disable-agent")
	late.StartAPI()
	all("a server that joined", "key3", append(servers, late))
}

// rotateUntilItWaits interrupts a rotation when it says that it waits for a server. It returns an error where it has
// not come so far.
func rotateUntilItWaits(t *testing.T, s *harness.Server) error {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), soon)
	defer stop()
	cmd := s.Command(ctx, s.Coracle(), "secrets-encrypt", "rotate", "--data-dir", s.DataDir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	testenv.NoError(t, err)
	lines := bufio.NewScanner(out)
	waits := false
	for !waits && lines.Scan() {
		waits = strings.Contains(lines.Text(), "prepare: waiting for") && !strings.Contains(lines.Text(), ",") // the others have it
	}
	stop()
	err = cmd.Wait()
	switch {
	case err == nil:
		t.Fatal("a rotation with a server that is off came to its end")
	case !waits:
		return fmt.Errorf("it said nothing of a server that it waits for: %w", err)
	}
	return nil
}

// TestRotateToken: the server token is replaced on one of three servers, and the others take it over: one that runs at
// once, one that is off when it starts, although it is still given the old one. The old one admits no machine any more.
func TestRotateToken(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	servers := threeServers(site) // those that join with --token, which will be the old one
	first := servers[0]
	shown := func(s *harness.Server) string {
		out, err := s.Run(s.Coracle(), "token", "print", "--server", "--quiet", "--data-dir", s.DataDir)
		testenv.Require(t, err == nil, "machine %d: %v\n%s", s.Number, err, out)
		return strings.TrimSpace(out)
	}
	harness.Eventually(t, soon, "all three vote", func() error {
		out, err := first.Run(first.Coracle(), "store", "status", "--data-dir", first.DataDir)
		if err == nil && strings.Count(out, " voter ") < 2 {
			err = errors.New(out)
		}
		return err
	})
	before := shown(first)
	revoked := site.NewMachine().NewPeer(first, "--disable-agent")
	off := servers[2]
	off.Kill()
	rotate := func(old, next string) error {
		return harness.Succeeds(servers[1].Run(servers[1].Coracle(), "token", "rotate", "--token", old, "--new-token", next, "--data-dir", servers[1].DataDir))
	}
	harness.Eventually(t, soon, "a token that was never the cluster's is refused", func() error { // a leader may have to be elected
		err := rotate("guessed", "sesame-of-the-cluster")
		testenv.Require(t, err != nil, "a token that was never the cluster's is good for replacing it")
		if !strings.Contains(err.Error(), "nothing was changed") {
			return err
		}
		return nil
	})
	testenv.Equal(t, shown(servers[1]), before, "it was replaced by")
	harness.Eventually(t, soon, "the token is replaced", func() error { // a leader may have to be elected
		err := rotate(before, "sesame-of-the-cluster")
		if err != nil && strings.HasSuffix(shown(servers[1]), ":sesame-of-the-cluster") { // an earlier try had no answer
			return nil
		}
		return err
	})
	off.StartAPI()
	for _, s := range servers {
		harness.Eventually(t, soon, fmt.Sprintf("machine %d has the new token", s.Number), func() error {
			if now := shown(s); now == before || !strings.HasSuffix(now, ":sesame-of-the-cluster") {
				return errors.New(now)
			}
			return nil
		})
	}
	revoked.Start()
	if code := revoked.WaitExit(soon); code == 0 || !strings.Contains(revoked.LogTail(1<<14), "the token is not the cluster's") {
		t.Errorf("a machine with the old token ended with %d:\n%s", code, revoked.LogTail(1<<12))
	}
	late := site.NewMachine().NewPeer(first, "--disable-agent")
	late.StartAPI()
	testenv.Equal(t, shown(late), shown(first), "a server that joined has")
}
