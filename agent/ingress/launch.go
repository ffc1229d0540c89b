// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// User is the numeric ID of the proxy's user and group.
const User = clusterconfig.IngressUser

// launch starts a process with duplicates of sockets, under its own user and in its own session. The process has no
// other open files except its log. launch returns when it is connected to the process.
func (k *supervisor) launch(s *sockets) (*process, error) {
	program, err := filepath.EvalSymlinks(k.program)
	if err != nil {
		return nil, fmt.Errorf("the ingress proxy is missing: %w", err)
	}
	e := entry{Program: program}
	control, err := k.listenControl(&e)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	defer closeFiles(files)
	log, err := k.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program) // without a context: it outlives this process
	cmd.Env = []string{
		table.EnvNames + "=" + strings.Join(append(slices.Clone(s.names), table.ControlName), ","),
		"GOMEMLIMIT=" + strconv.FormatInt(k.limits.Memory, 10), table.EnvConnections + "=" + strconv.Itoa(k.limits.Connections),
		"QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true", // about a buffer that openQUIC makes as large as possible
	}
	cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = "/", append(files, control), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() == 0 {
		cmd.Env = append(cmd.Env, table.EnvUser+"="+strconv.Itoa(User))
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the ingress proxy: %w", err)
	}
	e.PID = cmd.Process.Pid
	e.Started, err = startTime(e.PID)
	go func() { _ = cmd.Wait() }() // its connection shows its end; Wait removes the zombie process
	if err != nil {
		return nil, fmt.Errorf("the ingress proxy ended at once; its log in %s says why: %w", log.Name(), err)
	}
	k.onStep("record")
	p, err := k.adopt(e)
	if err != nil {
		return nil, errors.Join(err, e.signal(syscall.SIGKILL))
	}
	return p, nil
}

// adopt records a process that was started, limits it, and connects to it.
func (k *supervisor) adopt(e entry) (*process, error) {
	before := slices.Clone(k.processes.Processes)
	k.processes.Processes = slices.Insert(k.processes.Processes, 0, e)
	if err := k.processes.write(k.dir); err != nil {
		k.processes.Processes = before
		return nil, err
	}
	if err := k.groups.addProcess(strconv.Itoa(e.PID), e.PID); err != nil && !k.ungrouped {
		k.ungrouped = true
		k.log("ingress: the proxy runs without a memory limit in its cgroup", "error", err)
	}
	k.onStep("connect")
	p, err := connect(k.dir, e)
	if err != nil {
		k.processes.Processes = before
		return nil, err
	}
	p.limits, p.limitCounts, p.startedHere = k.limits, &table.Limited{}, true
	p.reading.Go(p.read)
	return p, nil
}

// listenControl opens a control socket at a path that no other process uses.
func (k *supervisor) listenControl(e *entry) (*os.File, error) {
	for i := 1; ; i++ {
		e.Socket = "control-" + strconv.Itoa(i) + ".sock"
		recorded := slices.ContainsFunc(k.processes.Processes, func(other entry) bool { return other.Socket == e.Socket })
		if _, err := os.Lstat(filepath.Join(k.dir, e.Socket)); err != nil && !recorded {
			break
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(k.dir, e.Socket), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for the proxy's table: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	file, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("taking the socket for the proxy's table: %w", err)
	}
	return file, nil
}

// openLog begins a log, and keeps one older file. The proxy limits the size of its log itself.
func (k *supervisor) openLog() (*os.File, error) {
	path := filepath.Join(k.dir, "log")
	if err := os.Rename(path, path+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("keeping the proxy's log: %w", err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the proxy's log: %w", err)
	}
	return log, nil
}
