// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
)

func serverCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "server",
		GroupID: groupRun,
		Short:   "Run a server, and a node beside it",
		Long: `Runs the control plane of a cluster in this process and, unless --disable-agent is given, this machine's node too.

At the first start it makes everything it needs below the data directory: certificates, credentials, tokens, an empty
store. SIGTERM and SIGINT end it cleanly; pods keep running, and the next start finds them.`,
		Args: noArgs,
	}
	flags := addSettings(cmd, config.ServerCommand)
	reset := addReset(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		c, err := config.LoadServer(a.sources(flags))
		if err != nil {
			return err
		}
		if reset.requested() {
			return a.resetCluster(cmd, c, reset)
		}
		if !isRoot() && !c.DisableAgent {
			return errors.New("coracle server has to run as root to start pods; use sudo, or --disable-agent to run a server without a node")
		}
		if problems := a.serverArgProblems(c); len(problems) > 0 {
			return problems
		}
		p := &Process{role: "server", app: a, Paths: c.Paths, node: c.Node.Name,
			api: fmt.Sprintf("https://%s", hostPort(c.AdvertiseAddress, c.HTTPSPort))}
		return p.run(cmd.Context(), c.Logging, c.Warnings, func(ctx context.Context) error { return a.RunServer(ctx, c, p) })
	})
	return cmd
}

func agentCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "agent",
		GroupID: groupRun,
		Short:   "Run a node of a cluster whose servers are other machines",
		Long: `Runs pods on this machine for a cluster whose servers are other machines.

At the first start it joins with a token, which "coracle token print" shows on a server, and gets credentials of its own;
it retries until a server answers. Later starts do not need a server. SIGTERM and SIGINT end it cleanly; pods keep running.`,
		Args: noArgs,
	}
	flags := addSettings(cmd, config.AgentCommand)
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		c, err := config.LoadAgent(a.sources(flags))
		if err != nil {
			return err
		}
		if problems := problemsIn(a.CheckKubeletArgs(c.Node.KubeletArgs)); len(problems) > 0 {
			return problems
		}
		if !isRoot() {
			return errors.New("coracle agent has to run as root to start pods; use sudo")
		}
		p := &Process{role: "agent", app: a, Paths: c.Paths, node: c.Node.Name, api: c.ServerURL.String()}
		return p.run(cmd.Context(), c.Logging, c.Warnings, func(ctx context.Context) error { return a.RunAgent(ctx, c, p) })
	})
	return cmd
}

// serverArgProblems returns the mistakes in the arguments that a server passes to upstream's components.
func (a *App) serverArgProblems(c *config.Server) config.Problems {
	problems := problemsIn(a.CheckServerArgs(c))
	if c.DisableAgent {
		return problems
	}
	return append(problems, problemsIn(a.CheckKubeletArgs(c.Node.KubeletArgs))...)
}

// problemsIn splits a joined error into its errors, each of which is a mistake in the configuration.
func problemsIn(err error) config.Problems {
	if err == nil {
		return nil
	}
	joined, ok := any(err).(interface{ Unwrap() []error }) // only what errors.Join returned, not an error that wraps it
	if !ok {
		return config.Problems{err.Error()}
	}
	var out config.Problems
	for _, e := range joined.Unwrap() {
		out = append(out, problemsIn(e)...)
	}
	return out
}
