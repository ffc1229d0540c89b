// SPDX-License-Identifier: Apache-2.0

package nfttable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/netdump"
)

// Names are those of a table's chains and sets, whoever made them. They are read whole once; from then on the kernel tells what comes and goes. What it tells waits
// in a socket until somebody asks; where there was more than fits in there, the names are read again. Make one with FollowNames; it is safe for several goroutines.
type Names struct {
	table Table

	mu     sync.Mutex
	socket int               // -1 when it is closed
	known  bool              // chains and sets are right, but for what waits in the socket
	chains map[uint64]string // by handle, for a chain can get another name
	sets   map[string]bool
	reads  int // how often they were read whole
}

// FollowNames begins to listen. The table need not be there.
func FollowNames(t Table) (*Names, error) {
	fd, err := listen(nil)
	if err != nil {
		return nil, err
	}
	return &Names{table: t, socket: fd, chains: map[uint64]string{}, sets: map[string]bool{}}, nil
}

// Close ends it. Every question after that is answered with an error.
func (n *Names) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.socket >= 0 {
		_ = unix.Close(n.socket)
		n.socket = -1
	}
}

// Chains are the names of all chains, in no order. A table that is not there has none.
func (n *Names) Chains() ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.refresh(); err != nil {
		return nil, err
	}
	return slices.Collect(maps.Values(n.chains)), nil
}

// Sets are the names of all sets, in no order, without maps and without those that a rule has in it and no name of their own.
func (n *Names) Sets() ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.refresh(); err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(n.sets)), nil
}

// Forget has the next question read everything again.
func (n *Names) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = false
}

// Hear takes in what the kernel has told by now, so that there is room in the socket. It is not needed for right answers.
func (n *Names) Hear() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hear()
}

// refresh makes the names right.
func (n *Names) refresh() error {
	if err := n.hear(); err != nil || n.known {
		return err
	}
	if err := n.read(); err != nil {
		return err
	}
	// What was told meanwhile is partly in what was read. Taken in once more, it leaves each name as the last that was told of it.
	if err := n.hear(); err != nil {
		return err
	}
	if !n.known {
		return fmt.Errorf("table %s changes faster than it can be read", n.table.Name)
	}
	return nil
}

// hear takes in what waits in the socket, or throws it away as long as nothing is known. Where the kernel had no room it says so first, and tells nothing more until
// all the rest was taken out: so what is read after that has everything in it.
func (n *Names) hear() error {
	if n.socket < 0 {
		return errors.New("listening to nftables' news: closed")
	}
	var buf [1 << 14]byte // the kernel's pieces are of 8 KB at most
	for {
		size, _, err := unix.Recvfrom(n.socket, buf[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS), err == nil && size > len(buf):
			n.known = false
		case err != nil:
			n.known = false
			return fmt.Errorf("listening to nftables' news: %w", err)
		case n.known:
			n.known = n.take(buf[:size])
		}
	}
}

// take takes in a piece of news. It says no to one that cannot be read.
func (n *Names) take(messages []byte) bool {
	for len(messages) > 0 {
		kind, m, rest, ok := cut(messages)
		if !ok || kind>>8 == unix.NFNL_SUBSYS_NFTABLES && !n.apply(int(kind&0xff), m) {
			return false
		}
		messages = rest
	}
	return true
}

// read reads everything.
func (n *Names) read() error {
	n.reads++
	clear(n.chains)
	clear(n.sets)
	ofTable := nl.NewRtAttr(unix.NFTA_SET_TABLE, nl.ZeroTerminated(n.table.Name))
	for _, q := range []struct{ get, answer int }{{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN}, {unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET}} {
		messages, err := netdump.Whole(func() ([][]byte, error) { return dump(n.table, q.get, q.answer, ofTable) })
		if err != nil && !errors.Is(err, unix.ENOENT) { // there is no such table
			return fmt.Errorf("listing the chains and sets of table %s: %w", n.table.Name, err)
		}
		for _, m := range messages {
			if !n.apply(q.answer, m) {
				return fmt.Errorf("listing the chains and sets of table %s: the kernel's answer cannot be read", n.table.Name)
			}
		}
	}
	n.known = true
	return nil
}

// apply takes in one message, of the kernel's news or of its answers, which are alike. It says no to one that cannot be read.
func (n *Names) apply(kind int, m []byte) bool {
	switch kind {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELTABLE: // `nft destroy` is told of as deleting
	default:
		return true
	}
	if len(m) < nl.SizeofNfgenmsg {
		return false
	}
	if nftables.TableFamily(m[0]) != n.table.Family {
		return true
	}
	all, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
	if err != nil {
		return false
	}
	var attrs [unix.NFTA_CHAIN_NAME + 1][]byte
	for _, a := range all {
		if at := int(a.Attr.Type & nl.NLA_TYPE_MASK); at < len(attrs) {
			attrs[at] = a.Value
		}
	}
	if unix.ByteSliceToString(attrs[unix.NFTA_TABLE_NAME]) != n.table.Name { // which is also NFTA_CHAIN_TABLE and NFTA_SET_TABLE
		return true
	}
	switch kind {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		return n.applyChain(kind, attrs[unix.NFTA_CHAIN_HANDLE], attrs[unix.NFTA_CHAIN_NAME])
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		return n.applySet(kind, attrs[unix.NFTA_SET_NAME], attrs[unix.NFTA_SET_FLAGS])
	default:
		clear(n.chains)
		clear(n.sets)
		return true
	}
}

func (n *Names) applyChain(kind int, handle, name []byte) bool {
	if len(handle) != 8 {
		return false
	}
	if h := binary.BigEndian.Uint64(handle); kind == unix.NFT_MSG_NEWCHAIN {
		n.chains[h] = unix.ByteSliceToString(name)
	} else {
		delete(n.chains, h)
	}
	return true
}

func (n *Names) applySet(kind int, name, flags []byte) bool {
	switch {
	case kind != unix.NFT_MSG_NEWSET:
		delete(n.sets, unix.ByteSliceToString(name))
	case len(flags) == 4 && binary.BigEndian.Uint32(flags)&(unix.NFT_SET_ANONYMOUS|unix.NFT_SET_MAP) != 0:
	default: // a set without flags has no such attribute
		n.sets[unix.ByteSliceToString(name)] = true
	}
	return true
}
