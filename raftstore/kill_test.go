// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const writerDir = "CORACLE_TEST_WRITER_DIR"

// TestKilledProcessWriter is the process that TestKilledProcess kills: it writes with many clients and prints each key
// once it is acknowledged.
func TestKilledProcessWriter(t *testing.T) {
	dir := os.Getenv(writerDir)
	if dir == "" {
		t.Skip("runs only as a child of TestKilledProcess")
	}
	s := raftstore.OpenStore(t, raftstore.Options{Dir: dir})
	prefix := fmt.Sprintf("/%d/", os.Getpid())
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			c := s.Client()
			for i := 0; ; i++ {
				key := fmt.Sprintf("%s%d/%d", prefix, w, i)
				resp, err := c.Put(context.Background(), key, strings.Repeat(key, 1+i%50))
				if err != nil {
					return
				}
				fmt.Printf("acknowledged %s %d\n", key, resp.Header.Revision)
			}
		})
	}
	all.Wait()
}

// TestKilledProcess kills a process with kill -9 in the middle of its writes,
// several times on the same directory. Whatever it said was acknowledged is
// there, at the revision that it said.
func TestKilledProcess(t *testing.T) {
	ctx, dir := raftstore.TestContext(t), t.TempDir()
	acknowledged := map[string]int64{}
	for range 5 {
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilledProcessWriter$")
		cmd.Env = append(os.Environ(), writerDir+"="+dir)
		out := testenv.Must(cmd.StdoutPipe())(t)
		testenv.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var key string
			var rev int64
			if _, err := fmt.Sscanf(lines.Text(), "acknowledged %s %d", &key, &rev); err == nil {
				acknowledged[key] = rev
			}
			if n == 200 {
				time.AfterFunc(20*time.Millisecond, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
			}
		}
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer ended by itself")
		}
	}
	s := raftstore.OpenStore(t, raftstore.Options{Dir: dir})
	c := s.Client()
	for key, rev := range acknowledged {
		got, err := c.Kubernetes.Get(ctx, key, kubernetes.GetOptions{})
		if err != nil || got.KV == nil || got.KV.ModRevision != rev || !strings.HasPrefix(string(got.KV.Value), key) {
			t.Errorf("%s, acknowledged at revision %d: %v, %v", key, rev, got.KV, err)
		}
	}
	testenv.True(t, len(acknowledged) >= 1000, "only %d writes were acknowledged", len(acknowledged))
}
