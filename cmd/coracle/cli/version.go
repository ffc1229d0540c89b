// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/version"
)

func versionCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{Use: "version", GroupID: groupUse, Short: "Print the version", Args: noArgs}
	form := addOutput(cmd, "text", "json")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		v := a.versionInfo()
		if form.value == "json" {
			return printJSON(cmd.OutOrStdout(), v)
		}
		printVersion(cmd.OutOrStdout(), v)
		return nil
	})
	return cmd
}

func (a *App) versionInfo() version.Info {
	v := version.Get()
	if a.Libraries != nil {
		v.Libraries = a.Libraries()
	}
	return v
}

func printVersion(w io.Writer, v version.Info) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-11s %s\n", name, value)
		}
	}
	line("coracle", v.Coracle)
	line("commit", v.Commit)
	line("built", v.Date)
	line("kubernetes", v.Kubernetes)
	line("go", v.Go)
	line("platform", v.Platform)
	for _, name := range slices.Sorted(maps.Keys(v.Libraries)) {
		line(name, v.Libraries[name])
	}
}
