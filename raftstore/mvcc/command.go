// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A Request is the request of a command: *pb.PutRequest, DeleteRangeRequest, TxnRequest, CompactionRequest,
// LeaseGrantRequest or LeaseRevokeRequest, or a *wrapperspb.StringValue, which opens a session for the server of that
// name.
type Request = proto.Message

// A Command is a request and the conditions under which it is run.
type Command struct {
	Request Request
	// Session, unless it is 0, and Seq identify the command, so that it is run once even if it is in the log several
	// times. Every command with a sequence number below Floor has its answer, and is never sent again.
	Session, Seq, Floor uint64
	// Fence, unless it is 0, is the only raft term in which the command may run.
	Fence uint64
	// Deleting says that the command is a step of a deletion, so that it may use the quota's reserve. It is for the
	// leader that admits the command, and not encoded.
	Deleting bool
}

// A log entry carries one or more commands:
//
//	entry   = format command*
//	command = kind flags [session seq back] [term] length body
//
// format, kind and flags are one byte each, the others varints, and body is the request in protobuf. If flagID is set
// there is the request id, with the floor as back = seq - floor. If flagFence is set there is the fence's term. Any
// other flag makes the entry unreadable to this version, on purpose (see Since).
const (
	entryFormat = 1

	flagID    = 1 << 0
	flagFence = 1 << 1
)

const (
	kindPut = iota + 1
	kindDelete
	kindTxn
	kindCompact
	kindGrant
	kindRevoke
	kindSession
)

// ErrFormat says that bytes are not an entry, or not results, of a format that this version knows.
var ErrFormat = errors.New("mvcc: not a log entry that this version can read")

// NewEntry returns an empty entry in buf's memory, for AppendCommand.
func NewEntry(buf []byte) []byte { return append(buf[:0], entryFormat) }

// CommandSize returns the number of bytes that AppendCommand adds to an entry for c, or slightly more.
func CommandSize(c Command) int {
	size := 2 + binary.MaxVarintLen32 + proto.Size(c.Request)
	if c.Session != 0 {
		size += 3 * binary.MaxVarintLen64
	}
	if c.Fence != 0 {
		size += binary.MaxVarintLen64
	}
	return size
}

