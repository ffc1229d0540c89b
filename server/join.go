// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/member"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
)

// renewTimeout limits one attempt of RenewJoin.
const renewTimeout = 30 * time.Second

// Join fetches the files that o's folders need before New can make a server of that cluster. It repeats the request
// until a server answers, and may be interrupted at any point. It sends no request once this server has taken part in
// the cluster. It replaces no existing key.
func Join(ctx context.Context, o Options, r member.Request) (*admission.Joined, error) {
	joined, err := admission.WasJoined(o.ServerDir)
	if err != nil {
		return nil, err
	}
	hasStore := o.HasStore()
	// Until this server has a store, or knew other servers, the cluster does not know it, and may have other settings
	// by now.
	if joined != nil && (hasStore || roster.HasPeers(o.ServerDir)) {
		return joined, nil
	}
	if hasStore {
		return nil, fmt.Errorf("there is a store in %s, of a server that started a cluster: it cannot join another one. Nothing was "+
			"changed. Leave out --server to run that one, or give another --data-dir", o.StoreDir)
	}
	a, err := r.Send(ctx)
	if err == nil {
		err = r.CheckFlags(a.Server.Flags)
	}
	if err != nil {
		return nil, err
	}
	return o.saveJoin(a)
}

// HasStore says whether this server has a store: it is a member of its cluster.
func (o *Options) HasStore() bool {
	entries, err := os.ReadDir(o.StoreDir)
	return err == nil && len(entries) > 0
}

// saveJoin stores the response to a join request, each part of it in its own file. JoinedFile is the last one.
func (o *Options) saveJoin(a *protocol.Response) (*admission.Joined, error) {
	if err := o.folders().Write(a.Server.Files, secrets.AsideSuffix); err != nil {
		return nil, err
	}
	if a.Gossip != nil { // a server of an earlier version sends none
		if err := gossipmember.WriteKeys(o.ServerDir, *a.Gossip); err != nil {
			return nil, err
		}
	}
	if vips := a.Settings.VIPs; len(vips) > 0 {
		if err := clusterconfig.WriteVIPs(o.ServerDir, vips); err != nil {
			return nil, err
		}
	}
	// it is newer than a back end in this machine's files
	if err := clusterconfig.WriteBackend(o.ServerDir, a.Settings.Backend()); err != nil {
		return nil, err
	}
	joined := &admission.Joined{Settings: a.Settings, ServerSettings: a.Server.ServerSettings, Peers: a.Server.Peers,
		Level: a.Level}
	joined.Settings.VIPs = nil // they may change, and have a file of their own
	return joined, joined.Write(o.ServerDir)
}

// RenewJoin fetches again the files that the cluster replaces at times: encryption keys and tokens. It is for a server
// that has requested to join and is not a member yet. A member follows the store.
func RenewJoin(ctx context.Context, o Options, r member.Request) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	a, err := r.Send(ctx)
	if err != nil {
		return err
	}
	return o.folders().Write(a.Server.Files, "")
}
