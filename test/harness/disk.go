// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// diskSize is how much a server's own disk holds. Its file takes only as much room as has been written.
const diskSize = 1 << 30

// AddDisk puts the server's data directory on a disk of its own, which StallDisk can stall. The server must not have
// been started. Only its machine sees the disk, until that is switched off: this process finds the files with Seen.
func (s *Server) AddDisk() {
	s.T.Helper()
	file := filepath.Join(s.Dir, "disk")
	testenv.NoError(s.T, os.WriteFile(file, nil, 0o600))
	testenv.NoError(s.T, os.Truncate(file, diskSize))
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file).CombinedOutput(); err != nil {
		testenv.Missing(s.T, testenv.LoopDevice, "mkfs.ext4: %v\n%s", err, out)
	}
	s.MountDisk("-o", "loop", file) // the loop device goes with the mount, and that with the machine
}

// MountDisk puts the server's data directory on a disk with a file system: a device, with options of mount before it.
// As with AddDisk, only its machine sees it, until that is switched off.
func (s *Server) MountDisk(device ...string) {
	s.T.Helper()
	testenv.NoError(s.T, os.MkdirAll(s.DataDir, 0o755))
	if out, err := s.Run("mount", append(device, s.DataDir)...); err != nil {
		testenv.Missing(s.T, testenv.LoopDevice, "%v\n%s", err, out)
	}
	s.ownDisk = true
}

// Seen is the path by which this process sees a file of the server's data directory.
func (s *Server) Seen(path ...string) string {
	in := filepath.Join(append([]string{s.DataDir}, path...)...)
	if s.ownDisk {
		in = filepath.Join("/proc", strconv.Itoa(s.Machine.pid), "root", in)
	}
	return in
}

// StallDisk makes all that the server writes to its own disk wait, as a disk does that neither works nor fails, until
// release is called. Reads go on. A process that writes meanwhile cannot be killed. This ends with the test, and with
// this process if that is killed.
func (s *Server) StallDisk() (release func()) {
	s.T.Helper()
	const script = `fsfreeze -f "$1" && echo frozen && read -r end
fsfreeze -u "$1"`
	c := exec.Command("nsenter", "-t", strconv.Itoa(s.Machine.pid), "-m", "--", "sh", "-c", script, "stall", s.DataDir)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	hold, err := c.StdinPipe() // its end, however it comes, ends the stall
	testenv.NoError(s.T, err)
	stdout := testenv.Must(c.StdoutPipe())(s.T)
	testenv.NoError(s.T, c.Start())
	release = sync.OnceFunc(func() {
		_ = hold.Close()
		testenv.Check(s.T, c.Wait(), "let the disk of machine %d go", s.Number)
	})
	s.T.Cleanup(release)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		s.T.Fatal(fmt.Errorf("stall the disk of machine %d: %w %s", s.Number, err, line))
	}
	return release
}
