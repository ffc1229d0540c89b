//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// control is a row of the table in docs/hardening.md that has a command.
type control struct{ name, byDefault, withProfile, command, prints string }

// onlyWithProfile says whether the control fails on a server without the profile, and passes with it.
func (c control) onlyWithProfile() bool {
	return strings.HasPrefix(c.byDefault, "fail") && strings.HasPrefix(c.withProfile, "pass")
}

// readHardening returns the shell functions that the page's commands use, and its controls.
func readHardening(t *testing.T) (functions string, controls []control) {
	t.Helper()
	data, err := os.ReadFile("../../docs/hardening.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```sh\n(.*?)```").FindSubmatch(data)
	if block == nil {
		t.Fatal("docs/hardening.md has no block of shell functions")
	}
	cell := func(s string) string {
		return strings.ReplaceAll(strings.Trim(strings.TrimSpace(s), "`"), "\x00", "|")
	}
	for line := range strings.Lines(string(data)) {
		row := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|") // the first and the last are what is outside
		if len(row) != 7 || !strings.HasPrefix(strings.TrimSpace(row[4]), "`") {
			continue
		}
		controls = append(controls, control{cell(row[1]), cell(row[2]), cell(row[3]), cell(row[4]), cell(row[5])})
	}
	if len(controls) < 50 {
		t.Fatalf("docs/hardening.md has %d controls with a command only", len(controls))
	}
	return string(block[1]), controls
}

// TestHardening runs the commands of docs/hardening.md on a server without and then with --profile=cis.
func TestHardening(t *testing.T) {
	functions, controls := readHardening(t)
	s := harness.NewMachine(t).NewServer()
	prologue := fmt.Sprintf("D=%s\nkubectl() { %s kubectl --kubeconfig %s \"$@\"; }\n%s\n", s.DataDir, s.Coracle(), s.Kubeconfig, functions)
	run := func(c control) string {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		out, _ := s.Command(ctx, "sh", "-c", prologue+c.command).CombinedOutput() // grep -c fails where it counts none
		return strings.TrimSpace(string(out))
	}
	for _, args := range [][]string{nil, {"--profile=cis"}} {
		s.Args = append(s.Args, args...)
		s.Start()
		s.WaitReady()
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
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}
