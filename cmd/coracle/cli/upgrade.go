// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/trial"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/snapshots"
)

const (
	// snapshotName begins the names of the snapshots that upgrades save. snapshotsKept is how many of them stay.
	snapshotName, snapshotsKept = "before-upgrade", 3
	// followPoll is the time between two looks at a trial.
	followPoll = 500 * time.Millisecond
	// followMost is how long a trial is followed. Three starts take half an hour at the most.
	followMost = 40 * time.Minute
	// baselineTries is how often the machine is observed before a switch when something fails. What fails for a moment
	// only has to hold afterwards, too.
	baselineTries, baselinePause = 3, 2 * time.Second
	// serveTimeout is how long the version before may take until it serves again after a way back.
	serveTimeout = 2 * time.Minute
)

// upgradeTo tries the version in a file, and follows the trial until it is committed or refused.
func (a *App) upgradeTo(inv *invocation, file string, retry bool, flags bundleFlags) error {
	if !isRoot() {
		return errors.New("only root may upgrade this machine; use sudo")
	}
	ctx, stop := untilInterrupted(inv.Context())
	defer stop()
	v := slots.Below(inv.tool.Paths.DataDir)
	// Before the lock, which makes the folder.
	if s, err := v.State(); err != nil {
		return err
	} else if s.Current == "" {
		return fmt.Errorf("this coracle is not installed in slots: there is no version in %s, so nothing could take the way back. Nothing "+
			"was changed: give this machine's --data-dir, or run the install.sh of a release, which moves it", v.Dir)
	}
	unlock, err := lockVersions(ctx, v)
	if err != nil {
		return err
	}
	defer func() { unlock() }()
	if file, err = filepath.Abs(file); err != nil { // the name of a program without a folder would be searched in PATH
		return err
	}
	u := &upgrade{inv: inv, v: v, file: file}
	if done, err := u.take(ctx, flags, retry); done || err != nil {
		return err
	}
	if err := u.begin(); err != nil {
		return err
	}
	unlock()
	unlock = func() {}
	inv.Printf("%s is on trial; coracle restarts, pods keep running\n", u.name)
	if err := restartService(v); err != nil {
		return errors.Join(fmt.Errorf("coracle could not be restarted: %w", err), v.Back("the service could not be restarted"))
	}
	return u.follow(ctx)
}

// lockVersions locks the versions. A process that has just started may prune them.
func lockVersions(ctx context.Context, v *slots.Versions) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		if unlock, err = v.Lock(); !errors.Is(err, slots.ErrBusy) || !timers.Sleep(ctx, followPoll) {
			return unlock, err
		}
	}
}

// upgrade is one attempt to run another version.
type upgrade struct {
	inv    *invocation
	v      *slots.Versions
	file   string
	digest string
	name   string // of the version, for messages
	state  slots.State
	report *status.Report // of the process that runs now
	config string         // the file with its settings
}

// take takes the version from a program or a bundle, and prepares its trial. done is true when there is nothing to do.
func (u *upgrade) take(ctx context.Context, flags bundleFlags, retry bool) (done bool, err error) {
	if u.state, err = u.v.State(); err != nil {
		return false, err
	}
	if err := bundle.KeepAccepted(u.v, bundle.Accepted{}); err != nil { // before a version's folder may go
		return false, err
	}
	if isBundle(u.file) {
		if done, err := u.unpack(ctx, flags, retry); done || err != nil {
			return done, err
		}
		if err := u.prepare(ctx); err != nil {
			return false, errors.Join(err, u.cleanUp())
		}
		return false, nil
	}
	if err := u.allowUnsigned(flags); err != nil {
		return false, err
	}
	if u.digest, err = slots.Digest(u.file); err != nil {
		return false, err
	}
	if done, err := u.checkState(u.digest, retry); done || err != nil {
		return done, err
	}
	return false, u.prepare(ctx)
}

