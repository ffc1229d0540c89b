// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/level"
)

// The handshake is one message from each side:
//
//	hello:  magic "CRPR", version, kind, then cluster, sender, receiver, each
//	        one byte of length and that many bytes
//	answer: magic "CRPR", version, 0 (ok) or 1 (refused), server's id (one byte
//	        of length), reason (two bytes of length, little endian)
//
// A hello's version is the level at which the sender connects (Options.Level), and each side accepts the levels that it
// knows. So a server gets nothing from one that may write what it cannot read. Magic, version, and the answer keep
// their form in all future versions, so that a refusal can always be read.
const (
	magic         = "CRPR"
	answerVersion = 1
	maxName       = 255  // bytes of a cluster or server id
	maxReason     = 1024 // bytes
	headLength    = len(magic) + 2
)

// kind says whether a connection carries calls or raft's messages.
type kind byte

const (
	kindRaft      kind = 1
	kindCalls     kind = 2
	kindSnapshots kind = 3 // raft too, but the reader waits with a deadline
)

func (k kind) String() string {
	switch k {
	case kindRaft:
		return "raft"
	case kindCalls:
		return "calls"
	case kindSnapshots:
		return "snapshots"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// hello is the message of the dialing side.
type hello struct {
	level    int
	kind     kind
	cluster  string // "" if any server at that address is accepted
	sender   string // "" if it has no identity yet: calls only
	receiver string // "" if any server at that address will do
}

// reply is the answer of the listening side.
type reply struct {
	id     string // of the server that answers
	reason string // reason for a refusal, "" if accepted
}

// RefusedError says that the server at an address answered, and refuses connections of this one. Another attempt is
// useless until something changes.
type RefusedError struct {
	Address string // the address that was dialed
	ID      string // id of the server that answered, or ""
	Reason  string // as that server gave it
}

// Error names the server that refuses, and its reason.
func (e *RefusedError) Error() string {
	who := "server"
	if e.ID != "" {
		who += " " + e.ID
	}
	return fmt.Sprintf("%s at %s refuses the connection: %s", who, e.Address, e.Reason)
}

// GRPCStatus makes a refusal Unavailable for callers that check codes.
func (e *RefusedError) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, e.Error())
}

// badHello is a handshake that no server of the cluster would send.
type badHello struct{ reason string }

func (e *badHello) Error() string { return e.reason }

func (h *hello) encode() ([]byte, error) {
	b := append([]byte(magic), byte(h.level), byte(h.kind))
	for _, s := range []string{h.cluster, h.sender, h.receiver} {
		if len(s) > maxName {
			return nil, fmt.Errorf("peer: a name of %d bytes in a handshake, %d are possible", len(s), maxName)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	return b, nil
}

// readHello reads one hello, and not a byte more. newest is the newest level that this server knows. A *badHello should
// be answered. Other errors are errors of the connection.
func readHello(r io.Reader, newest int) (hello, error) {
	var h hello
	var head [headLength]byte
	// The magic is read first: a peer with another protocol may wait for this side to begin.
	if _, err := io.ReadFull(r, head[:len(magic)]); err != nil {
		return h, err
	}
	if !bytes.Equal(head[:len(magic)], []byte(magic)) {
		return h, &badHello{"this port is only for coracle servers"}
	}
	if _, err := io.ReadFull(r, head[len(magic):]); err != nil {
		return h, noEOF(err)
	}
	h.level = int(head[len(magic)])
	if oldest := level.OldestOf(newest); h.level < oldest || h.level > newest {
		known := fmt.Sprintf("version %d", newest)
		if oldest < newest {
			known = fmt.Sprintf("versions %d to %d", oldest, newest)
		}
		return h, &badHello{fmt.Sprintf("speaks version %d of the protocol between servers, this server speaks %s", h.level, known)}
	}
	h.kind = kind(head[len(magic)+1])
	if h.kind < kindRaft || h.kind > kindSnapshots {
		return h, &badHello{fmt.Sprintf("wants a connection of an unknown %s", h.kind)}
	}
	for _, s := range []*string{&h.cluster, &h.sender, &h.receiver} {
		var err error
		if *s, err = readShort(r); err != nil {
			return h, noEOF(err)
		}
	}
	return h, nil
}

func (a *reply) encode() []byte {
	refused := byte(0)
	if a.reason != "" {
		refused = 1
	}
	id, reason := a.id[:min(len(a.id), maxName)], a.reason[:min(len(a.reason), maxReason)]
	b := append([]byte(magic), answerVersion, refused, byte(len(id)))
	b = append(b, id...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(reason)))
	return append(b, reason...)
}

// readReply reads one answer, and not a byte more.
func readReply(r io.Reader) (reply, error) {
	var a reply
	var head [headLength]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return a, noEOF(err)
	}
	if !bytes.Equal(head[:len(magic)], []byte(magic)) {
		return a, errors.New("the other end is not a coracle server")
	}
	var err error
	if a.id, err = readShort(r); err != nil {
		return a, noEOF(err)
	}
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return a, noEOF(err)
	}
	n := int(binary.LittleEndian.Uint16(length[:]))
	if n > maxReason {
		return a, fmt.Errorf("a reply with %d bytes, which is too long", n)
	}
	reason := make([]byte, n)
	if _, err := io.ReadFull(r, reason); err != nil {
		return a, noEOF(err)
	}
	a.reason = string(reason)
	switch ok := head[headLength-1] == 0; {
	case ok && a.reason != "":
		return a, errors.New("a malformed reply, which accepts and refuses the connection")
	case !ok && a.reason == "":
		a.reason = "no reason given"
	}
	return a, nil
}

func readShort(r io.Reader) (string, error) {
	var length [1]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return "", err
	}
	b := make([]byte, length[0])
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return string(b), nil
}

// noEOF returns io.ErrUnexpectedEOF for an EOF within a message, so that it does not seem to be a clean end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkHello returns the reason to refuse a connection, or "".
func (o *Options) checkHello(h hello) string {
	switch {
	case h.receiver != "" && h.receiver != o.ID:
		if o.ID == "" {
			return fmt.Sprintf("this is not server %s: this server has no identity yet", h.receiver)
		}
		return fmt.Sprintf("this is not server %s but server %s", h.receiver, o.ID)
	case h.cluster != "" && o.Cluster != "" && h.cluster != o.Cluster:
		return fmt.Sprintf("%s belongs to cluster %s, this is cluster %s", nameOf(h.sender), h.cluster, o.Cluster)
	case h.sender != "" && h.sender == o.ID:
		return fmt.Sprintf("server %s connected to itself", h.sender)
	case h.kind != kindCalls && (h.cluster == "" || h.sender == "" || h.receiver == ""):
		return "raft needs to know the cluster and both servers"
	case h.kind != kindCalls && (o.Cluster == "" || o.ID == ""):
		return "this server has no identity yet"
	}
	return ""
}

func nameOf(id string) string {
	if id == "" {
		return "the caller"
	}
	return "server " + id
}
