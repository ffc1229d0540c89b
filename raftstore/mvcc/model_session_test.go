// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// modelSession is a session as simply as possible.
type modelSession struct {
	server  string
	floor   uint64
	answers map[uint64]modelAnswer
}

// modelAnswer is what a command gave: a response without headers, and the
// revision that its header has, or an error.
type modelAnswer struct {
	resp proto.Message
	rev  int64
	err  error
}

func (m *model) open(server string, id uint64) (proto.Message, error) {
	if server == "" {
		return nil, errSessionName
	}
	for old, ses := range m.sessions {
		if ses.server == server {
			delete(m.sessions, old)
		}
	}
	m.sessions[id] = &modelSession{server: server, answers: map[uint64]modelAnswer{}}
	return wrapperspb.UInt64(id), nil
}

// entry runs the commands of an entry.
func (m *model) entry(index, term uint64, commands []Command) []modelAnswer {
	var answers []modelAnswer
	for i, c := range commands {
		answers = append(answers, m.command(c, index*4096+uint64(i), term))
	}
	m.applied = index
	return answers
}

func (m *model) command(c Command, at, term uint64) modelAnswer {
	run := func() modelAnswer {
		resp, err := m.apply(c.Request, at)
		return modelAnswer{resp, m.rev(), err}
	}
	if c.Fence != 0 && c.Fence != term {
		return modelAnswer{err: ErrFenced}
	}
	if c.Session == 0 {
		return run()
	}
	ses := m.sessions[c.Session]
	if ses == nil {
		return modelAnswer{err: ErrSession}
	}
	if c.Seq < ses.floor {
		return modelAnswer{err: ErrStale}
	}
	if old, ok := ses.answers[c.Seq]; ok {
		return old
	}
	a := run()
	ses.answers[c.Seq] = a // of no consequence if the command replaced it
	ses.floor = max(ses.floor, c.Floor)
	for seq := range ses.answers {
		if seq < ses.floor {
			delete(ses.answers, seq)
		}
	}
	return a
}

func (m *model) leap(n int, index uint64) {
	for range n {
		m.states = append(m.states, m.now())
	}
	m.compacted, m.applied, m.sessions = m.rev(), index, map[uint64]*modelSession{}
}
