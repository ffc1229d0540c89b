// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// heldPIDFile is a pid file that names a process and whose lock is held by another descriptor, as by a child between
// its fork and its exec.
func heldPIDFile(t *testing.T, pid int) (path string, holder *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "coracle.pid")
	testenv.NoError(t, os.WriteFile(path, []byte(strconv.Itoa(pid)+"\n"), 0o600))
	holder = testenv.Must(os.Open(path))(t)
	t.Cleanup(func() { _ = holder.Close() })
	testenv.NoError(t, unix.Flock(int(holder.Fd()), unix.LOCK_EX))
	return path, holder
}

func TestPIDFileWaitsForChildrenOfAKilledProcess(t *testing.T) {
	ended := exec.Command("true")
	testenv.NoError(t, ended.Run())
	path, holder := heldPIDFile(t, ended.Process.Pid)
	time.AfterFunc(50*time.Millisecond, func() { _ = holder.Close() })
	lock := testenv.Must(lockPIDFile(path, "server"))(t)
	if got := readPIDFile(path); got.pid != os.Getpid() || !got.alive {
		t.Errorf("the file names %d, alive %t; want this process, %d", got.pid, got.alive, os.Getpid())
	}
	testenv.Check(t, lock.release())
}

func TestPIDFileOfALivingProcessIsRefusedAtOnce(t *testing.T) {
	path, _ := heldPIDFile(t, os.Getpid())
	began := time.Now()
	testenv.Fails(t, testenv.Err(lockPIDFile(path, "server")), "two processes hold the pid file")
	if took := time.Since(began); took > lockTimeout/2 {
		t.Errorf("refused after %v", took)
	}
}
