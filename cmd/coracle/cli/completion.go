// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:     "completion bash|zsh|fish",
		GroupID: groupUse,
		Short:   "Print a script that completes coracle's commands in a shell",
		Long: `Prints a script that lets a shell complete coracle's commands, flags and values, kubectl's and helm's among them.

  bash:  coracle completion bash > /etc/bash_completion.d/coracle
  zsh:   coracle completion zsh > "${fpath[1]}/_coracle"
  fish:  coracle completion fish > ~/.config/fish/completions/coracle.fish`,
		ValidArgs: shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{cmd, fmt.Errorf("name one shell: %s", strings.Join(shells, ", "))}
			}
			return nil
		},
		RunE: run(func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return usageError{cmd, fmt.Errorf("there is no completion for %q; there is: %s", args[0], strings.Join(shells, ", "))}
		}),
	}
}
