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

// Deletions are the kernel's events of deleted tables, also by `nft flush ruleset`. Make one with
// HearDeletions.
type Deletions struct {
	socket *os.File
	tables []Table
}

// HearDeletions begins to listen. Run reports whatever happens to one of the tables from then on.
func HearDeletions(tables ...Table) (*Deletions, error) {
	fd, err := listen()
	if err != nil {
		return nil, err
	}
	return &Deletions{os.NewFile(uintptr(fd), "nftables' news"), tables}, nil
}

// listen opens a socket, which never makes its reader wait, for what the kernel says of deletions in all tables.
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

// onlyDeletions drops what begins with another message than one of something deleted, so that all that is added, which
// may be very much, wakes no goroutine. The kernel puts several messages into one piece of news: who deletes a table
// deletes what is in it before. The byte is that of little-endian machines, which ours are.
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

// Run calls gone for each of the tables that is deleted, and when the kernel has lost events, until
// ctx is done. What is there it does not say: the table may have been made again in the same moment. An error says that
// nothing is heard any more.
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
		case d.concern(buf[:n]):
			deleted()
		}
	}
}

// concern says whether one of the tables is deleted by one of the messages.
func (d *Deletions) concern(messages []byte) bool {
	for len(messages) > 0 {
		kind, m, rest, ok := cut(messages)
		if !ok {
			return true // this cannot be read: look
		}
		if kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE && d.names(m) {
			return true
		}
		messages = rest
	}
	return false
}

// cut takes off the first of several messages, without its header; it is not ok where that cannot be read.
func cut(messages []byte) (kind uint16, first, rest []byte, ok bool) {
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

// names says whether a message about a table names one of ours.
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

// FollowDeletions sends wake whenever one of the tables may be gone, until ctx
// is done. It listens when it returns; a goroutine of wg's goes on. failed is called when nothing is received, or not
// any more.
func FollowDeletions(ctx context.Context, wg *sync.WaitGroup, wake timers.Signal, failed func(error), tables ...Table) {
	d, err := HearDeletions(tables...)
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
