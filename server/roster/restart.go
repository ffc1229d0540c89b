// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
)

// restartInterval is the time between the restarts of two servers whose nodes failed at the same moment. A restart
// takes two seconds, and some more on a loaded board.
const restartInterval = 10 * time.Second

// MayRestart returns an error while a restart of this server would cost the store its quorum: the other voters that can
// store are no majority. Where there is no quorum anyway, or this server has the only vote or none, a restart costs
// none. It first waits for this server's turn, since servers that restart together have all found the others working.
func (r *Roster) MayRestart(ctx context.Context) error {
	store := r.o.Store.Opened()
	if store == nil {
		return nil
	}
	timers.Sleep(ctx, restartDelay(r.o.Store.Members()))
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	return mayRestart(store.Cluster().Survey(ctx))
}

// restartDelay returns how long this server lets others go first.
func restartDelay(members []raftstore.Member) (wait time.Duration) {
	for _, self := range members {
		for _, m := range members {
			if self.Self && m.RaftID < self.RaftID {
				wait += restartInterval
			}
		}
	}
	return wait
}

func mayRestart(members []raftstore.MemberState) error {
	voters, others, votes := 0, 0, false
	for _, m := range members {
		switch {
		case !m.Voter:
			continue
		case m.Self:
			votes = true
		case m.Answers && !m.Stalled && !m.Full:
			others++
		}
		voters++
	}
	majority := voters/2 + 1
	if !votes || voters == 1 || others >= majority || others+1 < majority {
		return nil
	}
	return fmt.Errorf("the store needs this server: of the %d others with a vote, %d can store, and without this one %d have to", voters-1,
		others, majority)
}
