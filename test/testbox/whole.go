// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// echo sends each datagram that comes to the given UDP port back.
func echo(args []string) error {
	if len(args) == 0 {
		return errors.New("echo PORT")
	}
	c, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

// whole sends the largest datagram that the route to ADDRESS:PORT takes, which no router may cut into pieces, and waits
// for its echo, for as many seconds as the second argument says (5). It prints the size of the packet.
func whole(args []string) error {
	if len(args) == 0 {
		return errors.New("whole ADDRESS:PORT [SECONDS]")
	}
	deadline := time.Now().Add(seconds(args, 1, 5))
	for {
		size, err := tryWhole(args[0])
		if err == nil {
			fmt.Println(size)
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func tryWhole(addr string) (size int, err error) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	headers := 28
	set := func(fd uintptr) {
		if err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER, syscall.IP_PMTUDISC_DO); err == nil {
			size, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU)
		}
	}
	if c.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		headers = 48
		set = func(fd uintptr) {
			if err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MTU_DISCOVER, syscall.IPV6_PMTUDISC_DO); err == nil {
				size, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MTU)
			}
		}
	}
	if e := raw.Control(set); e != nil || err != nil {
		return 0, errors.Join(e, err)
	}
	if _, err := c.Write(make([]byte, size-headers)); err != nil {
		return 0, fmt.Errorf("a packet of %d bytes: %w", size, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	n, err := c.Read(make([]byte, 1<<16))
	if err != nil {
		return 0, fmt.Errorf("a packet of %d bytes came not back: %w", size, err)
	}
	if n != size-headers {
		return 0, fmt.Errorf("%d bytes came back of %d", n, size-headers)
	}
	return size, nil
}
