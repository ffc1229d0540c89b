// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/server/datadir"
)

// reset holds two flags of k3s' server command that its users know. Here they do the same as the commands coracle store
// recover and coracle snapshot restore.
type reset struct {
	cluster     bool
	restorePath string
}

func addReset(cmd *cobra.Command) *reset {
	r := &reset{}
	cmd.Flags().BoolVar(&r.cluster, "cluster-reset", false, "Make this server the only one and end: coracle store recover --yes")
	cmd.Flags().StringVar(&r.restorePath, "cluster-reset-restore-path", "", "With --cluster-reset, restore a snapshot and end: coracle "+
		"snapshot restore")
	for _, name := range []string{"cluster-reset", "cluster-reset-restore-path"} {
		cmd.Flags().Lookup(name).Hidden = true
	}
	return r
}

func (r *reset) requested() bool { return r.cluster || r.restorePath != "" }

func (a *App) resetCluster(cmd *cobra.Command, c *config.Server, r *reset) error {
	if !r.cluster {
		return usageError{cmd, errors.New("--cluster-reset-restore-path goes with --cluster-reset")}
	}
	done, err := datadir.WasReset(c.Paths.ServerDir)
	if err != nil {
		return forRoot(err)
	}
	if done != "" {
		return fmt.Errorf("the reset was done already: %s. Nothing was changed. Start the server without --cluster-reset and "+
			"--cluster-reset-restore-path now. "+
			"To reset once more, remove %s first", done, filepath.Join(c.Paths.ServerDir, datadir.ResetFile))
	}
	tool := config.Tool{Paths: c.Paths}
	if r.restorePath == "" {
		if err := recoverStore(cmd.Context(), cmd.OutOrStdout(), &tool, false); err != nil {
			return err
		}
		return datadir.NoteReset(c.Paths.ServerDir, "this server is the only one of its cluster")
	}
	return a.restoreSnapshot(cmd.Context(), cmd.OutOrStdout(), &config.SnapshotTool{Tool: tool, Snapshots: c.Snapshots, Token: c.Token},
		r.restorePath,
		"the snapshot "+r.restorePath+" is restored")
}
