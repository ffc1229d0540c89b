// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// How long scenarios wait for what has to happen, on a machine that has much else to do.
const (
	Soon   = 3 * time.Minute // what takes a moment on an idle machine
	Longer = 5 * time.Minute // what waits for a sync period or a back-off
)

// BoxYAML begins a container that runs the box.
const BoxYAML = `{name: box, image: "` + BoxImage + `", imagePullPolicy: Never`

// Workload is an object of apps/v1 with pods that have the label app: its name, which may have its namespace before it,
// as "shop/web". spec and pods are what else its spec and that of its pods have, in YAML's flow style.
func Workload(kind, name, spec, pods string) string {
	at := ""
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		name, at = rest, ", namespace: "+namespace
	}
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: %[1]s
metadata: {name: %[2]s%[3]s}
spec: {selector: {matchLabels: {app: %[2]s}}, template: {metadata: {labels: {app: %[2]s}}, spec: {%[4]s}}, %[5]s}
---
`, kind, name, at, pods, spec)
}

// OnePerNode spreads the pods of a Workload, one to a node.
func OnePerNode(name string) string {
	return "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, " +
		"labelSelector: {matchLabels: {app: " + name + "}}}]"
}

// Exactly gets what a program printed, and returns an error unless that is want.
func Exactly(want string) func(got string, err error) error {
	return func(got string, err error) error {
		if err == nil && got != want {
			err = fmt.Errorf("%q, want %q", got, want)
		}
		return err
	}
}

// Succeeds gets what a program printed, and returns its error with that.
func Succeeds(out string, err error) error {
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return err
}

// Says fails the test unless got has each of want in it.
func Says(t testing.TB, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		testenv.True(t, strings.Contains(got, w), "no %q in:\n%s", w, got)
	}
}

// WaitAPI waits until the API server takes writes.
func (s *Server) WaitAPI() {
	s.T.Helper()
	Eventually(s.T, Longer, "the API server is ready", func() error {
		if err := s.Alive(); err != nil {
			return err
		}
		_, err := s.TryKubectl("get", "serviceaccount", "default")
		return err
	})
}

// Creates has kubectl make an object, again until it is there: while servers elect another leader, as busy ones may, a
// write can fail, or be done without an answer.
func (s *Server) Creates(args ...string) {
	s.T.Helper()
	Eventually(s.T, Soon, fmt.Sprintf("server %d makes %v", s.Number, args), func() error {
		_, err := s.TryKubectl(append([]string{"create"}, args...)...)
		if err != nil && strings.Contains(err.Error(), "already exists") {
			err = nil
		}
		return err
	})
}

// Insists has kubectl do what may be done twice, again until it succeeds, and returns its output: as with Creates, a
// busy server may be too late with an answer.
func (s *Server) Insists(args ...string) (out string) {
	s.T.Helper()
	Eventually(s.T, Soon, fmt.Sprintf("kubectl %v at server %d", args, s.Number), func() (err error) {
		out, err = s.TryKubectl(args...)
		return err
	})
	return trim(out)
}

// InsistsOn applies a manifest as Insists does.
func (s *Server) InsistsOn(manifest string) {
	s.T.Helper()
	Eventually(s.T, Soon, fmt.Sprintf("server %d applies a manifest", s.Number), func() error {
		return Succeeds(s.In(s.T).TryApply(manifest))
	})
}

// NodeReady fails unless an agent's node is ready in the eyes of this server, under the agent's address, and rid of the
// taints of nodes that are not: the leader's controllers remove these a moment after the condition is set, and until
// then the scheduler leaves the node out.
func (s *Server) NodeReady(a *Server) error {
	if err := a.Alive(); err != nil {
		return err
	}
	out, err := s.TryKubectl("get", "node", a.NodeName(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.addresses[0].address} {.spec.taints[*].key}`)
	if want := "True " + a.IP; err == nil && strings.TrimSpace(out) != want {
		err = fmt.Errorf("%q, want %q", out, want)
	}
	return err
}

// InLog is how often a text is in the log.
func (s *Server) InLog(text string) int {
	s.T.Helper()
	data := testenv.Must(os.ReadFile(s.Log))(s.T)
	return strings.Count(string(data), text)
}

// LogSays fails unless the log has a text.
func (s *Server) LogSays(want string) error {
	data, err := os.ReadFile(s.Log)
	if err == nil && !strings.Contains(string(data), want) {
		err = fmt.Errorf("no %q in the log:\n%s", want, s.LogTail(20))
	}
	return err
}

// Members waits until coracle member list says something and ends with a code. It returns what it said.
func (s *Server) Members(code int, want string) (out string) {
	s.T.Helper()
	Eventually(s.T, Soon, fmt.Sprintf("the list of servers says %q", want), func() (err error) {
		out, err = s.Run(s.Coracle(), "member", "list", "--data-dir", s.DataDir)
		if !strings.Contains(out, want) || (err == nil) != (code == 0) {
			return fmt.Errorf("%w, and:\n%s", err, out)
		}
		return nil
	})
	return out
}

// KnowOneAnother fails unless each of the machines sees the states of all members, servers first and then in the order
// of their names.
func KnowOneAnother(machines []*Server, want string) error {
	for _, m := range machines {
		r, err := m.Status()
		if err != nil {
			return err
		}
		got, text := "", ""
		for _, member := range r.Members {
			got += member.State + " "
			text += fmt.Sprintf("%s (%s) at %s: %s\n", member.Name, member.Role, member.Address, member.State)
		}
		if got != want {
			return fmt.Errorf("%s sees\n%s, want %s", m.NodeName(), text, want)
		}
	}
	return nil
}

// AllStarted fails while a part of one of the machines is starting. A version whose parts do not all start is never
// committed, so none may wait for what may not come, as for this server to lead.
func AllStarted(machines []*Server) error {
	for _, m := range machines {
		r, err := m.Status()
		if err != nil {
			return err
		}
		for _, part := range r.Components {
			if part.State == status.Starting {
				return fmt.Errorf("%s of %s is starting: %s", part.Name, m.NodeName(), part.Message)
			}
		}
	}
	return nil
}

// Status is what coracle says of itself. Its command fails where a part is in trouble, and its text counts here.
func (s *Server) Status() (r status.Report, err error) {
	out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir, "-o", "json")
	if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil {
		return r, errors.Join(err, jsonErr)
	}
	return r, nil
}
