// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol between the CNI helper and the agent: one request and one response over a unix socket,
// each a JSON document after its length in four bytes.
//
// It owns the message types and their framing. It imports the standard library only, because the helper that containerd
// runs for every pod links it and has to stay small. It never interprets a network configuration.
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

// MaxMessage limits one message, in bytes. A network configuration with its runtime fields is a few kilobytes. A
// message near the limit is no CNI call.
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

// Versions lists the supported versions of the CNI specification, oldest first.
var Versions = []string{"1.0.0", "1.1.0"}

// SupportsVersion reports whether v is one of Versions.
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

// Response is the response to a Request. Result is the plugin's output. It is empty for commands without output. Error
// is set when the call failed.
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

// ErrNoAgent is wrapped by Call when no agent replies on the socket.
var ErrNoAgent = errors.New("the coracle agent does not answer")

// Call sends req to the agent that listens on the unix socket and waits for its response. When ctx ends it closes the
// connection, which makes the agent cancel the request.
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
