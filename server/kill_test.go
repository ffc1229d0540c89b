// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/kills"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// killedDir is the variable that makes the test's program a server with this data directory, which ends when it is
// ready.
const killedDir = "SERVER_KILLED_DIR"

// runKilled is the server of killedDir.
func runKilled(dir string) error {
	s, err := New(context.Background(), options(dir))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	select {
	case <-s.Ready():
		return nil
	case err := <-done:
		return fmt.Errorf("it ended before it was ready: %w", err)
	}
}

// TestKilledFirstStart: the first start of a server that is killed before any change that it makes to files, also
// several times in a row, is completed by the next start.
func TestKilledFirstStart(t *testing.T) {
	program := testenv.Must(os.Executable())(t)
	start := func(dir string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = append(os.Environ(), killedDir+"="+dir)
		return cmd
	}
	completes := func(dir string, after ...int) {
		t.Helper()
		if out, err := start(dir).CombinedOutput(); err != nil {
			var files []string
			_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
				files = append(files, strings.TrimPrefix(path, dir))
				return nil
			})
			t.Errorf("killed before changes %v, the next start: %v\n%s\n%q", after, err, out, files)
		}
	}
	changes := kills.Before(t, start(t.TempDir()), 0)
	for _, n := range kills.Steps(t, changes, 3) {
		dir := t.TempDir()
		kills.Before(t, start(dir), n)
		completes(dir, n)
	}
	dir, several := t.TempDir(), kills.Steps(t, changes, 3)[:3]
	for _, n := range several {
		kills.Before(t, start(dir), n)
	}
	completes(dir, several...)
}
