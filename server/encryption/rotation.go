// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Stage is how far a key rotation has come. Each can be entered again after a crash: what it does is the same whether
// or not it was done before.
type Stage string

// The stages in their order. Between two of them the API server has loaded the configuration of the first.
const (
	// StagePrepare adds the new key for reading.
	StagePrepare Stage = "prepare"
	// StageActivate makes the new key the one that writes.
	StageActivate Stage = "activate"
	// StageReencrypt has every object written again.
	StageReencrypt Stage = "re-encrypt"
	// StageDrop forgets the old keys.
	StageDrop Stage = "drop"
	// StageDone is rest.
	StageDone Stage = "done"
)

// state is what a rotation remembers on disk. The keys themselves are in the configuration only.
type state struct {
	Stage    Stage     `json:"stage"`
	NewKey   string    `json:"newKey,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// RotateOptions says whose keys to rotate and how to reach the API servers.
type RotateOptions struct {
	// Dir is the Options.Dir of the server.
	Dir string
	// Client reaches the API server with an administrator's rights.
	Client *rest.Config
	// Loaded returns the hashes of the configuration that each API server has loaded. Nil means: ask the one behind
	// Client for its metrics.
	Loaded func(context.Context) ([]string, error)
	// KV is the store, in which is looked for what still needs an older key; nil believes the API server.
	KV clientv3.KV
	// Check, when set, is called before each run, when no machine can be admitted any more (HoldStill). Its error ends
	// the run.
	Check func() error
	// Progress, when set, is called for each stage as it begins and for objects written again.
	Progress func(stage Stage, objects int)
	// Clock is the time; nil means the machine's.
	Clock clock.Clock
	// Poll is how often Loaded is asked; zero means 2 s.
	Poll time.Duration
	// Logger tells of each stage; nil means slog's default.
	Logger *slog.Logger
}

// Rotate replaces the key with which the store's secrets are encrypted, and returns when the old one is gone. It goes
// on where an earlier one stopped. When it fails, everything stays readable, and calling it again continues.
func Rotate(ctx context.Context, o RotateOptions) error {
	o = o.withDefaults()
	path := filepath.Join(o.Dir, configFile)
	alone, err := lock(ctx, filepath.Join(o.Dir, rotationLock), false)
	if errors.Is(err, errLocked) {
		return errors.New("another process rotates the encryption key already, or a server is joining at this moment; nothing was " +
			"changed by this one")
	}
	if err != nil {
		return err
	}
	defer alone.Close()
	if o.Check != nil {
		if err := o.Check(); err != nil {
			return err
		}
	}
	if _, err := readLayout(path); errors.Is(err, errForeign) {
		return fmt.Errorf("%s was written by hand, so its keys are rotated by hand too: nothing was changed", path)
	} else if err != nil {
		return err
	}
	st, err := readState(o.Dir)
	if err != nil {
		return err
	}
	if st.Stage == StageDone {
		l, err := readLayout(path)
		if err != nil {
			return err
		}
		// The remembered name counts too, so that no name is ever used twice.
		st = state{Stage: StagePrepare, NewKey: nextName(append(l.keyNames(), st.NewKey)), Started: o.Clock.Now().UTC()}
		if err := st.write(o.Dir); err != nil {
			return err
		}
	}
	for st.Stage != StageDone {
		o.Logger.Info("rotating the encryption key", "stage", st.Stage, "newKey", st.NewKey)
		o.Progress(st.Stage, 0)
		next, err := o.step(ctx, path, st)
		if err != nil {
			return fmt.Errorf("rotating the encryption key stopped at the stage %q: %w. Everything stays readable; run the "+
				"same command again to go on", st.Stage, err)
		}
		if st.Stage = next; next == StageDone {
			st.Finished = o.Clock.Now().UTC()
		}
		if err := st.write(o.Dir); err != nil {
			return err
		}
	}
	o.Progress(StageDone, 0)
	return nil
}

// step does one stage and returns the next.
func (o RotateOptions) step(ctx context.Context, path string, st state) (Stage, error) {
	switch st.Stage {
	case StagePrepare:
		return StageActivate, o.change(ctx, path, func(l *layout) error {
			if slices.Contains(l.keyNames(), st.NewKey) {
				return nil
			}
			k, err := newKey(nil)
			if err != nil {
				return err
			}
			k.Name = st.NewKey
			l.keys = append(l.keys, k)
			return nil
		})
	case StageActivate:
		return StageReencrypt, o.change(ctx, path, func(l *layout) error {
			i := slices.IndexFunc(l.keys, func(k key) bool { return k.Name == st.NewKey })
			if i < 0 {
				return fmt.Errorf("the new key %s is not in %s any more", st.NewKey, path)
			}
			k := l.keys[i]
			l.keys = slices.Insert(slices.Delete(l.keys, i, i+1), 0, k)
			return nil
		})
	case StageReencrypt:
		return StageDrop, o.reencrypt(ctx, path, st.NewKey)
	case StageDrop:
		return StageDone, o.change(ctx, path, func(l *layout) error {
			if l.keys[0].Name != st.NewKey {
				return fmt.Errorf("the key that writes is %s and not the new %s: someone changed %s", l.keys[0].Name, st.NewKey, path)
			}
			l.keys = l.keys[:1]
			return nil
		})
	}
	return "", fmt.Errorf("the stage %q in %s is unknown: was a newer version at work here?", st.Stage, filepath.Join(o.Dir, stateFile))
}

// change edits the configuration and waits until the API servers have loaded it.
func (o RotateOptions) change(ctx context.Context, path string, edit func(*layout) error) error {
	if err := o.edit(ctx, path, edit); err != nil {
		return err
	}
	return o.awaitLoaded(ctx, path)
}

func (o RotateOptions) edit(ctx context.Context, path string, edit func(*layout) error) error {
	editing, err := lock(ctx, filepath.Join(o.Dir, editLock), true)
	if err != nil {
		return err
	}
	defer editing.Close()
	l, err := readLayout(path)
	if err != nil {
		return err
	}
	if err := edit(&l); err != nil {
		return err
	}
	_, err = l.write(ctx, path)
	return err
}

// reencrypt has everything written again, provided that the API servers write with the new key.
func (o RotateOptions) reencrypt(ctx context.Context, path, newKey string) error {
	l, err := readLayout(path)
	if err != nil {
		return err
	}
	if l.keys[0].Name != newKey {
		return fmt.Errorf("the key that writes is %s and not the new %s: someone changed %s", l.keys[0].Name, newKey, path)
	}
	if err := o.awaitLoaded(ctx, path); err != nil {
		return err
	}
	// Retired resources too: what lies there encrypted with the old key is then plain, as it should be.
	rewrite := func() error {
		return Rewrite(ctx, o.Client, slices.Concat(l.active, l.retired), func(n int) { o.Progress(StageReencrypt, n) })
	}
	if o.KV == nil {
		return rewrite()
	}
	return rewriteAll(ctx, o.KV, slices.DeleteFunc(l.keyNames(), func(name string) bool { return name == newKey }), rewrite)
}

// awaitLoaded returns when every API server has loaded what the file says.
func (o RotateOptions) awaitLoaded(ctx context.Context, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	want := contentHash(data)
	var last error
	for {
		hashes, err := o.Loaded(ctx)
		if err == nil && len(hashes) > 0 && !slices.ContainsFunc(hashes, func(h string) bool { return h != want }) {
			return nil
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server has not loaded %s: %w", path, errors.Join(ctx.Err(), last))
		case <-o.Clock.After(o.Poll):
		}
	}
}

func (o RotateOptions) withDefaults() RotateOptions {
	if o.Loaded == nil {
		o.Loaded = func(ctx context.Context) ([]string, error) { return loadedByMetrics(ctx, o.Client) }
	}
	if o.Progress == nil {
		o.Progress = func(Stage, int) {}
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Poll == 0 {
		o.Poll = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Status describes keys and rotation without secrets.
type Status struct {
	// Key is the name of the key that writes; Readable names those that may still read.
	Key      string   `json:"key,omitempty"`
	Readable []string `json:"readable,omitempty"`
	// Encrypted are the resources that are encrypted when written.
	Encrypted []string `json:"encrypted,omitempty"`
	// ByHand says that the configuration is an operator's own.
	ByHand   bool      `json:"byHand,omitempty"`
	Stage    Stage     `json:"stage"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// ReadStatus reports on the files in dir.
func ReadStatus(dir string) (Status, error) {
	st, err := readState(dir)
	if err != nil {
		return Status{}, err
	}
	s := Status{Stage: st.Stage, Started: st.Started, Finished: st.Finished}
	l, err := readLayout(filepath.Join(dir, configFile))
	if errors.Is(err, errForeign) {
		s.ByHand = true
		return s, nil
	}
	if err != nil {
		return Status{}, err
	}
	s.Key, s.Readable, s.Encrypted = l.keys[0].Name, l.keyNames(), l.active
	return s, nil
}

func readState(dir string) (state, error) {
	path := filepath.Join(dir, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Stage: StageDone}, nil
	}
	if err != nil {
		return state{}, err
	}
	var st state
	if err := json.Unmarshal(data, &st); err != nil || st.Stage == "" {
		return state{}, fmt.Errorf("the state of the key rotation in %s is damaged (%v). No key was dropped. Remove that file and "+
			"rotate again: a new rotation writes everything again and drops every older key", path, err)
	}
	return st, nil
}

func (s state) write(dir string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, stateFile), append(data, '\n'), 0o600)
}
