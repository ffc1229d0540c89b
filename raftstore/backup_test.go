// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// stuckReader takes nothing until it is let go.
type stuckReader struct {
	bytes.Buffer
	let chan struct{}
}

func (r *stuckReader) Write(p []byte) (int, error) {
	<-r.let
	return r.Buffer.Write(p)
}

// TestBackupWithoutReader: the history stays bounded, and the reader hears
// that it was too slow.
func TestBackupWithoutReader(t *testing.T) {
	const limit = 1 << 20
	stage(t, 1, 1, func(o *Options) { o.HistoryBytes = limit }, func(c *cluster) {
		s := c.nodes[0].running()
		put := func() {
			testenv.Must(s.Client().Put(c.ctx, "k", noise(100<<10)))(c)
		}
		put()
		r := &stuckReader{let: make(chan struct{})}
		failed := make(chan error, 1)
		c.tasks.Go(func() {
			_, err := s.Backup(context.Background(), r)
			failed <- err
		})
		c.pass(time.Second)
		most := int64(0)
		for range 300 {
			put()
			most = max(most, s.replica.fsm.view().Stats().HistoryBytes())
		}
		c.pass(time.Second)
		if now := s.replica.fsm.view().Stats().HistoryBytes(); most < limit*3/2 || most > 3*limit || now > limit {
			c.Errorf("%d bytes of history at most, %d now; allowed were %d, and twice that for the backup", most, now, limit)
		}
		close(r.let)
		if err := <-failed; status.Code(err) != codes.Aborted {
			c.Errorf("the backup ended with %v", err)
		}
		testenv.Fails(c, testenv.Err(mvcc.Restore(&r.Buffer)), "what was received can be restored")
	})
}

// TestSlowBackup: a reader that is slow, but not too slow for what is written
// meanwhile, gets it whole.
func TestSlowBackup(t *testing.T) {
	stage(t, 1, 1, func(o *Options) { o.HistoryBytes = 1 << 20 }, func(c *cluster) {
		s := c.nodes[0].running()
		put := func(value string) {
			testenv.Must(s.Client().Put(c.ctx, "k", value))(c)
		}
		put("before")
		r := &stuckReader{let: make(chan struct{})}
		failed := make(chan error, 1)
		c.tasks.Go(func() {
			_, err := s.Backup(context.Background(), r)
			failed <- err
		})
		c.pass(time.Second)
		for range 15 {
			put(noise(100 << 10))
		}
		c.pass(11 * time.Minute) // the history is compacted by its age, too
		close(r.let)
		testenv.NoError(c, <-failed)
		state := testenv.Must(mvcc.Restore(&r.Buffer))(c)
		state.Freeze().Walk([]byte("k"), nil, state.Freeze().Revision(), func(v *mvcc.Version) bool {
			testenv.Equal(c, string(v.KV().Value), "before", "the backup has")
			return true
		})
		testenv.Equal(c, state.Freeze().Stats().Keys, 1, "keys:")
	})
}

func TestTooManyBackups(t *testing.T) {
	stage(t, 1, 1, nil, func(c *cluster) {
		s := c.nodes[0].running()
		let := make(chan struct{})
		failed := make(chan error, maxBackups)
		for range maxBackups {
			c.tasks.Go(func() {
				_, err := s.Backup(context.Background(), &stuckReader{let: let})
				failed <- err
			})
		}
		c.pass(time.Second)
		testenv.ErrorIs(c, testenv.Err(s.Backup(c.ctx, io.Discard)), errTooManyBackups, "one backup too many")
		close(let)
		for range maxBackups {
			testenv.Check(c, <-failed, "a backup whose reader went on")
		}
		testenv.Check(c, testenv.Err(s.Backup(c.ctx, io.Discard)), "after the others")
	})
}