// checkState returns an error if a version cannot be tried now. done is true when there is nothing to do.
func (u *upgrade) checkState(digest string, retry bool) (done bool, err error) {
	switch s := u.state; {
	case s.Trial != "":
		return false, fmt.Errorf("%s is on trial already: coracle upgrade status shows it, coracle upgrade undo ends it",
			versionName(u.v, s.Trial))
	case s.Current == digest:
		u.inv.Printf("%s is the current version: there is nothing to do\n", versionName(u.v, s.Current))
		return true, nil
	case s.Refused != nil && s.Refused.Digest == digest && !retry:
		return false, fmt.Errorf("this version was tried and refused: %s. Nothing was changed: see to it, and try it again with --retry",
			trial.Reason(u.v, *s.Refused))
	}
	return false, nil
}

// prepare does everything that can fail before the switch.
func (u *upgrade) prepare(ctx context.Context) (err error) {
	if u.report, err = askStatus(ctx, u.inv.tool); err != nil {
		return fmt.Errorf("an upgrade is compared with what runs before it, and nothing was changed: %w", explainNotRunning(err))
	}
	runs, err := readStarted(u.report.PID)
	if err != nil {
		return err
	}
	if err := runs.checkStarted(u.v, u.state.Current); err != nil {
		return err
	}
	if err := u.checkSettings(ctx, runs); err != nil {
		return err
	}
	if u.report.Role == "server" {
		if err := u.saveCluster(ctx); err != nil {
			return err
		}
	}
	u.inv.Printf("copying %s to %s\n", u.name, u.v.Dir)
	defer func() {
		if err != nil {
			err = errors.Join(err, u.cleanUp())
		}
	}()
	if err := u.v.Stage(u.file, u.digest); err != nil {
		return err
	}
	if err := u.writeBaseline(ctx); err != nil {
		return fmt.Errorf("%w. What runs was not changed", err)
	}
	return ctx.Err()
}

// begin switches to the version, at the next start.
func (u *upgrade) begin() error {
	if err := u.v.Begin(u.digest); err != nil {
		return errors.Join(fmt.Errorf("%w. What runs was not changed", err), u.cleanUp())
	}
	return nil
}

// cleanUp removes what an upgrade has prepared that does not begin. A program would keep room, and a later start would
// take the copies for those of a trial.
func (u *upgrade) cleanUp() error {
	return errors.Join(u.v.Prune(), os.RemoveAll(u.v.Slot(u.state.Current, slots.KubeletFolder)))
}

// checkSettings asks the version that is to be tried and the one that runs what they say of the settings: the first has
// to start, and the second has to start again after a way back.
func (u *upgrade) checkSettings(ctx context.Context, runs started) error {
	before, err := askSettings(ctx, u.v.ProgramOf(u.state.Current), runs.args, runs.env)
	if err != nil {
		return err
	}
	after, err := askSettings(ctx, u.file, runs.args, runs.env)
	if err != nil {
		return fmt.Errorf("%w. Nothing was changed", err)
	}
	u.name, u.config = "coracle "+after.Version+" ("+slots.Short(u.digest)+")", before.Config
	var wrong []string
	for _, p := range after.Problems {
		wrong = append(wrong, fmt.Sprintf("the version to try (%s) would not start: %s", after.Version, p))
	}
	for _, p := range before.Problems {
		wrong = append(wrong, fmt.Sprintf("the version that runs (%s) would not start again: %s", before.Version, p))
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the settings of this machine have to suit both versions, so that there is a way back. Nothing was changed. "+
			"A setting that only the new version knows can be added once that is committed:\n  %s", strings.Join(wrong, "\n  "))
	}
	return nil
}

// saveCluster saves the cluster to a snapshot and removes those of earlier upgrades.
func (u *upgrade) saveCluster(ctx context.Context) error {
	u.inv.Println("saving the cluster to a snapshot")
	running := status.NewClient(u.inv.tool.Paths.AdminSocket)
	query := url.Values{"name": {snapshotName}}
	var saved snapshots.Info
	if err := running.Do(ctx, http.MethodPost, snapshots.Path+"?"+query.Encode(), &saved); err != nil {
		return fmt.Errorf("the cluster could not be saved before the upgrade: %w. Nothing was changed", err)
	}
	u.inv.Printf("saved the cluster to %s\n", saved.Location)
	query.Set("retention", fmt.Sprint(snapshotsKept))
	var removed snapshots.Removed
	if err := running.Do(ctx, http.MethodPost, snapshots.Path+"/prune?"+query.Encode(), &removed); err != nil {
		u.inv.app.warn("snapshots of earlier upgrades could not be removed: %v", err)
	}
	return nil
}

