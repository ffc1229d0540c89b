// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"context"
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func sendError(t *testing.T, err error) error {
	t.Helper()
	b := testenv.Must(EncodeResults([]Result{{Err: err}}))(t)
	results, decodeErr := DecodeResults(b)
	testenv.Require(t, decodeErr == nil && len(results) == 1 && results[0].Response == nil, "%v came as %v: %v", err, results, decodeErr)
	return results[0].Err
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	for _, err := range knownErrors() {
		testenv.Equal(t, sendError(t, err), err, "%v is not the same value:", err)
	}
	// A client's form of an error becomes the server's.
	testenv.ErrorIs(t, sendError(t, rpctypes.ErrCompacted), rpctypes.ErrGRPCCompacted)
	for _, err := range []error{
		status.Error(codes.Internal, "something \xff"), errors.New("plain"), fmt.Errorf("with: %w", context.Canceled),
		status.Error(codes.Code(999), "unheard of"), fmt.Errorf("around: %w", rpctypes.ErrGRPCNoSpace),
	} {
		got := sendError(t, err)
		testenv.False(t, got == nil || sendError(t, got).Error() != got.Error(), "%v became %v", err, got)
	}
	if got := sendError(t, fmt.Errorf("around: %w", rpctypes.ErrGRPCNoSpace)); status.Code(got) != codes.ResourceExhausted {
		t.Errorf("a wrapped error lost its code: %v", got)
	}
}

// Servers of other versions know these errors by their texts, and the state has them in the answers of sessions.
func TestErrorsKeepTheirTexts(t *testing.T) {
	for want, err := range map[string]error{
		"coracle: the write is fenced: it was for another leader's term, and was not done":           ErrFenced,
		"coracle: the session of the write is not open, and this attempt was not done":               ErrSession,
		"coracle: the write came again after its answer was given up, and this attempt was not done": ErrStale,
		"coracle: the write was done at an earlier attempt, but its answer was too large to be kept": ErrResultDropped,
		"coracle: a session needs the name of its server, of at most 1024 bytes":                     errSessionName,
	} {
		if code, text := describeError(err); text != want {
			t.Errorf("%v: %q, want %q", code, text, want)
		}
	}
}

func TestBadResultsAreNotDecoded(t *testing.T) {
	for _, b := range [][]byte{
		nil, {9}, {resultsFormat, kindPut}, {resultsFormat, kindPut, 5, 1}, {resultsFormat, 99, 0},
		{resultsFormat, kindError, 0}, {resultsFormat, kindError, 1, 0}, {resultsFormat, kindError, 1, 99}, {resultsFormat, kindPut, 1, 0xff},
	} {
		if r, err := DecodeResults(b); !errors.Is(err, ErrFormat) {
			t.Errorf("% x was read as %v: %v", b, r, err)
		}
	}
	testenv.Fails(t, testenv.Err(EncodeResults([]Result{{Response: &pb.RangeResponse{}}})), "a range's response was encoded")
	// A response always has a header to complete.
	r, err := DecodeResults([]byte{resultsFormat, kindPut, 0})
	testenv.False(t, err != nil || r[0].Response.(*pb.PutResponse).Header == nil, "got %v: %v", r, err)
}

func TestBadCommandsAreNotDecoded(t *testing.T) {
	testenv.Fails(t, testenv.Err(AppendCommand(NewEntry(nil), Command{Request: &pb.PutRequest{}, Session: 1, Seq: 1, Floor: 2}, 1)),
		"a floor above the number was encoded")
	testenv.Fails(t, testenv.Err(AppendCommand(NewEntry(nil), Command{Request: &pb.RangeRequest{}}, 1)), "a range was encoded")
	for _, b := range [][]byte{
		nil, {9}, {entryFormat, kindPut}, {entryFormat, kindPut, 0}, {entryFormat, kindPut, 0, 1}, {entryFormat, 0, 0, 0}, {entryFormat, 99, 0, 0},
		{entryFormat, kindPut, 4, 0}, {entryFormat, kindPut, 0x80, 0},
		{entryFormat, kindPut, flagID, 0, 1, 1, 0}, // session 0
		{entryFormat, kindPut, flagID, 1, 1, 2, 0}, // floor below 0
		{entryFormat, kindPut, flagID, 1, 1},
		{entryFormat, kindPut, flagFence, 0, 0}, // term 0
		{entryFormat, kindPut, flagFence | flagID, 1, 1, 0, 5},
	} {
		if c, err := DecodeEntry(b); !errors.Is(err, ErrFormat) {
			t.Errorf("% x was read as %v: %v", b, c, err)
		}
		if n, err := CommandsOf(b); !errors.Is(err, ErrFormat) {
			t.Errorf("% x was counted as %d: %v", b, n, err)
		}
	}
}
