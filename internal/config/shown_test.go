// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestSecretSettingsAreHidden(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	testenv.NoError(t, os.WriteFile(file, []byte("token: plum\nsnapshot-s3-secret-key: tree\nnode-label: [a=b]\nkube-apiserver-arg: [oidc-client-id=mulberry]\n"), 0o600))
	shown, hidden, problems := config.Show(config.Sources{Environ: []string{"CORACLE_CONFIG_FILE=" + file, "CORACLE_AGENT_TOKEN=pear"}}, config.ServerCommand)
	testenv.EqualSlices(t, problems, nil, "the problems are")
	testenv.EqualSlices(t, hidden, []string{"plum", "pear", "tree", "mulberry"}, "the hidden values are")
	text := fmt.Sprint(shown)
	testenv.Contains(t, text, "{node-label a=b "+file+":3: node-label}", "the settings")
	testenv.Contains(t, text, "{kube-apiserver-arg oidc-client-id=*** "+file+":4: kube-apiserver-arg}", "the settings")
	for _, value := range hidden {
		testenv.False(t, strings.Contains(text, value), "%s is in %s", value, text)
	}
}

// TestHiddenSettingsAreKnown lists the settings whose values coracle debug collect leaves out: a new setting is shown
// or hidden on purpose.
func TestHiddenSettingsAreKnown(t *testing.T) {
	var names []string
	for _, s := range append(config.Table(config.ServerCommand), config.Table(config.AgentCommand)...) {
		f := &config.Sources{Environ: []string{s.EnvName() + "=planted=planted"}}
		if _, hidden, _ := config.Show(*f, s.Commands); len(hidden) > 0 && !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	testenv.EqualSlices(t, names, []string{"token", "agent-token", "snapshot-s3-access-key", "snapshot-s3-secret-key", "snapshot-s3-session-token",
		"ingress-acme-email", "kube-apiserver-arg", "kube-controller-manager-arg", "kube-scheduler-arg", "kubelet-arg", "kube-proxy-arg"}, "the hidden settings are")
}
