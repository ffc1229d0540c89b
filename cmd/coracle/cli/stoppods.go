// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

const (
	// stopRest is how much longer than the pods' time the running coracle may take to stop them and to end.
	stopRest = 50 * time.Second
	// stopPoll is the time between two checks whether the process has ended.
	stopPoll = 50 * time.Millisecond
)

func nodeStopPodsCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "stop-pods", Short: "Stop the pods of this machine in order, since it goes down", Args: cobra.NoArgs,
		Long: `Stops all pods of this machine in order: Services leave them, their preStop hooks run, they get the time that they ask for,
those of kube-system last, and their volumes are unmounted. Then coracle ends. The pods stay in the cluster: they start again
when the machine is back, or when coracle is started again.

The service coracle-pods runs this when the machine goes down. For a short battery, a tool such as NUT or apcupsd can run it
with less time. An interruption of this command stops nothing.`,
	})
	within := cmd.Flags().Duration("within", 0, "How long containers may take to end (default: --shutdown-grace-period of the running coracle)")
	return cmd.runs(func(inv *invocation) error {
		if given := inv.Flags().Changed("within"); given && (*within <= 0 || *within > config.MaxShutdownGrace) {
			return usageError{inv.Command, fmt.Errorf("--within is %s: it has to be more than 0s and at most %s", *within, config.MaxShutdownGrace)}
		}
		message, err := stopPods(inv.Context(), status.NewClient(inv.tool.Paths.AdminSocket), *within)
		if message != "" {
			inv.Println(message)
		}
		return err
	})
}

// stopPods lets the running coracle stop its pods and waits until that process has ended. It ends at the latest 50
// seconds after the pods' time. within 0 means the configured time.
func stopPods(ctx context.Context, running *status.Client, within time.Duration) (message string, err error) {
	asking, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	before, err := running.Status(asking)
	if err != nil {
		return "", explainStop(err)
	}
	var configured status.StopPodsResult
	if err := running.Do(asking, http.MethodGet, status.StopPodsPath, &configured); err != nil {
		return "", explainStop(err)
	}
	path := status.StopPodsPath
	if within > 0 {
		configured.Within = within.String()
		path += "?within=" + configured.Within
	}
	pods, err := time.ParseDuration(configured.Within)
	if err != nil {
		return "", fmt.Errorf("reading the answer of the running coracle: %w", err)
	}
	ctx, cancel = context.WithTimeout(ctx, pods+stopRest)
	defer cancel()
	var result status.StopPodsResult
	if err := running.Do(ctx, http.MethodPost, path, &result); err != nil {
		return "", explainStop(err)
	}
	if result.Ends {
		awaitEnd(ctx, running, before.Started)
	}
	if result.Error != "" {
		err = errors.New(result.Error)
	}
	return result.Message, err
}

// awaitEnd returns when the process that was started at that time has ended, and at the latest when ctx is done.
func awaitEnd(ctx context.Context, running *status.Client, started time.Time) {
	poll := time.NewTicker(stopPoll)
	defer poll.Stop()
	for {
		if r, err := running.Status(ctx); err != nil || !r.Started.Equal(started) {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

func explainStop(err error) error {
	switch {
	case errors.Is(err, status.ErrNotRunning):
		return errors.New("coracle does not run, so pods that still run cannot be stopped in order. coracle cleanup ends them")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("only root may do this; use: sudo coracle node stop-pods")
	}
	return err
}
