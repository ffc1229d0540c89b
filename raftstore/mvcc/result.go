// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A Result is the result of one command: either Response or Err is set. Err is a gRPC status error, of etcd's rpctypes
// or of this package. A command that returns an error has not changed the state.
type Result struct {
	// Response is the pb response type that belongs to the request's, or a *wrapperspb.UInt64Value with the id of the
	// session that was opened. The caller completes its header, and must not change the rest.
	Response any
	Err      error
	// Repeated says that this is the remembered answer to a repeated command: nothing was done this time. It is not
	// encoded.
	Repeated bool
}

// The encoding of results, for other servers and for snapshots:
//
//	results = format result*
//	result  = kind length body
//	body    = response in protobuf, or for kind 0: code message
//
// The kind is that of the command, and code a varint.
const (
	resultsFormat = 1
	kindError     = 0
)

// EncodeResults encodes the results of a batch of commands.
func EncodeResults(results []Result) ([]byte, error) {
	b := []byte{resultsFormat}
	for i, r := range results {
		var err error
		if b, err = appendResult(b, r); err != nil {
			return nil, fmt.Errorf("mvcc: encode result %d: %w", i, err)
		}
	}
	return b, nil
}

// EncodeResultsWithin encodes the results in at most limit bytes. Answers that are larger than that become
// ErrResultDropped. If it is still too much, further answers do, the largest first.
func EncodeResultsWithin(results []Result, limit int) ([]byte, error) {
	b, err := EncodeResults(results)
	for most := limit; err == nil && len(b) > limit && most > 0; most /= 2 {
		smaller := make([]Result, len(results))
		for i, r := range results {
			if one, err := appendResult(nil, r); err == nil && len(one) >= most {
				r = Result{Err: ErrResultDropped}
			}
			smaller[i] = r
		}
		b, err = EncodeResults(smaller)
	}
	return b, err
}

// DecodeResults decodes what EncodeResults encoded. A known error is decoded to the very same value.
func DecodeResults(b []byte) ([]Result, error) {
	in := frame{remaining: b}
	if in.byte() != resultsFormat {
		return nil, fmt.Errorf("%w: results of an unknown format", ErrFormat)
	}
	var results []Result
	for len(in.remaining) > 0 {
		r, err := decodeResult(&in)
		if err != nil {
			return nil, fmt.Errorf("%w: result %d: %w", ErrFormat, len(results), err)
		}
		results = append(results, r)
	}
	return results, nil
}

func appendResult(b []byte, r Result) ([]byte, error) {
	if r.Err != nil {
		code, message := describeError(r.Err)
		b = append(b, kindError)
		b = binary.AppendUvarint(b, uint64(1+len(message)))
		b = append(b, byte(code)) // a varint: all codes are below 128
		return append(b, message...), nil
	}
	kind := kindOf(responses[:], r.Response)
	if kind == 0 {
		return nil, fmt.Errorf("%T is not a command's response", r.Response)
	}
	m := r.Response.(proto.Message)
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(proto.Size(m)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m)
}

func decodeResult(in *frame) (Result, error) {
	kind, body := in.byte(), in.field()
	if in.malformed {
		return Result{}, errors.New("it is cut short")
	}
	if kind == kindError {
		return decodeError(body)
	}
	m := newOf(responses[:], kind)
	if m == nil {
		return Result{}, fmt.Errorf("unknown kind %d", kind)
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return Result{}, err
	}
	// Callers complete the header.
	if h, ok := m.(headerResponse); ok && h.GetHeader() == nil {
		return Result{Response: withHeader(m, &pb.ResponseHeader{})}, nil
	}
	return Result{Response: m}, nil
}

func decodeError(body []byte) (Result, error) {
	in := frame{remaining: body}
	code := in.uvarint()
	if in.malformed || code == uint64(codes.OK) || code > uint64(codes.Unauthenticated) {
		return Result{}, errors.New("it is an error without a code")
	}
	message := strings.ToValidUTF8(string(in.remaining), "\uFFFD")
	if err, ok := knownErrors()[errorText{codes.Code(code), message}]; ok {
		return Result{Err: err}, nil
	}
	return Result{Err: status.Error(codes.Code(code), message)}, nil
}

// describeError returns an error's code and message.
func describeError(err error) (codes.Code, string) {
	if etcd, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return etcd.Code(), etcd.Error()
	}
	st := status.Convert(err)
	if st.Code() == codes.OK || st.Code() > codes.Unauthenticated {
		return codes.Unknown, err.Error()
	}
	return st.Code(), st.Message()
}

type errorText struct {
	code    codes.Code
	message string
}

// knownErrors has the errors that a write can end with. The key is an error's code and message, which is what is
// encoded of an error.
var knownErrors = sync.OnceValue(func() map[errorText]error {
	known := make(map[errorText]error)
	for _, err := range []error{
		ErrFenced, ErrSession, ErrStale, ErrResultDropped, errSessionName,
		rpctypes.ErrGRPCEmptyKey, rpctypes.ErrGRPCKeyNotFound, rpctypes.ErrGRPCValueProvided, rpctypes.ErrGRPCLeaseProvided,
		rpctypes.ErrGRPCTooManyOps, rpctypes.ErrGRPCDuplicateKey, rpctypes.ErrGRPCInvalidSortOption,
		rpctypes.ErrGRPCCompacted, rpctypes.ErrGRPCFutureRev, rpctypes.ErrGRPCNoSpace,
		rpctypes.ErrGRPCLeaseNotFound, rpctypes.ErrGRPCLeaseExist, rpctypes.ErrGRPCLeaseTTLTooLarge,
		rpctypes.ErrGRPCRequestTooLarge, rpctypes.ErrGRPCRequestTooManyRequests,
		rpctypes.ErrGRPCMemberExist, rpctypes.ErrGRPCMemberNotFound, rpctypes.ErrGRPCClusterIDMismatch,
		rpctypes.ErrGRPCNoLeader, rpctypes.ErrGRPCNotLeader, rpctypes.ErrGRPCLeaderChanged, rpctypes.ErrGRPCNotCapable,
		rpctypes.ErrGRPCStopped, rpctypes.ErrGRPCTimeout, rpctypes.ErrGRPCTimeoutDueToLeaderFail,
		rpctypes.ErrGRPCTimeoutDueToConnectionLost, rpctypes.ErrGRPCTimeoutWaitAppliedIndex, rpctypes.ErrGRPCUnhealthy,
		rpctypes.ErrGRPCCorrupt, rpctypes.ErrGRPCNotSupportedForLearner, rpctypes.ErrGRPCBadLeaderTransferee,
		rpctypes.ErrGRPCCanceled, rpctypes.ErrGRPCDeadlineExceeded, rpctypes.ErrGRPCPermissionDenied,
	} {
		code, message := describeError(err)
		known[errorText{code, message}] = err
	}
	return known
})
