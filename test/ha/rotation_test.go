//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// rotation is a command that replaces something on all machines.
type rotation struct {
	name string
	args []string
	// replaced fails unless every server has the same, and something else than before; it returns what they have.
	replaced func(t *testing.T, c *Cluster, before string) (now string, err error)
}

// TestRotationsLeaderKilled: the server that leads is killed at each line that a rotation prints, while the command
// runs on another one. The rotation ends all the same, or it is given again and ends then; nothing was unreadable
// meanwhile, and all machines have what is new. Each single request at which a leader may die is the matter of the
// tests beside the rotations (server, server/encryption).
func TestRotationsLeaderKilled(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes many minutes")
	c := New(t, 3, 1)
	c.Servers[0].Kubectl("create", "secret", "generic", "kept", "--from-literal=a=b")
	for _, r := range []rotation{
		{"the key that encrypts Secrets", []string{"secrets-encrypt", "rotate"}, encryptionKey},
		{"the gossip key", []string{"gossip", "rotate-key"}, gossipKey},
		{"the server token", []string{"token", "rotate"}, serverToken},
	} {
		t.Run(r.name, func(t *testing.T) {
			for line := 1; ; line++ {
				if !c.rotate(t, r, line) {
					break
				}
			}
		})
	}
}

// rotate runs a rotation once, and kills the leader when it prints its nth line; 1 is right at the start. It returns
// false when there are no such lines.
func (c *Cluster) rotate(t *testing.T, r rotation, line int) bool {
	t.Helper()
	before := c.same(t, r, "")
	leader := c.MustLeader()
	on := Without(c.Servers, leader)[line%2]
	ctx, cancel := context.WithTimeout(t.Context(), 5*soon)
	defer cancel()
	args := append(append([]string(nil), r.args...), "--data-dir", on.DataDir)
	if r.args[0] == "token" {
		args = append(args, "--token", before)
	}
	cmd := on.Command(ctx, on.Coracle(), args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	testenv.NoError(t, err)
	killed, at := false, "it began"
	kill := func(said string) {
		leader.Kill()
		killed, at = true, said
		harness.Eventually(t, soon, "another server leads", func() error {
			_, _, err := c.Leader(ctx, Without(c.Servers, leader))
			return err
		})
		leader.Start() // the command waits for it
	}
	if line == 1 {
		kill(at)
	}
	n := 1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n++; n == line {
			kill(lines.Text())
		}
	}
	err = cmd.Wait()
	if !killed {
		testenv.Check(t, err, "with no server killed")
		c.same(t, r, before)
		return false
	}
	c.WaitWhole()
	t.Logf("the leader was killed when it said %q; the command ended with %v", at, err)
	if err != nil {
		harness.Eventually(t, 3*soon, "the rotation ends when it is given again", func() error {
			again := append(append([]string(nil), r.args...), "--data-dir", on.DataDir)
			if r.args[0] == "token" {
				now, err := r.replaced(t, c, "")
				if err != nil || now != before { // it was replaced, although the command did not hear of it
					return err
				}
				again = append(again, "--token", before)
			}
			return harness.Succeeds(on.Run(on.Coracle(), again...))
		})
	}
	c.same(t, r, before)
	for _, s := range c.Servers {
		harness.Eventually(t, soon, fmt.Sprintf("server %d reads the Secret", s.Number), func() error {
			got, err := c.Ask(s).CoreV1().Secrets("default").Get(t.Context(), "kept", metav1.GetOptions{})
			if err == nil && string(got.Data["a"]) != "b" {
				err = fmt.Errorf("it has %q", got.Data)
			}
			return err
		})
	}
	return true
}

// same waits until all servers have the same, which is not what was before, and returns it.
func (c *Cluster) same(t *testing.T, r rotation, before string) (now string) {
	t.Helper()
	began := time.Now()
	harness.Eventually(t, 2*soon, "all servers have the same: "+r.name, func() (err error) {
		now, err = r.replaced(t, c, before)
		return err
	})
	if before != "" {
		t.Logf("%s is replaced everywhere %v later", r.name, time.Since(began).Round(100*time.Millisecond))
	}
	return now
}

// each asks every server by a command and returns what all of them say, which must be the same.
func (c *Cluster) each(before string, pick func(said string) (string, error), args ...string) (string, error) {
	now := ""
	for _, s := range c.Servers {
		said, err := s.Run(s.Coracle(), append(append([]string(nil), args...), "--data-dir", s.DataDir)...)
		if err == nil {
			said, err = pick(said)
		}
		switch {
		case err != nil:
			return "", fmt.Errorf("server %d: %w", s.Number, err)
		case said == before:
			return "", fmt.Errorf("server %d has %s still", s.Number, said)
		case now != "" && said != now:
			return "", fmt.Errorf("server %d has %s, another one has %s", s.Number, said, now)
		}
		now = said
	}
	return now, nil
}

func encryptionKey(_ *testing.T, c *Cluster, before string) (string, error) {
	return c.each(before, func(said string) (string, error) {
		if strings.Contains(said, "rotating") || strings.Count(said, `"key`) != 3 {
			return "", errors.New("it has more than one key: " + said)
		}
		_, rest, _ := strings.Cut(said, `"key": "`)
		name, _, found := strings.Cut(rest, `"`)
		if !found {
			return "", errors.New("it says " + said)
		}
		return name, nil
	}, "secrets-encrypt", "status", "-o", "json")
}

func serverToken(_ *testing.T, c *Cluster, before string) (string, error) {
	return c.each(before, func(said string) (string, error) { return strings.TrimSpace(said), nil }, "token", "print", "--server", "--quiet")
}

// gossipKey is the generation of the keys, when there is one key alone and all machines have it and hear one another.
func gossipKey(t *testing.T, c *Cluster, before string) (string, error) {
	secret, err := c.Ask(c.Servers[0]).CoreV1().Secrets(metav1.NamespaceSystem).Get(t.Context(), "gossip-keys.coracle", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	now := string(secret.Data["keys.json"])
	if now == before {
		return "", errors.New("the keys are those of before")
	}
	return now, c.knowOneAnother()
}

// knowOneAnother fails unless every machine hears every other one.
func (c *Cluster) knowOneAnother() error {
	for _, m := range append(append([]*harness.Server(nil), c.Servers...), c.Agents...) {
		out, err := m.Run(m.Coracle(), "status", "--data-dir", m.DataDir, "-o", "json")
		var r status.Report
		if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil {
			return errors.Join(err, jsonErr)
		}
		alive := 0
		for _, member := range r.Members {
			if member.State == "alive" {
				alive++
			}
		}
		if want := len(c.Servers) + len(c.Agents); alive != want {
			return fmt.Errorf("machine %d hears %d of %d", m.Number, alive, want)
		}
	}
	return nil
}
