// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
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

// TestDirectoryOfFormat1IsUpgraded opens a directory that the version before wrote. Its identity changes only when
// everything else was found in order.
func TestDirectoryOfFormat1IsUpgraded(t *testing.T) {
	path := filled(t)
	old := testIdentity.encode(1)
	file := filepath.Join(path, identityFile)
	testenv.NoError(t, os.WriteFile(file, old, 0o600))
	vars := filepath.Join(path, varsFile)
	whole := testenv.Must(os.ReadFile(vars))(t)
	testenv.NoError(t, os.WriteFile(vars, whole[:len(whole)/2], 0o600))
	if _, err := Open(options(path)); err == nil {
		t.Fatal("opened a damaged directory")
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, old) {
		t.Errorf("the refused open changed the identity: %s, %v", now, err)
	}
	testenv.NoError(t, os.WriteFile(vars, whole, 0o600))
	for range 2 {
		o := options(path)
		o.Identity.Member = ""
		d := testenv.Must(Open(o))(t)
		testenv.Equal(t, d.Identity, testIdentity, "identity")
		closeDir(t, d)
		testenv.Contains(t, string(testenv.Must(os.ReadFile(file))(t)), "format 2\n", "after opening:")
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
