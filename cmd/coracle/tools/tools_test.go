// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	_ "github.com/coracle-k8s/coracle/cmd/coracle/tools/translations" // as coracle does
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMain is also the process that becomes a tool.
func TestMain(m *testing.M) {
	if name := os.Getenv("CORACLE_TEST_TOOL"); name != "" {
		Run(name, os.Args[1:], []string{"HOME=" + os.Getenv("HOME"), "HELM_CACHE_HOME=of this tool", "KUBE_FEATURE_WatchListClient=junk", "LC_ALL=" + os.Getenv("LC_ALL")})
	}
	os.Exit(m.Run())
}

func TestProcessBecomesTool(t *testing.T) {
	for _, tt := range []struct{ name, args, want string }{
		{"kubectl", "version --client", "Client Version: "},
		{"kubectl", "options", "KUBE_FEATURE_WatchListClient has no effect"},
		{"kubectl", "no-such-command", "unknown command \"no-such-command\" for \"kubectl\""},
		{"helm", "version", "version.BuildInfo"},
		{"helm", "env HELM_CACHE_HOME", "of this tool"},
		{"ctr", "--version", "ctr github.com/containerd/containerd/v2 "},
		{"cleanup", "--data-dir relative", "not an absolute path"},
	} {
		c := exec.Command(os.Args[0], strings.Fields(tt.args)...)
		c.Env = []string{"CORACLE_TEST_TOOL=" + tt.name, "HOME=" + t.TempDir(), "SECRET=x"}
		out, _ := c.CombinedOutput() // some fail, as they are to
		testenv.Contains(t, string(out), tt.want, "%s %s", tt.name, tt.args)
	}
}

func TestOnlyKubectlReadsItsTranslations(t *testing.T) {
	for name, translated := range map[string]bool{"coracle": false, "kubectl": true} {
		c := exec.Command(os.Args[0], "config", "--help")
		c.Args[0] = name
		c.Env = []string{"CORACLE_TEST_TOOL=kubectl", "HOME=" + t.TempDir(), "LC_ALL=ja_JP.UTF-8"}
		out := testenv.Must(c.CombinedOutput())(t)
		testenv.Contains(t, string(out), "kubectl config SUBCOMMAND", "%s", name)
		testenv.Equal(t, strings.Contains(string(out), "マージ"), translated, "%s config --help in Japanese", name)
	}
}
