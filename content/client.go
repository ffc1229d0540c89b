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
	"maps"
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
	// A machine has to send wholeLeast bytes in each wholeWindow of waiting for it: a fifth of what a 10 Mbit/s
	// Ethernet carries. It has to send partialLeast in each partialWindow of a blob that it is still receiving over the
	// cluster's line: ten machines that share 2 Mbit/s have 25 KB/s each.
	wholeWindow, wholeLeast     = 2 * time.Second, 512 << 10
	partialWindow, partialLeast = 4 * time.Second, 64 << 10
	// maxExcluded is how many machines a question leaves out, and a fetch tries.
	maxExcluded = 64
	// busyPause is the pause before machines that send as much as they may are asked again.
	busyPause = 200 * time.Millisecond
	// barredFor is how long a machine is not asked after it sent something else than the blob. brokenFor is the same
	// for one that failed, or passed on something else while it was receiving it, and for a server that did not answer
	// a question: it costs one blob of a pull some time, and not each of them.
	barredFor = 10 * time.Minute
	brokenFor = time.Minute
	// indirectFor is how long a machine is asked through a server that could not be connected to.
	indirectFor = 5 * time.Minute
	// idleTimeout is how long a connection is kept for the next question.
	idleTimeout = 30 * time.Second
)

// Client fetches blobs from other machines.
type Client struct {
	o      ClientOptions
	direct *http.Client

	mu sync.Mutex
	// Machines that are not asked, servers that are asked last, and machines that are asked through a server, until
	// then.
	barred, mute, indirect until
}

// until has times until which something holds for machines.
type until map[string]time.Time

// names returns those for which it holds now, and forgets the others.
func (u until) names() (names []string) {
	for name, end := range u {
		if time.Now().Before(end) {
			names = append(names, name)
		} else {
			delete(u, name)
		}
	}
	return names
}

func (u until) has(name string) bool { return time.Now().Before(u[name]) }

// set lets it hold for a time, and no less than before.
func (u until) set(name string, d time.Duration) {
	if end := time.Now().Add(d); end.After(u[name]) {
		u[name] = end
	}
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
	return &Client{o: o, direct: newHTTPClient(o.Dial), barred: until{}, mute: until{}, indirect: until{}}
}

// Close closes idle connections.
func (c *Client) Close() { c.direct.CloseIdleConnections() }

// dialError says that a machine could not be connected to.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// newHTTPClient returns a client of connections that are authenticated by dial, which gets the name of the other end's
// node. It follows no redirections: each of them would have the time of a request.
func newHTTPClient(dial func(ctx context.Context, node string) (net.Conn, error)) *http.Client {
	open := func(ctx context.Context, _, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		c, err := dial(ctx, host)
		if err != nil {
			return nil, dialError{err}
		}
		return c, nil
	}
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: open, ResponseHeaderTimeout: headTimeout, IdleConnTimeout: idleTimeout,
			MaxIdleConns: 32, MaxIdleConnsPerHost: 2, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
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
	f := &fetch{c: c, digest: d, size: size, to: to, exclude: c.barredNow(), from: map[string]time.Duration{}}
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
	lost    time.Duration // spent without use
	// from are the machines that sent some of what the sink has, each with the time for which it is barred if that is
	// not the blob.
	from map[string]time.Duration
	// since is when the sink got its first byte.
	since time.Time
	// refused says that the sink had something else once. Then one machine is to send the whole blob.
	refused bool
}

