// SPDX-License-Identifier: Apache-2.0

// coracle-ingress is the ingress proxy of a node, a process of its own. The agent starts it with listening sockets, hands it the table
// over one of them, and may go away: the proxy serves on. It holds no credentials of the cluster, opens no files and no sockets but those
// to endpoints.
//
// SIGTERM drains it: it accepts nothing more, waits up to 30 s for requests and tunnels, and ends with status 0.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/dataplane"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// firstDescriptor is that of the first socket: those before are the standard streams.
const firstDescriptor = 3

func main() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, logger, os.Getenv(table.EnvNames)); err != nil {
		logger.Error("the ingress proxy ended", "error", err)
		os.Exit(1) //nolint:gocritic // the process ends, and with it the signal's channel
	}
}

// socket is a listening socket with its name.
type socket struct {
	name     string
	listener net.Listener
}

// run serves on the sockets of the given names until ctx is done or one fails.
func run(ctx context.Context, logger *slog.Logger, names string) error {
	if err := becomeUser(os.Getenv(table.EnvUser)); err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	sockets, err := inherit(names)
	if err != nil {
		return err
	}
	proxy, err := dataplane.New(dataplane.Options{Logger: logger})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make([]error, len(sockets))
	var all sync.WaitGroup
	for i, s := range sockets {
		all.Go(func() {
			defer cancel() // one socket that fails drains the others; the agent starts the process anew
			failures[i] = serve(ctx, logger, proxy, s)
		})
	}
	all.Wait()
	return errors.Join(failures...)
}

func serve(ctx context.Context, logger *slog.Logger, proxy *dataplane.Proxy, s socket) error {
	if s.name == table.ControlName {
		control := &dataplane.Control{Proxy: proxy, Logger: logger}
		return control.Serve(ctx, s.listener)
	}
	site, kind, _ := cutLast(s.name)
	return proxy.Serve(ctx, site, kind == table.HTTPS, s.listener)
}

// becomeUser gives up root, and with it all capabilities. An empty number changes nothing.
func becomeUser(number string) error {
	if number == "" {
		return nil
	}
	id, err := strconv.Atoi(number)
	if err != nil || id <= 0 {
		return fmt.Errorf("%s is %q, which is no user's number", table.EnvUser, number)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("giving up root's groups: %w", err)
	}
	if err := syscall.Setgid(id); err != nil {
		return fmt.Errorf("becoming the group %d: %w", id, err)
	}
	if err := syscall.Setuid(id); err != nil {
		return fmt.Errorf("becoming the user %d: %w", id, err)
	}
	return nil
}

// harden gives up what a process that reads strangers' bytes does not need: new privileges by executing, and being traced by others of
// its user.
func harden() error {
	// The attribute is a thread's, and Go has several already. All are told at once, which cgo (only the race detector's build has it) does
	// not support.
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("giving up new privileges: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding core dumps and tracing: %w", err)
	}
	return nil
}

// inherit takes the sockets that the agent handed over.
func inherit(names string) ([]socket, error) {
	if names == "" {
		return nil, fmt.Errorf("the environment names no sockets in %s: coracle's agent starts this program", table.EnvNames)
	}
	var out []socket
	controls := 0
	for i, name := range strings.Split(names, ",") {
		_, kind, ok := cutLast(name)
		if name == table.ControlName {
			controls++
		} else if !ok || kind != table.HTTP && kind != table.HTTPS {
			return nil, fmt.Errorf("%s holds the name %q, which is no socket's", table.EnvNames, name)
		}
		file := os.NewFile(uintptr(firstDescriptor+i), name)
		listener, err := net.FileListener(file)
		if err != nil {
			return nil, fmt.Errorf("taking the socket %s from descriptor %d: %w", name, firstDescriptor+i, err)
		}
		if err := file.Close(); err != nil { // listener has a copy
			return nil, fmt.Errorf("closing descriptor %d: %w", firstDescriptor+i, err)
		}
		out = append(out, socket{name: name, listener: listener})
	}
	if controls != 1 {
		return nil, fmt.Errorf("%s holds %d sockets for the agent instead of one", table.EnvNames, controls)
	}
	return out, nil
}

// cutLast splits a name at its last slash.
func cutLast(name string) (site, kind string, ok bool) {
	at := strings.LastIndexByte(name, '/')
	if at < 0 {
		return "", "", false
	}
	return name[:at], name[at+1:], true
}
