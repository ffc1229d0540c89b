// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/config"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMachineKeepsItsNodeName: a machine that was a node stays that one.
func TestMachineKeepsItsNodeName(t *testing.T) {
	p := config.NewPaths(t.TempDir(), "")
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	name := func(n config.Node) (string, func() error, error) {
		keep, err := nameNode(&n, p, log)
		return n.Name, keep, err
	}
	if got, _, err := name(config.Node{Name: "taken", NameGiven: true}); err != nil || got != "taken" {
		t.Fatalf("%s, %v", got, err)
	}
	// That name did not work, and was not kept: another one may be chosen.
	got, keep, err := name(config.Node{Name: "boat", NameGiven: true})
	testenv.Require(t, err == nil && got == "boat", "%s, %v", got, err)
	testenv.NoError(t, keep())
	if _, _, err := name(config.Node{Name: "boat", NameGiven: true}); err != nil {
		t.Error(err)
	}
	if _, _, err := name(config.Node{Name: "ship", NameGiven: true}); err == nil || !strings.Contains(err.Error(), "is the node boat") || !strings.Contains(err.Error(), "delete node boat") {
		t.Errorf("with another --node-name: %v", err)
	}
	for _, changed := range []config.Node{{Name: "dhcp-17"}, {Name: "dhcp-17", WithID: true}} {
		text.Reset()
		if got, _, err := name(changed); err != nil || got != "boat" || !strings.Contains(text.String(), "keeps its name") {
			t.Errorf("%+v: %s, %v, and the log has %q", changed, got, err, &text)
		}
	}
}
