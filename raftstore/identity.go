// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// identity is a server's names and numbers: for people, for raft, and for etcd's protocol.
type identity struct {
	name      string // the server's name
	id        raft.ServerID
	address   raft.ServerAddress
	memberID  uint64
	clusterID uint64
}

func identityOf(d disk.Identity, o Options) identity {
	id := raft.ServerID(d.Member)
	i := identity{
		name: d.Node, id: id, memberID: memberID(d.Member), clusterID: clusterNumber(d.Cluster),
		address: raft.ServerAddress(id), // for a server that has no peers
	}
	if o.Network != nil {
		i.address = withLevel(raftAddress(id, o.Network.Address), o.newest)
	}
	return i
}

// memberID returns the number that identifies a server in etcd's protocol.
func memberID(nodeID string) uint64 { return idOf("member", nodeID) }

// clusterNumber returns the number that identifies a cluster in etcd's protocol.
func clusterNumber(clusterID string) uint64 { return idOf("cluster", clusterID) }

func idOf(kind, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(kind + "\x00" + name))
	return binary.BigEndian.Uint64(h.Sum(nil))
}
