// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/server/storefiles"
)

func storeBackupCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "backup FILE|-", Aliases: []string{"save", "snapshot"}, Short: "Write everything in the store to a new file",
		Args: cobra.ExactArgs(1),
		Long: `Asks the server that runs on this machine for everything in the store, as of one moment, and writes it to a new file that
only root may read. "-" writes it to standard output. The cluster works on meanwhile. A file that is there already is not
replaced.

To restore it on another machine, or after the keys were rotated, also keep a copy of the folder server/ in the data
directory without server/store: what is encrypted in the store cannot be read without server/cred.`,
	}).runs(func(inv *invocation) error {
		path, out := inv.args[0], inv.OutOrStdout()
		if path == "-" && isTerminal(out) {
			return usageError{inv.Command, errors.New("a backup is no text for a terminal; give a file, or pipe it to another program")}
		}
		return withStore(inv.Context(), inv.tool, func(ctx context.Context, c *clientv3.Client) error {
			stream, err := c.Snapshot(ctx)
			if err != nil {
				return err
			}
			defer stream.Close()
			if path == "-" {
				if _, err := storefiles.CopyBackup(out, stream); err != nil {
					return fmt.Errorf("writing the backup: %w; the written part cannot be used", explainError(err))
				}
				return nil
			}
			n, err := storefiles.SaveBackup(path, stream)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "Saved the store to %s (%s).\n", path, bytesText(n))
			return nil
		})
	})
}

func storeRestoreCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "restore FILE", Short: "Replace the store by a backup; the server has to be stopped", Args: cobra.ExactArgs(1),
		Long: `Checks the backup, and replaces the store of this machine's server, which has to be stopped, by it. Nothing is
deleted: the earlier store is kept beside it under another name. Afterwards the store is that of a cluster with one
server; other servers join it again.`,
	}).runs(func(inv *invocation) error {
		b, kept, err := stoppedServer(inv.tool).Restore(inv.args[0])
		if err != nil {
			return forRoot(err)
		}
		out := inv.OutOrStdout()
		fmt.Fprintf(out, "Restored %s: %d keys, revision %d.\n", inv.args[0], b.Keys, b.Revision)
		if kept != "" {
			fmt.Fprintf(out, "The earlier store is kept in %s.\nRemove it when the cluster is well, or rename it back to undo this.\n",
				kept)
		}
		fmt.Fprintf(out, `
Now:
  1. If the cluster has other servers: stop each, and move its folder %s away. Until that is done, start nothing.
  2. Start this server: systemctl start coracle, or however it was started.
  3. Start the other servers; they join this one and get everything from it.
`, inv.tool.Paths.StoreDir)
		return nil
	})
}

func storeVerifyCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "verify [FOLDER|BACKUP]", Aliases: []string{"check"},
		Short: "Check a stopped server's store, or a backup, without changing anything", Args: cobra.MaximumNArgs(1),
		Long: `Reads every byte of the store of this machine's server, which has to be stopped, or of another store's folder, or of a
backup, and reports whether it is undamaged. Nothing is changed.`,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		path := inv.tool.Paths.StoreDir
		if len(inv.args) > 0 {
			path = inv.args[0]
		}
		var found interface{ text() string }
		var err error
		if info, statErr := os.Stat(path); statErr == nil && !info.IsDir() {
			var b *storefiles.Backup
			b, err = storefiles.CheckBackup(path)
			found = (*backupText)(b)
		} else {
			var c *storefiles.Checked
			c, err = storefiles.CheckStore(path)
			found = (*checkedText)(c)
		}
		if err != nil {
			return forRoot(err)
		}
		return inv.print(found, func(w io.Writer) error { return printText(w, found.text()) })
	})
}

type (
	backupText  storefiles.Backup
	checkedText storefiles.Checked
)

func (b *backupText) text() string {
	return fmt.Sprintf("%s is an undamaged backup: %d keys, revision %d, %s.\n", b.Path, b.Keys, b.Revision, bytesText(b.Bytes))
}

func (c *checkedText) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is undamaged.\n", c.Path)
	fmt.Fprintf(&b, "member    %s of cluster %s, format %d\n", c.Member, c.Cluster, c.Format)
	if c.SnapshotIndex == 0 {
		b.WriteString("snapshot  none\n")
	} else {
		fmt.Fprintf(&b, "snapshot  up to entry %d: %d keys, revision %d, %s\n", c.SnapshotIndex, c.Keys, c.Revision,
			bytesText(c.SnapshotBytes))
	}
	if c.LastIndex == 0 {
		b.WriteString("log       empty\n")
	} else {
		fmt.Fprintf(&b, "log       entries %d to %d, term %d, %s\n", c.FirstIndex, c.LastIndex, c.LastTerm, bytesText(c.LogBytes))
	}
	if c.Torn {
		b.WriteString("The log ends with an append that a power cut interrupted. It was never acknowledged; the next start drops it.\n")
	}
	return b.String()
}
