// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// errOff says that a machine is switched off.
var errOff = errors.New("the machine is off")

// Dial connects from this process as a program on the machine does. It may be called from any goroutine, as an HTTP
// client's dialer too. While the machine is off it fails at once.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return open(m, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) })
}

// ListenPacket opens a UDP port on the machine.
func (m *Machine) ListenPacket(address string) (net.PacketConn, error) {
	return open(m, func() (net.PacketConn, error) {
		return new(net.ListenConfig).ListenPacket(context.Background(), "udp", address)
	})
}

// Listen opens a TCP port on the machine.
func (m *Machine) Listen(address string) (net.Listener, error) {
	return open(m, func() (net.Listener, error) {
		return new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	})
}

// open runs f in a machine's network.
func open[T any](m *Machine, f func() (T, error)) (socket T, err error) {
	namespace := m.network.Load()
	if namespace == nil {
		return socket, errOff
	}
	err = inNetwork(namespace, func() (err error) {
		socket, err = f()
		return err
	})
	return socket, err
}

// inNetwork runs f on a thread in a network namespace. What f starts on other goroutines is not in it.
//
// The thread goes back to where it was, and on: if threads ended here, so would the processes that they started, which
// are to end with this process (Pdeathsig).
func inNetwork(namespace *os.File, f func() error) error {
	done := make(chan error, 1) // one: the goroutine ends whether or not the caller waits
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer home.Close()
			err = enterNetwork(namespace)
		}
		if err != nil {
			done <- fmt.Errorf("enter a machine's network: %w", err)
			runtime.UnlockOSThread() // it has not left
			return
		}
		err = f()
		if back := enterNetwork(home); back != nil {
			panic(back) // whatever came to run on this thread would be elsewhere
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func enterNetwork(namespace *os.File) error {
	raw, err := namespace.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, set)
}
