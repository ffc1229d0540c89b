// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/cmd/coracle/trial"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/imports"
	"github.com/coracle-k8s/coracle/internal/slots"
)

func bundleImportCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "import FILE|LABEL", Short: "Take the images, charts and manifests of a bundle", Args: bundleArg,
		Long: `Takes what a bundle brings besides the program: its images, charts and manifests. They take the places of those that the
bundle of that name had before, so what the newer one lacks is deleted from the cluster. Enough trusted keys have to have
signed the bundle (coracle bundle verify). Nothing changes unless all of it is whole and there is room.

coracle need not run: it takes the files when it starts. An interrupted import is finished by the next one, or by the next
start. On an agent, images alone are taken. For the program there is coracle upgrade --here.

LABEL is that of a stick with bundles, usually CORACLE; coracle status names it. The one with the highest counter is taken, and
LABEL/FILE names another one. The stick is mounted for this command alone, and read-only.`,
	})
	f := cmd.Flags()
	downgrade := f.Bool("downgrade", false, "Take a bundle with a lower counter than that of the bundle of its name here")
	keys := addTrustedKeys(cmd.Command)
	return cmd.withOutput("text", "json").runs(func(inv *invocation) error {
		trusted, err := trustedHere(inv.tool, *keys)
		if err != nil {
			return forRoot(err)
		}
		b, name, done, err := verifiedBundle(inv.args[0], trusted)
		if err != nil {
			return fmt.Errorf("nothing was imported: %w", err)
		}
		defer done()
		ctx, stop := untilInterrupted(inv.Context())
		defer stop()
		onAgent := isAgent(inv.tool.Paths)
		if err := imports.Of(inv.tool.Paths, onAgent).Import(ctx, b, *downgrade); err != nil {
			return forRoot(err)
		}
		return inv.print(b.Index, func(w io.Writer) error { return printText(w, importText(name, b.Index, inv.tool.Paths, onAgent)) })
	})
}

// trustedHere returns the keys that this machine trusts after the bundles that it has taken.
func trustedHere(t *config.Tool, keys string) (bundle.Trusted, error) {
	trusted, err := bundle.Trust(keys)
	if err != nil {
		return trusted, err
	}
	return trustedAfter(trusted, slots.Below(t.Paths.DataDir))
}

// trustedAfter returns the keys that are trusted after the bundles that a machine has taken.
func trustedAfter(t bundle.Trusted, v *slots.Versions) (bundle.Trusted, error) {
	had, err := trial.Accepted(v, false)
	if err != nil {
		return t, err
	}
	return t.After(had)
}

func addTrustedKeys(cmd *cobra.Command) *string {
	return cmd.Flags().String("trusted-keys", bundle.SiteKeysFile, "File with public keys that are trusted besides the release keys")
}

// isAgent reports whether a data directory is that of an agent alone.
func isAgent(p config.Paths) bool { return exists(p.AgentDir) && !exists(p.ServerDir) }

func importText(file string, x *bundle.Index, p config.Paths, onAgent bool) string {
	var t strings.Builder
	c := &x.Contents
	fmt.Fprintf(&t, "The bundle %s, counter %d, is imported from %s.\n", c.Name, c.Counter, file)
	row := func(kind, name, where string) { fmt.Fprintf(&t, "%-12s%s%s\n", kind, printableLine(name), where) }
	for _, name := range x.Images() {
		row("image", name, "")
	}
	not := ""
	if onAgent {
		not = " (not taken: this machine is an agent; import the bundle on a server)"
	}
	for _, f := range c.Charts {
		row("chart", f.Name, not)
	}
	for _, f := range c.Manifests {
		row("manifest", f.Name, not)
	}
	if c.Program != nil {
		row("program", c.Program.Version, " (not taken: coracle upgrade --here FILE tries it)")
	}
	return t.String()
}
