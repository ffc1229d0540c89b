// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// setAside moves a damaged directory away, so that this server can start again with a copy from the others. It returns
// damage, and leaves the directory alone, unless there are other servers and they have a leader without this one.
func (r *replica) setAside(ctx context.Context, damage error) error {
	if r.opts.Network == nil || r.opts.ClusterID == "" {
		return damage
	}
	known, err := disk.ReadPeers(r.opts.Dir)
	if err != nil {
		r.log.Warn("the saved addresses of the other servers cannot be used", "err", err)
	}
	for _, address := range r.opts.Join {
		known = append(known, disk.Peer{Address: address})
	}
	if len(known) == 0 {
		return damage
	}
	if err := r.othersLead(ctx, known); err != nil {
		return errors.Join(damage, fmt.Errorf("raftstore: no copy of the store could be requested from the other servers: %w", err))
	}
	to, err := disk.StartOver(r.opts.Dir, known)
	if err != nil {
		return errors.Join(damage, err)
	}
	r.log.Error("the store's directory was damaged and has been moved away; this server gets a copy of the store from the other servers",
		"damage", damage, "moved", to)
	return nil
}

// othersLead returns nil once one of the known servers says that they have a leader. It tries for three request
// timeouts.
func (r *replica) othersLead(ctx context.Context, known []disk.Peer) error {
	caller, err := peer.New(peer.Options{
		Cluster: r.opts.ClusterID, Dial: r.dial, Logger: r.log, Newest: r.opts.newest, Level: r.levelBefore,
		Timeout: 5 * r.opts.ElectionTimeout,
	})
	if err != nil {
		return err
	}
	defer func() { _ = caller.Close() }() // never fails
	for deadline := time.Now().Add(3 * r.opts.RequestTimeout); ; {
		for _, p := range known {
			if p.Address == r.opts.Network.Address {
				continue
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			info, err := callAt[infoReply](call, caller.Call, p.Address, callInfo, emptyReply{})
			cancel()
			if err == nil && info.Leader != "" && dialAddress(raft.ServerAddress(info.Leader)) != r.opts.Network.Address {
				return nil
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(errNoReply, ctx.Err())
		}
		time.Sleep(retryPause)
	}
}
