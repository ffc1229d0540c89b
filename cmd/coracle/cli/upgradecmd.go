// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/cmd/coracle/trial"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/internal/status"
)

// exitRefused is the exit code of an upgrade whose candidate was tried and refused: the version before runs again.
const exitRefused = 3

// refusedError wraps the reason why a candidate was refused.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

func upgradeCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "upgrade --here FILE", GroupID: groupUse, Short: "Try another version of coracle, and go back by itself if it does not work",
		Long: `Tries the version of coracle that is in FILE on this machine: a program, or a bundle with one. Enough keys have to have signed a
bundle that are trusted here (coracle bundle verify). What else is in it is applied once the version is committed. coracle restarts with it, pods keep running, and the new
version is on trial: once everything that worked before has worked with it for a minute, it is committed. If it ends three
times, or is not committed within ten minutes, the version before runs again by itself.

Before it changes anything it checks the program, the settings and the free space, and a server saves the cluster to a
snapshot. It then follows the trial. The exit code is 0 only if the version was committed, 3 if it was tried and refused,
1 if nothing was tried. An interruption of this command does not end a trial.

docs/upgrade.md says what is checked, and how to upgrade several machines.`,
		Args: cobra.MaximumNArgs(1),
	})
	here := cmd.Flags().Bool("here", false, "Upgrade this machine alone")
	retry, flags := addRetry(cmd.Command), addBundleFlags(cmd.Command)
	out := cmd.runs(func(inv *invocation) error {
		switch {
		case len(inv.args) == 0:
			return inv.Help()
		case !*here:
			return usageError{inv.Command, errors.New("machines are upgraded one by one: run coracle upgrade --here FILE on each of them")}
		}
		return a.upgradeTo(inv, inv.args[0], *retry, *flags)
	})
	out.AddCommand(upgradeStatusCommand(a), upgradeUndoCommand(a), upgradeRaiseCommand(a), upgradeSettingsCommand(a), starterCommand(),
		folderCommand(a))
	return out
}

func addRetry(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("retry", false, "Try a version again that was refused")
}

func upgradeUndoCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "undo", Short: "Go back to the version before the present one", Args: noArgs,
		Long: `Goes back to the version of coracle that ran on this machine before the present one. That version is on trial like any
other, and the present one runs again if it does not work. While a version is on trial, undo ends the trial at once.

It is refused, before anything stops, if the version before would not start: because it does not know a setting that is in
use now, or because the cluster's level was raised meanwhile. The exit codes are those of coracle upgrade.`,
	})
	retry := addRetry(cmd.Command)
	return cmd.runs(func(inv *invocation) error {
		if !isRoot() {
			return errors.New("only root may do this; use: sudo coracle upgrade undo")
		}
		v := slots.Below(inv.tool.Paths.DataDir)
		s, err := v.State()
		switch {
		case err != nil:
			return forRoot(err)
		case s.Trial != "":
			return a.endTrial(inv, v, s)
		case s.Previous == "":
			return errors.New("there is no version before the present one on this machine. Any other version can be tried: " +
				"coracle upgrade --here FILE")
		}
		file := v.ProgramOf(s.Previous)
		if have, err := slots.Digest(file); err != nil || have != s.Previous {
			return fmt.Errorf("%s is damaged, so it cannot be run. Nothing was changed: coracle upgrade --here FILE tries that version from the "+
				"file of its release", file)
		}
		return a.upgradeTo(inv, file, *retry, bundleFlags{keys: bundle.SiteKeysFile})
	})
}

// endTrial ends a trial before its time, and waits until the version before runs again.
func (a *App) endTrial(inv *invocation, v *slots.Versions, s slots.State) error {
	ctx, stop := untilInterrupted(inv.Context())
	defer stop()
	if !exists(filepath.Join(v.Dir, slots.RestartFile)) {
		return errors.New("the trial was not ended: it is not known how this machine restarts coracle. The trial ends by itself after ten " +
			"minutes, unless the version is committed")
	}
	err := v.Back("ended by coracle upgrade undo")
	if errors.Is(err, slots.ErrNotOnTrial) {
		return errors.New("the trial has just ended: see coracle upgrade status")
	}
	if err != nil {
		return err
	}
	if err := restartService(v); err != nil {
		return fmt.Errorf("the trial is ended, but coracle could not be restarted with the version before: %w", err)
	}
	if err := awaitProgram(ctx, inv.tool, v.ProgramOf(s.Current)); err != nil {
		return err
	}
	inv.Printf("The trial is ended. %s runs again.\n", versionName(v, s.Current))
	return nil
}

func upgradeStatusCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "status", Short: "Show which version runs, which is on trial, and why one was refused", Args: noArgs,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		v := slots.Below(inv.tool.Paths.DataDir)
		u, err := readUpgrade(v)
		if err != nil {
			return forRoot(err)
		}
		return inv.print(u, func(w io.Writer) error { return printUpgrade(w, v, u) })
	})
}

// upgradeState is what coracle upgrade status shows.
type upgradeState struct {
	slots.State
	// Versions are the names of the versions by digest, as far as their programs are there.
	Versions map[string]string `json:"versions,omitempty"`
	// Failing is what keeps the version on trial from being committed. Observed is false before its first observation.
	Failing  []string `json:"failing,omitempty"`
	Observed bool     `json:"observed,omitempty"`
	// Problems are what the current version does not accept of the settings of now. It runs with those from before.
	Problems []string `json:"problems,omitempty"`
}

func readUpgrade(v *slots.Versions) (upgradeState, error) {
	s, err := v.State()
	u := upgradeState{State: s, Versions: map[string]string{}}
	if err != nil {
		return u, err
	}
	digests := []string{s.Current, s.Trial, s.Previous}
	if s.Refused != nil {
		u.Refused.Reason = trial.Reason(v, *s.Refused)
		u.Problems, _ = trial.ReadLines(v.Slot(s.Refused.Digest, slots.ProblemsFile))
		digests = append(digests, s.Refused.Digest)
	}
	for _, digest := range digests {
		if digest != "" {
			u.Versions[digest] = versionName(v, digest)
		}
	}
	if s.Trial != "" {
		u.Failing, u.Observed = trial.Failing(v, s.Trial)
	}
	return u, nil
}

func printUpgrade(w io.Writer, v *slots.Versions, u upgradeState) error {
	if u.Current == "" {
		return printText(w, "This coracle is not installed in slots, so it cannot be upgraded with a trial: there is no version in "+v.Dir+
			".\nThe install.sh of a release changes that.\n")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "current   %s\n", u.Versions[u.Current])
	if u.Trial != "" {
		fmt.Fprintf(&b, "on trial  %s, started %d times\n", u.Versions[u.Trial], u.Tries)
	}
	if u.Previous != "" && u.Previous != u.Trial && u.Previous != u.Current {
		fmt.Fprintf(&b, "previous  %s\n", u.Versions[u.Previous])
	}
	if u.Refused != nil {
		fmt.Fprintf(&b, "refused   %s\n          %s\n", u.Versions[u.Refused.Digest], u.Refused.Reason)
	}
	b.WriteByte('\n')
	switch {
	case u.Trial != "" && !u.Observed:
		b.WriteString("The version on trial has only been started. If it is not committed, the current one runs again by itself.\n")
	case u.Trial != "" && len(u.Failing) == 0:
		b.WriteString("Everything holds that has to. The version on trial is committed when that has lasted for a while.\n")
	case u.Trial != "":
		b.WriteString("The version on trial is committed when these hold as well; otherwise the current one runs again by itself:\n")
		for _, f := range u.Failing {
			b.WriteString("- " + printableText(f) + "\n")
		}
	case u.Refused != nil:
		if len(u.Problems) > 0 {
			b.WriteString("The current version does not accept the settings of now, and runs with those from before the trial:\n")
			for _, p := range u.Problems {
				b.WriteString("- " + printableText(p) + "\n")
			}
			b.WriteString("Correct them, and restart coracle. ")
		}
		b.WriteString("The current version runs on as before the trial. See to the reason above, and try again:\n" +
			"  coracle upgrade --here --retry FILE    the same version\n  coracle upgrade --here FILE            another one\n")
	case u.Previous != "" && u.Previous != u.Current:
		b.WriteString("No upgrade is going on. Back to the previous version: coracle upgrade undo\n")
	default:
		b.WriteString("No upgrade is going on.\n")
	}
	return printText(w, b.String())
}

