// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"
)

// based is a table as it is at first, and a Sender.
func based(t *testing.T, s side) *Sender {
	t.Helper()
	if err := nft(s.base()); err != nil {
		t.Fatal(err)
	}
	return open(t)[s.family]
}

// great is a rule with as many endpoints as there may be.
func (s side) great(chain string) string {
	var elements []string
	for i := range maxElements {
		elements = append(elements, fmt.Sprintf("%d : %s . 80", i, s.addr(1+i%200)))
	}
	return fmt.Sprintf("add rule %s meta l4proto tcp dnat %s addr . port to numgen random mod %d map { %s }", chain, s.family, maxElements, strings.Join(elements, " , "))
}

// TestRefused: what the kernel says of a refused transaction is what is wrong with it, however large it is, wherever in it that is, and however much more is wrong. Nothing of it is in force,
// and the next one is not mistaken for it.
func TestRefused(t *testing.T) {
	netns.RequireNFT(t)
	for _, s := range sides {
		sender := based(t, s)
		known, missing := "add chain service-7/x", "add rule never-there/x goto service-1/x"
		var many []string
		for range 100 {
			many = append(many, missing)
		}
		before := kernelHas(t, s.table)
		for name, c := range map[string]struct {
			commands []string
			want     error
		}{
			"the first":      {[]string{missing, known, known}, unix.ENOENT},
			"one between":    {[]string{known, missing, known}, unix.ENOENT},
			"the last":       {[]string{known, known, missing}, unix.ENOENT},
			"a great one":    {[]string{known, s.great("never-there/x")}, unix.ENOENT},
			"very many":      {many, unix.ENOENT},
			"two, unlike":    {[]string{"add element services { " + s.addr(1) + " . tcp . 80 : drop }", missing}, unix.EEXIST},
			"a chain in use": {[]string{known, "delete chain reject-chain"}, unix.EBUSY},
		} {
			if err := sender.Send(s.write(c.commands...)); !errors.Is(err, c.want) {
				t.Errorf("%s of family %s: %v, want %v", name, s.family, err, c.want)
			}
			if after := kernelHas(t, s.table); !slices.Equal(before, after) {
				t.Fatalf("%s of family %s: refused, and the kernel has\n%s\nand had\n%s", name, s.family, lines(after), lines(before))
			}
			if err := sender.Send(s.write("flush chain service-1/x")); err != nil {
				t.Errorf("after %s of family %s: %v", name, s.family, err)
			}
		}
	}
}

// TestSmallSocket: what does not fit into a socket fails, and the next transaction finds another socket.
func TestSmallSocket(t *testing.T) {
	netns.RequireNFT(t)
	s := sides[0]
	sender := based(t, s)
	before := kernelHas(t, s.table)
	for _, c := range []struct {
		option   int
		commands []string
		want     error
	}{
		{unix.SO_SNDBUF, []string{"flush chain service-0/x", s.great("service-0/x")}, unix.EMSGSIZE},
		{unix.SO_RCVBUF, slices.Repeat([]string{"flush chain never-there/x"}, 400), unix.ENOBUFS},
	} {
		if err := sender.Send(s.write("flush chain service-1/x")); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(sender.socket, unix.SOL_SOCKET, c.option, 1); err != nil {
			t.Fatal(err)
		}
		if err := sender.Send(s.write(c.commands...)); !errors.Is(err, c.want) {
			t.Errorf("%v, want %v", err, c.want)
		}
		if after := kernelHas(t, s.table); !slices.Equal(before, after) {
			t.Errorf("the kernel has\n%s\nand had\n%s", lines(after), lines(before))
		}
	}
	if err := sender.Send(s.write("flush chain service-1/x")); err != nil {
		t.Error(err)
	}
}

// TestWhileOthersWrite: other programs' transactions, between any two of ours or while one is sent, neither fail one nor lose any of it.
func TestWhileOthersWrite(t *testing.T) {
	netns.RequireNFT(t)
	r := seeded(t)
	s := sides[r.IntN(2)]
	sender := based(t, s)
	there := netns.New(t) // where nft writes what is sent here
	if err := netns.WriteNFT(there, s.base()); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			table := fmt.Sprintf("%s stranger%d", s.family, i)
			var many strings.Builder
			for k := range 300 {
				fmt.Fprintf(&many, "add chain %s c%d\n", table, k)
			}
			for {
				select {
				case <-done:
					return
				default:
				}
				// nft gives up when others write all the time; ours must not.
				_ = nft("add table " + table + "\n" + many.String() + "delete table " + table + "\n")
			}
		})
	}
	taken := 0
	for taken < rounds(40) && !t.Failed() {
		text := s.any(r)
		theirs := netns.WriteNFT(there, text)
		if theirs == nil {
			taken++
		}
		if err := sender.Send(text); (err == nil) != (theirs == nil) {
			t.Errorf("nft says %v where nobody else writes, Send says %v to\n%s", theirs, err, text)
		}
	}
	close(done)
	wg.Wait()
	here, want := netns.NFTTable(t, netns.Own{}, uint8(s.table.Family), tableName, false), netns.NFTTable(t, there, uint8(s.table.Family), tableName, false)
	if !slices.Equal(here, want) {
		t.Errorf("the kernel has\n%s\nwant\n%s", lines(here), lines(want))
	}
}

// TestClose: whatever became of transactions, Close leaves nothing open, and what comes after it opens nothing.
func TestClose(t *testing.T) {
	netns.RequireNFT(t)
	s := sides[0]
	sender := based(t, s)
	sender.Close()
	before := files(t)
	sender = New(s.table, sets)
	for i := range 20 {
		if err := sender.Send(s.write("flush chain service-1/x")); err != nil {
			t.Error(err)
		}
		if i%2 == 0 {
			if err := sender.Send(s.write("flush chain never-there/x")); !errors.Is(err, unix.ENOENT) {
				t.Error(err)
			}
		}
	}
	sender.Close()
	sender.Close()
	if err := sender.Send(s.write("flush chain service-1/x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if now := files(t); now != before {
		t.Errorf("%d files are open, and %d were before", now, before)
	}
}

// files is how many are open.
func files(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
