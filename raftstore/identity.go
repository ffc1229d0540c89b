// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"hash/fnv"
)

// memberID is the number by which etcd's protocol names a server.
func memberID(nodeID string) uint64 { return idOf("member", nodeID) }

// clusterNumber is the number by which etcd's protocol names a cluster.
func clusterNumber(clusterID string) uint64 { return idOf("cluster", clusterID) }

func idOf(kind, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(kind + "\x00" + name))
	return binary.BigEndian.Uint64(h.Sum(nil))
}
