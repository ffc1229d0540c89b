// SPDX-License-Identifier: Apache-2.0

package content

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// budget is how long a fetch may go on without use: what is spent on machines that do not answer, send too slowly
	// or send something else. Then the blob is fetched from outside.
	budget = 5 * time.Second
	// findTimeout limits a question to a server, dialTimeout a connection to a machine, and headTimeout the wait for
	// the beginning of its answer.
	findTimeout = 3 * time.Second
	dialTimeout = time.Second
	headTimeout = 2 * time.Second
	// A machine has to send wholeLeast bytes in each wholeWindow, or partialLeast in each partialWindow of a blob that
	// it is still receiving over the cluster's line, which may be thin.
	wholeWindow, wholeLeast     = 2 * time.Second, 512 << 10
	partialWindow, partialLeast = 5 * time.Second, 8 << 10
	// maxExcluded is how many machines a question leaves out.
	maxExcluded = 64
	// busyPause is the pause before machines that send as much as they may are asked again.
	busyPause = 200 * time.Millisecond
	// barredFor is how long a machine is not asked after it sent something else than the blob.
	barredFor = 10 * time.Minute
	// idleTimeout is how long a connection is kept for the next question.
	idleTimeout = 30 * time.Second
)

// Client fetches blobs from other machines.
type Client struct {
	o      ClientOptions
	direct *http.Client

	mu     sync.Mutex
	barred map[string]time.Time
}

// ClientOptions configure a Client.
type ClientOptions struct {
	// Node is the name of this machine's node.
	Node string
	// Servers returns the names of the live servers' nodes.
	Servers func() []string
	// Dial opens an authenticated connection to a machine by its node's name.
	Dial     func(ctx context.Context, node string) (net.Conn, error)
	Counters *Counters
	Logger   *slog.Logger
}

// NewClient returns a Client.
func NewClient(o ClientOptions) *Client {
	return &Client{o: o, direct: &http.Client{Transport: transport(o.Dial)}, barred: map[string]time.Time{}}
}

// Close closes idle connections.
func (c *Client) Close() { c.direct.CloseIdleConnections() }

// transport returns a transport of connections that are authenticated by dial, which gets the name of the other end's
// node.
func transport(dial func(ctx context.Context, node string) (net.Conn, error)) *http.Transport {
	open := func(ctx context.Context, _, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return dial(ctx, host)
	}
	return &http.Transport{
		DialTLSContext: open, ResponseHeaderTimeout: headTimeout, IdleConnTimeout: idleTimeout,
		MaxIdleConnsPerHost: 2, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10,
	}
}

