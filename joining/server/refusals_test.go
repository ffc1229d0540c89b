// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"testing"
	"time"
)

// TestRefusalsAreLoggedSeldom: one line for each source in ten seconds, the next one with the number of those that had
// none; few sources are remembered.
func TestRefusalsAreLoggedSeldom(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	one, two := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1}
	want := func(from net.Addr, since int, line bool) {
		t.Helper()
		if gotSince, gotLine := r.count(from, now); gotSince != since || gotLine != line {
			t.Errorf("%v at %v: %d, %v; want %d, %v", from, now, gotSince, gotLine, since, line)
		}
	}
	want(one, 0, true)
	for range 5 {
		want(&net.TCPAddr{IP: one.IP, Port: 2}, 0, false)
	}
	want(two, 0, true)
	now = now.Add(refusalLogs)
	want(one, 5, true)
	want(one, 0, false)
	for i := range 2 * maxSources {
		r.count(&net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i)), Port: 1}, now)
	}
	if n := len(r.sources); n > maxSources {
		t.Errorf("%d sources are remembered", n)
	}
}
