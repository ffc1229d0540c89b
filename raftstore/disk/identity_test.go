// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNewDirectoryIsNewMember makes two directories for one node: the second is another
// member, as a server that lost its disk must be.
func TestNewDirectoryIsNewMember(t *testing.T) {
	var members []string
	for range 2 {
		o := options(filepath.Join(t.TempDir(), "store"))
		o.Identity.Member, o.Identity.Node = "", "host.example.org"
		for range 2 { // made, and opened again
			d := testenv.Must(Open(o))(t)
			members = append(members, d.Identity.Member)
			testenv.Equal(t, NodeOf(d.Identity.Member), o.Identity.Node, "member %s is of node", d.Identity.Member)
			closeDir(t, d)
		}
	}
	testenv.False(t, members[0] != members[1] || members[2] != members[3] || members[0] == members[2], "members %v", members)
}

func TestNodeNameIsPrefixOfMembers(t *testing.T) {
	for member, node := range map[string]string{
		"n":                        "n",
		"host.example.org":         "host.example.org",
		"host.ABCDEFGHIJ":          "host",
		"host.example.ABCDEFGH27":  "host.example",
		"host.abcdefghij":          "host.abcdefghij",
		"host.ABCDEFGHI":           "host.ABCDEFGHI",
		"ABCDEFGHIJKLMNOPQRSTUVWX": "ABCDEFGHIJKLMNOPQRSTUVWX",
	} {
		testenv.Equal(t, NodeOf(member), node, "%s is of", member)
	}
}

// TestOpeningRaisesNoLevel opens a directory with a program of a newer level, and then with the one before again. The
// directory's level is raised only by RecordLevel. Then the older program refuses it, and changes nothing.
func TestOpeningRaisesNoLevel(t *testing.T) {
	older := options(filled(t))
	newer := older
	newer.Newest = 2
	file := filepath.Join(older.Path, identityFile)
	before := testenv.Must(os.ReadFile(file))(t)
	testenv.Contains(t, string(before), "\nformat 2\n", "at level 1:")
	for _, o := range []Options{newer, older} {
		closeDir(t, testenv.Must(Open(o))(t))
		testenv.Equal(t, string(testenv.Must(os.ReadFile(file))(t)), string(before), "the identity after opening with level %d is", o.Newest)
	}
	d := testenv.Must(Open(newer))(t)
	for _, level := range []int{1, 2, 1} {
		testenv.NoError(t, d.RecordLevel(level))
	}
	testenv.Equal(t, d.Level(), 2, "the level is")
	closeDir(t, d)
	testenv.Contains(t, string(testenv.Must(os.ReadFile(file))(t)), "\nformat 3\n", "at level 2:")
	raised := readImage(t, older.Path)
	testenv.WantError(t, testenv.Err(Open(older)),
		"has format 3, and this version reads formats up to 2. Nothing was changed. Run the version that wrote it")
	after := readImage(t, older.Path)
	delete(raised, "LOCK")
	delete(after, "LOCK")
	testenv.True(t, maps.EqualFunc(after, raised, bytes.Equal), "the refused open changed something")
	newer.Newest = 4
	testenv.WantError(t, testenv.Err(Open(newer)), "has format 3, and this version reads formats from 4 on",
		"Run a version between the two first")
	newer.Newest = 3
	closeDir(t, testenv.Must(Open(newer))(t))
}

// TestFormsOfLaterLevels makes files whose form is of level 2, in this test alone: none is made at level 1.
func TestFormsOfLaterLevels(t *testing.T) {
	o := options(filled(t))
	o.Newest = 2
	d := testenv.Must(Open(o))(t)
	defer closeDir(t, d)
	since[segmentMagic], since[snapshotMagic] = 2, 2
	defer clear(since)
	segment := func() error {
		made, err := createSegment(t.TempDir(), d.Level(), 1, 1, o.SegmentSize, 0)
		if err != nil {
			return err
		}
		return made.f.Close()
	}
	testenv.WantError(t, segment(), "coracle log 1", "may be made from level 2 on, and the directory has level 1")
	testenv.WantError(t, writeSnapshot(d, lastEntry+1, "state"), "coracle snapshot 1", "may be made from level 2 on")
	testenv.NoError(t, d.RecordLevel(2))
	testenv.NoError(t, segment())
	testenv.NoError(t, writeSnapshot(d, lastEntry+1, "state"))
	fresh := options(filepath.Join(t.TempDir(), "store"))
	testenv.WantError(t, testenv.Err(Open(fresh)), "may be made from level 2 on")
}

// TestLevelOfNewDirectories makes directories for a new cluster, and for one that has a level.
func TestLevelOfNewDirectories(t *testing.T) {
	for joined, want := range map[int]int{0: 2, 1: 1, 2: 2} {
		o := options(filepath.Join(t.TempDir(), "store"))
		o.Newest, o.Level = 2, joined
		d := testenv.Must(Open(o))(t)
		testenv.Equal(t, d.Level(), want, "the level of a directory that was made for level %d is", joined)
		closeDir(t, d)
	}
}

func TestPeersAreSavedAndChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	d := mustOpen(t, path)
	if got, err := ReadPeers(path); err != nil || got != nil {
		t.Fatalf("before any: %v, %v", got, err)
	}
	want := []Peer{{"a.ABCDEFGHIJ", "10.0.0.1:6443"}, {"b \"\n%q", "[fd00::1]:6443"}}
	testenv.NoError(t, d.SavePeers(want))
	file := filepath.Join(path, peersFile)
	before := testenv.Must(os.Stat(file))(t)
	// Nothing is written when nothing changed, also after a restart.
	for range 2 {
		testenv.NoError(t, d.SavePeers(slices.Clone(want)))
		if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
			t.Errorf("written again: %v", err)
		}
		closeDir(t, d)
		d = mustOpen(t, path)
	}
	testenv.EqualSlices(t, testenv.Must(ReadPeers(path))(t), want, "")
	closeDir(t, d)
	// Every damage is noticed, and hinders nothing.
	data := testenv.Must(os.ReadFile(file))(t)
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		testenv.NoError(t, os.WriteFile(file, bad, 0o600))
		if got, err := ReadPeers(path); err == nil {
			t.Fatalf("byte %d changed, and got %v", i, got)
		}
	}
	d = mustOpen(t, path)
	defer closeDir(t, d)
	testenv.NoError(t, d.SavePeers(nil))
	if got, err := ReadPeers(path); err != nil || got != nil {
		t.Errorf("after none: %v, %v", got, err)
	}
}
