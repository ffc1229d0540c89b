// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDiskFull fills the disk under a running store: writes are refused with
// etcd's own error, reads go on, and when there is room again writes work
// without a restart, with everything acknowledged still there.
func TestDiskFull(t *testing.T) {
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=64m"); err != nil {
		testenv.Missing(t, testenv.Root, "it mounts a file system: %v", err)
	}
	t.Cleanup(func() { testenv.Check(t, unix.Unmount(path, 0)) })
	ctx, dir := raftstore.TestContext(t), filepath.Join(path, "store")
	s := raftstore.OpenStore(t, raftstore.Options{Dir: dir})
	c := s.Client()
	value := raftstore.Noise(100 << 10)
	var acknowledged []string
	for i := 0; ; i++ {
		key := fmt.Sprintf("/k/%04d", i)
		if _, err := c.Put(ctx, key, value); err == nil {
			acknowledged = append(acknowledged, key)
		} else if errors.Is(err, rpctypes.ErrNoSpace) {
			break
		} else {
			t.Fatal(err)
		}
	}
	filler := filepath.Join(path, "filler")
	f, err := os.Create(filler)
	testenv.NoError(t, err)
	for err == nil { // take what the store would have left
		_, err = f.Write(make([]byte, 4096))
	}
	testenv.NoError(t, f.Close())
	t.Logf("full after %d writes", len(acknowledged))

	got, err := c.KV.Get(ctx, acknowledged[0])
	testenv.Require(t, err == nil && len(got.Kvs) == 1, "read on a full disk: %v, %v", got, err)
	if _, err := c.Put(ctx, "/more", "x"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("write on a full disk: %v", err)
	}
	// A start on a full disk serves reads too.
	testenv.NoError(t, s.Close(ctx))
	s = raftstore.OpenStore(t, raftstore.Options{Dir: dir})
	c = s.Client()
	if got, err := c.KV.Get(ctx, acknowledged[0]); err != nil || len(got.Kvs) != 1 {
		t.Fatalf("read after a start on a full disk: %v, %v", got, err)
	}
	if _, err := c.Put(ctx, "/more", "x"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("write after a start on a full disk: %v", err)
	}

	testenv.NoError(t, unix.Mount("", path, "", unix.MS_REMOUNT, "size=256m"))
	deadline := time.Now().Add(2 * time.Minute)
	for {
		if _, err = c.Put(ctx, "/more", "x"); err == nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	testenv.NoError(t, err, "write with room again")
	testenv.NoError(t, s.Close(ctx))
	c = raftstore.OpenStore(t, raftstore.Options{Dir: dir}).Client()
	for _, key := range append(acknowledged, "/more") {
		testenv.Equal(t, len(testenv.Must(c.KV.Get(ctx, key))(t).Kvs), 1, "%s is gone:", key)
	}
}
