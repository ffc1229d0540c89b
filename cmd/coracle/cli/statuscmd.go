// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// statusTimeout is how long to wait for a process that does not reply.
const statusTimeout = 10 * time.Second

func statusCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "status", GroupID: groupUse, Short: "Show what runs, since when, how much memory it uses, and what is wrong", Args: noArgs,
		Long: `Asks the coracle that runs on this machine for its state. The exit code is 0 when everything is well, 1 when something is
wrong or nothing runs. Lines that begin with "!" say what is wrong, each with what to do; those with "note:" name Services
that wait for an address, or a store that nears its quota.`,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		ctx, cancel := context.WithTimeout(inv.Context(), statusTimeout)
		defer cancel()
		r, err := a.findStatus(ctx, inv.tool)
		if err != nil {
			return err
		}
		r.Problems, r.Notes = append(r.Problems, inv.tool.Warnings...), append(r.Notes, stickNotes()...)
		if r.Level != nil && len(r.Level.Restart) > 0 {
			r.Notes = append(r.Notes, restartText(r.Level))
		}
		err = inv.print(r, func(w io.Writer) error { return printStatus(w, r, time.Now()) })
		return failIf(!r.Running || len(r.Problems) > 0, err)
	})
}

// findStatus returns the status of the running process, or the reasons why none runs.
func (a *App) findStatus(ctx context.Context, t *config.Tool) (*status.Report, error) {
	r, err := status.NewClient(t.Paths.AdminSocket).Status(ctx)
	switch {
	case err == nil:
		if r.Role == "server" && !r.Stopping {
			askOthers(ctx, t, r)
		} else if r.Role == "agent" && !r.Stopping {
			r.Problems = append(r.Problems, clockProblems(ctx, t.Paths.AgentDir)...)
		}
		r.Problems = slices.Concat(r.Problems, records.Problems(t.Paths.ContainerdRoot), diskProblems(t.Paths))
		r.Notes = append(r.Notes, upgradeNotes(t.Paths.DataDir)...)
		return r, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("only root may ask the running coracle; use: sudo coracle status")
	case errors.Is(err, context.DeadlineExceeded):
		o := readPIDFile(t.Paths.PIDFile)
		return nil, fmt.Errorf("coracle runs as process %d but does not answer within %s. Pods keep running. Its log says more; a "+
			"restart is safe", o.pid, statusTimeout)
	case !errors.Is(err, status.ErrNotRunning):
		return nil, err
	}
	r = &status.Report{DataDir: t.Paths.DataDir, Problems: []string{}}
	r.Problems = append(r.Problems, a.whyNotRunning(t)...)
	r.Problems = slices.Concat(r.Problems, records.Problems(t.Paths.ContainerdRoot), diskProblems(t.Paths))
	return r, nil
}

// askOthers adds what the API server and this server know of the cluster. It asks both at the same time: without a
// quorum the API server may not answer before status gives up, and then the servers' state says why.
func askOthers(ctx context.Context, t *config.Tool, r *status.Report) {
	var servers *status.Servers
	var err error
	var asking sync.WaitGroup
	asking.Go(func() { servers, err = askServers(ctx, t) })
	askCluster(ctx, t, r, time.Now())
	asking.Wait()
	addServers(r, servers, err)
}

// addServers adds the state of all servers, or the reason why this server does not report it. Before the process is
// ready it adds no reason: the states of the parts say it.
func addServers(r *status.Report, s *status.Servers, err error) {
	if err != nil {
		if !r.Ready.IsZero() {
			r.Problems = append(r.Problems, fmt.Sprintf("this server cannot report the state of the other servers: %v", err))
		}
		return
	}
	r.Servers, r.Problems, r.Notes = s, append(r.Problems, s.Problems...), append(r.Notes, s.Notes...)
}

// whyNotRunning says why coracle does not run, by the files that the last process left.
func (a *App) whyNotRunning(t *config.Tool) []string {
	o := readPIDFile(t.Paths.PIDFile)
	switch {
	case o.alive:
		return []string{fmt.Sprintf("process %d holds %s but does not answer yet: it is starting or stopping. Ask again in a moment", o.pid,
			t.Paths.PIDFile)}
	case o.pid > 0:
		problem := fmt.Sprintf("coracle does not run: its last process, %d, was killed or crashed. Pods keep running; start it again, it finds them", o.pid)
		return append([]string{problem + lastWords(a.Environ)}, startHint(t)...)
	case o.found:
		return append([]string{"coracle does not run: it was stopped" + lastWords(a.Environ)}, startHint(t)...)
	case !exists(t.Paths.ServerDir) && !exists(t.Paths.AgentDir):
		return []string{"coracle does not run, and never has with the data directory " + t.Paths.DataDir +
			". Start it with: coracle server"}
	}
	return append([]string{"coracle does not run: it has not been started since this machine booted" + lastWords(a.Environ)},
		startHint(t)...)
}

