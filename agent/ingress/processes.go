// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/convert"
)

// processList is the list of the node's proxies in a file, by which the next run finds them. A process is recorded
// before it gets its first table, and so before it accepts connections.
type processList struct {
	// Processes are those that may still run, the newest first.
	Processes []entry `json:"processes"`
}

// entry is a proxy process in the list of processes.
type entry struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"` // after the machine's start, in ticks: another process may have the PID by now
	// Program is the real path of its program, which differs between versions.
	Program string `json:"program"`
	// Socket is the name of its control socket in the folder.
	Socket string `json:"socket"`
	// Draining means that it was informed that another process has taken over.
	Draining bool `json:"draining,omitempty"`
}

func processFile(dir string) string { return filepath.Join(dir, "process.json") }

// readProcesses reads the list of processes. A file that cannot be read is an error, a missing one an empty list.
func readProcesses(dir string) (processList, error) {
	var r processList
	if _, err := atomicfile.ReadJSON(processFile(dir), &r); err != nil {
		return processList{}, fmt.Errorf("reading the record of the ingress proxy: %w", err)
	}
	return r, nil
}

// write writes the running processes to the file. It removes the control sockets of those that have ended.
func (r *processList) write(dir string) error {
	r.Processes = slices.DeleteFunc(r.Processes, func(e entry) bool {
		if !e.alive() {
			_ = os.Remove(filepath.Join(dir, e.Socket)) // on failure the next start removes it
			return true
		}
		return false
	})
	if err := atomicfile.WriteJSON(processFile(dir), r, 0o600); err != nil {
		return fmt.Errorf("writing the record of the ingress proxy: %w", err)
	}
	return nil
}

// alive reports whether the process of an entry runs.
func (e entry) alive() bool {
	started, err := startTime(e.PID)
	return e.PID > 0 && err == nil && started == e.Started
}

// signal sends a signal to the process, if it runs.
func (e entry) signal(s syscall.Signal) error {
	if !e.alive() {
		return nil
	}
	if err := syscall.Kill(e.PID, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending the ingress proxy %d the signal %s: %w", e.PID, s, err)
	}
	return nil
}

// startTime returns field 22 of /proc/PID/stat: ticks after the machine's start.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, fmt.Errorf("the process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// controlSockets returns the names of the control sockets in the folder.
func controlSockets(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "control*.sock")) // the pattern is well-formed
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}

// recoverProcesses rebuilds the list of processes where it cannot be read: each proxy sends its process ID on its
// control socket.
func recoverProcesses(dir string) processList {
	var r processList
	for _, name := range controlSockets(dir) {
		e := entry{Socket: name}
		p, s, err := adopt(dir, e)
		if err != nil {
			continue // no process listens there
		}
		e.PID = p.answeredPID
		p.close()
		s.close()
		started, err := startTime(e.PID)
		if err != nil || !ofProxyUser(e.PID) {
			continue
		}
		e.Started, e.Draining = started, s == nil
		e.Program, _ = os.Readlink("/proc/" + strconv.Itoa(e.PID) + "/exe") // an unknown program counts as another version
		r.Processes = append(r.Processes, e)
	}
	slices.SortStableFunc(r.Processes, func(a, b entry) int { return int(int64(b.Started) - int64(a.Started)) })
	return r
}

// ofProxyUser reports whether a process runs as the proxies' user. A process ID that was sent over a control socket is
// trusted only for such processes, since signals are sent to it.
func ofProxyUser(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status") // the folder's owner is root where a process forbids tracing
	if err != nil {
		return false
	}
	user := os.Getuid()
	user = cmp.Or(user, User)
	_, ids, _ := strings.Cut(string(text), "\nUid:\t")
	real, _, _ := strings.Cut(ids, "\t")
	return real == strconv.Itoa(user)
}

// stop ends all processes, and removes their files and the kept table.
func stop(dir string) error {
	r, err := readProcesses(dir)
	if err != nil || len(r.Processes) == 0 {
		r = recoverProcesses(dir)
	}
	errs := convert.Slice(r.Processes, func(e entry) error { return e.signal(syscall.SIGTERM) })
	if err := errors.Join(append(errs, removeLast(dir))...); err != nil {
		return err
	}
	for _, name := range append(controlSockets(dir), filepath.Base(processFile(dir))) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the record of the ingress proxy: %w", err)
		}
	}
	return nil
}

// handedOver signals to a process that another one serves now.
func (e *entry) handedOver() error {
	e.Draining = true
	return e.signal(table.HandedOver)
}
