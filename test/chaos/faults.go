// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func networkFaults() []fault {
	return []fault{
		{"cut the leader off", 4, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			lead := n.c.pickLeader(ctx, r)
			return n.hold(ctx, r, n.split([]*server{lead}, n.others(lead, r), true, true))
		}},
		{"cut a server off", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			s := n.c.all()[r.IntN(len(n.c.all()))]
			return n.hold(ctx, r, n.split([]*server{s}, n.others(s, r), true, true))
		}},
		{"split in halves", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			all := n.others(nil, r)
			return n.hold(ctx, r, n.split(all[:len(all)/2], all[len(all)/2:], true, true))
		}},
		{"the leader is not heard", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			lead := n.c.pickLeader(ctx, r)
			return n.hold(ctx, r, n.split([]*server{lead}, n.others(lead, r), true, false))
		}},
		{"the leader hears no server", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			lead := n.c.pickLeader(ctx, r)
			return n.hold(ctx, r, n.split([]*server{lead}, n.others(lead, r), false, true))
		}},
		{"a server hears no other", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			s := n.c.all()[r.IntN(len(n.c.all()))]
			return n.hold(ctx, r, n.split([]*server{s}, n.others(s, r), false, true))
		}},
		{"two halves and a bridge", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			all := n.others(nil, r)
			rest := all[1:]
			return n.hold(ctx, r, n.split(rest[:len(rest)/2], rest[len(rest)/2:], true, true))
		}},
		{"packets get lost", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.hold(ctx, r, n.thin(r, 2+r.IntN(25)))
		}},
		{"a slow link", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.hold(ctx, r, n.c.site.slow(n.some(ctx, r).name, uint64(20_000+r.IntN(200_000))))
		}},
		{"partitions come and go", 2, (*nemesis).flap},
	}
}

// hold keeps a fault up for some seconds.
func (n *nemesis) hold(ctx context.Context, r *rand.Rand, err error) error {
	if err == nil {
		pause(ctx, between(r, 500*time.Millisecond, 5*time.Second))
	}
	return err
}

// thin loses a part of the packets on every link.
func (n *nemesis) thin(r *rand.Rand, percent int) error {
	var errs []error
	for _, a := range n.c.all() {
		for _, b := range n.others(a, r) {
			errs = append(errs, n.c.site.lose(a.name, b.name, percent))
		}
	}
	return errors.Join(errs...)
}

// split cuts what as say to bs, what bs say to as, or both.
func (n *nemesis) split(as, bs []*server, out, in bool) error {
	var errs []error
	for _, a := range as {
		for _, b := range bs {
			if out {
				errs = append(errs, n.c.site.cut(a.name, b.name))
			}
			if in {
				errs = append(errs, n.c.site.cut(b.name, a.name))
			}
		}
	}
	return errors.Join(errs...)
}

func (n *nemesis) flap(ctx context.Context, r *rand.Rand) error {
	for range 3 + r.IntN(6) {
		all := n.others(nil, r)
		at := 1 + r.IntN(len(all)-1)
		if err := n.split(all[:at], all[at:], true, r.IntN(2) == 0); err != nil {
			return err
		}
		pause(ctx, between(r, 100*time.Millisecond, 900*time.Millisecond))
		if err := n.c.site.heal(); err != nil {
			return err
		}
		pause(ctx, between(r, 0, 300*time.Millisecond))
	}
	return nil
}

func processFaults() []fault {
	return []fault{
		{"kill the leader", 4, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.killed(ctx, r, []*server{n.c.pickLeader(ctx, r)})
		}},
		{"kill a server", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.killed(ctx, r, n.others(nil, r)[:1])
		}},
		{"kill a majority", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.killed(ctx, r, n.majority(ctx, r))
		}},
		{"kill all", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.killed(ctx, r, n.c.all())
		}},
		{"kill one after the other", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			for _, s := range n.others(nil, r) {
				if err := errors.Join(s.kill(), s.start(n.c.peersOf(s))); err != nil {
					return err
				}
				pause(ctx, between(r, 0, time.Second))
			}
			return nil
		}},
		{"pause the leader", 4, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.paused(ctx, r, []*server{n.c.pickLeader(ctx, r)})
		}},
		{"pause a server", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.paused(ctx, r, n.others(nil, r)[:1])
		}},
		{"pause a majority", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.paused(ctx, r, n.majority(ctx, r))
		}},
		{"pause leader after leader", 3, (*nemesis).pauseLeaders},
		{"restart", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			s := n.some(ctx, r)
			return errors.Join(s.stop(), s.start(n.c.peersOf(s)))
		}},
		{"hand over the leadership", 3, (*nemesis).handOver},
	}
}

