// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
)

// ErrNotRunning says that no process answers on the admin socket.
var ErrNotRunning = errors.New("coracle does not run")

// Client asks the process behind an admin socket.
type Client struct {
	http http.Client
}

// NewClient makes a client; it connects when asked.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks for a report. The error is [ErrNotRunning] when nobody answers, fs.ErrPermission when this user may not ask.
func (c *Client) Status(ctx context.Context) (*Report, error) {
	var r Report
	if err := c.Do(ctx, http.MethodGet, "/v1/status", &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Do sends a request without a body and decodes the answer into out, if that is not nil. What the server says in an
// answer other than 200 becomes the error.
func (c *Client) Do(ctx context.Context, method, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://coracle"+path, nil)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNotRunning
	case err != nil:
		return fmt.Errorf("asking the running coracle: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer of the running coracle: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("understanding the answer of the running coracle: %w", err)
	}
	return nil
}
