// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/server/storeusage"
)

// shownUsage is how many rows of each table the text has.
const shownUsage = 15

func storeUsageCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "usage", Short: "Show which kinds of objects and which namespaces take the store's space", Args: noArgs,
		Long: `Counts keys and bytes by kind of object and namespace. It asks the server that runs on this machine, which answers from its
own copy of the store, also while the API server does not. If none runs, it reads the store's files, which includes writes
that no majority has. Sizes are those in memory, which count for the quota; old versions are not among them.`,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		var usage status.StoreUsage
		err := status.NewClient(inv.tool.Paths.AdminSocket).Do(inv.Context(), http.MethodGet, status.UsagePath, &usage)
		switch {
		case errors.Is(err, status.ErrNotRunning):
			view, err := storefiles.ReadStore(inv.tool.Paths.StoreDir)
			if err != nil {
				return forRoot(err)
			}
			usage = *storeusage.Of(view, 0)
		case errors.Is(err, fs.ErrPermission):
			return errors.New("only root may ask the store; use sudo")
		case err != nil:
			return err
		}
		return inv.print(usage, func(w io.Writer) error { return printUsage(w, &usage) })
	})
}

func printUsage(w io.Writer, u *status.StoreUsage) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d keys, %s; with history %s", u.Keys, bytesText(u.Live), bytesText(u.Total))
	if u.Quota > 0 {
		fmt.Fprintf(&b, " of the %s allowed", bytesText(u.Quota))
	}
	b.WriteString("\n\n")
	for _, table := range []struct {
		columns []string
		rows    []status.KindUsage
	}{
		{[]string{"KIND", "KEYS", "BYTES", "SHARE"}, u.ByKind()},
		{[]string{"KIND", "NAMESPACE", "KEYS", "BYTES", "SHARE"}, u.Kinds},
	} {
		rows := [][]string{}
		for _, k := range table.rows[:min(shownUsage, len(table.rows))] {
			row := []string{k.Kind}
			if len(table.columns) > 4 {
				row = append(row, k.Namespace)
			}
			share := 100 * float64(k.Bytes) / float64(max(1, u.Live))
			rows = append(rows, append(row, strconv.FormatInt(k.Keys, 10), bytesText(k.Bytes), fmt.Sprintf("%.1f%%", share)))
		}
		if err := printTable(&b, table.columns, rows); err != nil {
			return err
		}
		if more := len(table.rows) - len(rows); more > 0 {
			fmt.Fprintf(&b, "and %d more: -o json\n", more)
		}
		b.WriteByte('\n')
	}
	return printText(w, strings.TrimSuffix(b.String(), "\n"))
}
