// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/slots"
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
		c, unaccepted, err := settingsToRun(a.sources(flags), a.serverSettings)
		if err != nil {
			return err
		}
		if reset.requested() {
			return a.resetCluster(cmd, c, reset)
		}
		if !isRoot() && !c.DisableAgent {
			return errors.New("coracle server has to run as root to start pods; use sudo, or --disable-agent to run a server without a node")
		}
		p := &Process{role: "server", app: a, Paths: c.Paths, node: c.Node.Name, unaccepted: unaccepted,
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
		c, unaccepted, err := settingsToRun(a.sources(flags), a.agentSettings)
		if err != nil {
			return err
		}
		if !isRoot() {
			return errors.New("coracle agent has to run as root to start pods; use sudo")
		}
		p := &Process{role: "agent", app: a, Paths: c.Paths, node: c.Node.Name, unaccepted: unaccepted, api: c.ServerURL.String()}
		return p.run(cmd.Context(), c.Logging, c.Warnings, func(ctx context.Context) error { return a.RunAgent(ctx, c, p) })
	})
	return cmd
}

// serverSettings returns a server's settings, and the mistakes in them.
func (a *App) serverSettings(from config.Sources) (*config.Server, config.Problems) {
	c, err := config.LoadServer(from)
	if err != nil {
		return c, problemsIn(err)
	}
	return c, a.serverArgProblems(c)
}

// agentSettings returns an agent's settings, and the mistakes in them.
func (a *App) agentSettings(from config.Sources) (*config.Agent, config.Problems) {
	c, err := config.LoadAgent(from)
	if err != nil {
		return c, problemsIn(err)
	}
	return c, append(problemsIn(a.emulateLevelOf(c.Paths)), problemsIn(a.CheckKubeletArgs(c.Node.KubeletArgs))...)
}

// settingsToRun returns the settings that load finds without a mistake. If this version runs again after a trial, and
// does not accept those of now, they are those from before the trial, and unaccepted says what is wrong: an operator
// may have written them for the version on trial, and neither version would run.
func settingsToRun[C any](from config.Sources, load func(config.Sources) (C, config.Problems)) (c C, unaccepted []string, err error) {
	c, problems := load(from)
	if len(problems) == 0 {
		return c, nil, nil
	}
	if from.ConfigFolder = slots.SettingsBefore(); from.ConfigFolder != "" {
		if before, wrong := load(from); len(wrong) == 0 {
			return before, problems, nil
		}
	}
	return c, nil, problems
}

// serverArgProblems returns the mistakes in the arguments that a server passes to upstream's components. It makes this
// process the Kubernetes of the data directory's level, which says what these know.
func (a *App) serverArgProblems(c *config.Server) config.Problems {
	problems := append(problemsIn(a.emulateLevelOf(c.Paths)), problemsIn(a.CheckServerArgs(c))...)
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
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return problems
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
