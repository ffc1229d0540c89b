// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// Deletions receives the kernel's events of deleted tables, also of tables deleted by `nft flush ruleset`. Make one
// with WatchDeletions.
type Deletions struct {
	socket *os.File
	tables []Table
}

// WatchDeletions opens a socket for the kernel's events. From then on no deletion of one of the tables is missed; Run
// reports them.
func WatchDeletions(tables ...Table) (*Deletions, error) {
	fd, err := listen()
	if err != nil {
		return nil, err
	}
	return &Deletions{os.NewFile(uintptr(fd), "nftables' news"), tables}, nil
}

// listen opens a non-blocking socket for the kernel's events of deletions in all tables.
func listen() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("opening a socket for nftables' news: %w", err)
	}
	filter := onlyDeletions()
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listening to nftables' news: %w", err)
	}
	return fd, nil
}

// onlyDeletions returns a filter that drops every packet whose first message is not about a deletion. So additions,
// which may be very many, wake no goroutine. The kernel puts several messages into one packet: a program that deletes a
// table deletes the table's content before. The filter reads the type's byte at its place on little-endian machines,
// which are the only ones that coracle supports.
func onlyDeletions() []unix.SockFilter {
	kinds := []uint32{
		unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM,
		unix.NFT_MSG_DELOBJ, unix.NFT_MSG_DELFLOWTABLE,
	}
	out := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 4}}
	for i, k := range kinds {
		out = append(out, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: uint8(len(kinds) - i)})
	}
	return append(out, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 20})
}

// Run calls deleted for each deletion of one of the tables, and when the kernel has lost events, until ctx is done. It
// does not say what exists: the table may have been made again in the same moment. After an error no more events are
// received.
func (d *Deletions) Run(ctx context.Context, deleted func()) error {
	defer d.socket.Close()
	defer context.AfterFunc(ctx, func() { d.socket.Close() })()
	buf := make([]byte, 1<<16)
	for {
		n, err := d.socket.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			deleted()
		case err != nil:
			return fmt.Errorf("listening to nftables' news: %w", err)
		case d.affects(buf[:n]):
			deleted()
		}
	}
}

// affects says whether one of the messages is about the deletion of one of the tables.
func (d *Deletions) affects(messages []byte) bool {
	for len(messages) > 0 {
		kind, m, rest, ok := cutMessage(messages)
		if !ok {
			return true // this cannot be parsed: have the caller check
		}
		if kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE && d.names(m) {
			return true
		}
		messages = rest
	}
	return false
}

// cutMessage splits off the first of several messages and returns it without its header. ok is false when the messages
// cannot be parsed.
func cutMessage(messages []byte) (kind uint16, first, rest []byte, ok bool) {
	if len(messages) < unix.SizeofNlMsghdr {
		return 0, nil, nil, false
	}
	length := int(binary.NativeEndian.Uint32(messages))
	if length < unix.SizeofNlMsghdr || length > len(messages) {
		return 0, nil, nil, false
	}
	next := min((length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(messages))
	return binary.NativeEndian.Uint16(messages[4:]), messages[unix.SizeofNlMsghdr:length], messages[next:], true
}

// names says whether a message about a table names one of the tables. It returns true for a message that it cannot
// parse.
func (d *Deletions) names(m []byte) bool {
	if len(m) < nl.SizeofNfgenmsg {
		return true
	}
	attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK != unix.NFTA_TABLE_NAME {
			continue
		}
		for _, t := range d.tables {
			if t.Family == nftables.TableFamily(m[0]) && t.Name == nl.BytesToString(a.Value) {
				return true
			}
		}
	}
	return false
}

// FollowDeletions sends wake whenever one of the tables may have been deleted, until ctx is done. It receives events
// from the moment when it returns, in a goroutine of wg. It calls failed when it cannot receive events, or not any
// more.
func FollowDeletions(ctx context.Context, wg *sync.WaitGroup, wake timers.Signal, failed func(error), tables ...Table) {
	d, err := WatchDeletions(tables...)
	if err != nil {
		failed(err)
		return
	}
	wg.Go(func() {
		if err := d.Run(ctx, wake.Send); err != nil {
			failed(err)
		}
	})
}
