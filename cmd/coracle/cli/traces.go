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

// Where install.sh lets a supervised process log when there is no journal.
const defaultLogFile = "/var/log/coracle.log"

// supervisor is what install.sh makes where there is neither systemd nor OpenRC.
const supervisor = "/usr/local/bin/coracle-service"

// tailSize is how much of a log is read to find its end.
const tailSize = 16 << 10

// lastWords quotes the last complaint of the log, if it can be found.
func lastWords(environ []string) string {
	text := tail(defaultLogFile)
	if text == "" {
		text = journal(environ)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.Contains(lines[i], "ERROR ") || strings.Contains(lines[i], "coracle: ") || strings.HasPrefix(lines[i], "panic: ") {
			return ". The last complaint in its log: " + strings.TrimSpace(lines[i])
		}
	}
	return ""
}

// journal returns the last lines of the systemd unit, "" when there is none.
func journal(environ []string) string {
	if !exists("/run/systemd/system") {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "journalctl", "--unit", "coracle", "--lines", "50", "--output", "cat", "--no-pager")
	c.Env = environ
	out, err := c.Output()
	if err != nil {
		return "" // it is only a help
	}
	return string(out)
}

func tail(path string) string {
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

// startHint says how this machine starts coracle.
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

// space is what a file system has left.
type space struct {
	total, free, inodes, inodesFree uint64
}

// spaceAt looks at the file system of the nearest existing folder on the way to path.
func spaceAt(path string) (space, error) {
	for !exists(path) && path != "/" && path != "." {
		path = filepath.Dir(path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return space{}, fmt.Errorf("looking at the file system of %s: %w", path, err)
	}
	size := uint64(st.Bsize)
	return space{total: st.Blocks * size, free: st.Bavail * size, inodes: st.Files, inodesFree: st.Ffree}, nil
}

func diskNote(path string) string {
	s, err := spaceAt(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%.1f GB free)", float64(s.free)/1e9)
}

// leastFree is where a store can soon no longer write.
const leastFree = 200 << 20

func diskProblems(p config.Paths) []string {
	s, err := spaceAt(p.DataDir)
	if err != nil {
		return nil
	}
	if s.free < leastFree {
		return []string{fmt.Sprintf("the disk of %s is full: %s are left. Writes to the cluster fail or soon will, reads go on, nothing "+
			"is lost. Make room: unused images go with coracle ctr images rm", p.DataDir, mb(int64(s.free)))}
	}
	if s.inodes > 0 && s.inodesFree < 1000 {
		return []string{fmt.Sprintf("the file system of %s has only %d inodes left: no more files can be made. Remove files that are not needed", p.DataDir, s.inodesFree)}
	}
	return nil
}
