// SPDX-License-Identifier: Apache-2.0

// coracle-ingress is the ingress proxy of a node, in a process of its own. The agent starts it with listening sockets
// and sends it the table over one of them. The proxy keeps serving when the agent exits. It holds no credentials of the
// cluster. It opens no files, and no sockets except those to endpoints.
//
// It accepts connections once it has its first table. It ends when its agent exits before that, because then no agent
// knows of it.
//
// SIGTERM drains it: it stops accepting connections, waits up to 30 s for requests and tunnels, and ends with status 0.
// The signal table.HandedOver also drains it, when another process serves on its sockets. Then it waits up to an hour,
// which SIGTERM shortens.
//
// Its goroutines: what reads the control connection, what writes to it, and the proxy's own.
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
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/dataplane"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// firstDescriptor is the descriptor of the first inherited socket. Lower descriptors are the standard streams.
const firstDescriptor = 3

func main() {
	logger := slog.New(slog.NewTextHandler(boundLog(os.Stderr), nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, logger, os.Getenv(table.EnvNames)); err != nil {
		logger.Error("the ingress proxy ended", "error", err)
		os.Exit(1) //nolint:gocritic // the process ends, and with it the signal's channel
	}
}

// claimTimeout is the maximum time between the start of the process and its first table from the agent.
const claimTimeout = time.Minute

// errAbandoned says that the process has no table, and no agent that would send one.
var errAbandoned = errors.New("no agent has sent a table")

// run serves on the sockets with the given names until ctx is done or one of them fails.
func run(ctx context.Context, logger *slog.Logger, names string) error {
	if err := becomeUser(os.Getenv(table.EnvUser)); err != nil {
		return err
	}
	if err := dropRights(); err != nil {
		return err
	}
	control, sockets, err := inheritSockets(names)
	if err != nil {
		return err
	}
	connections, err := positiveNumber(table.EnvConnections)
	if err != nil {
		return err
	}
	proxy, err := dataplane.New(dataplane.Options{Logger: logger, MaxConnections: connections})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, proxy.End)()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	handed := make(chan os.Signal, 1) // the agent sends one signal at most
	signal.Notify(handed, table.HandedOver)
	defer signal.Stop(handed)

	claimed := make(chan struct{})
	listeners := dataplane.NewListeners(proxy, sockets)
	var failures [2]error
	var all sync.WaitGroup
	all.Go(func() {
		select {
		case <-handed:
			cancel(dataplane.ErrHandedOver)
		case <-ctx.Done():
		}
	})
	all.Go(func() {
		c := &dataplane.Control{
			Proxy: proxy, Logger: logger, Listeners: listeners, Committed: func() { close(claimed) },
			Abandoned: func() { cancel(errAbandoned) },
		}
		failures[0] = c.Serve(ctx, control)
		cancel(nil)
	})
	select {
	case <-claimed:
		all.Go(func() {
			defer cancel(nil) // a socket that fails drains the others; the agent restarts the process
			failures[1] = listeners.Serve(ctx)
		})
	case <-time.After(claimTimeout):
		cancel(errAbandoned)
	case <-ctx.Done():
	}
	all.Wait()
	err = errors.Join(failures[:]...)
	if errors.Is(context.Cause(ctx), errAbandoned) {
		err = errors.Join(err, errAbandoned)
	}
	return err
}

// positiveNumber returns the positive number in an environment variable. It returns 0 where that is not set.
func positiveNumber(variable string) (int, error) {
	text := os.Getenv(variable)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%s is %q, which is no positive number", variable, text)
	}
	return n, nil
}

// becomeUser switches to the user with this number, which gives up root and all capabilities. An empty number changes
// nothing.
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

// maxFile limits the size of each file that the process writes, in bytes. The only such file is its log, and maxFile is
// twice maxLog. The limit keeps the runtime's output at a crash, and an attacker who controls the process, from filling
// the file system.
const maxFile = 2 * maxLog

// dropRights gives up what a process that reads untrusted bytes does not need: gaining privileges by exec, being traced
// by other processes of its user, and writing large files.
func dropRights() error {
	// The attribute belongs to a thread, and Go has several threads already. AllThreadsSyscall6 sets it on all of them.
	// It does not support cgo, which only the race detector's build has.
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("giving up new privileges: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding core dumps and tracing: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: maxFile, Max: maxFile}); err != nil {
		return fmt.Errorf("bounding the log: %w", err)
	}
	return nil
}

// inheritSockets returns the sockets that the agent passed to the process: control for the agent itself, and clients
// for clients.
func inheritSockets(names string) (control net.Listener, clients []dataplane.Socket, err error) {
	if names == "" {
		return nil, nil, fmt.Errorf("the environment names no sockets in %s: coracle's agent starts this program", table.EnvNames)
	}
	controls := 0
	for i, name := range strings.Split(names, ",") {
		if name != table.ControlName {
			s, err := dataplane.Inherit(name, firstDescriptor+i)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", table.EnvNames, err)
			}
			clients = append(clients, s)
			continue
		}
		controls++
		file := os.NewFile(uintptr(firstDescriptor+i), name)
		if control, err = net.FileListener(file); err != nil {
			return nil, nil, fmt.Errorf("taking the socket %s from descriptor %d: %w", name, firstDescriptor+i, err)
		}
		if err := file.Close(); err != nil { // the listener has a duplicate
			return nil, nil, fmt.Errorf("closing descriptor %d: %w", firstDescriptor+i, err)
		}
	}
	if controls != 1 {
		return nil, nil, fmt.Errorf("%s holds %d sockets for the agent instead of one", table.EnvNames, controls)
	}
	return control, clients, nil
}
