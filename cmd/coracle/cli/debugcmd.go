// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/profiling"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// debugTimeout is how long to wait for the response, besides the requested duration of a profile.
const debugTimeout = time.Minute

func debugCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "debug", GroupID: groupUse, Short: "Gather what a bug report needs; take profiles of the running coracle",
		Long: `collect makes one archive for a bug report, also while coracle does not run.

The others ask the coracle that runs on this machine, server or agent, what it does and what memory it holds. The output is for people
who know Go programs, and for bug reports: names of functions, no content of the cluster.

profile and heap are for "go tool pprof FILE"; stacks is text. Without FILE they go to standard output. A FILE that exists
is not replaced; only its owner may read it. As for coracle status, only root may ask.`,
	}, debugCollectCommand(a), debugProfileCommand(a), debugStacksCommand(a), debugHeapCommand(a))
}

func debugProfileCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "profile [FILE]", Short: "Where the processor time goes, over some seconds",
		Long: `Samples for some seconds which functions use the processor. It costs about a hundredth of what the process uses, and only
while it runs. One profile is taken at a time.`,
	}
	seconds := cmd.Flags().Int("seconds", 30, fmt.Sprintf("How long to sample, 1 to %d", profiling.MaxDuration/time.Second))
	return savesResponse(a, cmd, true, func() (string, time.Duration, error) {
		duration := time.Duration(*seconds) * time.Second
		if duration < time.Second || duration > profiling.MaxDuration {
			return "", 0, fmt.Errorf("--seconds is %d; it may be 1 to %d", *seconds, profiling.MaxDuration/time.Second)
		}
		return profiling.ProfilePath + "?seconds=" + strconv.Itoa(*seconds), duration, nil
	})
}

func debugStacksCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stacks [FILE]", Short: "What every goroutine does or waits for",
		Long: `Writes the stack of every goroutine, with how many minutes it has waited. The process stands still for some milliseconds
meanwhile.`,
	}
	grouped := cmd.Flags().Bool("grouped", false, "Write each different stack once, with the number of goroutines that have it, most first")
	return savesResponse(a, cmd, false, func() (string, time.Duration, error) {
		return profiling.StacksPath + "?grouped=" + strconv.FormatBool(*grouped), 0, nil
	})
}

func debugHeapCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "heap [FILE]", Short: "What holds the memory of the heap",
		Long: `Collects garbage, then writes which functions allocated what is still held: one allocation is sampled for every 512 KiB,
so small amounts are estimates. Two of them show what grew: go tool pprof -diff_base BEFORE AFTER. Memory that is not of
Go's heap (coracle status has the whole) is not in it.`,
	}
	return savesResponse(a, cmd, true, func() (string, time.Duration, error) { return profiling.HeapPath, 0, nil })
}

// savesResponse makes a command copy a response of the running process to the file that its argument names, or to
// standard output. The function question returns the path of the request, and the minimum time that the response takes.
func savesResponse(a *App, cmd *cobra.Command, binary bool, question func() (string, time.Duration, error)) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{cmd, fmt.Errorf("unexpected argument %q", args[1])}
		}
		return nil
	}
	return newToolCommand(a, cmd).runs(func(inv *invocation) error {
		path, takes, err := question()
		if err != nil {
			return usageError{cmd, err}
		}
		ctx, stop := untilInterrupted(inv.Context())
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, takes+debugTimeout)
		defer cancel()
		ask := func(w io.Writer) error { return askDebug(ctx, inv.tool, w, path) }
		switch {
		case len(inv.args) == 1 && inv.args[0] != "-":
			return writeResponse(inv.args[0], ask)
		case binary && isTerminal(inv.OutOrStdout()):
			return usageError{cmd, errors.New("a profile is no text for a terminal; give a file, or pipe it to another program")}
		}
		return ask(inv.OutOrStdout())
	})
}

func askDebug(ctx context.Context, t *config.Tool, w io.Writer, path string) error {
	err := status.NewClient(t.Paths.AdminSocket).Copy(ctx, w, path)
	switch {
	case errors.Is(err, status.ErrNotRunning):
		return errors.New("coracle does not run on this machine, so there is nothing to inspect; coracle status says more")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("only root may inspect the running coracle; use sudo")
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted; the running coracle goes on as before")
	}
	return err
}

// writeResponse makes a new file that only its owner may read, and removes it again when the response is incomplete.
func writeResponse(path string, ask func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already. Nothing was changed: choose another name, or remove it", path)
	}
	if err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	if err := errors.Join(ask(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
