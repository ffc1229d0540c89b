// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRestartHasASessionOfItsOwn: what ends this process by its terminal does not leave the service stopped.
func TestRestartHasASessionOfItsOwn(t *testing.T) {
	v := slots.In(t.TempDir())
	file := filepath.Join(v.Dir, "stat")
	command := "echo $$ $(cat /proc/$$/stat) >" + file + "\n"
	testenv.NoError(t, os.WriteFile(filepath.Join(v.Dir, slots.RestartFile), []byte(command), 0o600))
	testenv.NoError(t, restartService(v))
	fields := strings.Fields(string(testenv.Must(os.ReadFile(file))(t)))
	testenv.Equal(t, fields[6], fields[0], "the session's leader is") // the shell's number, and then proc_pid_stat(5)
}

// TestRestartBringsNoSettings: a service that is a script would start coracle with the variables of who upgrades it.
func TestRestartBringsNoSettings(t *testing.T) {
	v := slots.In(t.TempDir())
	t.Setenv("CORACLE_NODE_NAME", "of a shell")
	file := filepath.Join(v.Dir, "name")
	testenv.NoError(t, os.WriteFile(filepath.Join(v.Dir, slots.RestartFile), []byte("echo $HOME $CORACLE_NODE_NAME >"+file+"\n"), 0o600))
	testenv.NoError(t, restartService(v))
	testenv.Equal(t, strings.TrimSpace(string(testenv.Must(os.ReadFile(file))(t))), os.Getenv("HOME"), "its environment has")
}

// TestCopiesOfKubeletStateAreForRoot: some have hashes of credentials. Archives of containers, which may have
// gigabytes, are no state.
func TestCopiesOfKubeletStateAreForRoot(t *testing.T) {
	root, to := t.TempDir(), filepath.Join(t.TempDir(), "kubelet")
	state := []string{"image_manager/pulled/a", "cpu_manager_state", "device-plugins/kubelet_internal_checkpoint"}
	for _, name := range append(state, "checkpoints/checkpoint-web.tar", "pods/a/etc-hosts") {
		testenv.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		testenv.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(name), 0o600))
	}
	testenv.NoError(t, copyKubeletState(to, root))
	for _, name := range state {
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(to, name)))(t)), name, "copied:")
	}
	testenv.Equal(t, len(testenv.Must(os.ReadDir(to))(t)), len(state), "copies:")
	testenv.Equal(t, testenv.Must(os.Stat(to))(t).Mode().Perm(), 0o700, "mode:")
}

// TestCopiesOfSettingsAreWhole: whatever the folder's name is, and where a drop-in is a link: what that names may be
// changed in the trial, too. Files that are no settings are not copied.
func TestCopiesOfSettingsAreWhole(t *testing.T) {
	dir, to := filepath.Join(t.TempDir(), "of [a] site"), filepath.Join(t.TempDir(), "settings")
	for name, text := range map[string]string{"coracle.yaml": "debug: true", "coracle.yaml.d/1.yaml": "v: 1", "coracle.yaml.d/1.yaml~": "v: 2",
		"common/2.yaml": "v: 3"} {
		testenv.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	testenv.NoError(t, os.Symlink("../common/2.yaml", filepath.Join(dir, "coracle.yaml.d/2.yml")))
	testenv.NoError(t, copySettings(to, filepath.Join(dir, "coracle.yaml")))
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "common/2.yaml"), []byte("of the trial"), 0o600))
	for name, text := range map[string]string{"coracle.yaml": "debug: true", "coracle.yaml.d/1.yaml": "v: 1", "coracle.yaml.d/2.yml": "v: 3"} {
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(to, name)))(t)), text, "copied:")
		testenv.Equal(t, testenv.Must(os.Lstat(filepath.Join(to, name)))(t).Mode(), 0o600, "mode:")
	}
	testenv.Equal(t, len(testenv.Must(os.ReadDir(filepath.Join(to, "coracle.yaml.d")))(t)), 2, "drop-ins:")
	testenv.NoError(t, copySettings(to, filepath.Join(dir, "none.yaml")))
	testenv.Equal(t, len(testenv.Must(os.ReadDir(to))(t)), 0, "copies of no file:")
}