func printStatus(w io.Writer, r *status.Report, now time.Time) error {
	var b strings.Builder
	if r.Running {
		fmt.Fprintf(&b, "coracle %s (Kubernetes %s), %s, node %s\n", r.Version, r.Kubernetes, r.Role, r.Node)
		fmt.Fprintf(&b, "runs     since %s (%s), process %d\n", r.Started.Local().Format("2006-01-02 15:04:05"),
			formatAge(now.Sub(r.Started)), r.PID)
		if r.Stopping {
			fmt.Fprintf(&b, "state    stopping; pods keep running\n")
		} else if r.Ready.IsZero() {
			fmt.Fprintf(&b, "ready    not yet\n")
		} else {
			fmt.Fprintf(&b, "ready    %s after the start\n", r.Ready.Sub(r.Started).Round(10*time.Millisecond))
		}
		fmt.Fprintf(&b, "API      %s\n", r.API)
	}
	fmt.Fprintf(&b, "data     %s%s\n", r.DataDir, diskNote(r.DataDir))
	if m := r.Memory; m != nil {
		fmt.Fprintf(&b, "memory   %s, %s of it anonymous", formatMB(m.RSS), formatMB(m.Anonymous))
		if m.Limit > 0 {
			fmt.Fprintf(&b, "; limit %s", formatMB(m.Limit))
		}
		b.WriteByte('\n')
	}
	if up := now.Sub(r.Started).Seconds(); r.Running && up > 0 {
		fmt.Fprintf(&b, "CPU      %.1f%% of a core on average\n", 100*r.CPUSeconds/up)
	}
	if r.Level != nil {
		fmt.Fprintf(&b, "level    %s\n", levelText(r.Level))
	}
	if c := r.Cluster; c != nil {
		fmt.Fprintf(&b, "cluster  %d of %d nodes ready, %d of %d pods well\n", c.NodesReady, c.Nodes, c.PodsReady, c.Pods)
	}
	if c := r.Content; c != nil {
		fmt.Fprintf(&b, "content  %s\n", c.Text())
	}
	if s := r.Servers; s != nil {
		fmt.Fprintf(&b, "servers  %d; may fail: %s\n", len(s.Servers), s.Failures)
		if len(s.Servers) > 1 {
			b.WriteByte('\n')
			if err := printServerTable(&b, s.Servers, now); err != nil {
				return err
			}
		}
	}
	if len(r.Components) > 0 {
		b.WriteByte('\n')
		rows := [][]string{}
		for _, c := range r.Components {
			rows = append(rows, []string{c.Name, string(c.State), formatAge(now.Sub(c.Since)), c.Message})
		}
		if err := printTable(&b, []string{"PART", "STATE", "FOR", ""}, rows); err != nil {
			return err
		}
	}
	if len(r.Members) > 1 {
		b.WriteByte('\n')
		if err := printClusterMembers(&b, r.Members, now); err != nil {
			return err
		}
	}
	b.WriteByte('\n')
	if len(r.Problems) == 0 {
		b.WriteString("Nothing is wrong.\n")
	}
	for _, p := range r.Problems {
		b.WriteString("! " + printableText(p) + "\n")
	}
	for _, n := range r.Notes {
		b.WriteString("note: " + printableText(n) + "\n")
	}
	return printText(w, b.String())
}

// shownMembers is how many members the text lists. Servers come first, and members that are not alive are always
// listed.
const shownMembers = 20

// printClusterMembers lists the members of the cluster as this machine's gossip knows them.
func printClusterMembers(w io.Writer, members []status.Member, now time.Time) error {
	rows, more := [][]string{}, 0
	for i, m := range members {
		if i >= shownMembers && m.State == "alive" {
			more++
			continue
		}
		name := m.Name
		if m.Self {
			name += " (this machine)"
		}
		rows = append(rows, []string{name, m.Role, m.Address, m.Version, m.State, formatAge(now.Sub(m.Since))})
	}
	if err := printTable(w, []string{"MEMBER", "ROLE", "ADDRESS", "VERSION", "STATE", "FOR"}, rows); err != nil {
		return err
	}
	if more > 0 {
		if _, err := fmt.Fprintf(w, "and %d more that are alive: coracle status -o json\n", more); err != nil {
			return fmt.Errorf("printing: %w", err)
		}
	}
	return nil
}

func formatMB(n int64) string { return fmt.Sprintf("%d MB", (n+500_000)/1_000_000) }

// formatAge formats a duration with its two largest units.
func formatAge(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
