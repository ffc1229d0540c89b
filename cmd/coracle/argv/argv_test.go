// SPDX-License-Identifier: Apache-2.0

package argv_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/cmd/coracle/argv"
)

// TestMain is also the program that TestSecretsAreHiddenFromProcessList looks at: it prints its arguments, and then
// those that everybody sees.
func TestMain(m *testing.M) {
	if os.Getenv("ARGV_TEST") == "" {
		os.Exit(m.Run())
	}
	args := argv.Hide(os.Args)
	seen, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		panic(err)
	}
	fmt.Println(strings.Join(args[1:], " "))
	fmt.Println(strings.ReplaceAll(strings.TrimSuffix(string(seen[len(args[0])+1:]), "\x00"), "\x00", " "))
}

// TestSecretsAreHiddenFromProcessList: secrets are not in the process list, and the program has them all the same.
func TestSecretsAreHiddenFromProcessList(t *testing.T) {
	for given, want := range map[string]string{
		"server --token abc --tls-san x":                 "server --token *** --tls-san x",
		"agent --server s --token=abc":                   "agent --server s --token=***",
		"server --agent-token abc -t def":                "server --agent-token *** -t ***",
		"server -tabc --token-file f":                    "server -t*** --token-file f",
		"server --snapshot-s3-secret-key=a=b":            "server --snapshot-s3-secret-key=***",
		"kubectl exec -t pod":                            "kubectl exec -t pod",
		"token rotate --new-token abc":                   "token rotate --new-token ***",
		"token create a1b2c3.0123456789abcdef --ttl 1h":  "token create *********************** --ttl 1h",
		"token delete a1b2c3":                            "token delete a1b2c3",
		"--data-dir d agent -t abc":                      "--data-dir d agent -t ***",
		"check -t abc":                                   "check -t ***",
		"token rotate -t abc":                            "token rotate -t ***",
		"snapshot restore f -tabc":                       "snapshot restore f -t***",
		"snapshot save --s3-secret-key abc":              "snapshot save --s3-secret-key ***",
		"etcd-snapshot save --etcd-s3-session-token=abc": "etcd-snapshot save --etcd-s3-session-token=***",
		"server --token":                                 "server --token",
		"server --snapshot-s3-access-key abc -d --token": "server --snapshot-s3-access-key *** -d --token",
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], strings.Fields(given)...)
		cmd.Env = append(os.Environ(), "ARGV_TEST=1")
		out, err := cmd.CombinedOutput()
		if got := strings.Split(strings.TrimSpace(string(out)), "\n"); err != nil || !slices.Equal(got, []string{given, want}) {
			t.Errorf("%s: %q, %v; want %q", given, got, err, want)
		}
	}
}
