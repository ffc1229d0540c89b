// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/server/encryption"
)

// keys ties the command to the server's package.
type keys struct{}

func (keys) Status(dir string) (cli.EncryptionStatus, error) {
	s, err := encryption.ReadStatus(dir)
	if err != nil {
		return cli.EncryptionStatus{}, err
	}
	out := cli.EncryptionStatus{Key: s.Key, Readable: s.Readable, Encrypted: s.Encrypted, ByHand: s.ByHand, Started: s.Started, Finished: s.Finished}
	if s.Stage != encryption.StageDone {
		out.Rotating = string(s.Stage)
	}
	return out, nil
}

func (keys) Rotate(ctx context.Context, dir string, client *rest.Config, progress func(stage string, objects int)) error {
	return encryption.Rotate(ctx, encryption.RotateOptions{
		Dir:      dir,
		Client:   client,
		Progress: func(stage encryption.Stage, n int) { progress(string(stage), n) },
		Logger:   slog.New(slog.NewTextHandler(io.Discard, nil)), // the command prints progress itself
	})
}
