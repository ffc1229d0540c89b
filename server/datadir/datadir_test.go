// SPDX-License-Identifier: Apache-2.0

package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// program opens a folder as a program with this newest level does, and starts a server in it.
func program(t *testing.T, dir string, newest int, version string) error {
	d, err := Open(Options{DataDir: dir, ServerDir: dir, StoreDir: filepath.Join(dir, "store"), Version: version, newest: newest})
	if err != nil {
		return err
	}
	testenv.NoError(t, d.RecordVersion())
	return d.Close()
}

// identityOf returns the bytes of a folder's identity.
func identityOf(t *testing.T, dir string) string {
	return string(testenv.Must(os.ReadFile(filepath.Join(dir, IdentityFile)))(t))
}

// A newer program leaves the level alone, so that the one before can take over again.
func TestStartsRaiseNoLevel(t *testing.T) {
	dir := t.TempDir()
	testenv.Equal(t, Level(dir), 0, "a folder without a server has level")
	testenv.NoError(t, program(t, dir, 1, "v1"))
	before := identityOf(t, dir)
	testenv.NoError(t, program(t, dir, 2, "v2"))
	testenv.Equal(t, identityOf(t, dir), strings.Replace(before, "v1", "v2", 1), "the identity after a start of a newer program is")
	testenv.NoError(t, program(t, dir, 1, "v1"))
	testenv.Equal(t, Level(dir), 1, "the folder has level")
}

// The level follows the cluster's, and never falls.
func TestRecordLevel(t *testing.T) {
	dir := t.TempDir()
	testenv.NoError(t, program(t, dir, 1, "v1"))
	d, err := Open(Options{DataDir: dir, ServerDir: dir, Version: "v2", newest: 2})
	testenv.NoError(t, err)
	for _, level := range []int{1, 2, 1} {
		testenv.NoError(t, d.RecordLevel(level))
	}
	testenv.NoError(t, d.Close())
	testenv.Equal(t, Level(dir), 2, "the folder has level")
}

// A new cluster has the newest level. A server that joins one has that cluster's.
func TestNewFolders(t *testing.T) {
	for joined, want := range map[int]int{0: 2, 1: 1} {
		d, err := Open(Options{ServerDir: t.TempDir(), newest: 2, Level: joined})
		testenv.NoError(t, err)
		testenv.Equal(t, d.id.Format, want, "a folder that is new and joins level %d has level", joined)
		testenv.NoError(t, d.Close())
	}
}

// A join that failed has left an identity. The next one is of a cluster whose level was raised meanwhile.
func TestFolderOfFailedJoin(t *testing.T) {
	dir := t.TempDir()
	for _, joined := range []int{1, 2} {
		d, err := Open(Options{ServerDir: dir, StoreDir: filepath.Join(dir, "store"), newest: 2, Level: joined})
		testenv.NoError(t, err)
		testenv.NoError(t, errors.Join(d.RecordVersion(), d.Close()))
		testenv.Equal(t, Level(dir), joined, "the folder has level")
	}
}

// A folder of a level that the program does not know is refused with what to do, and stays as it is.
func TestUnknownLevels(t *testing.T) {
	for _, c := range []struct {
		has, newest int
		want        string
	}{
		{2, 1, "was written by a newer coracle: v2, data format 2. This is v9 and knows formats up to 1. " +
			"Nothing was changed: install v2 or newer"},
		{1, 3, "has level 1, and was last used by v1. This is v9 and knows levels 2 to 3. Nothing was changed: first install a version between"},
	} {
		dir := t.TempDir()
		testenv.NoError(t, program(t, dir, c.has, map[int]string{1: "v1", 2: "v2"}[c.has]))
		before := identityOf(t, dir)
		err := program(t, dir, c.newest, "v9")
		testenv.True(t, err != nil && strings.Contains(err.Error(), c.want), "the refusal is %v, not %q", err, c.want)
		testenv.Equal(t, identityOf(t, dir), before, "the refused folder's identity is")
	}
}

// Whatever number or text stands for the level: the folder is refused with words, stays as it is, and Level, which is
// read before, returns no number below zero.
func TestGarbageForLevel(t *testing.T) {
	for format, want := range map[string]string{
		`0`: "is damaged", `-1`: "is damaged", `2000000000`: "data format 2000000000", `"2"`: "is damaged", `1.5`: "is damaged",
		`1e40`: "is damaged", `[1]`: "is damaged", `null`: "is damaged",
	} {
		dir := t.TempDir()
		text := `{"format": ` + format + `, "version": "v1", "serverID": "a"}`
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, IdentityFile), []byte(text), 0o600))
		testenv.True(t, Level(dir) >= 0, "the format %s is the level %d", format, Level(dir))
		testenv.WantError(t, program(t, dir, 2, "v2"), want, "Nothing was changed")
		testenv.Equal(t, identityOf(t, dir), text, "the refused folder's identity is")
	}
}
