// SPDX-License-Identifier: Apache-2.0

// Package content moves layers and configurations of images between the cluster's machines, so that a blob crosses the
// line to a registry once. A machine serves what it has, and what it is still receiving, by digest. Servers keep track
// of which machines have a blob. A node that wants one asks a server, and fetches it from those machines.
//
// Manifests are never served: whether a pod may have an image is decided by its registry alone. What a machine gets
// from another one counts only if it has the digest that was asked for.
//
// The package owns the protocol, its limits and the servers' record of machines. It never decides what is fetched, and
// stores nothing: a Source has the content of this machine, and a Sink receives what is fetched.
//
// Its goroutines: the port's accept loop; one for each connection of another machine, 512 at most; at a question to a
// server one for each machine whose content is not known, 16 at a time, and one that waits for them, for 2 s; two for
// each idle connection, for 30 s.
package content

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// ALPN is the name of the protocol: HTTP/1.1 over TLS with certificates of the cluster's machines at both ends.
const ALPN = "coracle-content/1"

const (
	blobsPath = "/v1/blobs/"
	findPath  = "/v1/find"
	havePath  = "/v1/have"
	namesPath = "/v1/names"
	// partialHeader says that the machine is still receiving the blob itself.
	partialHeader = "Coracle-Partial"
)

// Blob is content from an offset on.
type Blob struct {
	// Size is that of the whole blob in bytes.
	Size int64
	// Partial says that this machine is still receiving it. Body blocks then until more of it is there, and returns an
	// error if the reception has ended.
	Partial bool
	Body    io.ReadCloser
}

// Source is the content of this machine.
type Source interface {
	// Open returns a blob from an offset on. The error of what is not there matches errdefs.ErrNotFound.
	Open(ctx context.Context, d digest.Digest, offset int64) (*Blob, error)
	// Digests returns the digests of the whole blobs that Open would return.
	Digests(ctx context.Context) ([]digest.Digest, error)
}

// Sink receives a blob. containerd's content.Writer is one.
type Sink interface {
	io.Writer
	// Digest is that of all bytes written so far.
	Digest() digest.Digest
	// Truncate drops all bytes; size is 0.
	Truncate(size int64) error
	// Status has the number of bytes written so far as its Offset.
	Status() (content.Status, error)
}

// ErrOutside says that no machine of the cluster has a blob, or none is of use: it has to be fetched from elsewhere.
var ErrOutside = errors.New("no machine of the cluster has it")

// Counters count blobs and bytes since this process started.
type Counters struct {
	// Peers counts what came from other machines of the cluster, Outside what came from registries, and Sent what other
	// machines got.
	Peers, Outside, Sent Count
	// Refused counts blobs of other machines that did not have their digest.
	Refused atomic.Int64
}

// Count is a number of blobs, and of their bytes.
type Count struct{ Blobs, Bytes atomic.Int64 }

// Add counts one blob.
func (c *Count) Add(size int64) {
	c.Blobs.Add(1)
	c.Bytes.Add(size)
}

// prefix returns the first eight bytes of a digest, which identify it among those of a cluster. A wrong guess costs one
// question to a machine that does not have the blob.
func prefix(d digest.Digest) uint64 {
	b, err := hex.DecodeString(d.Encoded())
	if err != nil || len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// parseDigest accepts SHA-256 alone: containerd names all layers and configurations by it.
func parseDigest(text string) (digest.Digest, error) {
	d, err := digest.Parse(text)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("content: %q is no SHA-256 digest", text)
	}
	return d, nil
}
