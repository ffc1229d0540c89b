// SPDX-License-Identifier: Apache-2.0

package tunnels

import (
	"context"
	"errors"
	"fmt"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

// Volumes sends requests for folders of local volumes to nodes through their tunnels. Requests to this process's node
// are direct calls.
type Volumes struct {
	*Table
	Own     string               // the node of this process, empty for none
	Folders *localvolume.Folders // its own; nil while it has none
}

// AskVolumes implements localpath.Nodes.
func (v Volumes) AskVolumes(ctx context.Context, node string, r localvolume.Request) (localvolume.Response, error) {
	if v.Own != "" && node == v.Own {
		if v.Folders == nil {
			return localvolume.Response{}, localpath.ErrAway
		}
		return v.Folders.Do(r)
	}
	c, err := v.Open(ctx, node, localvolume.Target)
	switch {
	case errors.Is(err, ErrNotConnected):
		return localvolume.Response{}, localpath.ErrAway
	case errors.Is(err, nodetunnel.ErrTooMany):
		return localvolume.Response{}, err
	case errors.Is(err, nodetunnel.ErrRefused):
		return localvolume.Response{}, fmt.Errorf("its version of coracle has no local volumes: %w", err)
	case err != nil: // a connection whose other end has ended
		return localvolume.Response{}, fmt.Errorf("%w: %w", localpath.ErrAway, err)
	}
	a, err := localvolume.Call(ctx, c, r)
	if errors.Is(err, localvolume.ErrUnresponsive) {
		err = fmt.Errorf("%w: %w", localpath.ErrAway, err)
	}
	return a, err
}
