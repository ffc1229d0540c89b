// SPDX-License-Identifier: Apache-2.0

// Package runtimes finds the container runtimes that are installed on the machine beside the embedded runc.
//
// It reads the folders of programs, and runs each program that it found once, as containerd does for every runtime when
// it starts. It writes nothing, and never installs or configures a runtime.
//
// Its goroutines: the query of each installed runtime at the start, 10 s at most.
package runtimes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// QueryTimeout limits the wait for a runtime's reply. containerd waits without a limit, and before it serves.
const QueryTimeout = 10 * time.Second

// operatorDirs are where operators that run as pods install runtimes: NVIDIA's GPU operator, KWasm, kata-deploy. They
// are searched before PATH, since an operator's version replaces the distribution's.
var operatorDirs = []string{"/usr/local/nvidia/toolkit", "/opt/kwasm/bin", "/opt/kata/bin"}

// Runtime is a container runtime that was found on this machine, besides runc.
type Runtime struct {
	// Name is one of clusterconfig.Runtimes. It is the handler of the RuntimeClass.
	Name string
	// Program is the absolute path of the runtime, or of its shim if OwnShim is true.
	Program string
	// OwnShim means that containerd starts Program itself. Otherwise, coracle's shim runs it in place of runc.
	OwnShim bool
}

// programs are the files by which a runtime is recognized: one of names, and needs, if it is not empty. Shims are those
// whose names begin with shimPrefix.
var programs = map[string]struct {
	names []string
	needs string
}{
	"crun":                {names: []string{"crun"}},
	"kata":                {names: []string{shimPrefix + "kata-v2"}},
	"lunatic":             {names: []string{shimPrefix + "lunatic-v1"}},
	"nvidia":              {names: []string{"nvidia-container-runtime"}},
	"nvidia-cdi":          {names: []string{"nvidia-container-runtime.cdi"}},
	"nvidia-experimental": {names: []string{"nvidia-container-runtime-experimental"}},
	"runsc":               {names: []string{shimPrefix + "runsc-v1"}, needs: "runsc"},
	"slight":              {names: []string{shimPrefix + "slight-v1"}},
	"spin":                {names: []string{shimPrefix + "spin-v2", shimPrefix + "spin-v1"}},
	"wasmedge":            {names: []string{shimPrefix + "wasmedge-v1"}},
	"wasmer":              {names: []string{shimPrefix + "wasmer-v1"}},
	"wasmtime":            {names: []string{shimPrefix + "wasmtime-v1"}},
	"wws":                 {names: []string{shimPrefix + "wws-v1"}},
}

const shimPrefix = "containerd-shim-"

// Dirs returns the folders to search, in this order: those of operators, and the absolute ones of a PATH.
func Dirs(path string) []string {
	dirs := slices.Clone(operatorDirs)
	for _, dir := range filepath.SplitList(path) {
		if filepath.IsAbs(dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// Find returns the runtimes in these folders, in the order of clusterconfig.Runtimes. The first folder that has a
// program counts.
func Find(dirs []string) []Runtime {
	var found []Runtime
	for _, name := range clusterconfig.Runtimes {
		p := programs[name]
		path := lookup(dirs, p.names...)
		if path == "" || p.needs != "" && lookup(dirs, p.needs) == "" {
			continue
		}
		found = append(found, Runtime{Name: name, Program: path, OwnShim: strings.HasPrefix(filepath.Base(path), shimPrefix)})
	}
	return found
}

// lookup returns the path of the first program with one of the names, or "".
func lookup(dirs []string, names ...string) string {
	for _, name := range names {
		for _, dir := range dirs {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
				return path
			}
		}
	}
	return ""
}

// shimVersion matches the version in a shim's name.
var shimVersion = regexp.MustCompile(`-(v[0-9]+)$`)

// Type returns containerd's runtime_type: io.containerd.NAME.vN for containerd-shim-NAME-vN, and runc's for a runtime
// without a shim.
func (r Runtime) Type() string {
	if !r.OwnShim {
		return "io.containerd.runc.v2"
	}
	return "io.containerd." + shimVersion.ReplaceAllString(strings.TrimPrefix(filepath.Base(r.Program), shimPrefix), ".$1")
}

// Query runs all programs concurrently, as containerd does when it starts. It returns those that can be run and that
// exit within the limit, and an error for each of the others. The exit status does not count: older versions do not
// have the command, and containerd does without the reply.
func Query(ctx context.Context, found []Runtime, limit time.Duration) (usable []Runtime, errs []error) {
	results := make([]error, len(found))
	var running sync.WaitGroup
	for i, r := range found {
		running.Go(func() { results[i] = r.query(ctx, limit) })
	}
	running.Wait()
	for i, r := range found {
		if results[i] == nil {
			usable = append(usable, r)
		} else {
			errs = append(errs, results[i])
		}
	}
	return usable, errs
}

func (r Runtime) query(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	argument := "features"
	if r.OwnShim {
		argument = "-info"
	}
	cmd := exec.CommandContext(ctx, r.Program, argument)
	// A program of its own may hold the output open.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := cmd.Run()
	switch exit := new(exec.ExitError); {
	case ctx.Err() != nil:
		return fmt.Errorf("%s (%s) did not reply to %q within %s", r.Name, r.Program, argument, limit)
	case err != nil && !errors.As(err, &exit):
		return fmt.Errorf("%s cannot be run: %w", r.Name, err)
	}
	return nil
}
