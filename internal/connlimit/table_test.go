// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestTableDropsTheOldest(t *testing.T) {
	table := Table{Max: 3}
	var dropped []int
	var done []func()
	add := func(n int) bool {
		leave, ok := table.Add(nil, func() { dropped = append(dropped, n) })
		done = append(done, leave)
		return ok
	}
	for n := range 5 {
		testenv.Require(t, add(n), "refused")
	}
	if want := []int{0, 1}; !slices.Equal(dropped, want) {
		t.Errorf("closed %v, want %v", dropped, want)
	}
	done[0]() // gone already: it makes no room
	done[3]()
	add(5)
	if want := []int{0, 1}; !slices.Equal(dropped, want) {
		t.Errorf("with room for one more, closed %v, want %v", dropped, want)
	}
	add(6)
	table.Close()
	table.Close()
	if want := []int{0, 1, 2, 4, 5, 6}; !slices.Equal(dropped, want) {
		t.Errorf("at the end closed %v, want %v", dropped, want)
	}
	testenv.False(t, add(7), "taken in after the end")
	done[4]() // is nothing any more
}

func tcp(address string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)) }

// TestFloodClosesItsOwnConnections: when there are too many connections, the oldest of the source that has the most is
// closed. A source is an IPv4 address or a /64 of IPv6.
func TestFloodClosesItsOwnConnections(t *testing.T) {
	for name, flood := range map[string]func(n int) string{
		"one address": func(n int) string { return fmt.Sprintf("192.0.2.1:%d", n) },
		"an address in two notations": func(n int) string {
			return fmt.Sprintf("%s192.0.2.1%s:%d", []string{"[::ffff:", ""}[n%2], []string{"]", ""}[n%2], n)
		},
		"a network of IPv6": func(n int) string { return fmt.Sprintf("[2001:db8::%x]:1", n) },
	} {
		t.Run(name, func(t *testing.T) {
			table := Table{Max: 10}
			closed := map[string]int{}
			add := func(remote string) {
				if _, ok := table.Add(tcp(remote), func() { closed[remote]++ }); !ok {
					t.Fatal("refused")
				}
			}
			others := []string{"192.0.2.7:1", "[2001:db8:0:1::1]:1", "192.0.2.8:1"}
			add(others[0])
			for n := range 5 {
				add(flood(n))
			}
			add(others[1])
			for n := 5; n < 100; n++ {
				add(flood(n))
			}
			add(others[2])
			for _, remote := range others {
				testenv.False(t, closed[remote] != 0, "a flood of another source closed the connection of %s", remote)
			}
			for n := range 100 {
				if want := min(max(93-n, 0), 1); closed[flood(n)] != want {
					t.Errorf("connection %d of the flood was closed %d times, want %d", n, closed[flood(n)], want)
				}
			}
		})
	}
}

// TestSourcesThatHaveEquallyMany: of sources that have the same number of connections, the one with the oldest gives
// way. What is kept of a source ends with its connections.
func TestSourcesThatHaveEquallyMany(t *testing.T) {
	table := Table{Max: 3}
	var closed []int
	var done []func()
	for n := range 20 {
		leave, _ := table.Add(tcp(fmt.Sprintf("192.0.2.%d:1", n)), func() { closed = append(closed, n) })
		done = append(done, leave)
	}
	testenv.False(t, !slices.IsSorted(closed) || len(closed) != 17, "closed %v", closed)
	for _, leave := range done {
		leave()
		leave()
	}
	if len(table.sources) != 0 || table.waiting.Len() != 0 {
		t.Errorf("%d sources, %d connections are kept", len(table.sources), table.waiting.Len())
	}
}

// TestSourceWithTooManyClosesItsOwn: beyond its own bound a source loses its oldest connection, although there is room
// for others. Where addresses are fixed, those of one /64 are several sources.
func TestSourceWithTooManyClosesItsOwn(t *testing.T) {
	for fixed, want := range map[bool][]string{
		false: {"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1"},
		true:  {"[2001:db8::1]:1"},
	} {
		table := Table{Max: 10, MaxPerSource: 2, FixedAddresses: fixed}
		var closed []string
		for _, remote := range []string{
			"192.0.2.1:1", "[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "[2001:db8::1]:2", "[2001:db8::1]:3",
		} {
			if _, ok := table.Add(tcp(remote), func() { closed = append(closed, remote) }); !ok {
				t.Fatal("refused")
			}
		}
		testenv.True(t, slices.Equal(closed, want), "with fixed addresses %v: closed %q, want %q", fixed, closed, want)
	}
}