func (n *nemesis) killed(ctx context.Context, r *rand.Rand, victims []*server) error {
	for _, s := range victims {
		if err := s.kill(); err != nil {
			return err
		}
	}
	pause(ctx, between(r, 0, 3*time.Second))
	r.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	for _, s := range victims {
		if err := s.start(n.c.peersOf(s)); err != nil {
			return err
		}
		pause(ctx, between(r, 0, 500*time.Millisecond))
	}
	return nil
}

func (n *nemesis) paused(ctx context.Context, r *rand.Rand, victims []*server) error {
	for _, s := range victims {
		if err := s.signal(syscall.SIGSTOP); err != nil {
			return err
		}
	}
	pause(ctx, between(r, 100*time.Millisecond, 5*time.Second))
	for _, s := range victims {
		if err := s.signal(syscall.SIGCONT); err != nil {
			return err
		}
	}
	return nil
}

// pauseLeaders stops a leader, waits until another one serves, wakes the old one, and so on: old leaders wake with
// writes under way.
func (n *nemesis) pauseLeaders(ctx context.Context, r *rand.Rand) error {
	for range 2 + r.IntN(4) {
		lead, term := n.c.leader(ctx)
		if lead == nil {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		if err := lead.signal(syscall.SIGSTOP); err != nil {
			return err
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			if now, t := n.c.leader(ctx); now != nil && t > term {
				break
			}
			pause(context.Background(), 20*time.Millisecond)
		}
		pause(ctx, between(r, 0, 400*time.Millisecond))
		if err := lead.signal(syscall.SIGCONT); err != nil {
			return err
		}
		pause(ctx, between(r, 0, 400*time.Millisecond))
	}
	return nil
}

func (n *nemesis) handOver(ctx context.Context, r *rand.Rand) error {
	for range 1 + r.IntN(4) {
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		// That it fails, for instance because no server is up to date, is no harm.
		_ = n.c.pickLeader(ctx, r).ask(ask, "transfer", nil, nil)
		cancel()
		pause(ctx, between(r, 0, 700*time.Millisecond))
	}
	return nil
}

func diskFaults() []fault {
	slow := func(low, high int) func(*nemesis, context.Context, *rand.Rand) error {
		return func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.hold(ctx, r, n.some(ctx, r).misbehave(ctx, diskFault{DelayMillis: low + r.IntN(high-low)}))
		}
	}
	return []fault{
		{"a full disk", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.hold(ctx, r, n.some(ctx, r).fill())
		}},
		{"all disks full", 1, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			var errs []error
			for _, s := range n.c.all() {
				errs = append(errs, s.fill())
			}
			return n.hold(ctx, r, errors.Join(errs...))
		}},
		{"slow flushes", 3, slow(5, 300)},
		{"slow flushes everywhere", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			var errs []error
			for _, s := range n.c.all() {
				errs = append(errs, s.misbehave(ctx, diskFault{DelayMillis: 5 + r.IntN(200)}))
			}
			return n.hold(ctx, r, errors.Join(errs...))
		}},
		{"the leader's disk stalls for 5 s", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			err := n.c.pickLeader(ctx, r).misbehave(ctx, diskFault{DelayMillis: 5000})
			if err == nil {
				pause(ctx, 5*time.Second)
			}
			return err
		}},
		{"a failing disk", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			return n.hold(ctx, r, n.some(ctx, r).misbehave(ctx, diskFault{Error: "EIO"}))
		}},
	}
}

