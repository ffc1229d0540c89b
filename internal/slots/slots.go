// SPDX-License-Identifier: Apache-2.0

// Package slots keeps the versions of coracle that a machine has, and says which of them runs.
//
// Each version is a folder below DATA-DIR/versions that is named by the SHA-256 of the program in it, in hexadecimal.
// Three links name such folders: "current" is the version that was committed, "previous" the one before it, and "trial"
// a candidate while it is on trial. A commit is one rename of "trial" to "current", the way back one unlink of "trial":
// exactly one of the two succeeds. The file "tries" has a byte for each start of the trial, and "refused" the last
// candidate that was not committed, with the reason.
//
// The package owns these names, whose meanings never change: the starter (a shell script) reads and writes them too,
// and may be older or newer than the program. The package never starts or stops a process.
package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Names below the folder.
const (
	Folder   = "versions" // the folder itself, below the data directory
	Program  = "coracle"  // in a version's folder
	current  = "current"
	previous = "previous"
	trial    = "trial"
	tries    = "tries"
	refused  = "refused"
	lock     = "lock" // a process that changes the versions holds a lock of it
	// RestartFile has the shell's command that restarts the service. install.sh writes it.
	RestartFile = "restart"
)

// Files in a version's folder that an upgrade writes.
const (
	// BaselineFile has what held before the switch to this version.
	BaselineFile = "baseline.json"
	// FailingFile has what did not hold last while the version was on trial.
	FailingFile = "failing"
	// KubeletFolder has copies of the kubelet's state from before the switch from this version to another one.
	// SettingsFolder has copies of the configuration file and its drop-ins from before the switch to this version.
	KubeletFolder, SettingsFolder = "kubelet", "settings"
	// BundleFolder has what the version's bundle brings besides programs (bundle.Extract).
	BundleFolder = "bundle"
	// AcceptedFile has which bundles the machine has taken up to that with this version (bundle.Accepted). The one in
	// the folder of all versions may be behind that of the current version.
	AcceptedFile = "accepted.json"
	// ProblemsFile has what the version before, which runs again, does not accept of the settings of now.
	ProblemsFile = "problems"
)

var (
	// ErrNotOnTrial says that a version is not on trial any more. A candidate that gets it has to exit: the version
	// before it is to run.
	ErrNotOnTrial = errors.New("this version is not on trial any more")
	// ErrBusy says that another process changes the versions.
	ErrBusy = errors.New("another upgrade of this machine is going on")
)

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Versions are a machine's versions.
type Versions struct {
	Dir string
	// After, when set, is called after each system call that changes something on the disk. Its error ends the
	// operation there. It is for tests of power cuts.
	After func(call string) error
	// free returns the free bytes of a folder's file system.
	free func(dir string) (int64, error)
}

// In returns the versions in a folder, which need not exist.
func In(dir string) *Versions { return &Versions{Dir: dir, free: freeBytes} }

// Below returns the versions of a data directory.
func Below(dataDir string) *Versions { return In(filepath.Join(dataDir, Folder)) }

// Of returns the versions to which a program belongs, and its digest. ok is false when the file lies elsewhere. The
// path must have no links in it, as os.Executable returns it.
func Of(program string) (v *Versions, digest string, ok bool) {
	slot := filepath.Dir(program)
	digest = filepath.Base(slot)
	if filepath.Base(program) != Program || !digestForm.MatchString(digest) {
		return nil, "", false
	}
	return In(filepath.Dir(slot)), digest, true
}

// Own returns the versions to which the running program belongs, and its digest.
func Own() (v *Versions, digest string, ok bool) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", false
	}
	return Of(self)
}

// SettingsBefore returns the folder with the settings from before the last trial, if the running program is the version
// to which the trial led back, and has not reported that; else "". They lie in the candidate's folder. Where the file
// "refused" is missing, since a disk was full or the power was lost, that is one that no link names.
func SettingsBefore() string {
	v, digest, ok := Own()
	if !ok {
		return ""
	}
	s, err := v.State()
	if err != nil || s.Current != digest || s.Trial != "" || s.Refused != nil && s.Refused.Reported {
		return ""
	}
	candidate := "*"
	if s.Refused != nil {
		candidate = s.Refused.Digest
		s.Previous = "" // an undo has tried that
	}
	folders, _ := filepath.Glob(v.Slot(candidate, SettingsFolder)) // the pattern is correct
	for _, folder := range folders {
		if name := filepath.Base(filepath.Dir(folder)); digestForm.MatchString(name) && name != s.Current && name != s.Previous {
			return folder
		}
	}
	return ""
}

