// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/config"
)

// defaultLogFile is the log to which a process logs that install.sh supervises on a machine without a journal.
const defaultLogFile = "/var/log/coracle.log"

// supervisor is the script that install.sh makes on a machine with neither systemd nor OpenRC.
const supervisor = "/usr/local/bin/coracle-service"

// tailSize is how many bytes at the end of a log are read.
const tailSize = 16 << 10

// lastWords quotes the last error in the log, if there is one.
func lastWords(environ []string) string {
	text := fileTail(defaultLogFile)
	if text == "" {
		text = journalTail(environ)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.Contains(lines[i], "ERROR ") || strings.Contains(lines[i], "coracle: ") || strings.HasPrefix(lines[i], "panic: ") {
			return ". The last complaint in its log: " + strings.TrimSpace(lines[i])
		}
	}
	return ""
}

// journalTail returns the last lines of the systemd unit. It returns "" when there are none.
func journalTail(environ []string) string {
	if !exists("/run/systemd/system") {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "journalctl", "--unit", "coracle", "--lines", "50", "--output", "cat", "--no-pager")
	c.Env = environ
	out, err := c.Output()
	if err != nil {
		return "" // the lines are only additional help
	}
	return string(out)
}

func fileTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > tailSize {
		if _, err := f.Seek(-tailSize, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, tailSize))
	if err != nil {
		return ""
	}
	return string(text)
}

// startHint says by which command this machine starts coracle.
func startHint(t *config.Tool) []string {
	switch {
	case t.Paths.DataDir != config.DefaultDataDir:
		return nil
	case exists("/run/systemd/system") && exists("/etc/systemd/system/coracle.service"):
		return []string{"start it with: systemctl start coracle; read its log with: journalctl -u coracle"}
	case exists("/sbin/openrc-run") && exists("/etc/init.d/coracle"):
		return []string{"start it with: rc-service coracle start; its log is " + defaultLogFile}
	case exists(supervisor):
		return []string{"start it with: " + supervisor + " start; its log is " + defaultLogFile}
	}
	return nil
}

// fileSystemSpace is the size and the free space of a file system.
type fileSystemSpace struct {
	freeBytes, inodes, inodesFree uint64
}

// spaceAt returns the space of the file system that holds path, or its nearest existing parent folder.
func spaceAt(path string) (fileSystemSpace, error) {
	for !exists(path) && path != "/" && path != "." {
		path = filepath.Dir(path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fileSystemSpace{}, fmt.Errorf("looking at the file system of %s: %w", path, err)
	}
	return fileSystemSpace{freeBytes: st.Bavail * uint64(st.Bsize), inodes: st.Files, inodesFree: st.Ffree}, nil
}

func diskNote(path string) string {
	s, err := spaceAt(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%.1f GB free)", float64(s.freeBytes)/1e9)
}

// minFree is the free space below which a store will soon be unable to write, in bytes.
const minFree = 200 << 20

func diskProblems(p config.Paths) []string {
	s, err := spaceAt(p.DataDir)
	if err != nil {
		return nil
	}
	if s.freeBytes < minFree {
		return []string{fmt.Sprintf("the disk of %s is full: %s are left. Writes to the cluster fail or soon will, reads go on, nothing "+
			"is lost. Free space: unused images are removed by coracle ctr images rm", p.DataDir, formatMB(int64(s.freeBytes)))}
	}
	if s.inodes > 0 && s.inodesFree < 1000 {
		return []string{fmt.Sprintf("the file system of %s has only %d inodes left: no more files can be made. Remove files that are not needed", p.DataDir, s.inodesFree)}
	}
	return nil
}