// writeBaseline observes the machine. It copies what the new version's kubelet may write in another form to the slot of
// the version that runs, and the settings for it.
func (u *upgrade) writeBaseline(ctx context.Context) error {
	o := observer(u.inv.tool.Paths, u.report.Role)
	facts := o.Observe(ctx)
	for try := 1; try < baselineTries && len(facts.Failing) > 0 && timers.Sleep(ctx, baselinePause); try++ {
		failed := facts.Failing
		facts = o.Observe(ctx)
		for condition := range facts.Failing {
			if failed[condition] == "" {
				delete(facts.Failing, condition)
			}
		}
	}
	for condition, why := range facts.Failing {
		u.inv.app.warn("this does not hold before the upgrade, and does not have to afterwards: %s: %s", condition, why)
	}
	if err := os.RemoveAll(u.v.Slot(u.digest, slots.FailingFile)); err != nil {
		return fmt.Errorf("removing the record of an earlier trial: %w", err)
	}
	return errors.Join(copyKubeletState(u.v.Slot(u.state.Current, slots.KubeletFolder), u.inv.tool.Paths.KubeletRoot),
		copySettings(u.v.Slot(u.digest, slots.SettingsFolder), u.config),
		atomicfile.WriteJSON(u.v.Slot(u.digest, slots.BaselineFile), facts, 0o600))
}

// observer returns the observer of this machine, for a command and for a process.
func observer(paths config.Paths, role string) trial.Observer {
	o := trial.Observer{AdminSocket: paths.AdminSocket, Kubeconfig: paths.AdminKubeconfig, Check: trial.OwnCheck}
	if role == "agent" {
		o.Kubeconfig = nodecreds.In(filepath.Join(paths.AgentDir, "cred")).KubeletKubeconfig
	}
	return o
}

// kubeletState are the kubelet's files that another version may write in another form, below its folder. The version
// that can read the copies puts them back where it has to (package agent/kubelet).
var kubeletState = []string{"*_state", "device-plugins/kubelet_internal_checkpoint", "image_manager/pulled/*"}

// copySettings replaces the folder to by copies of a configuration file and its drop-ins, as far as they exist.
func copySettings(to, file string) error {
	dropIns, err := config.DropIns(file)
	if err != nil {
		return err
	}
	folder, name := filepath.Split(file)
	names := []string{name}
	for _, f := range dropIns {
		names = append(names, strings.TrimPrefix(f, folder))
	}
	return copyBefore(to, folder, names)
}

// copyKubeletState replaces the folder to by copies of the kubelet's state below root.
func copyKubeletState(to, root string) error {
	var names []string
	for _, pattern := range kubeletState {
		found, _ := fs.Glob(os.DirFS(root), pattern) // the pattern is correct
		names = append(names, found...)
	}
	return copyBefore(to, root, names)
}

// copyBefore replaces the folder to by durable copies of files below another folder. Links are followed: what they name
// may change, too. Root alone may read the copies. A file that is not there, or no longer, is left out.
func copyBefore(to, from string, names []string) error {
	err := os.RemoveAll(to)
	if err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	for _, name := range names {
		data, readErr := os.ReadFile(filepath.Join(from, name))
		if errors.Is(readErr, fs.ErrNotExist) || isDir(filepath.Join(from, name)) {
			continue
		}
		err = errors.Join(err, readErr)
		copied := filepath.Join(to, name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(copied), 0o700)
		}
		if err == nil {
			err = atomicfile.Write(copied, data, 0o600)
		}
	}
	if err == nil {
		err = filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			return atomicfile.SyncDir(path)
		})
	}
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(to))
	}
	if err != nil {
		return fmt.Errorf("copying what the version before may need to %s: %w", to, err)
	}
	return nil
}

