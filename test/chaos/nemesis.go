// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/test/storecluster"
)

// settleTimeout is how long a healed cluster may take until all of it is well.
const settleTimeout = 60 * time.Second

// nemesis does harm, as its seed says, and mends it.
type nemesis struct {
	c    *cluster
	r    *rand.Rand
	logf func(format string, args ...any)

	// joined and left tell of changes of membership.
	joined func(*server)
	left   func(*server)
	// compact drops the history that every watcher has seen.
	compact func(context.Context) error

	now   func() int64 // the history's clock
	lossy bool         // packets get lost while it strikes alone

	mu      sync.Mutex
	strikes []*strike
}

// strike is one fault that was done, in the history's time. To is 0 as long as it lasts.
type strike struct {
	Fault    string `json:"fault"`
	From, To int64
}

// fault is one kind of harm.
type fault struct {
	name   string
	weight int
	// strike does the harm, lasts as long as it should, and need not mend it.
	strike func(n *nemesis, ctx context.Context, r *rand.Rand) error
}

// Faults of one kind never strike at the same time; those of different kinds may.
func (n *nemesis) kinds() [][]fault {
	kinds := [][]fault{chosen(networkFaults()), chosen(processFaults()), chosen(diskFaults())}
	return slices.DeleteFunc(kinds, func(faults []fault) bool { return len(faults) == 0 })
}

// run strikes until ctx ends. When it returns, everything is mended, but the cluster may need a moment.
func (n *nemesis) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := n.phase(ctx); err != nil {
			return errors.Join(err, n.mend())
		}
	}
	return n.mend()
}

// phase is one time of trouble, mended at its end.
func (n *nemesis) phase(ctx context.Context) error {
	kinds, hard := n.kinds(), chosen(aloneFaults())
	if len(hard) > 0 && (n.r.IntN(100) < 22 || len(kinds) == 0) {
		return n.alone(ctx, hard)
	}
	if len(kinds) == 0 {
		pause(ctx, time.Second)
		return nil
	}
	n.r.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	count := 1
	if len(kinds) > 1 && n.r.IntN(3) == 0 {
		count = 2
	}
	var striking sync.WaitGroup
	errs := make([]error, count)
	for i, faults := range kinds[:count] {
		f, r := pick(n.r, faults), rand.New(rand.NewPCG(n.r.Uint64(), n.r.Uint64()))
		n.note(f.name)
		striking.Go(func() { errs[i] = f.strike(n, ctx, r) })
	}
	striking.Wait()
	if err := errors.Join(append(errs, n.mend())...); err != nil {
		return err
	}
	if n.r.IntN(2) == 0 { // else the next trouble meets a cluster that is still recovering
		return n.settle()
	}
	pause(ctx, time.Duration(n.r.IntN(1500))*time.Millisecond)
	return nil
}

// alone strikes with a fault that takes a healthy cluster to survive.
func (n *nemesis) alone(ctx context.Context, faults []fault) error {
	if err := n.settle(); err != nil {
		return err
	}
	if err := n.compact(ctx); err != nil {
		return err
	}
	f := pick(n.r, faults)
	n.note(f.name)
	if n.lossy = n.r.IntN(4) == 0; n.lossy {
		n.logf("with some packets lost")
		if err := n.thin(n.r, 3); err != nil {
			return err
		}
	}
	return errors.Join(f.strike(n, ctx, n.r), n.mend(), n.settle())
}

func (n *nemesis) settle() error { return n.c.settle(context.Background(), settleTimeout) }

func (n *nemesis) note(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.strikes = append(n.strikes, &strike{Fault: name, From: n.now()})
	n.logf("fault: %s", name)
}

// ended notes that all faults so far are mended.
func (n *nemesis) ended() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.strikes {
		if s.To == 0 {
			s.To = n.now()
		}
	}
}

// chosen leaves the faults that CORACLE_CHAOS_ONLY and CORACLE_CHAOS_SKIP (names with commas between) ask for.
func chosen(faults []fault) []fault {
	skip, only := strings.Split(os.Getenv("CORACLE_CHAOS_SKIP"), ","), strings.Split(os.Getenv("CORACLE_CHAOS_ONLY"), ",")
	return slices.DeleteFunc(faults, func(f fault) bool {
		return slices.Contains(skip, f.name) || only[0] != "" && !slices.Contains(only, f.name)
	})
}

// onlySome says whether the faults were chosen.
func onlySome() bool {
	return os.Getenv("CORACLE_CHAOS_SKIP") != "" || os.Getenv("CORACLE_CHAOS_ONLY") != ""
}

// pick takes one by weight.
func pick(r *rand.Rand, faults []fault) fault {
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	at := r.IntN(total)
	for _, f := range faults {
		if at -= f.weight; at < 0 {
			return f
		}
	}
	return faults[0]
}

// mend heals the network and the disks, wakes and starts every server.
func (n *nemesis) mend() error {
	defer n.ended()
	errs := []error{n.c.site.heal()}
	for _, s := range n.c.all() {
		_ = s.unfill()
		if err := s.signal(syscall.SIGCONT); err != nil && !errors.Is(err, storecluster.ErrNotRunning) {
			errs = append(errs, err)
		}
		if !s.running() {
			errs = append(errs, s.start(n.c.peersOf(s)))
			continue
		}
		errs = append(errs, s.misbehave(context.Background(), diskFault{}))
	}
	return errors.Join(errs...)
}

// between is a random time.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

// others returns all servers but one, in random order.
func (n *nemesis) others(s *server, r *rand.Rand) []*server {
	var out []*server
	for _, o := range n.c.all() {
		if o != s {
			out = append(out, o)
		}
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// some returns a random server: the leader half of the time.
func (n *nemesis) some(ctx context.Context, r *rand.Rand) *server {
	if r.IntN(2) == 0 {
		return n.c.pickLeader(ctx, r)
	}
	all := n.c.all()
	return all[r.IntN(len(all))]
}

// majority returns as many servers as make one, with the leader among them.
func (n *nemesis) majority(ctx context.Context, r *rand.Rand) []*server {
	lead := n.c.pickLeader(ctx, r)
	all := append([]*server{lead}, n.others(lead, r)...)
	return all[:len(all)/2+1]
}

// diskFault is what storenode's "faults" takes.
type diskFault struct {
	DelayMillis int    `json:"delayMillis"` // of each flush
	Error       string `json:"error"`       // of each write: "", "EIO" or "ENOSPC"
}

// misbehave makes the server's disk slow or failing. A server that does not run, or not now, is left alone: it would
// take the fault when it is not meant to.
func (s *server) misbehave(ctx context.Context, f diskFault) error {
	s.mu.Lock()
	asleep := s.proc == nil || s.paused
	s.mu.Unlock()
	if asleep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := s.ask(ctx, "faults", f, nil); err != nil && !errors.Is(err, storecluster.ErrNotRunning) {
		return fmt.Errorf("disk faults: %w", err)
	}
	return nil
}