// aloneFaults cost a server its memory: they strike a cluster that is well.
func aloneFaults() []fault {
	return []fault{
		{"replace a server", 3, (*nemesis).replace},
		{"wipe a disk", 3, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			s := n.some(ctx, r)
			return errors.Join(s.kill(), os.RemoveAll(s.data()), s.start(n.c.peersOf(s)))
		}},
		{"wipe a disk, then kill the leader", 2, func(n *nemesis, ctx context.Context, r *rand.Rand) error {
			s := n.some(ctx, r)
			if err := errors.Join(s.kill(), os.RemoveAll(s.data()), s.start(n.c.peersOf(s))); err != nil {
				return err
			}
			pause(ctx, between(r, 0, 2*time.Second))
			lead := n.c.pickLeader(ctx, r)
			if lead == s { // it has everything already
				return nil
			}
			return n.killed(ctx, r, []*server{lead})
		}},
		{"damage a file", 3, (*nemesis).damage},
		{"a follower falls far behind", 2, (*nemesis).lag},
	}
}

// replace adds a server, then takes another one out, which may be the leader.
func (n *nemesis) replace(ctx context.Context, r *rand.Rand) error {
	victim := n.some(ctx, r)
	fresh := n.c.newServer()
	if err := fresh.start(n.c.peersOf(fresh)); err != nil {
		return err
	}
	if err := n.c.waitReady(fresh); err != nil {
		return err
	}
	n.logf("added %s", fresh.name)
	n.joined(fresh)
	if err := n.settle(); err != nil {
		return err
	}
	if err := n.remove(victim, r); err != nil {
		return err
	}
	n.logf("removed %s", victim.name)
	pause(ctx, between(r, 0, 3*time.Second)) // its process lives on for a while, and must do no harm
	n.left(victim)
	close(victim.gone)
	return victim.stop()
}

// remove takes a server out of the cluster. The store refuses that unless a majority of the other voters answers at
// once; where packets get lost one may answer late, and the refusal, which changes nothing, says to ask again.
func (n *nemesis) remove(victim *server, r *rand.Rand) error {
	ask, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		err := n.others(victim, r)[0].ask(ask, "remove", victim.name, nil)
		if err == nil || !n.lossy || ask.Err() != nil || !strings.Contains(err.Error(), "would lose its quorum") {
			return err
		}
		n.logf("not yet: %v", err)
		pause(ask, 100*time.Millisecond)
	}
}

// damage changes or cuts a file of a stopped server.
func (n *nemesis) damage(ctx context.Context, r *rand.Rand) error {
	s := n.some(ctx, r)
	if err := s.kill(); err != nil {
		return err
	}
	var files []string
	err := filepath.WalkDir(s.data(), func(path string, d os.DirEntry, err error) error {
		info, statErr := os.Stat(path)
		if err == nil && !d.IsDir() && statErr == nil && info.Size() > 0 && d.Name() != "RESERVE" && d.Name() != "LOCK" {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		return errors.Join(err, s.start(n.c.peersOf(s)))
	}
	slices.Sort(files)
	file := files[r.IntN(len(files))]
	what, err := spoil(file, r)
	if err != nil {
		return err
	}
	n.logf("%s: %s", s.name, what)
	if err := s.start(n.c.peersOf(s)); err != nil {
		return err
	}
	return n.c.waitReady(s)
}

func spoil(file string, r *rand.Rand) (what string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	used := len(b)
	for used > 1 && b[used-1] == 0 {
		used--
	}
	at := r.IntN(used)
	if r.IntN(4) == 0 {
		return fmt.Sprintf("cut %s from %d to %d bytes", file, len(b), at), os.Truncate(file, int64(at))
	}
	b[at] ^= byte(1 + r.IntN(255))
	return fmt.Sprintf("changed byte %d of %s (%d bytes, %d in use)", at, file, len(b), used), os.WriteFile(file, b, 0o600)
}

// lag keeps a follower away until the others have dropped the log that it needs, so that it gets a snapshot while
// clients write.
func (n *nemesis) lag(ctx context.Context, r *rand.Rand) error {
	lead := n.c.pickLeader(ctx, r)
	s := n.others(lead, r)[0]
	if err := s.kill(); err != nil {
		return err
	}
	if err := errors.Join(bulk(ctx, lead, r, 48<<20), s.start(n.c.peersOf(s))); err != nil || r.IntN(2) == 0 {
		return err
	}
	pause(ctx, between(r, 0, 800*time.Millisecond)) // with some luck while the snapshot comes in
	return errors.Join(s.kill(), s.start(n.c.peersOf(s)))
}
