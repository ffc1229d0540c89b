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

// Target is where a server finds a node's volumes in the node's tunnel (nodetunnel): an address of the block that is
// routed nowhere (RFC 6666), so that no machine has it and nothing but a server that asks for volumes dials it. Both
// ends of a tunnel have shown who they are.
var Target = netip.MustParseAddrPort("[100::c0ac:1e]:1")

const (
	// maxMessage bounds a message, in bytes.
	maxMessage = 16 << 10
	// patience bounds one question on both ends. What takes longer, such as removing many files, happens after the
	// answer.
	patience = 30 * time.Second
)

// Op is what a node is asked for.
type Op string

const (
	// Make makes a volume's directory, or finds it made.
	Make Op = "make"
	// Remove removes one, or finds none. The directory has gone when the answer comes; that what it held goes as well
	// takes its time.
	Remove Op = "remove"
	// Grow lets a volume have so many bytes, where it has a limit that the filesystem enforces.
	Grow Op = "grow"
	// Space asks how much room there is.
	Space Op = "space"
)

// Request is a question.
type Request struct {
	Op Op `json:"op"`
	// Folder is one of the node's; empty means its first.
	Folder string `json:"folder,omitempty"`
	// Name is the directory's, see [Name].
	Name string `json:"name,omitempty"`
	// Bytes are those that have to be free for Make, and what the volume may hold at most where its filesystem can say
	// so.
	Bytes int64 `json:"bytes,omitempty"`
}

// Response is what came of it. Error is empty where all went well.
type Response struct {
	// Path is the directory's, or the folder's where no name was given.
	Path string `json:"path,omitempty"`
	Free int64  `json:"free,omitempty"` // bytes
	// Quota says that a project quota of the filesystem keeps the volume below its size.
	Quota bool   `json:"quota,omitempty"`
	Error string `json:"error,omitempty"`
}

// ErrSilent is a node that did not answer.
var ErrSilent = errors.New("the node does not answer")

// Ask asks a node over a connection, and closes that. The error is what the node says, or wraps ErrSilent.
func Ask(ctx context.Context, c net.Conn, r Request) (Response, error) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience)) // it fails only on a closed connection, and then so does the write
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
		return Response{}, fmt.Errorf("%w: %w", ErrSilent, err)
	case a.Error != "":
		return a, errors.New(a.Error)
	}
	return a, nil
}

// Serve answers one question on a connection, and closes that.
func (f *Folders) Serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var r Request
	if json.NewDecoder(io.LimitReader(c, maxMessage)).Decode(&r) != nil {
		return // the client does not speak this protocol
	}
	a, err := f.Do(r)
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(c).Encode(a) // who asked asks again
}
