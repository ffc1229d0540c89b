//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// control is a row of the table in docs/hardening.md that has a command.
type control struct{ name, byDefault, withProfile, command, prints string }

// onlyWithProfile says whether the control fails on a server without the profile, and passes with it.
func (c control) onlyWithProfile() bool {
	return strings.HasPrefix(c.byDefault, "fail") && strings.HasPrefix(c.withProfile, "pass")
}

// needsServer says whether a machine without a server cannot look as if the control passed: it can where there is
// nothing to pass, or where no port may be open.
func (c control) needsServer() bool {
	return !strings.HasPrefix(c.byDefault, "n/a") && !strings.HasPrefix(c.command, "ss ")
}

// readHardening returns the shell functions that the page's commands use, and its controls.
func readHardening(t *testing.T) (functions string, controls []control) {
	t.Helper()
	data := testenv.Must(os.ReadFile("../../docs/hardening.md"))(t)
	block := regexp.MustCompile("(?s)```sh\n(.*?)```").FindSubmatch(data)
	testenv.Require(t, block != nil, "docs/hardening.md has no block of shell functions")
	cell := func(s string) string {
		return strings.ReplaceAll(strings.Trim(strings.TrimSpace(s), "`"), "\x00", "|")
	}
	for line := range strings.Lines(string(data)) {
		row := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|") // the first and the last are what is outside
		if len(row) != 7 || !strings.HasPrefix(strings.TrimSpace(row[4]), "`") {
			continue
		}
		c := control{cell(row[1]), cell(row[2]), cell(row[3]), cell(row[4]), cell(row[5])}
		testenv.True(t, c.prints != "", "the command of %q prints nothing, as one would that cannot run", c.name)
		controls = append(controls, c)
	}
	testenv.Require(t, len(controls) >= 50, "docs/hardening.md has %d controls with a command only", len(controls))
	return string(block[1]), controls
}

// writeUnit writes the service file for systemd on the machine as install.sh does, of which nothing else runs.
func writeUnit(s *harness.Server) {
	s.T.Helper()
	functions, ok := strings.CutSuffix(string(testenv.Must(os.ReadFile("../../install.sh"))(s.T)), "main \"$@\"\n")
	testenv.True(s.T, ok, "install.sh does not end with main")
	out, err := s.Run("sh", "-c", functions+"changed=; save_settings server; write_systemd", "install.sh")
	testenv.NoError(s.T, err, "%s", out)
}

// TestHardeningGuideHolds runs the commands of docs/hardening.md on a machine without a server, then on a server
// without and with --profile=cis.
func TestHardeningGuideHolds(t *testing.T) {
	functions, controls := readHardening(t)
	s := harness.NewMachine(t).NewServer()
	prologue := fmt.Sprintf("D=%s\nkubectl() { %s kubectl --kubeconfig %s \"$@\"; }\n%s\n", s.DataDir, s.Coracle(), s.Kubeconfig, functions)
	run := func(c control) string {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		out, _ := s.Command(ctx, "sh", "-c", prologue+c.command).CombinedOutput() // grep -c fails where it counts none
		return strings.TrimSpace(string(out))
	}
	for _, c := range controls {
		if got := run(c); c.needsServer() && got == c.prints {
			t.Errorf("%s: without a server the command prints %q, too", c.name, got)
		}
	}
	writeUnit(s)
	for _, args := range [][]string{nil, {"--profile=cis"}} {
		s.Args = append(s.Args, args...)
		s.StartNode()
		s.In(t).Await(soon, "serviceaccount/default", "{.metadata.name}", "default")
		for _, c := range controls {
			t.Run(strings.Join(append(args, c.name), " "), func(t *testing.T) {
				harness.Eventually(t, soon, c.command, func() error {
					got := run(c)
					switch {
					case args == nil && c.onlyWithProfile():
						if got == c.prints {
							return fmt.Errorf("it prints %q, and the page says that this fails by default", got)
						}
					case got != c.prints:
						return fmt.Errorf("it prints %q, the page says %q", got, c.prints)
					}
					return nil
				})
			})
		}
		testenv.NoError(t, s.Stop())
	}
}

// hardenedPod: a pod has what docs/hardening.md says of it by default: the runtime's seccomp profile, so many
// processes, and a token of an hour.
func hardenedPod(k *harness.Kube) {
	k.Apply(pod("plain", "[testbox, hold]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/plain", "--timeout=180s")
	status := k.Kubectl("exec", "plain", "--", "cat", "/proc/1/status")
	if strings.Contains(status, "Seccomp:") && !strings.Contains(status, "Seccomp:\t2\n") { // a kernel without it does not mention it
		k.T.Errorf("it has no seccomp profile:\n%s", status)
	}
	uid := k.Kubectl("get", "pod", "plain", "-o", "jsonpath={.metadata.uid}")
	if out, err := k.Run("find", "/sys/fs/cgroup", "-path", "*/pod"+uid+"/pids.max", "-exec", "cat", "{}", "+"); strings.TrimSpace(out) != "4096" {
		k.T.Errorf("pids.max of its cgroup is %q, %v", out, err)
	}
	token := strings.Split(k.Kubectl("exec", "plain", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"), ".")
	var claims struct{ Exp, Iat int }
	if data, err := base64.RawURLEncoding.DecodeString(token[min(1, len(token)-1)]); err != nil || json.Unmarshal(data, &claims) != nil || claims.Exp-claims.Iat != 3607 {
		k.T.Errorf("its token lives for %d seconds: %s, %v", claims.Exp-claims.Iat, data, err)
	}
}
