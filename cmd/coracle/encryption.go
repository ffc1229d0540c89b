// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/server"
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
		Check:    func() error { return onlyServer(dir) },
		Progress: func(stage encryption.Stage, n int) { progress(string(stage), n) },
		Logger:   slog.New(slog.NewTextHandler(io.Discard, nil)), // the command prints progress itself
	})
}

// onlyServer refuses a rotation where there are several servers, whether they run or not: each has the keys in a file of its
// own, and one that does not know the new key could not read what is written with it.
func onlyServer(credDir string) error {
	others, err := server.OtherServers(filepath.Dir(credDir))
	if err == nil && len(others) > 0 {
		err = fmt.Errorf("the cluster has %d servers, and this version rotates the key of a cluster of one only; nothing was changed", len(others)+1)
	}
	return err
}
