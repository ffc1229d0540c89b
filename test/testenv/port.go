// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// Ports are given out of these. The kernel gives ports from 32768 on to a process that asks it for any, unless it is
// configured otherwise, and node ports are from 30000 on.
const firstPort, lastPort = 12000, 29999

// Port returns a port of TCP on which no process listens and that is the test's until it ends, also while the test
// itself does not listen: one that the kernel has given out, and that was given back, may be another process' when a
// test wants it again. Other tests ask here, in whatever process.
func Port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		// A socket with an abstract name belongs to the network namespace, as ports do, and ends with the process at
		// the latest.
		taken, err := net.Listen("unix", fmt.Sprintf("@coracle-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			_ = taken.Close()
			continue
		}
		_ = l.Close()
		t.Cleanup(func() { _ = taken.Close() })
		return port
	}
	t.Fatal("no port is free")
	return 0
}

// Address is addr with a port of Port's where addr has none, which is 0.
func Address(t testing.TB, addr string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	if port != "0" {
		return addr
	}
	return net.JoinHostPort(host, fmt.Sprint(Port(t)))
}
