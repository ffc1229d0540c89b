// SPDX-License-Identifier: Apache-2.0

package testenv_test

import (
	"net"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPortIsGivenOnce: a port is one test's alone, be it that the test does not listen on it.
func TestPortIsGivenOnce(t *testing.T) {
	own := map[int]bool{}
	for range 200 {
		port := testenv.Port(t)
		if own[port] {
			t.Fatalf("%d is given to two", port)
		}
		own[port] = true
	}
	l, err := net.Listen("tcp", testenv.Address(t, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if again := testenv.Address(t, l.Addr().String()); again != l.Addr().String() {
		t.Errorf("%s became %s", l.Addr(), again)
	}
}
