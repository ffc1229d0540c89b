// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// fixture is a machine with one version and the file of another.
type fixture struct {
	*Versions
	t        *testing.T
	old      string // digest of the version that runs
	file     string // the other program
	next     string // its digest
	calls    []string
	cutAfter int  // the call after which the power is lost; -1 for never
	bundled  bool // the other program is read from a bundle
}

var errCut = errors.New("the power is lost")

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{Versions: Below(dir), t: t, cutAfter: -1}
	f.free = func(string) (int64, error) { return 1 << 40, nil }
	f.old = f.program(filepath.Join(dir, "old"), "old")
	testenv.NoError(t, os.Mkdir(f.Dir, 0o755))
	testenv.NoError(t, f.Stage(filepath.Join(dir, "old"), f.old))
	testenv.NoError(t, os.Symlink(f.old, filepath.Join(f.Dir, current)))
	f.file = filepath.Join(dir, "next")
	f.next = f.program(f.file, "next")
	f.After = func(call string) error {
		call = strings.NewReplacer(f.old, "OLD", f.next, "NEXT").Replace(call)
		if f.calls = append(f.calls, call); f.cutAfter == len(f.calls)-1 {
			return errCut
		}
		return nil
	}
	return f
}

func (f *fixture) program(path, text string) string {
	f.t.Helper()
	testenv.NoError(f.t, os.WriteFile(path, []byte(text), 0o600))
	return testenv.Must(Digest(path))(f.t)
}

func (f *fixture) upgrade() error {
	if err := f.stage(); err != nil {
		return err
	}
	if err := f.Begin(f.next); err != nil {
		return err
	}
	return f.Commit(f.next)
}

func (f *fixture) stage() error {
	if !f.bundled {
		return f.Stage(f.file, f.next)
	}
	program, err := os.Open(f.file)
	testenv.NoError(f.t, err)
	defer program.Close()
	return f.StageFrom(program, f.next, 4, 4)
}

// state is the state with short names.
func (f *fixture) state() string {
	f.t.Helper()
	s := testenv.Must(f.State())(f.t)
	text := fmt.Sprintf("current=%s trial=%s previous=%s tries=%d", s.Current, s.Trial, s.Previous, s.Tries)
	if s.Refused != nil {
		text += fmt.Sprintf(" refused=%s %q reported=%v", s.Refused.Digest, s.Refused.Reason, s.Refused.Reported)
	}
	return strings.NewReplacer(f.old, "OLD", f.next, "NEXT").Replace(text)
}

// TestUpgradeCallsAreInOrder: what makes the way back possible is the order in which things reach the disk.
func TestUpgradeCallsAreInOrder(t *testing.T) {
	f := newFixture(t)
	testenv.NoError(t, f.upgrade())
	testenv.EqualSlices(t, f.calls, []string{
		"mkdir slot.new", "write program", "sync program", "sync slot.new", "rename slot.new slot", "sync versions",
		"sync tries", "symlink trial.new", "rename trial.new trial", "sync versions",
		"symlink previous.new", "rename previous.new previous", "sync versions", "rename trial current", "sync versions",
	}, "calls:")
	testenv.Equal(t, f.state(), "current=NEXT trial= previous=OLD tries=0", "")
	fi := testenv.Must(os.Stat(f.ProgramOf(f.next)))(t)
	testenv.Equal(t, fi.Mode().Perm(), 0o755, "mode:")
}

// TestVersionThatIsThereIsDurable: what copied it may have ended before it had written it to the disk.
func TestVersionThatIsThereIsDurable(t *testing.T) {
	f := newFixture(t)
	testenv.NoError(t, f.Stage(f.file, f.next))
	f.calls = nil
	testenv.NoError(t, f.Stage(f.file, f.next))
	testenv.EqualSlices(t, f.calls, []string{"sync slot", "sync versions"}, "calls:")
}

// TestLossOfPowerLeavesOneWholeVersion: after each call of an upgrade, "current" is a whole version, and so is "trial"
// if it is there. The upgrade can then be done again.
func TestLossOfPowerLeavesOneWholeVersion(t *testing.T) {
	for _, bundled := range []bool{false, true} {
		whole := newFixture(t)
		whole.bundled = bundled
		testenv.NoError(t, whole.upgrade())
		for cut, call := range whole.calls {
			t.Run(fmt.Sprintf("bundle %v/%s", bundled, call), func(t *testing.T) { testCut(t, bundled, cut, call) })
		}
	}
}

