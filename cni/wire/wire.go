// SPDX-License-Identifier: Apache-2.0

// Package wire is what the CNI helper and the agent say to one another: one request and one
// response over a unix socket, each a JSON document behind a four byte length.
//
// It owns the message types and their framing. It imports the standard library only, because the
// helper that containerd runs for every pod links it and has to stay small, and it never
// interprets a network configuration.
package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
)

// MaxMessage bounds one message in bytes. A network configuration with its runtime part is a few
// kilobytes; anything near the bound is not a CNI call.
const MaxMessage = 4 << 20

// The commands of the CNI specification 1.1, section 2.
const (
	CommandAdd     = "ADD"
	CommandDel     = "DEL"
	CommandCheck   = "CHECK"
	CommandGC      = "GC"
	CommandStatus  = "STATUS"
	CommandVersion = "VERSION"
)

// The error codes of the CNI specification 1.1, section 5; codes from 100 are ours.
const (
	CodeIncompatibleVersion uint = 1
	CodeUnknownContainer    uint = 3
	CodeInvalidEnvironment  uint = 4
	CodeIO                  uint = 5
	CodeDecode              uint = 6
	CodeInvalidConfig       uint = 7
	CodeTryAgainLater       uint = 11
	CodeUnavailable         uint = 50
	CodeExhausted           uint = 100
	CodeNetwork             uint = 101
	CodeMismatch            uint = 102
)

// Versions lists the CNI specification versions spoken here, oldest first.
var Versions = []string{"1.0.0", "1.1.0"}

// SupportsVersion says whether v is one of Versions.
func SupportsVersion(v string) bool {
	return slices.Contains(Versions, v)
}

// Request is one call of the CNI plugin: its environment and its standard input.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID,omitempty"`
	Netns       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Config      json.RawMessage `json:"config,omitempty"`
}

// Response answers a Request. Result is what the plugin prints; it is empty for the commands that
// print nothing. Error is set when the call failed.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is the error document of the CNI specification, section 5.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Errorf makes an Error with a formatted message.
func Errorf(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Write sends v as one framed message.
func Write(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding message: %w", err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("message of %d bytes exceeds the bound of %d", len(body), MaxMessage)
	}
	frame := make([]byte, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	copy(frame[4:], body)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("writing message: %w", err)
	}
	return nil
}

// Read receives one framed message into v.
func Read(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("reading message length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("message of %d bytes exceeds the bound of %d", n, MaxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("reading message: %w", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decoding message: %w", err)
	}
	return nil
}

// ErrNoAgent is wrapped by Call when nothing answers on the socket.
var ErrNoAgent = errors.New("the coracle agent does not answer")

// Call sends req to the agent listening on the unix socket and waits for its response. Closing
// the connection, which the end of ctx does, tells the agent to give the request up.
func Call(ctx context.Context, socket string, req Request) (Response, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	if err := Write(conn, req); err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	var resp Response
	if err := Read(conn, &resp); err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	return resp, nil
}
