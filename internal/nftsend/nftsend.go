// SPDX-License-Identifier: Apache-2.0

// Package nftsend puts small changes of one nftables table into the kernel, as nft would, without starting nft. It reads the few forms of nft's language in which most changes of Services are
// written, and says no to everything else, so that its caller gives the same text to nft. It owns nothing in the kernel, and lists nothing.
//
// What nft costs beside the kernel's own work is its start and that it reads all chains and sets of the machine before it writes one rule.
package nftsend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// ErrUnknown says that a transaction has something in it that only nft knows. Nothing was sent.
var ErrUnknown = errors.New("only nft knows all that is in this transaction")

// Sender sends transactions of one table. Make one with New; it is safe for several goroutines.
type Sender struct {
	table nfttable.Table
	sets  map[string]Set

	// The socket stays open from one transaction to the next: when one is closed, the kernel waits until all processors have forgotten what was deleted, which takes 10 ms.
	mu     sync.Mutex
	socket int // -1 when there is none
	closed bool
}

// New has a table, and those of its sets whose elements may be sent, by name.
func New(t nfttable.Table, sets map[string]Set) *Sender {
	return &Sender{table: t, sets: sets, socket: -1}
}

// Close ends it. Nothing is sent after that, and Send says net.ErrClosed.
func (s *Sender) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
	s.closed = true
}

func (s *Sender) close() {
	if s.socket >= 0 {
		_ = unix.Close(s.socket)
		s.socket = -1
	}
}

// Send has the kernel take a transaction in nft's words, all of it or nothing. Each line has to be of one of the forms that lines.go, rule.go, map.go and clients.go name, and of the table; elements are of the sets that New was given.
// Where it fails with another error than ErrUnknown, the kernel has refused the transaction, or it was not sent.
func (s *Sender) Send(text string) error {
	b := newBatch(s.table, s.sets)
	if err := b.read(text); err != nil {
		return err
	}
	if b.last == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("sending a transaction of table %s: %w", s.table.Name, net.ErrClosed)
	}
	err := s.send(b.whole())
	if err != nil {
		s.close() // there may be more to hear, which is not of the next transaction
	}
	return err
}

// batch is a transaction in the kernel's form.
type batch struct {
	table    nfttable.Table
	sets     map[string]Set
	messages []byte
	at       int               // where the last message begins
	last     uint32            // its sequence number; 0 where there is none
	ids      uint32            // how many sets and maps it makes
	added    map[string]uint32 // the sets that it makes, or that were there already, with their numbers
}

func newBatch(t nfttable.Table, sets map[string]Set) batch {
	return batch{table: t, sets: sets, added: map[string]uint32{}}
}

// add takes in a message about the table. Attributes come in the order in which nft writes them.
func (b *batch) add(kind, flags int, attrs ...*nl.RtAttr) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	b.last++
	req.Seq = b.last
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(b.table.Family), Version: nl.NFNETLINK_V0})
	req.AddData(str(1, b.table.Name)) // the table's name is the first attribute of all objects
	for _, a := range attrs {
		req.AddData(a)
	}
	b.at = len(b.messages)
	b.messages = append(b.messages, req.Serialize()...)
}

func str(kind int, value string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(value)) }

func number(kind int, value uint32) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.BigEndian.AppendUint32(nil, value))
}

func nested(kind int, attrs ...*nl.RtAttr) *nl.RtAttr {
	out := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, a := range attrs {
		out.AddChild(a)
	}
	return out
}

// envelope begins or ends a transaction.
func envelope(kind int, seq uint32) []byte {
	req := nl.NewNetlinkRequest(kind, 0)
	req.Seq = seq
	req.AddRawData([]byte{unix.AF_UNSPEC, nl.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES})
	return req.Serialize()
}

// whole is the transaction in one piece. The kernel is to say of the last message that it took it.
func (b *batch) whole() []byte {
	flags := b.messages[b.at+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	out := append(envelope(unix.NFNL_MSG_BATCH_BEGIN, 0), b.messages...)
	return append(out, envelope(unix.NFNL_MSG_BATCH_END, b.last+1)...)
}

// send gives a transaction to the kernel, and looks what it says: which messages it refuses, and whether it took the last one. The kernel has done everything, and has said all of it,
// when the piece is sent.
func (s *Sender) send(whole []byte) error {
	if s.socket < 0 {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("opening a socket for nftables: %w", err)
		}
		// What is refused need not be quoted: it may be larger than what is read at once. Before Linux 4.3 it is.
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
		s.socket = fd
	}
	if err := unix.Sendto(s.socket, whole, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending a transaction of table %s: %w", s.table.Name, err)
	}
	taken := false
	var buf [1 << 14]byte
	for {
		n, _, err := unix.Recvfrom(s.socket, buf[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && taken:
			return nil
		case err != nil:
			return fmt.Errorf("hearing what became of a transaction of table %s: %w", s.table.Name, err)
		}
		answers, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("hearing what became of a transaction of table %s: %w", s.table.Name, err)
		}
		for _, a := range answers {
			if a.Header.Type != unix.NLMSG_ERROR || len(a.Data) < 4 {
				continue
			}
			if errno := int32(binary.NativeEndian.Uint32(a.Data)); errno != 0 {
				return fmt.Errorf("the kernel refuses a transaction of table %s: %w", s.table.Name, unix.Errno(-errno))
			}
			taken = true
		}
	}
}
