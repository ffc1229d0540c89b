// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
)

func certificateCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "certificate", GroupID: groupUse, Short: "Renew the authorities that sign the cluster's certificates",
	}, renewAuthorityCommand(a))
}

func renewAuthorityCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "renew-authority", Short: "Give the authorities new certificates with the keys that they have", Args: noArgs,
		Long: `Makes new certificates of the authorities in the server's folder, with the same keys and subjects, valid for twenty years.
Tokens, nodes, kubeconfigs and snapshots stay valid. Run it on each server, in the same year, and restart coracle there.
It works while the server runs or is stopped, also after the end of an authority, and may be repeated. An authority that
another one has signed is named: have that one sign a new certificate.`,
	}).runs(func(inv *invocation) error {
		return forRoot(renewAuthorities(inv.OutOrStdout(), inv.tool))
	})
}

// renewAuthorities renews the authorities of the server on this machine, and says what remains to do.
func renewAuthorities(out io.Writer, t *config.Tool) error {
	if _, err := os.Stat(t.Paths.TLSDir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there are no authorities in %s: no server has run with this data directory. Run this on a server", t.Paths.TLSDir)
	}
	p, err := pki.Open(pki.Options{Dir: t.Paths.TLSDir, Established: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	tokens, err := token.Read(t.Paths.ServerDir)
	if err != nil {
		return err
	}
	if err := tokens.Server.VerifyCA(p.Root()); err != nil {
		return fmt.Errorf("the files in %s are of two clusters, or server-ca was replaced before: %w", t.Paths.ServerDir, err)
	}
	renewed, err := p.RenewAuthorities()
	if err != nil {
		return err
	}
	var rows [][]string
	for _, r := range renewed {
		what := "new certificate"
		switch {
		case r.Kept:
			what = "unchanged"
		case r.SignedBy != "":
			what = "unchanged: " + r.SignedBy + " has to sign a new certificate of the same key and subject; put it there with its chain"
		}
		rows = append(rows, []string{string(r.Name), r.Until.UTC().Format(time.DateOnly), r.File, what})
	}
	if err := printTable(out, []string{"AUTHORITY", "UNTIL", "FILE", ""}, rows); err != nil {
		return err
	}
	_, err = fmt.Fprint(out, `
Now restart coracle on this server (systemctl restart coracle), then do the same on each other server. Pods keep running.
Nodes take the new certificates within an hour, or when coracle starts there.
`)
	return err
}
