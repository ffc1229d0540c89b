// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
)

// toolCommand is a command that works on the coracle that is installed on this machine.
type toolCommand struct {
	*cobra.Command
	app   *App
	flags *config.Flags // select that coracle
	form  *outputFlag   // nil without -o
}

type invocation struct {
	*toolCommand
	tool *config.Tool // locates the coracle
	args []string
}

// newToolCommand gives a command the flags that select the coracle to work on.
func newToolCommand(a *App, cmd *cobra.Command) *toolCommand {
	return &toolCommand{Command: cmd, app: a, flags: addLocations(cmd)}
}

// withOutput adds the flag -o; the first form is its default.
func (c *toolCommand) withOutput(forms ...string) *toolCommand {
	c.form = addOutput(c.Command, forms...)
	return c
}

// runs makes work what the command does.
func (c *toolCommand) runs(work func(*invocation) error) *cobra.Command {
	c.RunE = run(func(_ *cobra.Command, args []string) error {
		t, err := config.LoadTool(c.app.sources(c.flags))
		if err != nil {
			return err
		}
		return work(&invocation{c, t, args})
	})
	return c.Command
}

// runsWithClient is runs for work that needs a client of this machine's API server.
func (c *toolCommand) runsWithClient(work func(context.Context, kubernetes.Interface, *invocation) error) *cobra.Command {
	return c.runs(func(inv *invocation) error {
		return withClient(inv.Context(), inv.tool, func(ctx context.Context, c kubernetes.Interface) error { return work(ctx, c, inv) })
	})
}

// print prints a value as JSON or by the function text, as -o says.
func (inv *invocation) print(v any, text func(io.Writer) error) error {
	return inv.form.print(inv.OutOrStdout(), v, text)
}
