// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestPipeline(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		p, err := a.AppendEntriesPipeline(b.id, b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		const count = 100
		go func() {
			for i := range uint64(count) {
				if _, err := p.AppendEntries(a.entries(3, i+1), new(raft.AppendEntriesResponse)); err != nil {
					t.Error(err)
				}
			}
		}()
		for i := range uint64(count) {
			f := <-p.Consumer()
			if f.Error() != nil || f.Response().LastLog != i+1 {
				t.Fatalf("%v, %+v", f.Error(), f.Response())
			}
		}
	})
}

// TestPipelineAfterRefusal is raft's way to use a pipeline: after a bad answer
// nobody takes any, while something is still being sent.
func TestPipelineAfterRefusal(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		b.setRespond(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Term: 9}, nil) })
		p, err := a.AppendEntriesPipeline(b.id, b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var refused raft.AppendFuture
		sent := make(chan error)
		go func() {
			for i := uint64(1); ; i++ {
				if _, err := p.AppendEntries(a.entries(3, i), new(raft.AppendEntriesResponse)); err != nil {
					sent <- err
					return
				}
			}
		}()
		refused = <-p.Consumer()
		if r := refused.Response(); r.Success || r.Term != 9 {
			t.Fatalf("%+v", r)
		}
		if err := <-sent; !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Fatal(err)
		}
		select {
		case f := <-p.Consumer():
			t.Fatalf("%+v was passed on after a refusal", f.Response())
		default:
		}
		if n := a.confirmed(b); n != 0 {
			t.Fatalf("refusals confirm entries up to %d", n)
		}
	})
}

// TestPipelineBreaks checks that a failure is no contact.
func TestPipelineBreaks(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", nil)
		p, err := a.AppendEntriesPipeline(b.id, b.address)
		if err != nil {
			t.Fatal(err)
		}
		m.Cut("a", "b")
		if _, err := p.AppendEntries(a.entries(3, 1), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		select {
		case f := <-p.Consumer():
			t.Fatalf("%v was passed on", f.Error())
		case <-time.After(time.Minute):
		}
		if _, err := p.AppendEntries(a.entries(3, 1), new(raft.AppendEntriesResponse)); err == nil {
			t.Fatal("a broken pipeline took a message")
		}
		if s := a.Peers()[0]; s.FailuresInARow == 0 || !s.LastContact.IsZero() {
			t.Fatalf("%+v", s)
		}
		if n := a.confirmed(b); n != 0 {
			t.Fatalf("a failure confirms entries up to %d", n)
		}
		_ = p.Close()
		_ = p.Close()
		m.HealAll()
	})
}