// AppendCommand appends the encoded command to an entry of Raft's log, in a form of the cluster's level.
func AppendCommand(entry []byte, c Command, level int) ([]byte, error) {
	kind := kindOf(requests[:], c.Request)
	if kind == 0 {
		return nil, fmt.Errorf("mvcc: %T is not a command", c.Request)
	}
	if c.Session != 0 && c.Floor > c.Seq {
		return nil, fmt.Errorf("mvcc: command %d of session %d says that it was answered already", c.Seq, c.Session)
	}
	flags := len(entry) + 1
	entry = append(entry, kind, 0)
	if c.Session != 0 {
		entry[flags] |= flagID
		entry = binary.AppendUvarint(entry, c.Session)
		entry = binary.AppendUvarint(entry, c.Seq)
		entry = binary.AppendUvarint(entry, c.Seq-c.Floor)
	}
	if c.Fence != 0 {
		entry[flags] |= flagFence
		entry = binary.AppendUvarint(entry, c.Fence)
	}
	if err := checkCommand(kind, entry[flags], level); err != nil {
		return nil, err
	}
	entry = binary.AppendUvarint(entry, uint64(proto.Size(c.Request)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(entry, c.Request)
}

// Encoded returns the commands that AppendCommand wrote to an entry, for AppendEncoded to add to another entry. The
// entry must be Plain.
func Encoded(entry []byte) []byte { return entry[1:] }

// Plain says whether an entry is not packed.
func Plain(entry []byte) bool { return len(entry) > 0 && entry[0] == entryFormat }

// AppendEncoded adds commands that are already encoded. They must come from an entry for which CommandsOf returned no
// error.
func AppendEncoded(entry, commands []byte) []byte { return append(entry, commands...) }

// requests and responses have an empty message of each kind of command.
var (
	requests = [...]proto.Message{
		kindPut: &pb.PutRequest{}, kindDelete: &pb.DeleteRangeRequest{}, kindTxn: &pb.TxnRequest{}, kindCompact: &pb.CompactionRequest{},
		kindGrant: &pb.LeaseGrantRequest{}, kindRevoke: &pb.LeaseRevokeRequest{}, kindSession: &wrapperspb.StringValue{},
	}
	responses = [...]proto.Message{
		kindPut: &pb.PutResponse{}, kindDelete: &pb.DeleteRangeResponse{}, kindTxn: &pb.TxnResponse{},
		kindCompact: &pb.CompactionResponse{}, kindGrant: &pb.LeaseGrantResponse{}, kindRevoke: &pb.LeaseRevokeResponse{},
		kindSession: &wrapperspb.UInt64Value{},
	}
)

// kindOf returns the kind that has a message of m's type, 0 if none has.
func kindOf(messages []proto.Message, m any) byte {
	for kind, of := range messages {
		if of != nil && reflect.TypeOf(of) == reflect.TypeOf(m) {
			return byte(kind)
		}
	}
	return 0
}

// newOf returns a new message of a kind, nil if there is no such kind.
func newOf(messages []proto.Message, kind byte) proto.Message {
	if kind == 0 || int(kind) >= len(messages) {
		return nil
	}
	return messages[kind].ProtoReflect().New().Interface()
}

// DecodeEntry returns an entry's commands. They do not alias the entry.
func DecodeEntry(entry []byte) ([]Command, error) {
	var commands []Command
	err := unpack(entry, func(encoded []byte) error {
		count := 0
		if err := eachOf(encoded, func(Command, byte, []byte) error { count++; return nil }); err != nil {
			return err
		}
		commands = make([]Command, 0, count)
		return eachOf(encoded, func(c Command, kind byte, body []byte) error {
			c.Request = newOf(requests[:], kind)
			commands = append(commands, c)
			return proto.Unmarshal(body, c.Request)
		})
	})
	if err != nil {
		return nil, err
	}
	return commands, nil
}

// CommandsOf returns the number of an entry's commands. It checks that this version knows their kinds and flags and
// that none is cut short. It does not decode their requests.
func CommandsOf(entry []byte) (count int, err error) {
	err = eachCommand(entry, func(Command, byte, []byte) error { count++; return nil })
	if err != nil {
		return 0, err
	}
	return count, nil
}

// eachCommand calls fn with every command of an entry. c has no Request. kind and body are the request's kind and its
// encoding.
func eachCommand(entry []byte, fn func(c Command, kind byte, body []byte) error) error {
	return unpack(entry, func(commands []byte) error { return eachOf(commands, fn) })
}

func eachOf(commands []byte, fn func(c Command, kind byte, body []byte) error) error {
	in := frame{remaining: commands}
	for n := 0; len(in.remaining) > 0; n++ {
		kind, flags := in.byte(), in.byte()
		if !in.malformed && (kind < kindPut || kind > kindSession || flags&^(flagID|flagFence) != 0) {
			return fmt.Errorf("%w: command %d has kind %d and flags %#x", ErrFormat, n, kind, flags)
		}
		var c Command
		if flags&flagID != 0 {
			c.Session, c.Seq = in.uvarint(), in.uvarint()
			back := in.uvarint()
			in.malformed = in.malformed || c.Session == 0 || back > c.Seq
			c.Floor = c.Seq - back
		}
		if flags&flagFence != 0 {
			c.Fence = in.uvarint()
			in.malformed = in.malformed || c.Fence == 0
		}
		body := in.field()
		if in.malformed {
			return fmt.Errorf("%w: command %d is cut short or malformed", ErrFormat, n)
		}
		if err := fn(c, kind, body); err != nil {
			return fmt.Errorf("%w: command %d: %w", ErrFormat, n, err)
		}
	}
	return nil
}

// frame reads fields from the front of remaining. Once too few bytes are left it is malformed, and all further fields
// are zero.
type frame struct {
	remaining []byte
	malformed bool
}

func (f *frame) byte() byte {
	if f.malformed || len(f.remaining) == 0 {
		f.malformed = true
		return 0
	}
	b := f.remaining[0]
	f.remaining = f.remaining[1:]
	return b
}

func (f *frame) uvarint() uint64 {
	n, size := binary.Uvarint(f.remaining)
	if f.malformed || size <= 0 {
		f.malformed = true
		return 0
	}
	f.remaining = f.remaining[size:]
	return n
}

// field reads a length and as many bytes.
func (f *frame) field() []byte {
	n := f.uvarint()
	if f.malformed || n > uint64(len(f.remaining)) {
		f.malformed = true
		return nil
	}
	b := f.remaining[:n]
	f.remaining = f.remaining[n:]
	return b
}
