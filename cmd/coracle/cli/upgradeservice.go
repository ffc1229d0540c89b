// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coracle-k8s/coracle/internal/slots"
)

// serviceFile is the file in the slot of a version on trial that has its service. A candidate that hangs cannot be
// asked.
const serviceFile = "service.json"

// service is what starts coracle again.
type service struct {
	Restart []string `json:"restart"` // the command
}

// restart restarts coracle. With systemd it does not wait until the new process is ready. A terminal that is closed or
// interrupts this process does not end the command, which would leave coracle stopped.
func (s service) restart() error {
	if len(s.Restart) == 0 {
		return errors.New("the service is not known")
	}
	c := exec.Command(s.Restart[0], s.Restart[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w %s", strings.Join(s.Restart, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// findStarted returns the service of a running coracle, or an error if the starter did not start the current version
// there: nothing would take the way back then.
func findStarted(pid int, v *slots.Versions, digest string) (service, error) {
	again := "Nothing was changed: run the install.sh of a release, which sets that up"
	env, err := os.ReadFile(procFile(pid, "environ"))
	if err != nil {
		return service{}, fmt.Errorf("reading the environment of process %d: %w", pid, err)
	}
	if !slices.Contains(strings.Split(string(env), "\x00"), slots.FolderEnv+"="+v.Dir) {
		return service{}, fmt.Errorf("the running coracle, process %d, was not started by coracle-start with the versions in %s, so nothing "+
			"would take the way back. %s", pid, v.Dir, again)
	}
	if program := programOf(pid); program != v.ProgramOf(digest) {
		return service{}, fmt.Errorf("process %d runs %s, and the current version is %s. Nothing was changed: restart coracle first", pid,
			program,
			v.ProgramOf(digest))
	}
	return findService(pid)
}

// findService returns the service manager that runs a process of coracle, by the process that started it.
func findService(pid int) (service, error) {
	parent, err := parentOf(pid)
	if err != nil {
		return service{}, err
	}
	text, err := os.ReadFile(procFile(parent, "cmdline"))
	if err != nil {
		return service{}, fmt.Errorf("finding out what has started coracle: %w", err)
	}
	args := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
	named := func(name string) int {
		return slices.IndexFunc(args, func(arg string) bool { return filepath.Base(arg) == name })
	}
	if i := named("coracle-service"); i >= 0 {
		return service{[]string{args[i], "restart"}}, nil
	}
	if named("supervise-daemon") >= 0 {
		return service{[]string{"rc-service", "coracle", "--quiet", "restart"}}, nil
	}
	if parent == 1 && isDir("/run/systemd/system") {
		return service{[]string{"systemctl", "restart", "--no-block", "coracle"}}, nil
	}
	return service{}, fmt.Errorf("coracle was started by process %d (%s), which is no service that install.sh has made, so it cannot be "+
		"restarted. Nothing was changed", parent, strings.Join(args, " "))
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// programOf returns the path of the program that a process runs, and "" if that is not known.
func programOf(pid int) string {
	path, _ := os.Readlink(procFile(pid, "exe"))
	return path
}

// parentOf returns the process that has started another one (proc_pid_status(5)).
func parentOf(pid int) (int, error) {
	text, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return 0, fmt.Errorf("finding out what has started coracle: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("finding out what has started coracle: the kernel does not say it")
}

// startedWith returns the arguments and the environment with which a process was started. In place of secrets, which it
// has hidden from other users (package argv), there are stars.
func startedWith(pid int) (args, env []string, err error) {
	text, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the arguments of process %d: %w", pid, err)
	}
	environ, err := os.ReadFile(procFile(pid, "environ"))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the environment of process %d: %w", pid, err)
	}
	all := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	return all[1:], strings.Split(strings.TrimSuffix(string(environ), "\x00"), "\x00"), nil
}