// testCut loses the power after a call of an upgrade.
func testCut(t *testing.T, bundled bool, cut int, call string) {
	f := newFixture(t)
	f.bundled, f.cutAfter = bundled, cut
	testenv.ErrorIs(t, f.upgrade(), errCut)
	s := testenv.Must(f.State())(t)
	for _, digest := range []string{s.Current, s.Trial} {
		if digest == "" && s.Current != "" {
			continue
		}
		testenv.Equal(t, testenv.Must(Digest(f.ProgramOf(digest)))(t), digest, "after %q the program is", call)
	}
	f.cutAfter = -1
	switch {
	case s.Current == f.next:
	case s.Trial != "":
		testenv.NoError(t, f.Commit(f.next))
	default:
		testenv.NoError(t, f.upgrade())
	}
	testenv.NoError(t, f.Prune())
	testenv.Equal(t, f.state(), "current=NEXT trial= previous=OLD tries=0", "after %q and again:", call)
}

// TestBundleTakesNoRoomOfOthers: the version before the present one stays while there is room, since the settings are
// checked after the program was unpacked. Where that is the program of the bundle, it is made durable again.
func TestBundleTakesNoRoomOfOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		free int64
		want string
		err  string
	}{
		"room for three": {slack + 8, "current=NEXT trial= previous=OLD tries=0", ""},
		"room for two":   {slack + 7, "current=NEXT trial= previous= tries=0", ""},
		"room for one":   {slack - 1<<20, "current=NEXT trial= previous=OLD tries=0", "has 255 MB free, and an upgrade needs 256 MB"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			testenv.NoError(t, f.upgrade())
			f.free = func(string) (int64, error) {
				if _, err := os.Stat(f.ProgramOf(f.old)); err != nil {
					return tc.free + 4, nil
				}
				return tc.free, nil
			}
			third := f.program(filepath.Join(t.TempDir(), "third"), "third")
			err := f.StageFrom(strings.NewReader("third"), third, 4, 4)
			if tc.err != "" {
				testenv.WantError(t, err, tc.err)
			} else {
				testenv.NoError(t, err)
				testenv.Equal(t, testenv.Must(Digest(f.ProgramOf(third)))(t), third, "the program's digest")
			}
			testenv.Equal(t, f.state(), tc.want, "")
		})
	}
	f := newFixture(t)
	testenv.NoError(t, f.upgrade())
	f.calls = nil
	testenv.NoError(t, f.StageFrom(strings.NewReader("not read"), f.old, 8, 0))
	testenv.EqualSlices(t, f.calls, []string{"sync slot", "sync versions"}, "calls:")
}

// TestWayBack: the candidate is gone at once, the reason is kept until the next trial, and a candidate that would
// commit has to exit.
func TestWayBack(t *testing.T) {
	f := newFixture(t)
	testenv.NoError(t, f.Stage(f.file, f.next))
	testenv.NoError(t, f.Begin(f.next))
	testenv.Fails(t, f.Begin(f.next), "a second trial began")
	testenv.NoError(t, os.WriteFile(filepath.Join(f.Dir, tries), []byte(".."), 0o600))
	testenv.Equal(t, f.state(), "current=OLD trial=NEXT previous= tries=2", "")
	f.calls = nil
	testenv.NoError(t, f.Back("node is\nnot Ready"))
	testenv.EqualSlices(t, f.calls, []string{"unlink trial", "sync versions", "write refused"}, "calls:")
	testenv.Equal(t, f.state(), `current=OLD trial= previous= tries=0 refused=NEXT "node is not Ready" reported=false`, "")
	testenv.ErrorIs(t, f.Commit(f.next), ErrNotOnTrial)
	testenv.ErrorIs(t, f.Back("again"), ErrNotOnTrial)
	testenv.NoError(t, f.Prune())
	testenv.NoError(t, testenv.Err(os.Stat(f.ProgramOf(f.next))), "a version whose refusal was not reported")
	testenv.NoError(t, f.SetReported(Refusal{Digest: f.next, Reason: "more"}))
	testenv.Equal(t, f.state(), `current=OLD trial= previous= tries=0 refused=NEXT "more" reported=true`, "")
	testenv.NoError(t, f.Prune())
	testenv.ErrorIs(t, testenv.Err(os.Stat(f.ProgramOf(f.next))), fs.ErrNotExist)
	testenv.NoError(t, f.upgrade())
	testenv.Equal(t, f.state(), "current=NEXT trial= previous=OLD tries=0", "")
	testenv.WantError(t, f.Begin(f.next), "is the current one")
	testenv.NoError(t, f.Stage(f.ProgramOf(f.old), f.old))
	testenv.NoError(t, f.Begin(f.old))
	testenv.NoError(t, f.Commit(f.old))
	testenv.Equal(t, f.state(), "current=OLD trial= previous=NEXT tries=0", "undone:")
}

