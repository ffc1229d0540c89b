// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/slots"
)

// starterCommand is for install.sh, which writes the script that the service starts.
func starterCommand() *cobra.Command {
	return &cobra.Command{
		Use: "starter", Hidden: true, Short: "Print the script that the service starts", Args: cobra.NoArgs,
		RunE: run(func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), slots.Starter)
			return err
		}),
	}
}

// folderCommand is for install.sh, which keeps the programs below the data directory. Flags, variables and files say
// where that is.
func folderCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "folder", Hidden: true, Short: "Print the folder of coracle's versions", Args: cobra.NoArgs,
	}).runs(func(inv *invocation) error {
		_, err := fmt.Fprintln(inv.OutOrStdout(), slots.Below(inv.tool.Paths.DataDir).Dir)
		return err
	})
}
