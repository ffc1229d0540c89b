// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ServeSCTP is Serve for SCTP, which the kernel has to have.
func ServeSCTP(t testing.TB, in Doer, name string, at netip.AddrPort) {
	t.Helper()
	var l net.Listener
	err := in.Do(func() error {
		fd, err := socketSCTP(at)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "sctp")
		defer f.Close() // the listener has a copy
		if err := errors.Join(unix.Bind(fd, sockaddr(at)), unix.Listen(fd, 16)); err != nil {
			return err
		}
		l, err = net.FileListener(f)
		return err
	})
	if err != nil {
		t.Fatal("serving SCTP:", err)
	}
	serve(t, l, name)
}

// AskSCTP is Ask for SCTP. A connection that an ICMP message refuses ends at once.
func AskSCTP(in Doer, at netip.AddrPort) (answer string, err error) {
	err = in.Do(func() error {
		const patience = 10 * time.Second
		fd, err := socketSCTP(at)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "sctp")
		defer f.Close() // the connection has a copy
		if err := connect(fd, at, patience); err != nil {
			return fmt.Errorf("connecting to %v: %w", at, err)
		}
		c, err := net.FileConn(f)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		line, err := bufio.NewReader(c).ReadString('\n')
		answer = strings.TrimSpace(line)
		return err
	})
	return answer, err
}

func connect(fd int, at netip.AddrPort, patience time.Duration) error {
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR // without it the kernel takes no refusal for an answer
	if at.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	if err := errors.Join(unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, level, option, 1)); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(at)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	for deadline := time.Now().Add(patience); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code != 0 {
				err = unix.Errno(code)
			}
			return err
		}
	}
}

// socketSCTP is for one family alone: else it would tell the other end of its addresses of both.
func socketSCTP(at netip.AddrPort) (fd int, err error) {
	if at.Addr().Is4() {
		return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	}
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	return fd, err
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
}
