// SPDX-License-Identifier: Apache-2.0

package mvcc

// sessions writes the records of a snapshot that concern raft: the last applied entry, and the sessions.
func (o *recordWriter) sessions(v *View) {
	if v.applied == 0 && len(v.sessions) == 0 {
		return
	}
	o.byte(recordRaft)
	o.uvarints(int64(v.applied), int64(len(v.sessions)))
	var buf []byte
	for i := range v.sessions {
		ses := &v.sessions[i]
		o.byte(recordSession)
		o.uvarints(int64(ses.id))
		o.field([]byte(ses.name))
		o.uvarints(int64(ses.floor), int64(len(ses.results)))
		for j := range ses.results {
			a := &ses.results[j]
			var err error
			if buf, err = appendResult(buf[:0], a.result()); err != nil && o.err == nil {
				o.err = err
			}
			o.byte(recordAnswer)
			o.uvarints(int64(a.seq))
			o.field(buf)
		}
	}
}

func (o *recordWriter) field(b []byte) {
	o.uvarints(int64(len(b)))
	o.bytes(b)
}

// sessionLoader reads the records that recordWriter.sessions wrote.
type sessionLoader struct {
	state          *State
	raftRecordRead bool   // the raft record was read
	sessions       uint64 // how many are still to be read
	results        uint64 // how many are still to be read for the last session
}

func (l *sessionLoader) load(in *recordReader, tag byte) {
	s := l.state
	switch tag {
	case recordRaft:
		if l.raftRecordRead {
			in.setError("it says twice what was applied")
			return
		}
		l.raftRecordRead = true
		s.applied, l.sessions = uint64(in.number()), uint64(in.number())
		if l.sessions > maxSessions {
			in.setError("%d sessions", l.sessions)
		}
	case recordSession:
		ses := session{id: uint64(in.number()), name: string(in.field()), floor: uint64(in.number())}
		l.finishSession(in)
		if l.results = uint64(in.number()); l.results > maxRemembered {
			in.setError("a session with %d answers", l.results)
		}
		if l.sessions == 0 || !l.hasSpace(&ses) {
			in.setError("session %d is out of place", ses.id)
			return
		}
		l.sessions--
		s.sessions = append(s.sessions, ses)
	case recordAnswer:
		seq, body := uint64(in.number()), in.field()
		if l.results == 0 {
			in.setError("answer %d is out of place", seq)
		}
		if in.err == nil {
			l.results--
			l.loadResult(in, &s.sessions[len(s.sessions)-1], seq, body)
		}
	}
}

func (l *sessionLoader) hasSpace(ses *session) bool {
	if ses.id == 0 || ses.name == "" || len(ses.name) > maxSessionName {
		return false
	}
	all := l.state.sessions
	if n := len(all); n > 0 && all[n-1].id >= ses.id {
		return false
	}
	for i := range all {
		if all[i].name == ses.name {
			return false
		}
	}
	return true
}

func (l *sessionLoader) loadResult(in *recordReader, ses *session, seq uint64, body []byte) {
	from := frame{remaining: body}
	res, err := decodeResult(&from)
	if err != nil || len(from.remaining) > 0 {
		in.setError("answer %d of session %d cannot be read: %v", seq, ses.id, err)
		return
	}
	if i, ok := ses.find(seq); seq < ses.floor || ok || i < len(ses.results) {
		in.setError("answer %d of session %d is out of order", seq, ses.id)
		return
	}
	ses.storeResult(seq, res)
}

func (l *sessionLoader) finishSession(in *recordReader) {
	if l.results != 0 {
		in.setError("answers are missing")
	}
}

func (l *sessionLoader) checkComplete(in *recordReader) {
	l.finishSession(in)
	if l.sessions != 0 {
		in.setError("sessions are missing")
	}
}
