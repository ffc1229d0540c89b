// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"cmp"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Errors that follow from a command's conditions. With ErrFenced, ErrSession and ErrStale, this attempt had no effect.
var (
	// ErrFenced says that the command may run only in another leadership term.
	ErrFenced = status.Error(codes.FailedPrecondition, "coracle: the write is fenced: it was for another leader's term, and was not done")
	// ErrSession says that no session with this id is open. Earlier attempts of the same command may have been run
	// while it was open.
	ErrSession = status.Error(codes.Unavailable, "coracle: the session of the write is not open, and this attempt was not done")
	// ErrStale says that the session holds the command's answer no longer: the command is below the session's floor, or
	// the session held too many answers.
	ErrStale = status.Error(codes.Aborted, staleText)
	// ErrResultDropped is the answer to a repeated command that was run, but whose answer was too large to be
	// remembered.
	ErrResultDropped = status.Error(codes.Unavailable,
		"coracle: the write was done at an earlier attempt, but its answer was too large to be kept")

	errSessionName = status.Error(codes.InvalidArgument, "coracle: a session needs the name of its server, of at most 1024 bytes")
)

// staleText is the text of ErrStale. It must stay as the first version had it.
const staleText = "coracle: the write came again after its answer was given up, and this attempt was not done"

// Bounds of what sessions hold. They are part of the state machine: servers with different bounds would have different
// states.
const (
	maxSessions     = 1024     // the session opened first is dropped for a new one
	maxSessionName  = 1024     // bytes
	maxRemembered   = 1 << 16  // answers in a session; the first ones are dropped for new ones
	maxSessionBytes = 16 << 20 // bytes of the answers in a session; the first ones are dropped for new ones
	maxResult       = 2 << 20  // bytes; a larger one is ErrResultDropped
)

// positionBits is how many bits of a session's id distinguish the sessions that one entry opens.
const positionBits = 12

// A session remembers the results of a server's commands, so that a command that is in the log twice is run once.
//
// Views alias the front of results. As with the history, that is replaced and never changed in place. Numbers may
// arrive slightly out of order, since many goroutines send commands. A late one is inserted at its place, into a copy
// if that lies in the aliased front.
type session struct {
	id             uint64
	name           string // of the server
	floor          uint64 // every command below has its answer
	bytes          int64  // of results
	results        []storedResult
	aliasedResults int // number of results that views may alias
}

// storedResult is the answer to a command. Its body has no header, since the caller that got the first answer completes
// that. A nil body is that of a put without a previous value.
type storedResult struct {
	seq      uint64
	revision int64
	body     any
	err      error
}

// ApplyEntry runs the commands of the raft entry with that index and term, in order. See Apply for the results.
func (s *State) ApplyEntry(index, term uint64, commands []Command) []Result {
	results := make([]Result, len(commands))
	for i := range commands {
		results[i] = s.applyCommand(&commands[i], index<<positionBits|uint64(i), term)
	}
	s.applied = index
	return results
}

func (s *State) applyCommand(c *Command, at, term uint64) Result {
	if c.Fence != 0 && c.Fence != term {
		return Result{Err: ErrFenced}
	}
	if c.Session == 0 {
		return s.apply(c.Request, at)
	}
	ses := s.session(c.Session)
	if ses == nil {
		return Result{Err: ErrSession}
	}
	if c.Seq < ses.floor {
		return Result{Err: ErrStale}
	}
	if a, ok := ses.result(c.Seq); ok {
		return a.result()
	}
	res := s.apply(c.Request, at)
	// The command may have replaced its own session, or moved it.
	if ses = s.session(c.Session); ses != nil {
		ses.storeResult(c.Seq, res)
		ses.raiseFloor(c.Floor)
		s.frozenSessions = nil
	}
	return res
}

// freezeSessions returns a copy of the sessions that does not change any more, for a view.
func (s *State) freezeSessions() []session {
	if s.frozenSessions == nil {
		for i := range s.sessions {
			s.sessions[i].aliasedResults = len(s.sessions[i].results)
		}
		s.frozenSessions = slices.Clone(s.sessions)
	}
	return s.frozenSessions
}

// session returns an open session, or nil. The pointer is valid until the next session is opened.
func (s *State) session(id uint64) *session {
	i, ok := slices.BinarySearchFunc(s.sessions, id, func(e session, id uint64) int { return cmp.Compare(e.id, id) })
	if !ok {
		return nil
	}
	return &s.sessions[i]
}

