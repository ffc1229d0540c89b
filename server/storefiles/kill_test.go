// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/kills"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// These variables make the test's program do what is to be killed: recover the server with a data directory, or restore
// a backup there.
const (
	killedDir    = "STOREFILES_KILLED_DIR"
	killedBackup = "STOREFILES_KILLED_BACKUP"
)

func TestMain(m *testing.M) {
	data := os.Getenv(killedDir)
	if data == "" {
		os.Exit(m.Run())
	}
	s := serverIn(data)
	var err error
	if backup := os.Getenv(killedBackup); backup != "" {
		_, _, err = s.Restore(backup)
	} else {
		_, _, err = s.Recover()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// killed kills the test's program before changes to files that it makes to a copy of a server's folder, and calls check
// with that copy.
func killed(t *testing.T, s *Server, check func(t *testing.T, s *Server), env ...string) {
	t.Helper()
	program := testenv.Must(os.Executable())(t)
	run := func(t *testing.T, n int) (*Server, int) {
		copied := serverIn(filepath.Join(t.TempDir(), "data"))
		testenv.NoError(t, os.CopyFS(copied.DataDir, os.DirFS(s.DataDir)))
		cmd := exec.Command(program)
		var out bytes.Buffer
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), append(env, killedDir+"="+copied.DataDir)...), &out, &out
		seen := kills.Before(t, cmd, n)
		testenv.Equal(t, out.String(), "", "it failed:")
		return copied, seen
	}
	_, changes := run(t, 0)
	for _, n := range kills.Steps(t, changes, 10) {
		t.Run(fmt.Sprintf("before change %d", n), func(t *testing.T) {
			copied, _ := run(t, n)
			check(t, copied)
		})
	}
}

// kept checks that each former store that is kept beside the server's is whole, and that nothing else is left there. It
// returns their folders.
func (s *Server) kept(t *testing.T) (folders []string) {
	t.Helper()
	for _, e := range testenv.Must(os.ReadDir(s.ServerDir))(t) {
		path := filepath.Join(s.ServerDir, e.Name())
		switch {
		case strings.HasPrefix(path, s.StoreDir+".before-"):
			testenv.Check(t, testenv.Err(CheckStore(path)))
			folders = append(folders, path)
		case strings.HasPrefix(path, s.StoreDir) && path != s.StoreDir:
			t.Errorf("%s is left", path)
		}
	}
	return folders
}

// TestKilledRecovery: a recovery that is killed anywhere leaves the store as it was, or recovered. In the first case
// another run recovers it. The store of before is kept whole.
func TestKilledRecovery(t *testing.T) {
	s, _ := lastOfThree(t)
	before := testenv.Must(s.PlanRecovery())(t)
	killed(t, s, func(t *testing.T, s *Server) {
		testenv.NoError(t, Tidy(s.StoreDir)) // a start of the server does that
		kept := s.kept(t)
		plan, err := s.PlanRecovery()
		if err == nil {
			testenv.Equal(t, fmt.Sprintf("%+v", plan), fmt.Sprintf("%+v", before), "it is not as it was:")
			testenv.Must(s.run(t))(t)
			plan, err = s.PlanRecovery()
		}
		testenv.WantError(t, err, "only voter")
		testenv.Equal(t, plan.Keys, 20, "keys:")
		after := s.kept(t)
		testenv.False(t, len(after) == 0 || len(after) < len(kept), "kept are %v, and %v were", after, kept)
		was := *s
		was.StoreDir = after[len(after)-1]
		if plan, err := was.PlanRecovery(); err != nil || len(plan.Members) != 3 || plan.Keys != 20 {
			t.Errorf("the store that is kept: %+v, %v", plan, err)
		}
	})
}

// run recovers the server and returns where its former store is.
func (s *Server) run(t *testing.T) (string, error) {
	t.Helper()
	_, kept, err := s.Recover()
	return kept, err
}

// TestKilledRestore: a restore that is killed anywhere leaves the former store or that of the backup. Another run puts
// the backup in its place, and the former store is kept whole.
func TestKilledRestore(t *testing.T) {
	s, cluster := lastOfThree(t)
	backup := filepath.Join(t.TempDir(), "backup")
	t.Run("a backup", func(t *testing.T) {
		other := newServer(t)
		store, _ := other.open(t, cluster)
		testenv.NoError(t, store.WaitReady(t.Context()))
		testenv.Must(store.Client().Put(t.Context(), "key", "of the backup"))(t)
		var state strings.Builder
		testenv.Must(store.Backup(t.Context(), &state))(t)
		testenv.NoError(t, os.WriteFile(backup, Trailed(state.String()), 0o600))
	})
	killed(t, s, func(t *testing.T, s *Server) {
		testenv.NoError(t, Tidy(s.StoreDir))
		s.kept(t)
		plan, err := s.PlanRecovery()
		if err == nil { // it is that of three servers
			testenv.Equal(t, plan.Keys, 20, "keys:")
			testenv.Must(s.restore(backup))(t)
			plan, err = s.PlanRecovery()
		}
		testenv.WantError(t, err, "only voter")
		testenv.Equal(t, plan.Keys, 1, "keys:")
		found := false
		for _, path := range s.kept(t) {
			was := *s
			was.StoreDir = path
			plan, err := was.PlanRecovery()
			found = found || err == nil && len(plan.Members) == 3 && plan.Keys == 20
		}
		testenv.True(t, found, "the former store is not kept")
	}, killedBackup+"="+backup)
}

func (s *Server) restore(backup string) (string, error) {
	_, kept, err := s.Restore(backup)
	return kept, err
}
