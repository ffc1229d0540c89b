// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// A Request is one command: *pb.PutRequest, DeleteRangeRequest, TxnRequest,
// CompactionRequest, LeaseGrantRequest or LeaseRevokeRequest.
type Request = proto.Message

// A log entry carries one or more commands:
//
//	entry   = format command*
//	command = kind flags length body
//
// format, kind and flags are one byte each, length a varint, body the request
// in protobuf. No flag is defined yet; one that is set makes the entry
// unreadable to this version, on purpose.
const entryFormat = 1

const (
	kindPut = iota + 1
	kindDelete
	kindTxn
	kindCompact
	kindGrant
	kindRevoke
)

// ErrFormat says that bytes are no entry of a format known here.
var ErrFormat = errors.New("mvcc: not a log entry that this version can read")

// NewEntry starts an entry to which AppendCommand adds commands.
func NewEntry(buf []byte) []byte { return append(buf[:0], entryFormat) }

// CommandSize is the number of bytes by which AppendCommand lengthens an
// entry, or slightly more.
func CommandSize(req Request) int { return 2 + binary.MaxVarintLen32 + proto.Size(req) }

// AppendCommand adds a command to an entry.
func AppendCommand(entry []byte, req Request) ([]byte, error) {
	kind, err := kindOf(req)
	if err != nil {
		return nil, err
	}
	entry = append(entry, kind, 0)
	entry = binary.AppendUvarint(entry, uint64(proto.Size(req)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(entry, req)
}

func kindOf(req Request) (byte, error) {
	switch req.(type) {
	case *pb.PutRequest:
		return kindPut, nil
	case *pb.DeleteRangeRequest:
		return kindDelete, nil
	case *pb.TxnRequest:
		return kindTxn, nil
	case *pb.CompactionRequest:
		return kindCompact, nil
	case *pb.LeaseGrantRequest:
		return kindGrant, nil
	case *pb.LeaseRevokeRequest:
		return kindRevoke, nil
	}
	return 0, fmt.Errorf("mvcc: %T is not a command", req)
}

func newRequest(kind byte) Request {
	switch kind {
	case kindPut:
		return &pb.PutRequest{}
	case kindDelete:
		return &pb.DeleteRangeRequest{}
	case kindTxn:
		return &pb.TxnRequest{}
	case kindCompact:
		return &pb.CompactionRequest{}
	case kindGrant:
		return &pb.LeaseGrantRequest{}
	case kindRevoke:
		return &pb.LeaseRevokeRequest{}
	}
	return nil
}

// DecodeEntry returns an entry's commands. They do not alias the entry.
func DecodeEntry(entry []byte) ([]Request, error) {
	if len(entry) == 0 || entry[0] != entryFormat {
		return nil, fmt.Errorf("%w: unknown format", ErrFormat)
	}
	var reqs []Request
	for rest := entry[1:]; len(rest) > 0; {
		if len(rest) < 3 {
			return nil, fmt.Errorf("%w: command %d is cut short", ErrFormat, len(reqs))
		}
		req := newRequest(rest[0])
		if req == nil || rest[1] != 0 {
			return nil, fmt.Errorf("%w: command %d has kind %d and flags %#x", ErrFormat, len(reqs), rest[0], rest[1])
		}
		size, n := binary.Uvarint(rest[2:])
		if n <= 0 || size > uint64(len(rest)-2-n) {
			return nil, fmt.Errorf("%w: command %d is cut short", ErrFormat, len(reqs))
		}
		body := rest[2+n : 2+n+int(size)]
		if err := proto.Unmarshal(body, req); err != nil {
			return nil, fmt.Errorf("%w: command %d: %w", ErrFormat, len(reqs), err)
		}
		reqs = append(reqs, req)
		rest = rest[2+n+int(size):]
	}
	return reqs, nil
}