// request requests a blob from an offset on. of, if not empty, is the node whose blob a server is to pass on.
func request(ctx context.Context, c *http.Client, host string, d digest.Digest, offset int64, of string) (*http.Response, error) {
	url := "https://" + host + blobsPath + d.String()
	if of != "" {
		url += "?node=" + of
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	return c.Do(req)
}

// Get sends a GET request to a server. It returns an error if the other end has no server's certificate.
func (c *Client) Get(ctx context.Context, server, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := c.direct.Do(req)
	if err != nil {
		return nil, err
	}
	if !isServer(answer.TLS) {
		return nil, errors.Join(fmt.Errorf("content: %s has no server's certificate", server), answer.Body.Close())
	}
	return answer, nil
}

// Fetch fills an empty sink with a blob of other machines. After an error the sink is empty. The error matches
// ErrOutside unless ctx is done or the sink fails.
func (c *Client) Fetch(ctx context.Context, d digest.Digest, size int64, to Sink) error {
	if _, err := parseDigest(d.String()); err != nil {
		return err
	}
	f := &fetch{c: c, digest: d, size: size, to: to, exclude: c.barredNow()}
	err := f.run(ctx)
	if err != nil {
		return errors.Join(err, to.Truncate(0))
	}
	c.o.Counters.Peers.Add(size)
	return nil
}

// fetch is one call of Fetch.
type fetch struct {
	c      *Client
	digest digest.Digest
	size   int64
	to     Sink

	offset  int64
	exclude []string      // machines that are of no use for this blob
	from    []string      // machines that sent some of what the sink has
	lost    time.Duration // spent without use
}

func (f *fetch) run(ctx context.Context) error {
	for f.lost < budget && ctx.Err() == nil {
		nodes := f.find(ctx)
		if len(nodes) == 0 {
			return ErrOutside
		}
		busy := 0
		for _, node := range nodes {
			err := f.receive(ctx, node)
			switch {
			case err == nil && f.offset == f.size:
				if f.to.Digest() == f.digest {
					return nil
				}
				if err := f.refuse(); err != nil {
					return err
				}
			case errors.Is(err, errBusy):
				busy++
				continue
			case errors.Is(err, errSink):
				return err
			}
			if f.exclude = append(f.exclude, node); f.lost >= budget || ctx.Err() != nil {
				break
			}
		}
		if busy > 0 {
			f.wait(ctx)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrOutside
}

// refuse drops what the sink has, since it is not the blob, and bars the machines that sent it.
func (f *fetch) refuse() error {
	f.c.o.Counters.Refused.Add(1)
	f.c.o.Logger.Warn("content: a blob of other machines is not what was asked for; it is fetched again, and they are not asked for ten minutes",
		"digest", f.digest, "from", f.from)
	f.c.bar(f.from)
	f.exclude, f.from, f.offset = append(f.exclude, f.from...), nil, 0
	if err := f.to.Truncate(0); err != nil {
		return fmt.Errorf("%w: %w", errSink, err)
	}
	return nil
}

// wait waits until machines that were busy may be free. It counts as lost.
func (f *fetch) wait(ctx context.Context) {
	timer := time.NewTimer(busyPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	f.lost += busyPause
}

var (
	errBusy = errors.New("the machine sends as much as it may")
	errSlow = errors.New("the machine sends too slowly")
	errSink = errors.New("content: the blob cannot be written")
)

// find asks the servers one after the other, in an order that is the same for all askers: so one server knows all who
// asked for a blob.
func (f *fetch) find(ctx context.Context) []string {
	body, err := json.Marshal(findRequest{f.c.o.Node, f.digest, f.exclude[max(0, len(f.exclude)-maxExcluded):]})
	if err != nil {
		return nil
	}
	for _, server := range inOrder(f.c.o.Servers(), f.digest) {
		if f.lost >= budget || ctx.Err() != nil {
			break
		}
		start := time.Now()
		nodes, err := f.c.ask(ctx, server, body)
		if err == nil {
			return nodes
		}
		f.lost += time.Since(start)
		f.c.o.Logger.Debug("content: a server did not say who has a blob", "server", server, "error", err)
	}
	return nil
}

// ask asks one server who has a blob.
func (c *Client) ask(ctx context.Context, server string, body []byte) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+server+findPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.direct.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK || !isServer(answer.TLS) {
		return nil, fmt.Errorf("content: %s, or it is no server", answer.Status)
	}
	var a findAnswer
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxQuestion)).Decode(&a); err != nil {
		return nil, err
	}
	return a.Nodes[:min(len(a.Nodes), maxFound)], nil
}

// receive appends to the sink what a machine sends. It returns nil if the sink has the whole blob.
func (f *fetch) receive(ctx context.Context, node string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start := time.Now()
	answer, err := f.open(ctx, node)
	if err != nil {
		f.lost += time.Since(start)
		return err
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusServiceUnavailable:
		return errBusy
	case answer.StatusCode != http.StatusOK || answer.ContentLength != f.size-f.offset:
		return fmt.Errorf("content: %s with %d bytes", answer.Status, answer.ContentLength)
	}
	if answer.Header.Get(partialHeader) != "" {
		return f.copy(answer.Body, node, partialWindow, partialLeast, cancel)
	}
	return f.copy(answer.Body, node, wholeWindow, wholeLeast, cancel)
}

// open requests the blob from a machine, through a server if the machine cannot be reached.
func (f *fetch) open(ctx context.Context, node string) (*http.Response, error) {
	answer, err := request(ctx, f.c.direct, node, f.digest, f.offset, "")
	if err == nil && !isServer(answer.TLS) && nodeOf(answer.TLS) != node {
		answer.Body.Close()
		return nil, fmt.Errorf("content: another machine answers for %s", node)
	}
	if err == nil || ctx.Err() != nil {
		return answer, err
	}
	servers := inOrder(f.c.o.Servers(), f.digest)
	if len(servers) == 0 {
		return nil, err
	}
	answer, err2 := request(ctx, f.c.direct, servers[0], f.digest, f.offset, node)
	if err2 != nil {
		return nil, errors.Join(err, err2)
	}
	return answer, nil
}

// copy appends a machine's answer to the sink. It ends if a window brings less than it has to.
func (f *fetch) copy(from io.Reader, node string, window time.Duration, least int64, cancel context.CancelCauseFunc) error {
	began := time.Now()
	w := &watch{window: window, least: least, slow: func() { cancel(errSlow) }, since: began}
	w.start()
	defer w.stop()
	f.from = append(f.from, node)
	buffer := make([]byte, chunk)
	for f.offset < f.size {
		n, err := from.Read(buffer[:min(int64(len(buffer)), f.size-f.offset)])
		if n > 0 {
			if _, werr := f.to.Write(buffer[:n]); werr != nil {
				return fmt.Errorf("%w: %w", errSink, werr)
			}
			f.offset += int64(n)
			w.add(int64(n))
		}
		if err != nil && f.offset < f.size {
			f.lost += time.Since(w.stop())
			return err
		}
	}
	if f.to.Digest() != f.digest {
		f.lost += time.Since(began)
	}
	return nil
}

// watch ends a transfer that is too slow.
type watch struct {
	window time.Duration
	least  int64
	slow   func()
	timer  *time.Timer

	mu       sync.Mutex
	received int64     // in the present window
	since    time.Time // when that began
	ended    bool
}

func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(w.window, w.look)
}

func (w *watch) add(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.received += n
}

// look is called at the end of each window.
func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
	case w.received < w.least:
		w.slow()
	default:
		w.received, w.since = 0, time.Now()
		w.timer.Reset(w.window)
	}
}

// stop ends the watch. It returns since when the transfer was of no use: the beginning of the present window.
func (w *watch) stop() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.timer.Stop()
	return w.since
}

// inOrder returns the servers in the order in which all machines ask them for a blob (rendezvous hashing).
func inOrder(servers []string, d digest.Digest) []string {
	weight := func(server string) uint64 {
		h := fnv.New64a()
		_, _ = io.WriteString(h, server+"\x00"+d.Encoded()) // never fails
		return h.Sum64()
	}
	out := slices.Clone(servers)
	slices.SortFunc(out, func(a, b string) int {
		switch x, y := weight(a), weight(b); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	return out
}

// barredNow returns the machines that are not asked at present.
func (c *Client) barredNow() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for node, since := range c.barred {
		if time.Since(since) < barredFor {
			out = append(out, node)
		} else {
			delete(c.barred, node)
		}
	}
	return out
}

func (c *Client) bar(nodes []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, node := range nodes {
		c.barred[node] = time.Now()
	}
}