// follow returns nil when the version was committed, and a refusedError when it was refused.
func (u *upgrade) follow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, followMost)
	defer cancel()
	shown, tries := "", 0
	for {
		s, err := u.v.State()
		switch {
		case err != nil:
			return err
		case s.Current == u.digest:
			u.inv.Printf("%s is committed\n", u.name)
			return nil
		case s.Trial != u.digest:
			return u.wentBack(ctx, s)
		}
		if s.Tries > tries {
			tries = s.Tries
			u.inv.Printf("start %d of the version on trial\n", tries)
		}
		if text := u.progress(); text != shown {
			shown = text
			u.inv.Println(text)
		}
		if !timers.Sleep(ctx, followPoll) {
			return fmt.Errorf("%s is still on trial, which goes on without this command: coracle upgrade status shows how it ends", u.name)
		}
	}
}

func (u *upgrade) progress() string {
	failing, known := trial.Failing(u.v, u.digest)
	switch {
	case !known:
		return "waiting for it to start"
	case len(failing) == 0:
		return "everything holds; it is committed when that has lasted for a while"
	}
	return "waiting for: " + printableLine(strings.Join(failing, "; "))
}

// wentBack waits until the version before serves, and returns why the other one was refused.
func (u *upgrade) wentBack(ctx context.Context, s slots.State) error {
	again := "The version before runs again"
	if err := awaitProgram(ctx, u.inv.tool, u.v.ProgramOf(s.Current)); err != nil {
		again = err.Error()
	}
	// The starter records the reason after it has ended the trial, and before the version before starts.
	s, err := u.v.State()
	reason := "the reason is not known"
	if err == nil && s.Refused != nil && s.Refused.Digest == u.digest {
		reason = trial.Reason(u.v, *s.Refused)
	}
	return refusedError{fmt.Errorf("%s was tried and refused: %s. %s. coracle upgrade status says what to do", u.name, reason, again)}
}

// awaitProgram waits until a program serves as this machine's coracle.
func awaitProgram(ctx context.Context, t *config.Tool, program string) error {
	ctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	for {
		r, err := askStatus(ctx, t)
		if err == nil && !r.Ready.IsZero() && !r.Stopping && programOf(r.PID) == program {
			return nil
		}
		if !timers.Sleep(ctx, followPoll) {
			return fmt.Errorf("the version before has not become ready within %s: see coracle status", serveTimeout)
		}
	}
}

// askSettings asks a program what it says of settings, and which version it is.
func askSettings(ctx context.Context, program string, args, env []string) (settingsReport, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, program, append([]string{"upgrade", "settings"}, args...)...)
	c.Env = env
	var problem bytes.Buffer
	c.Stderr = &problem
	text, err := c.Output()
	var out settingsReport
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return out, fmt.Errorf("%s does not say which settings it knows, so it is no program of coracle for this machine, or one of before "+
			"there were trials: %w %s", program, err, strings.TrimSpace(problem.String()))
	}
	return out, nil
}

// levelOf returns the cluster's level as a data directory has it, 0 if it has none.
func levelOf(paths config.Paths) int {
	l := datadir.Level(paths.ServerDir)
	var node struct{ Level int }
	if _, err := atomicfile.ReadJSON(filepath.Join(paths.AgentDir, "cluster.json"), &node); err == nil && l == 0 { // joining/node writes it
		l = node.Level
	}
	return l
}

// emulateLevelOf makes this process the Kubernetes of a data directory's level, as a start does: the feature gates are
// those of its minor version. It does nothing if the level is unknown yet, or not known to this program.
func (a *App) emulateLevelOf(paths config.Paths) error {
	l := levelOf(paths)
	if !level.Known(l) {
		return nil
	}
	return a.Emulate(l)
}

// levelProblems says if this program cannot be in the cluster of a data directory for its level.
func levelProblems(paths config.Paths) []string {
	l := levelOf(paths)
	if l != 0 && !level.Known(l) {
		return []string{fmt.Sprintf("the cluster has level %d, and this version knows the levels %d to %d", l, level.Oldest(), level.Newest())}
	}
	return nil
}
