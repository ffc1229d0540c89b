// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPauseReapsOrphansAndEnds runs the embedded pause program as the first process of a pid namespace, as it runs in a
// pod: it takes in orphans, buries them, and ends when it is terminated.
func TestPauseReapsOrphansAndEnds(t *testing.T) {
	testenv.RequireRoot(t, "it makes a pid namespace")
	d := unpackOwn(t)
	program := filepath.Join(t.TempDir(), "pause")
	extractPause(t, d.File("pause.tar"), program)

	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended by then when all is well
	var pid int
	eventually(t, "pause runs", func() error {
		c, err := children(cmd.Process.Pid)
		if err != nil || len(c) != 1 {
			return fmt.Errorf("children %v, %v", c, err)
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c[0]))
		if err != nil || exe != program {
			return fmt.Errorf("it runs %q, %v", exe, err)
		}
		pid = c[0]
		return nil
	})

	fifo := filepath.Join(t.TempDir(), "fifo")
	testenv.NoError(t, syscall.Mkfifo(fifo, 0o600))
	// The background process waits for a writer, as an orphan whose parent has ended.
	if out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-p", "sh", "-c", `cat "$0" >/dev/null 2>&1 &`, fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "pause has the orphan", func() error { return wantChildren(pid, 1) })
	testenv.NoError(t, os.WriteFile(fifo, nil, 0))
	eventually(t, "the orphan is buried", func() error { return wantChildren(pid, 0) })

	testenv.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("pause ended with %v, want success", err)
	}
}

// extractPause takes the program out of the only layer of the image.
func extractPause(t *testing.T, image, dst string) {
	t.Helper()
	f := testenv.Must(os.Open(image))(t)
	defer f.Close()
	layer := find(t, f, func(name string) bool { return strings.HasSuffix(name, "layer.tar") })
	data := testenv.Must(io.ReadAll(find(t, layer, func(name string) bool { return name == "pause" })))(t)
	testenv.NoError(t, os.WriteFile(dst, data, 0o700))
}

func find(t *testing.T, archive io.Reader, is func(name string) bool) io.Reader {
	t.Helper()
	tr := tar.NewReader(archive)
	for {
		h := testenv.Must(tr.Next())(t)
		if is(h.Name) {
			return tr
		}
	}
}

func children(pid int) (out []int, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for f := range strings.FieldsSeq(string(data)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, err
}

func wantChildren(pid, n int) error {
	c, err := children(pid)
	if err == nil && len(c) != n {
		err = fmt.Errorf("pause has children %v, want %d", c, n)
	}
	return err
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, what, f)
}
