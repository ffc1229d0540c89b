// SPDX-License-Identifier: Apache-2.0

package table

import (
	"fmt"
	"io"
	"net"
	"syscall"
)

// perMessage is the greatest number of descriptors in one message of a Unix socket (SCM_MAX_FD).
const perMessage = 253

// maxDescriptors limits the descriptors that a Receiver holds. It is more than two sockets for each of 256 ports of
// Gateways at four addresses.
const maxDescriptors = 4096

// Send writes a line of the control connection with descriptors, which the caller still owns. Descriptors beyond
// perMessage go with spaces that Send writes before the line.
func Send(conn *net.UnixConn, line []byte, descriptors []int) error {
	for ; len(descriptors) > perMessage; descriptors = descriptors[perMessage:] {
		if _, _, err := conn.WriteMsgUnix([]byte(" "), syscall.UnixRights(descriptors[:perMessage]...), nil); err != nil {
			return fmt.Errorf("sending descriptors: %w", err)
		}
	}
	n, _, err := conn.WriteMsgUnix(line, syscall.UnixRights(descriptors...), nil)
	if err == nil && n < len(line) { // the descriptors went with the first bytes
		_, err = conn.Write(line[n:])
	}
	if err != nil {
		return fmt.Errorf("sending a line with descriptors: %w", err)
	}
	return nil
}

// Receiver reads the control connection and holds the descriptors received with it. Once a line has been read, its
// descriptors have been received.
type Receiver struct {
	Conn        *net.UnixConn
	descriptors []int
	rights      [4096]byte // room for perMessage
}

// Read implements io.Reader.
func (r *Receiver) Read(to []byte) (int, error) {
	n, m, flags, _, err := r.Conn.ReadMsgUnix(to, r.rights[:])
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	messages, err := syscall.ParseSocketControlMessage(r.rights[:m])
	if err != nil {
		return n, fmt.Errorf("reading descriptors: %w", err)
	}
	for _, message := range messages {
		descriptors, err := syscall.ParseUnixRights(&message)
		if err != nil {
			return n, fmt.Errorf("reading descriptors: %w", err)
		}
		r.descriptors = append(r.descriptors, descriptors...)
	}
	if len(r.descriptors) > maxDescriptors {
		return n, fmt.Errorf("reading descriptors: there are more than %d", maxDescriptors)
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		return n, fmt.Errorf("reading descriptors: %w: the process may open no more files", syscall.EMFILE)
	}
	return n, nil
}

// Take returns the n oldest descriptors, which the caller then owns. It returns an error when fewer have been received.
func (r *Receiver) Take(n int) ([]int, error) {
	if n > len(r.descriptors) {
		return nil, fmt.Errorf("%d descriptors are named and %d have come", n, len(r.descriptors))
	}
	taken := r.descriptors[:n:n]
	r.descriptors = r.descriptors[n:]
	return taken, nil
}

// Close closes the descriptors that were not taken. The connection stays open.
func (r *Receiver) Close() {
	for _, d := range r.descriptors {
		_ = syscall.Close(d)
	}
	r.descriptors = nil
}
