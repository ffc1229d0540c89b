// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
)

// cleanupCommand finds the folders. The package cmd/coracle/tools/cleanup does the work. The command takes the
// arguments of coracle server and ignores those that name no folder. So coracle-uninstall can pass it the service's
// arguments.
func cleanupCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cleanup", GroupID: groupUse,
		Short: "Stop all pods on this machine and remove what was set up for them; coracle has to be stopped",
		Long: `Ends the pods that a stopped coracle left running and removes their mounts, network devices, packet filter rules and
cgroups. The next start of coracle starts the pods again. With --remove-data nothing is left: the cluster's data, its
logs and the administrator's kubeconfig are removed too. coracle-uninstall runs this.`,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		Args:               cobra.ArbitraryArgs,
	}
	flags := addLocations(cmd)
	kubeconfig := cmd.Flags().StringP("write-kubeconfig", "o", "", config.Lookup("write-kubeconfig").Help)
	removeData := cmd.Flags().Bool("remove-data", false, "Remove the data directory, logs and the kubeconfig too")
	grace := cmd.Flags().Duration("grace", 10*time.Second, "How long containers may take to end before they are killed")
	cmd.RunE = run(func(*cobra.Command, []string) error {
		if !isRoot() {
			return errors.New("coracle cleanup has to run as root; use sudo")
		}
		t, err := config.LoadTool(a.sources(flags))
		if err != nil {
			return err
		}
		for _, w := range t.Warnings {
			a.warn("%s", w)
		}
		if *kubeconfig != "" {
			t.Kubeconfig = *kubeconfig
		}
		argv := []string{"--data-dir", t.Paths.DataDir, "--run-dir", t.Paths.RunDir, "--kubeconfig", t.Kubeconfig, "--grace",
			grace.String()}
		if *removeData {
			argv = append(argv, "--remove-data")
		}
		a.Become("cleanup", argv, a.Environ)
		return nil
	})
	return cmd
}