// Slot returns the path of a file in a version's folder.
func (v *Versions) Slot(digest, name string) string { return filepath.Join(v.Dir, digest, name) }

// ProgramOf returns the path of a version's program.
func (v *Versions) ProgramOf(digest string) string { return v.Slot(digest, Program) }

// State says which versions there are. Digests are empty where there is no such link.
type State struct {
	Current  string `json:"current,omitempty"`
	Trial    string `json:"trial,omitempty"`
	Previous string `json:"previous,omitempty"`
	// Tries is how often the candidate was started.
	Tries   int      `json:"tries,omitempty"`
	Refused *Refusal `json:"refused,omitempty"`
}

// Refusal is the last candidate that was not committed.
type Refusal struct {
	Digest string `json:"digest"`
	Reason string `json:"reason"`
	// Reported says that the version before it has taken over and reported the refusal.
	Reported bool `json:"reported,omitempty"`
}

// State reads the links and files. A folder that does not exist has no versions.
func (v *Versions) State() (State, error) {
	var s State
	for name, digest := range map[string]*string{current: &s.Current, trial: &s.Trial, previous: &s.Previous} {
		text, err := os.Readlink(filepath.Join(v.Dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return State{}, fmt.Errorf("reading the versions of coracle: %w", err)
		case !digestForm.MatchString(text):
			return State{}, fmt.Errorf("%s names %q, which is no version of coracle: install.sh of a release puts it right",
				filepath.Join(v.Dir, name), text)
		default:
			*digest = text
		}
	}
	if s.Trial != "" {
		if fi, err := os.Stat(filepath.Join(v.Dir, tries)); err == nil {
			s.Tries = int(fi.Size())
		}
	}
	text, err := os.ReadFile(filepath.Join(v.Dir, refused))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("reading the versions of coracle: %w", err)
	}
	s.Refused = parseRefusal(string(text))
	return s, nil
}

// reportedLine is the second line of the file "refused" once the refusal was reported.
const reportedLine = "reported"

func parseRefusal(text string) *Refusal {
	first, rest, _ := strings.Cut(text, "\n")
	digest, reason, _ := strings.Cut(first, " ")
	if !digestForm.MatchString(digest) {
		return nil // none, or one that was cut off by a loss of power
	}
	return &Refusal{Digest: digest, Reason: reason, Reported: strings.TrimSpace(rest) == reportedLine}
}

// writeRefusal replaces the file "refused".
func (v *Versions) writeRefusal(r Refusal) error {
	text := r.Digest + " " + strings.ReplaceAll(r.Reason, "\n", " ") + "\n"
	if r.Reported {
		text += reportedLine + "\n"
	}
	if err := atomicfile.Write(filepath.Join(v.Dir, refused), []byte(text), 0o600); err != nil {
		return fmt.Errorf("recording why a version was not committed: %w", err)
	}
	return v.after("write refused")
}

// SetReported records that a refusal was reported, with a reason that may say more than the starter's.
func (v *Versions) SetReported(r Refusal) error {
	r.Reported = true
	return v.writeRefusal(r)
}

// Lock keeps other processes from changing the versions until the returned function is called. Its error is ErrBusy if
// one does so now.
func (v *Versions) Lock() (unlock func(), err error) {
	if err := mkdir(v.Dir); err != nil {
		return nil, fmt.Errorf("making the folder for versions: %w", err)
	}
	// Not the folder: every user may open that, and so lock it.
	file, err := os.OpenFile(filepath.Join(v.Dir, lock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the versions: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { _ = file.Close() }, nil // nothing was written
}

// mkdir makes a folder if it is missing. Every user may use it, whatever root's umask is: the program is kubectl, too.
func mkdir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(dir, 0o755)
}

func (v *Versions) after(call string) error {
	if v.After == nil {
		return nil
	}
	return v.After(call)
}

// syncDir makes the folder's names durable.
func (v *Versions) syncDir() error {
	if err := atomicfile.SyncDir(v.Dir); err != nil {
		return fmt.Errorf("writing %s to the disk: %w", v.Dir, err)
	}
	return v.after("sync versions")
}

// link makes a link name a version in one step. It is durable once the folder was synced.
func (v *Versions) link(name, digest string) error {
	path := filepath.Join(v.Dir, name)
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing an unfinished link: %w", err)
	}
	if err := os.Symlink(digest, path+".new"); err != nil {
		return fmt.Errorf("linking a version: %w", err)
	}
	if err := v.after("symlink " + name + ".new"); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("linking a version: %w", err)
	}
	return v.after("rename " + name + ".new " + name)
}

func freeBytes(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}
