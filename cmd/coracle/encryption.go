// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
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
	if err := onlyServer(ctx, client); err != nil {
		return err
	}
	return encryption.Rotate(ctx, encryption.RotateOptions{
		Dir:      dir,
		Client:   client,
		Progress: func(stage encryption.Stage, n int) { progress(string(stage), n) },
		Logger:   slog.New(slog.NewTextHandler(io.Discard, nil)), // the command prints progress itself
	})
}

// onlyServer refuses a rotation where there are several servers: each has the keys in a file of its own, and one that does
// not know the new key could not read what is written with it.
func onlyServer(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	slice, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("counting the cluster's servers: %w", err)
	}
	if n := len(slice.Endpoints); n > 1 {
		return fmt.Errorf("the cluster has %d servers, and this version rotates the key of a cluster of one only; nothing was changed", n)
	}
	return nil
}
