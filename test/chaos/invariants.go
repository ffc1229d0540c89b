// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// liveWithin is how soon a majority that is alive and connected must have a leader and be up to date, without anybody
// writing. Raft itself may pause for 10 s after many failures, and the machine is busy.
const liveWithin = 25 * time.Second

// look is what storenode tells for the invariants.
type look struct {
	Applied, MembersAt uint64
	Revision           int64
	MembersProblem     string
}

// invariants are what must hold of every server at any time: neither what it has applied nor its revision falls while
// its process runs, and it goes by the newest members that its log has.
type invariants struct {
	mu           sync.Mutex
	observations int
	errs         []error
}

// watch looks at a server until ctx ends.
func (v *invariants) watch(ctx context.Context, s *server) {
	var before look
	var boot int64
	for ctx.Err() == nil {
		pause(ctx, 100*time.Millisecond)
		boots := s.boots.Load()
		now, err := s.look(ctx)
		if err != nil || s.boots.Load() != boots {
			continue // it is down, paused or slow
		}
		if boots != boot {
			before, boot = look{}, boots
		}
		v.note(s, before, now)
		before = now
	}
}

func (v *invariants) note(s *server, before, now look) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.observations++
	if now.Applied < before.Applied || now.Revision < before.Revision {
		v.errs = append(v.errs, fmt.Errorf("%s went back: entry %d after %d, revision %d after %d", s.name, now.Applied, before.Applied, now.Revision, before.Revision))
	}
	// One look may fall between the two.
	if now.MembersProblem != "" && before.MembersProblem != "" && now.MembersAt == before.MembersAt {
		v.errs = append(v.errs, fmt.Errorf("%s goes by other members than its log has: %s", s.name, now.MembersProblem))
	}
}

func (v *invariants) err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.observations == 0 {
		return errors.New("no server was ever looked at")
	}
	return errors.Join(v.errs[:min(len(v.errs), 5)]...)
}

func (s *server) look(ctx context.Context) (look, error) {
	var l look
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return l, s.ask(ctx, "check", nil, &l)
}

// majorityLives cuts off as many servers as the cluster can lose, at random, and waits for the others to be able to
// work. No client writes meanwhile, so nothing but the store itself gets a follower out of where it may be stuck.
func (c *cluster) majorityLives(ctx context.Context, r *rand.Rand) error {
	all := c.all()
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	left, rest := all[:len(all)/2+1], all[len(all)/2+1:]
	for _, a := range left {
		for _, b := range rest {
			if err := errors.Join(c.site.cut(a.name, b.name), c.site.cut(b.name, a.name)); err != nil {
				return err
			}
		}
	}
	err := c.live(ctx, left)
	return errors.Join(err, c.site.heal(), c.live(ctx, all))
}

// live waits until one of the servers leads and all of them have applied what it has.
func (c *cluster) live(ctx context.Context, among []*server) error {
	ctx, cancel := context.WithTimeout(ctx, liveWithin)
	defer cancel()
	for {
		err := lives(ctx, among)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			var names []string
			for _, s := range among {
				names = append(names, s.name)
			}
			return fmt.Errorf("%s, all alive and connected, cannot work within %v: %w", strings.Join(names, ", "), liveWithin, err)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

func lives(ctx context.Context, among []*server) error {
	leaders := 0
	var applied []uint64
	for _, s := range among {
		st, err := s.status(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if st.Leadership.Leader {
			leaders++
		}
		applied = append(applied, st.AppliedIndex)
	}
	if leaders != 1 || slices.Min(applied) != slices.Max(applied) {
		return fmt.Errorf("%d of them lead, and they have applied %v", leaders, applied)
	}
	return nil
}

// sameMembers compares what the servers think the members are. All is quiet.
func (c *cluster) sameMembers(ctx context.Context) error {
	return eventually(ctx, "all servers have the same members", func(ctx context.Context) error {
		var first []member
		for i, s := range c.all() {
			var members []member
			if err := s.ask(ctx, "members", nil, &members); err != nil {
				return err
			}
			slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.RaftID, b.RaftID) })
			if i == 0 {
				first = members
			} else if !reflect.DeepEqual(first, members) {
				return fmt.Errorf("%v and, at %s, %v", first, s.name, members)
			}
		}
		return nil
	})
}
