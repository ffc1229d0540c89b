// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/internal/slots"
)

// versionsVariable is the environment variable by which the service tells the starter, and this process, where the
// versions are.
const versionsVariable = "CORACLE_VERSIONS"

// service is what starts coracle again.
type service struct{ command []string }

// restart restarts coracle. With systemd it does not wait until the new process is ready.
func (s service) restart(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, s.command[0], s.command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w %s", strings.Join(s.command, " "), err, strings.TrimSpace(string(out)))
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
	if !slices.Contains(strings.Split(string(env), "\x00"), versionsVariable+"="+v.Dir) {
		return service{}, fmt.Errorf("the running coracle, process %d, was not started by coracle-start with the versions in %s, so nothing "+
			"would take the way back. %s", pid, v.Dir, again)
	}
	if program := programOf(pid); program != v.ProgramOf(digest) {
		return service{}, fmt.Errorf("process %d runs %s, and the current version is %s. Nothing was changed: restart coracle first", pid, program,
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

// startedWith returns the arguments and the environment with which a process was started. Values that the process has
// hidden from other users, which are secrets, are left out with their flags.
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
	return withoutSecrets(all[1:]), strings.Split(strings.TrimSuffix(string(environ), "\x00"), "\x00"), nil
}

// withoutSecrets removes the flags whose values are overwritten (package argv).
func withoutSecrets(args []string) (out []string) {
	hidden := func(value string) bool { return value != "" && strings.Trim(value, "*") == "" }
	for _, arg := range args {
		_, value, joined := strings.Cut(arg, "=")
		switch {
		case joined && hidden(value), strings.HasPrefix(arg, "-t*") && hidden(arg[2:]):
		case hidden(arg) && len(out) > 0:
			out = out[:len(out)-1]
		default:
			out = append(out, arg)
		}
	}
	return out
}
