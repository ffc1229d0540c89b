// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/snapshots"
)

func snapshotCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "snapshot", Aliases: []string{"snapshots", "etcd-snapshot"}, GroupID: groupUse,
		Short: "Save the whole cluster to a file, and restore it",
		Long: `A snapshot is the whole cluster in one encrypted file: the store, the authorities, the keys and the settings. With it and
the server token a new machine becomes the cluster's server. A server takes snapshots by schedule; these commands take
one at once, list and remove them, and restore one. docs/operations/snapshots.md has the procedures.

With --snapshot-s3 and its further flags (or k3s' names for them, --s3…) save, list, delete and prune select another object store than the server's settings;
flags that are not given have the server's values.`,
	}, snapshotSaveCommand(a), snapshotListCommand(a), snapshotDeleteCommand(a), snapshotPruneCommand(a),
		snapshotRestoreCommand(a))
}

// newS3Command gives a command the flags of newToolCommand and those that select another object store than the server's
// settings do. The flags are also known by k3s' names.
func newS3Command(a *App, cmd *cobra.Command) *toolCommand {
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		short := strings.TrimPrefix(name, "etcd-")
		if rest, ok := strings.CutPrefix(short, "s3"); ok && (rest == "" || rest[0] == '-') {
			name = "snapshot-" + short
		}
		return pflag.NormalizedName(name)
	})
	return &toolCommand{Command: cmd, app: a, flags: addSome(cmd, append([]string{"snapshot-s3"}, config.S3FlagNames()...)...)}
}

// askSnapshots sends a request to the server that runs on this machine, with the S3 settings of the flags. Signals end
// the request.
func askSnapshots(inv *invocation, method, path string, query url.Values, out any) error {
	asked, err := inv.flags.AskedS3()
	if err != nil {
		return err
	}
	if asked != nil {
		text, err := json.Marshal(asked)
		if err != nil {
			return fmt.Errorf("encoding the settings for S3: %w", err)
		}
		query.Set(snapshots.S3Query, string(text))
	}
	ctx, stop := untilInterrupted(inv.Context())
	defer stop()
	err = status.NewClient(inv.tool.Paths.AdminSocket).Do(ctx, method, path+"?"+query.Encode(), out)
	switch {
	case errors.Is(err, status.ErrNotRunning):
		return fmt.Errorf("no server runs on this machine: nothing answers at %s. coracle status says more", inv.tool.Paths.AdminSocket)
	case err != nil && strings.HasPrefix(err.Error(), "404 "):
		return errors.New("this machine runs an agent, and snapshots are taken by servers: run this on a server")
	case err != nil:
		return forRoot(err)
	}
	return nil
}

func snapshotSaveCommand(a *App) *cobra.Command {
	cmd := newS3Command(a, &cobra.Command{
		Use: "save", Short: "Save the cluster now", Args: noArgs,
		Long: `Asks the server that runs on this machine to save the cluster to a new file in its folder for snapshots. The cluster works
on meanwhile. The file's name is NAME-SERVER-TIME. The file stays until it is deleted: the schedule removes only its own snapshots.`,
	})
	name := cmd.Flags().String("name", snapshots.OnDemandName, "Prefix of the file's name")
	return cmd.withOutput("text", "json").runs(func(inv *invocation) error {
		var info snapshots.Info
		if err := askSnapshots(inv, http.MethodPost, snapshots.Path, url.Values{"name": {*name}}, &info); err != nil {
			return err
		}
		if inv.form.value == "json" {
			return printJSON(inv.OutOrStdout(), info)
		}
		inv.Printf("Saved the cluster to %s: %d keys, revision %d, %s.\n", info.Location, info.Keys, info.Revision, bytesText(info.Size))
		if info.Key == snapshots.TokenKey {
			inv.Println("To restore it, the server token is needed (coracle token print --server). Keep both " +
				"on other machines, separately.")
		}
		return nil
	})
}

func snapshotListCommand(a *App) *cobra.Command {
	return newS3Command(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls", "l"}, Short: "List the snapshots that this server has", Args: noArgs,
	}).withOutput("table", "json").runs(func(inv *invocation) error {
		var list []snapshots.Info
		if err := askSnapshots(inv, http.MethodGet, snapshots.Path, url.Values{}, &list); err != nil {
			return err
		}
		var rows [][]string
		for _, i := range list {
			row := []string{i.Name, i.Location, bytesText(i.Size), i.Time.Local().Format(time.DateTime), strconv.FormatInt(i.Revision, 10)}
			if i.Problem != "" {
				row[3], row[4] = i.Problem, ""
			}
			rows = append(rows, row)
		}
		return inv.print(list, func(w io.Writer) error {
			return printTable(w, []string{"NAME", "LOCATION", "SIZE", "CREATED", "REVISION"}, rows)
		})
	})
}

func snapshotDeleteCommand(a *App) *cobra.Command {
	return newS3Command(a, &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete snapshots", Args: cobra.MinimumNArgs(1),
	}).runs(func(inv *invocation) error {
		return removeSnapshots(inv, http.MethodDelete, snapshots.Path, url.Values{"name": inv.args})
	})
}

func snapshotPruneCommand(a *App) *cobra.Command {
	cmd := newS3Command(a, &cobra.Command{
		Use: "prune", Short: "Delete this server's older snapshots", Args: noArgs,
		Long: `Deletes all but the newest snapshots that this server has saved with the same --name. A file that was renamed
stays. The schedule does so for its own snapshots after each one. Without --snapshot-retention as many stay as the server is
configured to keep, here and on S3. With it the same number stays on S3, or --snapshot-s3-retention.`,
	})
	name := cmd.Flags().String("name", snapshots.OnDemandName, "The --name that they were saved with")
	const retention = "snapshot-retention"
	keep := cmd.Flags().Int(retention, 0, "How many to keep (default: as many as the server is configured to keep)")
	return cmd.runs(func(inv *invocation) error {
		// The server has its own number from its flags, its file and its environment. This command's environment may
		// have another one.
		source, text := "--"+retention, strconv.Itoa(*keep)
		if !inv.Flags().Changed(retention) {
			source, text = config.Environment(a.Environ, retention)
		}
		query := url.Values{"name": {*name}}
		if text != "" {
			if n, err := strconv.Atoi(text); err != nil || n < 0 {
				return usageError{inv.Command, fmt.Errorf("%s: the number of snapshots to keep is 0 or more", source)}
			}
			query.Set("retention", text)
		}
		return removeSnapshots(inv, http.MethodPost, snapshots.Path+"/prune", query)
	})
}

func removeSnapshots(inv *invocation, method, path string, query url.Values) error {
	var out snapshots.Removed
	if err := askSnapshots(inv, method, path, query, &out); err != nil {
		return err
	}
	for _, name := range out.Deleted {
		inv.Printf("Deleted %s.\n", name)
	}
	if out.Problem != "" {
		return errors.New(out.Problem)
	}
	if len(out.Deleted) == 0 {
		inv.Println("There was nothing to delete.")
	}
	return nil
}
