// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/server/tunnels"
)

// localStorageLine is its line in the status.
const localStorageLine = "local storage"

// newLocalStorage makes what gives claims a directory on a node, for a term.
func (s *Server) newLocalStorage(ctx context.Context, t *term.Term) (*localpath.Volumes, error) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "local-storage"))
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	o := localpath.Options{
		Client: client, NodeInformer: t.Informers.Core().V1().Nodes(), VolumeInformer: t.Informers.Core().V1().PersistentVolumes(),
		Nodes: nodesVolumes{s}, Refusals: s.refusals, Context: ctx, Logger: s.log.With("part", "local storage"),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part(localStorageLine)
	}
	return localpath.New(o)
}

// nodesVolumes asks nodes through the connections that they keep, and the node of this process directly.
type nodesVolumes struct{ s *Server }

func (n nodesVolumes) AskVolumes(ctx context.Context, node string, r localvolume.Request) (localvolume.Answer, error) {
	if n.s.o.OwnNode && node == n.s.o.NodeName {
		if n.s.o.Volumes == nil {
			return localvolume.Answer{}, localpath.ErrAway
		}
		return n.s.o.Volumes.Do(r)
	}
	c, err := n.s.tunnels.Open(ctx, node, localvolume.Target)
	switch {
	case errors.Is(err, tunnels.ErrNotConnected):
		return localvolume.Answer{}, localpath.ErrAway
	case errors.Is(err, nodetunnel.ErrRefused):
		return localvolume.Answer{}, fmt.Errorf("its version of coracle has no local volumes: %w", err)
	case err != nil: // a connection whose other end has gone
		return localvolume.Answer{}, fmt.Errorf("%w: %w", localpath.ErrAway, err)
	}
	a, err := localvolume.Ask(ctx, c, r)
	if errors.Is(err, localvolume.ErrSilent) {
		err = fmt.Errorf("%w: %w", localpath.ErrAway, err)
	}
	return a, err
}