// upgradeNotes are the lines of coracle status about a trial, or about one that has failed.
func upgradeNotes(dataDir string) []string {
	v := slots.Below(dataDir)
	if s, err := v.State(); err != nil || s.Trial == "" && s.Refused == nil { // an error such as for a user who may not read it
		return nil
	}
	u, err := readUpgrade(v)
	switch {
	case err != nil: // it has just changed
		return nil
	case u.Trial != "":
		text := "it can be committed once everything that has to hold has held for a while"
		if len(u.Failing) > 0 {
			text = "it is not committed yet: " + strings.Join(u.Failing, "; ")
		}
		return []string{fmt.Sprintf("%s is on trial; %s", u.Versions[u.Trial], text)}
	case u.Refused != nil:
		notes := []string{fmt.Sprintf("%s was tried and refused: %s. coracle upgrade status says what to do", u.Versions[u.Refused.Digest],
			u.Refused.Reason)}
		if len(u.Problems) > 0 {
			notes = append(notes, "the settings from before that trial are used, since those of now are not accepted: "+strings.Join(u.Problems, "; "))
		}
		return notes
	}
	return nil
}

// versionName names a version by what its program says of itself, and by its digest.
func versionName(v *slots.Versions, digest string) string {
	if out, err := askSettings(context.Background(), v.ProgramOf(digest), nil, nil); err == nil {
		return "coracle " + out.Version + " (" + slots.Short(digest) + ")"
	}
	return "version " + slots.Short(digest)
}

// versionTimeout is how long a program may take to say which version it is.
const versionTimeout = 10 * time.Second

func explainNotRunning(err error) error {
	if errors.Is(err, status.ErrNotRunning) {
		return errors.New("coracle does not run on this machine. See coracle status")
	}
	return forRoot(err)
}

// settingsReport is what a program says of settings, so that another version of it can be asked.
type settingsReport struct {
	Version string `json:"version"`
	// Config is the path of the configuration file, which need not exist.
	Config string `json:"config,omitempty"`
	// Problems are the mistakes in the settings, and reasons why this program could not use the data directory.
	Problems []string `json:"problems"`
	// ContainerdDB and Shim are those of bundle.Facts; empty and 0 in programs of before there were bundles.
	ContainerdDB string `json:"containerdDB,omitempty"`
	Shim         int    `json:"shim,omitempty"`
}

// upgradeSettingsCommand makes the command by which one version asks another what it says of the present settings.
func upgradeSettingsCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "settings server|agent [flags]", Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		Short: "Print what this program says of the settings of a server or an agent",
		RunE: run(func(cmd *cobra.Command, args []string) error {
			return printJSON(cmd.OutOrStdout(), a.settingsReport(args))
		}),
	}
}

func (a *App) settingsReport(args []string) settingsReport {
	scratch := &cobra.Command{}
	role, command := "", config.ServerCommand
	if len(args) > 0 {
		role, args = args[0], args[1:]
	}
	if role == "agent" {
		command = config.AgentCommand
	}
	flags := config.Register(scratch.Flags(), command)
	addReset(scratch)
	facts, _ := bundle.FactsOfThis()
	out := settingsReport{Version: a.versionInfo().Coracle, Problems: []string{}, ContainerdDB: facts.ContainerdDB, Shim: facts.Shim}
	if err := scratch.ParseFlags(args); err != nil {
		out.Problems = append(out.Problems, config.ExplainFlagError(err, scratch.Flags()).Error())
		return out
	}
	var problems config.Problems
	var paths config.Paths
	switch role {
	case "server":
		var c *config.Server
		c, problems = a.serverSettings(a.sources(flags))
		paths = c.Paths
	case "agent":
		var c *config.Agent
		c, problems = a.agentSettings(a.sources(flags))
		paths = c.Paths
	default:
		return out
	}
	out.Config, out.Problems = paths.ConfigFile, append(append(out.Problems, problems...), levelProblems(paths)...)
	return out
}
