// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"sync"

	"github.com/hashicorp/raft"
)

// pipeline stands between raft and NetworkTransport's pipeline, and takes the
// answers from the latter at all times. Raft stops taking them once one is a
// refusal, while it may be sending the next but one; there NetworkTransport
// would block until the pipeline is closed, which raft does after sending.
type pipeline struct {
	t       *Transport
	id      raft.ServerID
	address raft.ServerAddress
	inner   raft.AppendPipeline
	answers chan raft.AppendFuture // unbuffered: raft takes them one by one
	closed  chan struct{}

	mu    sync.Mutex
	over  bool // an answer was bad: nothing more is sent
	ended bool
}

// AppendEntries sends entries. It may block while two are not answered.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.t.withheld(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	over := p.over
	p.mu.Unlock()
	if over {
		return nil, raft.ErrPipelineShutdown
	}
	peer := p.t.peer(string(p.id))
	proven(args)
	peer.sending(args, true)
	future, err := p.inner.AppendEntries(args, resp)
	if err != nil {
		peer.outcome(args, false, true)
		err = cause(err)
		p.t.note(p.id, p.address, err)
	}
	return future, err
}

// Consumer gives the answers.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close ends the pipeline. Answers still to come are lost.
func (p *pipeline) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if !p.ended {
		p.ended = true
		close(p.closed)
	}
	return nil
}

// run takes the answers until the pipeline or the transport is closed.
func (p *pipeline) run() {
	defer func() { _ = p.inner.Close() }() // never fails
	for {
		select {
		case future := <-p.inner.Consumer():
			p.take(future)
		case <-p.closed:
			return
		case <-p.t.ctx.Done():
			return
		}
	}
}

func (p *pipeline) take(future raft.AppendFuture) {
	err := cause(future.Error()) // it is there already
	request, response := future.Request(), future.Response()
	good := err == nil && response.Success && response.Term == request.Term
	p.mu.Lock()
	was := p.over
	p.over = p.over || !good
	p.mu.Unlock()
	peer := p.t.peer(string(p.id))
	peer.outcome(request, good, true)
	if was {
		return // raft no longer listens
	}
	p.t.note(p.id, p.address, err)
	if err != nil {
		return // raft would take it for contact; its next message fails
	}
	if good {
		p.t.push(peer)
	}
	select {
	case p.answers <- future:
	case <-p.closed:
	case <-p.t.ctx.Done():
	}
}
