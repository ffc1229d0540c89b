// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"
)

// Encryption manages the keys with which the store's Secrets are encrypted. Main supplies it. The parameter dir is the
// server's folder for credentials.
type Encryption interface {
	// Status describes keys and rotation. It returns no secrets.
	Status(dir string) (EncryptionStatus, error)
	// Rotate replaces the key. It uses open to reach the store of the server on this machine. It calls progress with
	// each stage, with the number of rewritten objects, and with the servers for which it waits.
	Rotate(ctx context.Context, dir string, client *rest.Config,
		open func(context.Context, func(context.Context, *clientv3.Client) error) error,
		progress func(stage string, objects int, waiting []string)) error
}

// EncryptionStatus is the output of secrets-encrypt status.
type EncryptionStatus struct {
	Key       string    `json:"key,omitempty"`       // the key that encrypts new writes
	Readable  []string  `json:"readable,omitempty"`  // the keys that can decrypt
	Encrypted []string  `json:"encrypted,omitempty"` // the encrypted resources
	ByHand    bool      `json:"byHand,omitempty"`    // the operator wrote the configuration
	Rotating  string    `json:"rotating,omitempty"`  // the stage of an unfinished rotation
	Started   time.Time `json:"started,omitzero"`    // when the last rotation began
	Finished  time.Time `json:"finished,omitzero"`
}

func encryptCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "secrets-encrypt", GroupID: groupUse, Short: "Show and rotate the key that encrypts Secrets in the store",
	}, encryptStatusCommand(a), encryptRotateCommand(a))
}

func encryptStatusCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "status", Short: "Show what is encrypted and with which key", Args: noArgs,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		s, err := a.Encryption.Status(inv.tool.Paths.CredDir)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return errors.New("only root may read the keys; use sudo")
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("there are no keys below %s: no server has run with this data directory", inv.tool.Paths.ServerDir)
		case err != nil:
			return err
		}
		return inv.print(s, func(w io.Writer) error { return printText(w, encryptionText(s)) })
	})
}

func encryptionText(s EncryptionStatus) string {
	var b strings.Builder
	switch {
	case s.ByHand:
		b.WriteString("The encryption configuration was written by hand; coracle leaves it alone.\n")
	case len(s.Encrypted) == 0:
		b.WriteString("Nothing is encrypted when written (--secrets-encryption=false).\n")
	default:
		fmt.Fprintf(&b, "Encrypted  %s\n", strings.Join(s.Encrypted, ", "))
		fmt.Fprintf(&b, "Key        %s\n", s.Key)
	}
	if len(s.Readable) > 1 {
		fmt.Fprintf(&b, "Readable   with %s\n", strings.Join(s.Readable, ", "))
	}
	switch {
	case s.Rotating != "":
		fmt.Fprintf(&b, "Rotation   stopped at the stage %q, begun %s; go on with: coracle secrets-encrypt rotate\n", s.Rotating,
			s.Started.Local().Format(time.DateTime))
	case s.Finished.IsZero():
		b.WriteString("Rotation   never\n")
	default:
		fmt.Fprintf(&b, "Rotation   last done %s\n", s.Finished.Local().Format(time.DateTime))
	}
	return b.String()
}

func encryptRotateCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "rotate", Aliases: []string{"rotate-keys"}, Short: "Replace the key and encrypt everything again", Args: noArgs,
		Long: `Makes a new key, rewrites everything with it, and then removes the old one. The cluster works on meanwhile. If it
is interrupted, everything stays readable, and running it again goes on, on any server. With several servers each
has to run and to take the new key over before anything is written with it.`,
	}).runs(func(inv *invocation) error {
		rc, err := adminConfig(inv.tool)
		if err != nil {
			return err
		}
		rc.Timeout = 0 // listing many objects may take long; the user can interrupt it
		out := inv.OutOrStdout()
		progress := func(stage string, objects int, waiting []string) {
			switch {
			case len(waiting) > 0:
				fmt.Fprintf(out, "%s: waiting for %s\n", stage, strings.Join(waiting, ", "))
			case objects == 0:
				fmt.Fprintln(out, stage)
			case objects%500 == 0:
				fmt.Fprintf(out, "%s: %d objects\n", stage, objects)
			}
		}
		open := func(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
			return withStore(ctx, inv.tool, f)
		}
		return a.Encryption.Rotate(inv.Context(), inv.tool.Paths.CredDir, rc, open, progress)
	})
}
