// SPDX-License-Identifier: Apache-2.0

package cli

import (
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

// restartService restarts coracle by the command that install.sh has left. With systemd it does not wait until the new
// process is ready. A terminal that is closed or interrupts this process does not end the command, which would leave
// coracle stopped. Variables of coracle that are set here are none of the service's.
func restartService(v *slots.Versions) error {
	command, err := os.ReadFile(filepath.Join(v.Dir, slots.RestartFile))
	if err != nil {
		return fmt.Errorf("the command that restarts coracle is not known: %w. Run the install.sh of a release again", err)
	}
	c := exec.Command("/bin/sh", "-c", string(command))
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CORACLE_") })
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w %s", strings.TrimSpace(string(command)), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// checkStarted returns an error unless the starter has started the current version of these versions as the process,
// and the service can be restarted: nothing would take the way back then.
func (p started) checkStarted(v *slots.Versions, digest string) error {
	again := "Nothing was changed: run the install.sh of a release, which sets that up"
	if !slices.Contains(p.env, slots.FolderEnv+"="+v.Dir) {
		return fmt.Errorf("the running coracle, process %d, was not started by coracle-start with the versions in %s, so nothing "+
			"would take the way back. %s", p.pid, v.Dir, again)
	}
	if program := programOf(p.pid); program != v.ProgramOf(digest) {
		return fmt.Errorf("process %d runs %s, and the current version is %s. Nothing was changed: restart coracle first", p.pid, program,
			v.ProgramOf(digest))
	}
	if !exists(filepath.Join(v.Dir, slots.RestartFile)) {
		return fmt.Errorf("it is not known how this machine restarts coracle. %s", again)
	}
	return nil
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// programOf returns the path of the program that a process runs, and "" if that is not known.
func programOf(pid int) string {
	path, _ := os.Readlink(procFile(pid, "exe"))
	return path
}

// started is a process with the arguments and the environment with which it was started. In place of secrets, which it
// has hidden from other users (package argv), there are stars.
type started struct {
	pid       int
	args, env []string
}

func readStarted(pid int) (started, error) {
	p := started{pid: pid}
	for name, into := range map[string]*[]string{"cmdline": &p.args, "environ": &p.env} {
		text, err := os.ReadFile(procFile(pid, name))
		if err != nil {
			return p, fmt.Errorf("reading how process %d was started: %w", pid, err)
		}
		*into = strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	}
	p.args = p.args[1:]
	return p, nil
}