// openSession opens a session in place of the one that the same server had. Ids grow, so sessions are sorted by id.
func (s *State) openSession(r *wrapperspb.StringValue, at uint64) (*wrapperspb.UInt64Value, error) {
	name := r.GetValue()
	if name == "" || len(name) > maxSessionName {
		return nil, errSessionName
	}
	id := max(at, 1)
	if n := len(s.sessions); n > 0 {
		id = max(id, s.sessions[n-1].id+1) // for an entry with more commands than positionBits can count
	}
	s.sessions = slices.DeleteFunc(s.sessions, func(e session) bool { return e.name == name })
	if len(s.sessions) >= maxSessions {
		s.sessions = slices.Delete(s.sessions, 0, 1)
	}
	s.sessions = append(s.sessions, session{id: id, name: name})
	s.frozenSessions = nil
	return wrapperspb.UInt64(id), nil
}

// find returns the index at which the answer with that number is or belongs. Nearly always that is the end.
func (ses *session) find(seq uint64) (int, bool) {
	n := len(ses.results)
	if n == 0 || ses.results[n-1].seq < seq {
		return n, false
	}
	return slices.BinarySearchFunc(ses.results, seq, func(a storedResult, seq uint64) int { return cmp.Compare(a.seq, seq) })
}

func (ses *session) result(seq uint64) (storedResult, bool) {
	i, ok := ses.find(seq)
	if !ok {
		return storedResult{}, false
	}
	return ses.results[i], true
}

func (ses *session) storeResult(seq uint64, res Result) {
	a := newStoredResult(seq, res)
	if i, _ := ses.find(seq); i >= ses.aliasedResults {
		ses.results = slices.Insert(ses.results, i, a)
	} else {
		ses.results = slices.Concat(ses.results[:i], []storedResult{a}, ses.results[i:])
		ses.aliasedResults = 0
	}
	ses.bytes += a.size()
	n, bytes := 0, ses.bytes
	for ; len(ses.results)-n > maxRemembered || bytes > maxSessionBytes; n++ {
		bytes -= ses.results[n].size()
	}
	if n > 0 {
		ses.raiseFloor(ses.results[n-1].seq + 1)
	}
}

// raiseFloor raises the floor, and drops the answers to the commands below it.
func (ses *session) raiseFloor(floor uint64) {
	if floor <= ses.floor {
		return
	}
	ses.floor = floor
	n := 0
	for ; n < len(ses.results) && ses.results[n].seq < floor; n++ {
		ses.bytes -= ses.results[n].size()
	}
	ses.results, ses.aliasedResults = ses.results[n:], max(ses.aliasedResults-n, 0)
	if len(ses.results) == 0 {
		ses.results = nil
	}
}

// newStoredResult returns an answer that does not change when the caller of the command changes its result.
func newStoredResult(seq uint64, res Result) storedResult {
	if res.Err != nil {
		return storedResult{seq: seq, err: res.Err}
	}
	a := storedResult{seq: seq}
	if h, ok := res.Response.(headerResponse); ok {
		a.revision = h.GetHeader().GetRevision()
	}
	if put, ok := res.Response.(*pb.PutResponse); ok && put.PrevKv == nil {
		return a
	}
	a.body = withHeader(res.Response, nil)
	if a.size() > maxResult {
		return storedResult{seq: seq, err: ErrResultDropped}
	}
	return a
}

func (a *storedResult) size() int64 {
	const overhead = 64
	if m, ok := a.body.(proto.Message); ok {
		return overhead + int64(proto.Size(m))
	}
	return overhead
}

// result returns the answer as a result, with a new header.
func (a *storedResult) result() Result {
	if a.err != nil {
		return Result{Err: a.err, Repeated: true}
	}
	header := &pb.ResponseHeader{Revision: a.revision}
	if a.body == nil {
		return Result{Response: &pb.PutResponse{Header: header}, Repeated: true}
	}
	return Result{Response: withHeader(a.body, header), Repeated: true}
}

type headerResponse interface{ GetHeader() *pb.ResponseHeader }

// withHeader returns a shallow copy of a response with another header.
func withHeader(resp any, h *pb.ResponseHeader) any {
	switch r := resp.(type) {
	case *pb.PutResponse:
		return &pb.PutResponse{Header: h, PrevKv: r.PrevKv}
	case *pb.DeleteRangeResponse:
		return &pb.DeleteRangeResponse{Header: h, Deleted: r.Deleted, PrevKvs: r.PrevKvs}
	case *pb.TxnResponse:
		return &pb.TxnResponse{Header: h, Succeeded: r.Succeeded, Responses: r.Responses}
	case *pb.CompactionResponse:
		return &pb.CompactionResponse{Header: h}
	case *pb.LeaseGrantResponse:
		return &pb.LeaseGrantResponse{Header: h, ID: r.ID, TTL: r.TTL}
	case *pb.LeaseRevokeResponse:
		return &pb.LeaseRevokeResponse{Header: h}
	case *wrapperspb.UInt64Value: // it has no header
		return wrapperspb.UInt64(r.Value)
	}
	panic("mvcc: not a command's response")
}
