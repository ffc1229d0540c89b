// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRefusedRulesCloseTheirNamespace: what nft refuses of one namespace closes that one's pods, until its policies are
// other ones; the others' rules come into force.
func TestRefusedRulesCloseTheirNamespace(t *testing.T) {
	w := dozen()
	w.policy(t, "x", "bad", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`)
	w.policy(t, "y", "good", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}`)
	r := Desired(w.State, DefaultLimits())
	e := &Enforcer{refusedNamespaces: map[string]refusedAt{}}
	bad := func(_ context.Context, text []byte) error {
		if bytes.Contains(text, []byte("192.0.2.")) {
			return errors.New("no such thing")
		}
		return nil
	}
	testenv.Require(t, e.rejectedAmong(t.Context(), r, bad) && len(e.refusedNamespaces) == 1, "refused are %v", e.refusedNamespaces)
	w.Refused = e.refusals()
	r = Desired(w.State, DefaultLimits())
	if why := r.OverBudget["x"]; !strings.Contains(why, "no such thing") || len(r.OverBudget) != 1 {
		t.Errorf("closed are %v", r.OverBudget)
	}
	testenv.True(t, bad(t.Context(), renderReplacement(r.Ruleset)) == nil, "what is refused is in the table still")
	for _, b := range w.Sandboxes {
		for _, ip := range b.IPs {
			testenv.Equal(t, (r.Ruleset.Pods[ingress][ip] == closedChain), (b.Namespace == "x"), "a pod of %s has the chain", b.Namespace)
		}
	}
	w.Policies = w.Policies[1:]
	w.policy(t, "x", "bad", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}`)
	if r := Desired(w.State, DefaultLimits()); len(r.OverBudget) != 0 {
		t.Errorf("with other policies it is closed: %v", r.OverBudget)
	}
	if e := (&Enforcer{refusedNamespaces: map[string]refusedAt{}}); e.rejectedAmong(t.Context(), r, func(context.Context, []byte) error { return errors.New("no memory") }) {
		t.Errorf("what no namespace caused is laid to %v", e.refusedNamespaces)
	}
}

// TestRefusedByTheKernel has an Enforcer that cannot write one namespace's rules.
func TestRefusedByTheKernel(t *testing.T) {
	namespaceTable(t)
	w := dozen()
	w.policy(t, "x", "bad", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`)
	w.policy(t, "y", "good", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}`)
	stand := standIn(t, "192.0.2.")
	e := start(t, w.api(), w.Sandboxes...)
	testenv.Until(t, patience, "it says whose policies are refused", func() bool {
		for _, p := range e.board.Components() {
			return p.State == status.Degraded && strings.Contains(p.Message, "namespace x") && strings.Contains(p.Message, stand)
		}
		return false
	})
	thereIs(t, true)
	text := ""
	testenv.Until(t, patience, "the other namespace's rules are in force", func() bool {
		text = list(t)
		return strings.Contains(text, "198.51.100.")
	})
	testenv.False(t, strings.Contains(text, "192.0.2.") || !strings.Contains(text, "chain closed"), "the table is\n%s", text)
}

// standIn is an nft that refuses what has a word in it, and else is the one that there is. It returns what it says
// then.
func standIn(t *testing.T, word string) string {
	t.Helper()
	real := testenv.Must(exec.LookPath("nft"))(t)
	dir, message := t.TempDir(), "refused by a stand-in"
	script := fmt.Sprintf("#!/bin/sh\nin=%s/in.$$\ncat >$in\nif grep -qF '%s' $in; then echo '%s' >&2; rm $in; exit 1; fi\n'%s' \"$@\" <$in\ncode=$?\nrm $in\nexit $code\n", dir, word, message, real)
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "nft"), []byte(script), 0o700)) //nolint:gosec // it is to be run
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return message
}

func list(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", nft.PolicyTable).CombinedOutput()
	if err != nil {
		return ""
	}
	return string(out)
}
