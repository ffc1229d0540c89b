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
	"net/url"
	"strings"
	"syscall"
)

// ErrNotRunning says that no process listens on the admin socket.
var ErrNotRunning = errors.New("coracle does not run")

// Client sends requests to the process behind an admin socket.
type Client struct {
	http http.Client
}

// NewClient makes a client. It connects for each request.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status requests a report. The error is [ErrNotRunning] when no process listens, and fs.ErrPermission when this user
// may not connect.
func (c *Client) Status(ctx context.Context) (*Report, error) {
	var r Report
	if err := c.Do(ctx, http.MethodGet, "/v1/status", &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Do sends a request without a body. If out is not nil, it decodes the response into out. The body of a response other
// than 200 becomes the error.
func (c *Client) Do(ctx context.Context, method, path string, out any) error {
	answer, err := c.send(ctx, method, path)
	if err != nil {
		return err
	}
	defer answer.Close()
	body, err := io.ReadAll(answer)
	if err != nil {
		return fmt.Errorf("reading the answer of the running coracle: %w", err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("decoding the answer of the running coracle: %w", err)
	}
	return nil
}

// Copy sends a GET request and copies the response to w. When it fails, w may have got the beginning of the response.
func (c *Client) Copy(ctx context.Context, w io.Writer, path string) error {
	answer, err := c.send(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer answer.Close()
	if _, err := io.Copy(w, answer); err != nil {
		return fmt.Errorf("copying the answer of the running coracle: %w", err)
	}
	return nil
}

// send sends a request without a body. It returns the response's body, if the status is 200.
func (c *Client) send(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://coracle"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotRunning
	case err != nil:
		if sending, ok := errors.AsType[*url.Error](err); ok {
			err = sending.Err // without the URL, which may have keys for S3
		}
		return nil, fmt.Errorf("asking the running coracle: %w", err)
	case resp.StatusCode == http.StatusOK:
		return resp.Body, nil
	}
	defer resp.Body.Close()
	why, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer of the running coracle: %w", err)
	}
	return nil, errors.New(strings.TrimSpace(string(why)))
}
