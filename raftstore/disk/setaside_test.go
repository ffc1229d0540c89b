// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestSetAsideTakesFreeName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	testenv.ErrorIs(t, testenv.Err(SetAside(path)), fs.ErrNotExist, "a directory that is not there")
	// The second one is taken.
	testenv.NoError(t, os.Mkdir(path+".damaged-2", 0o700))
	for _, n := range []int{1, 3} {
		o := options(path)
		o.Identity.Member = ""
		d := testenv.Must(Open(o))(t)
		member := d.Identity.Member
		var used *InUseError
		if _, err := SetAside(path); !errors.As(err, &used) {
			t.Errorf("an open directory: %v", err)
		}
		closeDir(t, d)
		got, err := SetAside(path + "/")
		if want := path + ".damaged-" + strconv.Itoa(n); err != nil || got != want {
			t.Fatalf("%s, want %s, %v", got, want, err)
		}
		id, _, err := readIdentity(got, 1)
		testenv.False(t, err != nil || id.Member != member, "%v, %v", id, err)
		if found, err := exists(path); err != nil || found {
			t.Errorf("still there, %v", err)
		}
	}
}

func TestSetAsideMount(t *testing.T) {
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		testenv.Missing(t, testenv.Root, "it mounts a file system: %v", err)
	}
	defer func() { testenv.Check(t, unix.Unmount(path, 0)) }()
	testenv.WantError(t, testenv.Err(SetAside(path)), "mount point")
}

// TestStartOverKeepsKnownMembers leaves a directory that opens as a new one and knows the
// others, also if it was interrupted between the two renames.
func TestStartOverKeepsKnownMembers(t *testing.T) {
	peers := []Peer{{"a", "10.0.0.1:6443"}}
	for _, interrupted := range []bool{false, true} {
		path := filled(t)
		moved, err := StartOver(path, peers)
		testenv.Require(t, err == nil && moved == path+".damaged-1", "%v %v", moved, err)
		if interrupted {
			testenv.NoError(t, os.Rename(path, path+freshSuffix))
		}
		o := options(path)
		o.Identity.Member = ""
		d := testenv.Must(Open(o))(t)
		if last, err := d.Log.LastIndex(); err != nil || last != 0 || d.Identity.Member == testIdentity.Member {
			t.Errorf("last entry %d, %v, identity %v", last, err, d.Identity)
		}
		testenv.EqualSlices(t, testenv.Must(ReadPeers(path))(t), peers, "peers:")
		closeDir(t, d)
		d = mustOpen(t, moved)
		testenv.Equal(t, testenv.Must(d.Log.LastIndex())(t), lastEntry, "the directory that was moved: last entry")
		closeDir(t, d)
	}
}