// TestFailedSwitchLeavesNoCopies: a later start of the version that runs would take them for those of a trial.
func TestFailedSwitchLeavesNoCopies(t *testing.T) {
	v := slots.Below(t.TempDir())
	one, two := strings.Repeat("1", 64), strings.Repeat("2", 64)
	for _, file := range []string{v.Slot(one, slots.KubeletFolder+"/cpu_manager_state"), v.Slot(two, slots.SettingsFolder+"/coracle.yaml"),
		v.ProgramOf(two), filepath.Join(v.Dir, "tries", "a folder")} {
		testenv.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		testenv.NoError(t, os.WriteFile(file, nil, 0o600))
	}
	testenv.NoError(t, os.Symlink(one, filepath.Join(v.Dir, "current")))
	u := &upgrade{v: v, digest: two, state: slots.State{Current: one}}
	testenv.WantError(t, u.begin(), "What runs was not changed")
	for _, path := range []string{v.Slot(one, slots.KubeletFolder), v.Slot(two, "")} {
		testenv.ErrorIs(t, testenv.Err(os.Stat(path)), fs.ErrNotExist)
	}
}

// TestStatusRunsNoVersionWithoutANote: a status is asked often, and a start of a program takes a second on a board.
func TestStatusRunsNoVersionWithoutANote(t *testing.T) {
	v := slots.Below(t.TempDir())
	digest, ran := strings.Repeat("1", 64), filepath.Join(t.TempDir(), "ran")
	testenv.NoError(t, os.MkdirAll(v.Slot(digest, ""), 0o755))
	testenv.NoError(t, os.WriteFile(v.ProgramOf(digest), []byte("#!/bin/sh\n: >"+ran+"\n"), 0o755))
	testenv.NoError(t, os.Symlink(digest, filepath.Join(v.Dir, "current")))
	testenv.Equal(t, len(upgradeNotes(filepath.Dir(v.Dir))), 0, "notes:")
	testenv.ErrorIs(t, testenv.Err(os.Stat(ran)), fs.ErrNotExist)
	testenv.NoError(t, os.Symlink(digest, filepath.Join(v.Dir, "trial")))
	testenv.Equal(t, len(upgradeNotes(filepath.Dir(v.Dir))), 1, "notes in a trial:")
}

// TestSettingsAreCheckedAtTheLevel: a gate that is new in this Kubernetes is unknown at a level before it.
func TestSettingsAreCheckedAtTheLevel(t *testing.T) {
	for role, file := range map[string]string{"server": "server/identity.json", "agent": "agent/cluster.json"} {
		dir, emulated, checked := t.TempDir(), 0, 0
		path := filepath.Join(dir, file)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.NoError(t, os.WriteFile(path, []byte(`{"format": 1, "level": 1, "serverID": "x"}`), 0o600))
		app := testApp()
		app.Environ = nil
		app.Emulate = func(level int) error { emulated = level; return nil }
		app.CheckServerArgs = func(*config.Server) error { checked = emulated; return nil }
		app.CheckKubeletArgs = func([]string) error { checked = emulated; return nil }
		args := []string{"--data-dir", dir, "--server", "https://board1:6443", "--token", "x"}
		app.settingsReport(append([]string{role}, args...))
		testenv.Equal(t, checked, 1, "the settings of a %s are checked at level", role)

		// A start checks them before anything else begins, too.
		emulated, checked = 0, 0
		refused := errors.New("there is no such gate at this level")
		app.CheckServerArgs = func(*config.Server) error { checked = emulated; return refused }
		app.CheckKubeletArgs = func([]string) error { checked = emulated; return refused }
		start := map[string]func(*App) *cobra.Command{"server": serverCommand, "agent": agentCommand}[role](app)
		start.SilenceUsage, start.SilenceErrors = true, true
		start.SetArgs(args)
		testenv.WantError(t, start.Execute(), refused.Error())
		testenv.Equal(t, checked, 1, "a %s that starts checks its settings at level", role)
	}
}