func (f *fetch) run(ctx context.Context) error {
	for f.lost < budget && ctx.Err() == nil && len(f.exclude) < maxExcluded {
		nodes := slices.DeleteFunc(f.find(ctx), func(node string) bool { return node == f.c.o.Node || slices.Contains(f.exclude, node) })
		if len(nodes) == 0 {
			break
		}
		busy := false
		for _, node := range nodes {
			if slices.Contains(f.exclude, node) { // it has sent a part of something else
				continue
			}
			err := f.receive(ctx, node)
			if err == nil {
				if f.to.Digest() == f.digest {
					return nil
				}
				err = f.refuse()
			}
			switch {
			case errors.Is(err, errSink):
				return err
			case errors.Is(err, errBusy):
				busy = true
			default:
				f.exclude = append(f.exclude, node)
				if !errors.Is(err, errAbsent) && ctx.Err() == nil {
					f.c.bar(node, brokenFor)
				}
			}
			if f.lost >= budget || ctx.Err() != nil || f.refused && f.offset > 0 {
				break
			}
		}
		if f.refused && f.offset > 0 {
			break // a second machine failed, too
		}
		if busy {
			f.wait(ctx)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrOutside
}

// refuse drops what the sink has, since it is not the blob, and bars the machines that sent it. The error is errLied if
// another machine may be tried.
func (f *fetch) refuse() error {
	f.c.o.Counters.Refused.Add(1)
	for name, d := range f.from {
		f.c.bar(name, d)
		f.exclude = append(f.exclude, name)
	}
	f.c.o.Logger.Warn("content: a blob of other machines is not what was asked for; it is fetched again, and they are not asked for some time",
		"digest", f.digest, "from", slices.Sorted(maps.Keys(f.from)))
	if f.lost += time.Since(f.since); f.refused {
		f.lost = budget
	}
	clear(f.from)
	f.offset, f.refused = 0, true
	if err := f.to.Truncate(0); err != nil {
		return fmt.Errorf("%w: %w", errSink, err)
	}
	return errLied
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
	errBusy   = errors.New("the machine sends as much as it may")
	errSlow   = errors.New("the machine sends too slowly")
	errAbsent = errors.New("the machine does not have it")
	errLied   = errors.New("the machine sent something else")
	errSink   = errors.New("content: the blob cannot be written")
)

// find asks the servers one after the other, in an order that is the same for all askers: so one server knows all who
// asked for a blob.
func (f *fetch) find(ctx context.Context) []string {
	body, err := json.Marshal(findRequest{f.c.o.Node, f.digest, f.exclude[max(0, len(f.exclude)-maxExcluded):]})
	if err != nil {
		return nil
	}
	for _, server := range f.c.servers(f.digest) {
		if f.lost >= budget || ctx.Err() != nil {
			break
		}
		start := time.Now()
		nodes, err := f.c.ask(ctx, server, min(findTimeout, budget-f.lost), body)
		f.lost += time.Since(start)
		if err == nil {
			return nodes
		}
		f.c.setMute(server)
		f.c.o.Logger.Debug("content: a server did not say who has a blob", "server", server, "error", err)
	}
	return nil
}

// ask asks one server who has a blob.
func (c *Client) ask(ctx context.Context, server string, within time.Duration, body []byte) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
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
	err := error(dialError{})
	if !f.c.isIndirect(node) {
		err = f.receiveFrom(ctx, node, node)
	}
	if _, apart := errors.AsType[dialError](err); !apart || f.lost >= budget || ctx.Err() != nil {
		return err
	}
	f.c.setIndirect(node)
	servers := f.c.servers(f.digest)
	if len(servers) == 0 {
		return err
	}
	return f.receiveFrom(ctx, node, servers[0])
}

// receiveFrom requests a machine's blob from it, or from a server that passes it on.
func (f *fetch) receiveFrom(ctx context.Context, node, host string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watch{window: wholeWindow + dialTimeout, least: wholeLeast, budget: budget - f.lost, slow: func() { cancel(errSlow) }}
	defer func() { f.lost += w.waited }()
	of := node
	if host == node {
		of = ""
	}
	var answer *http.Response
	if err := w.during(func() (err error) {
		answer, err = request(ctx, f.c.direct, host, f.digest, f.offset, of)
		return err
	}); err != nil {
		return err
	}
	defer answer.Body.Close()
	switch {
	case !isServer(answer.TLS) && nodeOf(answer.TLS) != host:
		return fmt.Errorf("content: another machine answers for %s", host)
	case answer.StatusCode == http.StatusForbidden && host == node:
		return dialError{errors.New("the machine does not know this one")} // a server may
	case answer.StatusCode == http.StatusServiceUnavailable:
		return errBusy
	case answer.StatusCode == http.StatusNotFound:
		return errAbsent
	case answer.StatusCode != http.StatusOK || answer.ContentLength != f.size-f.offset:
		return fmt.Errorf("content: %s with %d bytes", answer.Status, answer.ContentLength)
	}
	bar := barredFor
	w.window = wholeWindow
	if answer.Header.Get(partialHeader) != "" {
		bar, w.window, w.least = brokenFor, partialWindow, partialLeast
	}
	if f.offset == 0 {
		f.since = time.Now()
	}
	return f.copy(answer.Body, w, func() { f.from[node] = max(f.from[node], bar) })
}

// copy appends a machine's answer to the sink. It ends if a window brings less than it has to.
func (f *fetch) copy(from io.Reader, w *watch, sent func()) error {
	buffer := make([]byte, chunk)
	for f.offset < f.size {
		n := 0
		err := w.during(func() (err error) {
			n, err = from.Read(buffer[:min(int64(len(buffer)), f.size-f.offset)])
			w.received += int64(n)
			return err
		})
		if n > 0 {
			sent()
			if _, err := f.to.Write(buffer[:n]); err != nil {
				return fmt.Errorf("%w: %w", errSink, err)
			}
			f.offset += int64(n)
		}
		if err != nil && f.offset < f.size {
			return err
		}
	}
	return nil
}

// watch ends a transfer that is too slow. Only the time counts in which this machine waits for the other one: a slow
// disk is not its fault.
type watch struct {
	window, budget time.Duration
	least          int64
	slow           func()

	received int64         // in the present window
	waited   time.Duration // the same
}

// during does something that waits for the other machine.
func (w *watch) during(wait func() error) error {
	if w.received >= w.least {
		w.received, w.waited = 0, 0
	}
	start := time.Now()
	timer := time.AfterFunc(max(min(w.window, w.budget)-w.waited, 0), w.slow)
	err := wait()
	timer.Stop()
	w.waited += time.Since(start)
	return err
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

// servers returns the servers in the order in which they are asked about a blob. Those that did not answer are last.
func (c *Client) servers(d digest.Digest) []string {
	all := inOrder(c.o.Servers(), d)
	c.mu.Lock()
	defer c.mu.Unlock()
	late := func(server string) int {
		if c.mute.has(server) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b string) int { return late(a) - late(b) })
	return all
}

func (c *Client) setMute(server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute.set(server, brokenFor)
}

func (c *Client) isIndirect(node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.indirect.has(node)
}

func (c *Client) setIndirect(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.indirect.names() // forgets the others
	c.indirect.set(node, indirectFor)
}

// barredNow returns the machines that are not asked at present.
func (c *Client) barredNow() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.barred.names()
}

func (c *Client) bar(node string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.barred.set(node, d)
}
