// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Target is the address by which a server reaches a node's volumes through the node's tunnel (nodetunnel). It is in a
// block that is not routed (RFC 6666), so that no machine has it and only a server that asks for volumes dials it. Both
// ends of a tunnel are authenticated.
var Target = netip.MustParseAddrPort("[100::c0ac:1e]:1")

const (
	// maxMessage is the greatest length of a request or response, in bytes.
	maxMessage = 16 << 10
	// requestTimeout limits one request on both ends. Slower work, such as removing many files, is done after the
	// response.
	requestTimeout = 30 * time.Second
)

// Op is what a node is to do with the directory of a volume.
type Op string

const (
	// Make makes a volume's directory, unless it exists.
	Make Op = "make"
	// Remove removes a volume's directory, if it exists. The directory is gone when the response arrives. Removing its
	// contents takes longer.
	Remove Op = "remove"
	// Grow raises a volume's limit to so many bytes, where it has a limit that the filesystem enforces.
	Grow Op = "grow"
	// Space returns how much space is free.
	Space Op = "space"
)

// Request is a server's request to a node.
type Request struct {
	Op Op `json:"op"`
	// Folder is one of the node's folders. Empty means its first.
	Folder string `json:"folder,omitempty"`
	// Name is the name of the directory, see [Name].
	Name string `json:"name,omitempty"`
	// Bytes have to be free for Make. They are the volume's limit where its filesystem can enforce one.
	Bytes int64 `json:"bytes,omitempty"`
}

// Response is the node's reply to a Request. Error is empty after a success.
type Response struct {
	// Path is the directory's path, or the folder's if the request had no name.
	Path string `json:"path,omitempty"`
	Free int64  `json:"free,omitempty"` // bytes
	// Quota means that a project quota of the filesystem limits the volume to its size.
	Quota bool   `json:"quota,omitempty"`
	Error string `json:"error,omitempty"`
}

// ErrUnresponsive means that a node did not reply.
var ErrUnresponsive = errors.New("the node does not answer")

// Call sends a request to a node over a connection, and closes it. The error is the node's, or wraps ErrUnresponsive.
func Call(ctx context.Context, c net.Conn, r Request) (Response, error) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(requestTimeout)) // fails only on a closed connection, and then so does the write
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var a Response
	err := json.NewEncoder(c).Encode(r)
	if err == nil {
		err = json.NewDecoder(io.LimitReader(c, maxMessage)).Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return Response{}, ctx.Err()
	case err != nil:
		return Response{}, fmt.Errorf("%w: %w", ErrUnresponsive, err)
	case a.Error != "":
		return a, errors.New(a.Error)
	}
	return a, nil
}

// Serve serves one request on a connection, and closes it.
func (f *Folders) Serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(requestTimeout))
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var r Request
	if json.NewDecoder(io.LimitReader(c, maxMessage)).Decode(&r) != nil {
		return // the client does not speak this protocol
	}
	a, err := f.Do(r)
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(c).Encode(a) // the client retries without a response
}