// TestCommitAndWayBackExclude: of a commit and a way back at the same time exactly one succeeds.
func TestCommitAndWayBackExclude(t *testing.T) {
	f := newFixture(t)
	f.After = nil
	for range 200 {
		testenv.NoError(t, f.Stage(f.file, f.next))
		testenv.NoError(t, f.Begin(f.next))
		var commit, back error
		var both sync.WaitGroup
		both.Go(func() { commit = f.Commit(f.next) })
		both.Go(func() { back = f.Back("deadline") })
		both.Wait()
		s := testenv.Must(f.State())(t)
		testenv.True(t, (commit == nil) != (back == nil) && s.Trial == "" && (s.Current == f.next) == (commit == nil),
			"commit %v, way back %v, %+v", commit, back, s)
		if commit == nil { // the next round begins with what was committed
			f.old, f.next = f.next, f.program(f.file, "program after "+f.next)
		}
	}
}

func TestStagingIsRefused(t *testing.T) {
	f := newFixture(t)
	err := f.Stage(f.file, strings.Repeat("0", 64))
	testenv.WantError(t, err, "has changed while it was copied")
	testenv.WantError(t, f.StageFrom(strings.NewReader("changed"), f.next, 4, 0), "has changed while it was copied")
	testenv.NoError(t, f.Prune())
	f.free = func(string) (int64, error) { return slack, nil }
	testenv.WantError(t, f.Stage(f.file, f.next), "has 256 MB free, and an upgrade needs")
	testenv.WantError(t, f.StageFrom(strings.NewReader("next"), f.next, 4, 0), "has 256 MB free, and an upgrade needs")
	testenv.Equal(t, f.state(), "current=OLD trial= previous= tries=0", "")
	names := []string{}
	for _, e := range testenv.Must(os.ReadDir(f.Dir))(t) {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	testenv.EqualSlices(t, names, slices.Sorted(slices.Values([]string{current, f.old})), "left:")
	unlock, err := f.Lock()
	testenv.NoError(t, err)
	_, err = f.Lock()
	testenv.ErrorIs(t, err, ErrBusy)
	unlock()
	unlock, err = f.Lock()
	testenv.NoError(t, err)
	unlock()
}

func TestProgramKnowsItsVersions(t *testing.T) {
	digest := strings.Repeat("a1", 32)
	v, got, ok := Of("/var/lib/coracle/versions/" + digest + "/coracle")
	testenv.True(t, ok && got == digest && v.Dir == "/var/lib/coracle/versions", "%v %v %v", v, got, ok)
	for _, path := range []string{"/usr/local/bin/coracle", "/v/" + digest + "/other", "/v/" + digest[1:] + "/coracle"} {
		_, _, ok := Of(path)
		testenv.False(t, ok, "%s is in a slot", path)
	}
}

// TestReadersCannotLock: any user may open the folder, and hold a lock of it.
func TestReadersCannotLock(t *testing.T) {
	f := newFixture(t)
	reader := testenv.Must(os.Open(f.Dir))(t)
	defer reader.Close()
	testenv.NoError(t, unix.Flock(int(reader.Fd()), unix.LOCK_EX))
	unlock, err := f.Lock()
	testenv.NoError(t, err)
	defer unlock()
	fi := testenv.Must(os.Stat(filepath.Join(f.Dir, "lock")))(t)
	testenv.Equal(t, fi.Mode().Perm(), 0o600, "mode of the lock:")
}

// TestEveryUserMayRunAVersion also when root's umask is strict.
func TestEveryUserMayRunAVersion(t *testing.T) {
	f := newFixture(t)
	f.Versions = In(filepath.Join(t.TempDir(), "data", Folder))
	before := unix.Umask(0o077)
	unlock, err := f.Lock()
	if err == nil {
		unlock()
		err = f.Stage(f.file, f.next)
	}
	unix.Umask(before)
	testenv.NoError(t, err)
	for _, path := range []string{f.Dir, f.Slot(f.next, ""), f.ProgramOf(f.next)} {
		testenv.Equal(t, testenv.Must(os.Stat(path))(t).Mode().Perm(), 0o755, "mode of %s:", path)
	}
}

func TestStarterIsReplacedByAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), StarterName)
	_, err := ReplaceStarter(path)
	testenv.ErrorIs(t, err, fs.ErrNotExist)
	testenv.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700))
	for _, want := range []bool{true, false} {
		testenv.Equal(t, testenv.Must(ReplaceStarter(path))(t), want, "replaced:")
		testenv.Equal(t, string(testenv.Must(os.ReadFile(path))(t)), Starter, "starter:")
		testenv.Equal(t, testenv.Must(os.Stat(path))(t).Mode().Perm(), 0o755, "mode:")
	}
	other := filepath.Join(filepath.Dir(path), "other")
	testenv.NoError(t, os.WriteFile(other, nil, 0o700))
	for _, name := range []string{other, "", StarterName} {
		testenv.False(t, testenv.Must(ReplaceStarter(name))(t), "%q was replaced", name)
	}
}
