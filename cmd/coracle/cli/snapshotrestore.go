// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/server/snapshots"
)

func snapshotRestoreCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore FILE|NAME", Short: "Make this machine the server of a saved cluster; the server has to be stopped",
		Args: cobra.ExactArgs(1),
		Long: `Makes this machine the one server of the cluster that a snapshot holds. It may be a new machine, or the server that is
here and stopped. The snapshot is decrypted and checked to its last byte, and the store is built and read, before anything
is changed. Nothing is deleted: what was there is kept under another name.

With --snapshot-s3 it may be the name of one in an object store.

Other servers of the cluster have to be stopped first, and join this one again.`,
	}
	flags := addSome(cmd, append([]string{"token", "token-file", "snapshot-key-file", "snapshot-dir", "snapshot-s3"},
		config.S3FlagNames()...)...)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		t, err := config.LoadSnapshotTool(a.sources(flags))
		if err != nil {
			return err
		}
		return a.restoreSnapshot(cmd.Context(), cmd.OutOrStdout(), t, args[0], "")
	})
	return cmd
}

// findSnapshot returns the path of a snapshot. It accepts a path, a file's name in the folder for snapshots, or a name
// on S3. A snapshot on S3 is copied to that folder first.
func findSnapshot(ctx context.Context, t *config.SnapshotTool, what string) (string, error) {
	if _, err := os.Stat(what); !errors.Is(err, fs.ErrNotExist) || strings.ContainsRune(what, filepath.Separator) {
		return what, nil
	}
	path := filepath.Join(t.Snapshots.Dir, what)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || !t.Snapshots.S3 {
		return path, nil
	}
	o, err := config.ParseS3(t.Snapshots.S3Settings)
	if err != nil {
		return "", err // not reached: config has checked these settings
	}
	ctx, stop := untilInterrupted(ctx)
	defer stop()
	return snapshots.Fetch(ctx, o, what, t.Snapshots.Dir)
}

// restoreSnapshot restores the snapshot that is named by what. A mark that is not empty is noted in the server's
// folder.
func (a *App) restoreSnapshot(ctx context.Context, out io.Writer, t *config.SnapshotTool, what, mark string) error {
	path, err := findSnapshot(ctx, t, what)
	if err != nil {
		return forRoot(err)
	}
	h, err := snapshots.CheckedHeader(path)
	if err != nil {
		return forRoot(err)
	}
	key, err := restoreKey(t, h)
	if err != nil {
		return forRoot(err)
	}
	required, optional := a.SnapshotFiles()
	r, err := snapshots.Restore(snapshots.Target{
		DataDir: t.Paths.DataDir, ServerDir: t.Paths.ServerDir, Version: version.Get().Coracle, Required: required, Optional: optional,
		Newer: a.TokenFiles(), Mark: mark, Now: time.Now,
	}, path, key)
	if err != nil {
		return forRoot(err)
	}
	fmt.Fprintf(out, "Restored %s of %s: %d keys, revision %d.\n", path, h.Time.Local().Format(time.DateTime), h.Keys, h.Revision)
	if r.Kept != "" {
		fmt.Fprintf(out, "What was in %s is kept in %s.\nRemove it when the cluster is well, or rename it back to undo this.\n",
			t.Paths.ServerDir, r.Kept)
	}
	if r.KeptNewer {
		fmt.Fprintln(out, "The cluster's tokens are those that this server had: the snapshot may hold others that were replaced since.")
	} else {
		fmt.Fprintln(out, "The cluster's tokens are those of the snapshot's time. If one was replaced since, replace it again: coracle "+
			"token rotate.")
	}
	fmt.Fprintf(out, `
Now:
  1. If the cluster had other servers: stop each, and move its folder %s away. Until that is done, start nothing.
  2. Start this server: systemctl start coracle, or however it was started.
  3. Let the others join again: coracle server --server https://THIS-SERVER:6443 --token TOKEN.
Agents need nothing, as long as they reach this machine under an address of the old servers; those that joined after
the snapshot was taken are not in it, and join again when coracle is restarted there.
`, t.Paths.ServerDir)
	return nil
}

// restoreKey returns the key that decrypts a snapshot: the key file or token that the user gave, or else the token of
// this machine's server.
func restoreKey(t *config.SnapshotTool, h snapshots.Header) (snapshots.Key, error) {
	if h.Key == snapshots.FileKey {
		if t.Snapshots.KeyFile == "" {
			return snapshots.Key{},
				errors.New("the snapshot is encrypted with a key of its own: give --snapshot-key-file. Nothing was changed")
		}
		return snapshots.KeyOfFile(t.Snapshots.KeyFile)
	}
	text := t.Token
	if text == "" {
		data, err := os.ReadFile(t.Paths.TokenFile)
		if errors.Is(err, fs.ErrNotExist) {
			return snapshots.Key{}, errors.New("the snapshot is encrypted with the cluster's server token: give --token or --token-file. " +
				"Nothing was changed")
		}
		if err != nil {
			return snapshots.Key{}, fmt.Errorf("reading the token of this machine's server: %w", err)
		}
		text = string(data)
	}
	key, err := snapshots.KeyOfToken(text)
	if err != nil {
		return key, fmt.Errorf("--token: %w. Nothing was changed", err)
	}
	return key, nil
}
