// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
)

// Rotation replaces the key that encrypts the Secrets of a cluster.
type Rotation struct {
	Shared
	// Client has an administrator's rights at an API server.
	Client *rest.Config
	// Servers returns the names of all servers that are members of the store.
	Servers func(context.Context) ([]string, error)
	// Progress, when set, is called when a stage begins, for objects written again, and for servers that have not
	// loaded the keys yet.
	Progress func(stage Stage, objects int, waiting []string)
	// Patience is how long a stage waits for a server that does not load the keys. Zero means 3 minutes.
	Patience time.Duration
	// Poll is how often the servers are checked. Zero means a second. Clock is the time source. Nil means the
	// machine's.
	Poll  time.Duration
	Clock clock.Clock
}

// Run returns when the old key has been removed. Every server has to have loaded a stage's keys before the next stage
// begins, also a server that is off: it cannot be distinguished from one that is cut off, which could still write with
// the old key. When Run fails or is interrupted, everything stays readable. Another call, on any server, continues.
func (o Rotation) Run(ctx context.Context) error {
	o = o.withDefaults()
	alone, err := lock(ctx, filepath.Join(o.Dir, rotationLock), false)
	if errors.Is(err, errLocked) {
		return errors.New("another process rotates the encryption key already, or a server is joining at this moment; nothing was " +
			"changed by this one")
	}
	if err != nil {
		return err
	}
	defer alone.Close()
	r, err := o.beginOrResume(ctx)
	if err != nil {
		return err
	}
	if _, err := o.Pull(ctx); err != nil { // this server admits no new server any more; the others follow in a moment
		return err
	}
	for r.State.Stage != StageDone {
		if r, err = o.step(ctx, r); err != nil {
			return fmt.Errorf("rotating the encryption key stopped at the stage %q: %w. Everything stays readable; run the same command "+
				"again, on any server, to go on", r.State.Stage, err)
		}
	}
	if _, err := o.Pull(ctx); err != nil { // this server admits new servers again; the others follow in a moment
		return err
	}
	o.Progress(StageDone, 0, nil)
	return nil
}

// beginOrResume returns the interrupted rotation, or begins one.
func (o Rotation) beginOrResume(ctx context.Context) (sharedKeys, error) {
	path := filepath.Join(o.Dir, configFile)
	l, err := readLayout(path)
	if errors.Is(err, errForeign) {
		return sharedKeys{}, fmt.Errorf("%s was written by hand, so its keys are rotated by hand too: nothing was changed", path)
	}
	if err != nil {
		return sharedKeys{}, err
	}
	r, err := o.read(ctx)
	if err != nil {
		return sharedKeys{}, err
	}
	if r.revision == 0 { // the servers have had the same files since each joined
		r = sharedKeys{Keys: l.keys, State: state{Stage: StageDone}}
	}
	if r.State.Stage != StageDone {
		return r, nil
	}
	k := newKey(slices.Concat(l.keyNames(), layout{keys: r.Keys}.keyNames(), r.Forgotten, []string{r.State.NewKey}))
	r.Keys = append(slices.Clone(r.Keys), k)
	r.State = state{Stage: StagePrepare, NewKey: k.Name, Started: o.Clock.Now().UTC()}
	if r, err = o.writeRecord(ctx, r); err != nil {
		return sharedKeys{}, fmt.Errorf("beginning the rotation: %w", err)
	}
	return r, nil
}

// step completes the stage in the record and begins the next one.
func (o Rotation) step(ctx context.Context, r sharedKeys) (sharedKeys, error) {
	o.Progress(r.State.Stage, 0, nil)
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if err := o.awaitServers(ctx, r); err != nil {
		return r, err
	}
	next := r
	next.Keys = slices.Clone(r.Keys)
	i := slices.IndexFunc(next.Keys, func(k key) bool { return k.Name == r.State.NewKey })
	if i < 0 {
		return r, fmt.Errorf("the new key %s is not in the store any more", r.State.NewKey)
	}
	switch r.State.Stage {
	case StagePrepare:
		k := next.Keys[i]
		next.Keys = slices.Insert(slices.Delete(next.Keys, i, i+1), 0, k)
		next.State.Stage = StageReencrypt
	case StageReencrypt:
		l, err := readLayout(filepath.Join(o.Dir, configFile))
		if err != nil {
			return r, err
		}
		var older []string
		for _, k := range slices.Concat(next.Keys, l.keys) {
			if k.Name != r.State.NewKey && !slices.Contains(older, k.Name) {
				older = append(older, k.Name)
			}
		}
		if err := rewriteAll(ctx, o.KV, older, func() error {
			return Rewrite(ctx, o.Client, slices.Concat(l.active, l.retired), func(n int) { o.Progress(StageReencrypt, n, nil) })
		}); err != nil {
			return r, err
		}
		next.Forgotten = append(slices.Clone(next.Forgotten),
			slices.DeleteFunc(older, func(name string) bool { return slices.Contains(next.Forgotten, name) })...)
		next.Keys = []key{next.Keys[i]}
		next.State.Stage = StageDrop
	case StageDrop:
		next.State.Stage, next.State.Finished = StageDone, o.Clock.Now().UTC()
	default:
		return r, fmt.Errorf("the stage %q is unknown: a newer version may have started this rotation. Continue it with that version", r.State.Stage)
	}
	put, err := o.writeRecord(ctx, next)
	if err != nil {
		return r, err
	}
	return put, nil
}

// awaitServers returns when every server's API server has loaded the record's keys.
func (o Rotation) awaitServers(ctx context.Context, r sharedKeys) error {
	began, last := o.Clock.Now(), ""
	for {
		missing, err := o.serversWithOlderKeys(ctx, r.Generation)
		if err == nil && len(missing) == 0 {
			return nil
		}
		if names := strings.Join(missing, ", "); err == nil && names != last {
			last = names
			o.Progress(r.State.Stage, 0, missing)
		}
		if o.Clock.Since(began) >= o.Patience {
			if err != nil {
				return err
			}
			return fmt.Errorf("these servers have not loaded the keys within %s: %s. Start coracle there, or update it if it is an "+
				"older version, or remove a server that "+
				"is lost for good from the cluster (coracle member list, coracle member remove)", o.Patience, last)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for servers that have not loaded the keys (%s): %w", last, ctx.Err())
		case <-o.Clock.After(o.Poll):
		}
	}
}

// serversWithOlderKeys returns the servers that have loaded only an older generation.
func (o Rotation) serversWithOlderKeys(ctx context.Context, generation uint64) ([]string, error) {
	servers, err := o.Servers(ctx)
	if err == nil && len(servers) == 0 {
		err = errors.New("the store names no server")
	}
	if err != nil {
		return nil, err
	}
	has, err := o.confirmed(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(servers, func(name string) bool { return has[name] >= generation }), nil
}

func (o Rotation) withDefaults() Rotation {
	if o.Progress == nil {
		o.Progress = func(Stage, int, []string) {}
	}
	o.Clock = cmp.Or[clock.Clock](o.Clock, clock.RealClock{})
	o.Patience = cmp.Or(o.Patience, 3*time.Minute)
	o.Poll = cmp.Or(o.Poll, time.Second)
	return o
}
