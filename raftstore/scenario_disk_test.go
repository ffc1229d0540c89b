// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// spoil damages the newest part of a stopped server's log, in its middle.
func (n *node) spoil() {
	files, err := filepath.Glob(filepath.Join(n.dir, "log", "*.segment"))
	if err != nil || len(files) == 0 {
		n.c.Fatal("no log: ", err)
	}
	f := testenv.Must(os.OpenFile(files[0], os.O_RDWR, 0))(n.c)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 300)
	b[0] ^= 0x10
	_, err2 := f.WriteAt(b, 300)
	testenv.NoError(n.c, errors.Join(err, err2, f.Close()))
}

// TestFirstStartOnFullDisk: it waits for room, no longer than it is asked to,
// and can be tried again.
func TestFirstStartOnFullDisk(t *testing.T) {
	stage(t, 1, 0, nil, func(c *cluster) {
		n := c.add("new")
		n.faults.FailWrites(unix.ENOSPC)
		ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
		defer cancel()
		start := time.Now()
		if s, err := Open(ctx, n.options()); !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("%v, %v", s, err)
		}
		if took := time.Since(start); took < 5*time.Second || took > 6*time.Second {
			c.Errorf("it took %v", took)
		}
		n.faults.FailWrites(nil)
		n.start()
		c.ready(n)
	})
}
