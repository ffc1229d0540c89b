// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
)

// Report is what has happened since the line before.
type Report struct {
	Name     string         `json:"name"`
	Seconds  float64        `json:"seconds"`
	Done     map[string]int `json:"done"`    // by protocol
	Failed   map[string]int `json:"failed"`  // by protocol
	Renewed  map[string]int `json:"renewed"` // conversations that a pod has ended, and requests of HTTP/3 that a proxy had not begun with
	P50      float64        `json:"p50ms"`
	P99      float64        `json:"p99ms"`
	Longest  float64        `json:"longestMs"`
	FirstBad float64        `json:"firstFailureAfterSeconds,omitempty"`
	LastBad  float64        `json:"lastFailureAfterSeconds,omitempty"` // when it began
	Examples []string       `json:"examples,omitempty"`
}

// tally counts until the next report.
type tally struct {
	mu    sync.Mutex
	began time.Time
	now   Report
	took  []float64
}

func (t *tally) reset() {
	t.began, t.took = time.Now(), nil
	t.now = Report{Done: map[string]int{}, Failed: map[string]int{}, Renewed: map[string]int{}}
}

// note counts one attempt that began at a time.
func (t *tally) note(kind string, began time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.now.Done[kind]++
		if len(t.took) < 1<<20 {
			t.took = append(t.took, float64(time.Since(began).Microseconds())/1000)
		}
		return
	}
	t.now.Failed[kind]++
	at := time.Since(t.began).Seconds()
	if t.now.FirstBad == 0 {
		t.now.FirstBad = at
	}
	t.now.LastBad = max(t.now.LastBad, began.Sub(t.began).Seconds())
	if len(t.now.Examples) < 5 {
		t.now.Examples = append(t.now.Examples, fmt.Sprintf("%s at %.2f s: %v", kind, at, err))
	}
}

func (t *tally) renewed(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now.Renewed[kind]++
}

func (t *tally) report(name string) Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.now
	out.Name, out.Seconds = name, time.Since(t.began).Seconds()
	slices.Sort(t.took)
	if n := len(t.took); n > 0 {
		out.P50, out.P99, out.Longest = t.took[n/2], t.took[n*99/100], t.took[n-1]
	}
	t.reset()
	return out
}

// load is all clients.
type load struct {
	host      string
	addresses []string
	tally     tally
}

func clients(args []string) error {
	flags := flag.NewFlagSet("clients", flag.ContinueOnError)
	rate, sockets, streams := flags.Int("rate", 500, "requests a second"), flags.Int("websockets", 100, "websockets"), flags.Int("streams", 20, "streams of gRPC")
	host := flags.String("host", "load.example", "name of the site")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l := &load{host: *host, addresses: flags.Args()}
	if len(l.addresses) == 0 {
		return errors.New("no address is given")
	}
	l.tally.reset()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	// Each asker sends ten requests a second, one after the other.
	for i := range *rate / 10 {
		all.Go(func() { l.ask(ctx, i) })
	}
	for i := range *sockets {
		all.Go(func() { l.converse(ctx, "websocket", i, l.websocket) })
	}
	for i := range *streams {
		all.Go(func() { l.converse(ctx, "grpc", i, l.stream) })
	}
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := out.Encode(l.tally.report(in.Text())); err != nil {
			break
		}
	}
	cancel()
	all.Wait()
	return nil
}

func (l *load) address(i int, port string) string {
	return net.JoinHostPort(l.addresses[i%len(l.addresses)], port)
}

func (l *load) tls() *tls.Config {
	return &tls.Config{ServerName: l.host, InsecureSkipVerify: true} //nolint:gosec // a test's certificate
}

// client has one connection of a protocol, which it renews as clients do.
func (l *load) client(i int) (kind, url string, c *http.Client, fresh func()) {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, at string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(at)
			return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, l.address(i, port))
		},
		TLSClientConfig: l.tls(), MaxConnsPerHost: 1, Protocols: new(http.Protocols),
	}
	c = &http.Client{Transport: tr, Timeout: 30 * time.Second}
	switch i % 5 {
	case 0:
		tr.Protocols.SetHTTP1(true)
		return "http/1.1", "http://" + l.host + echoPath, c, func() {}
	case 1:
		tr.Protocols.SetHTTP1(true)
		return "new connections", "https://" + l.host + echoPath, c, tr.CloseIdleConnections
	case 2:
		tr.Protocols.SetHTTP2(true)
		return "http/2", "https://" + l.host + echoPath, c, func() {}
	}
	h3 := &http3.Transport{TLSClientConfig: l.tls(), Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
		return quic.DialAddr(ctx, l.address(i, "443"), t, q)
	}}
	c.Transport = h3
	if i%5 == 3 {
		return "http/3", "https://" + l.host + echoPath, c, func() {}
	}
	return "http/3 new connections", "https://" + l.host + echoPath, c, h3.CloseIdleConnections
}

// ask sends requests that no client may send a second time by itself, every tenth of a second. Over HTTP/3 it may where
// the server says that it has not begun with it (H3_REQUEST_REJECTED), which is the protocol's way to end a connection
// that is in use (RFC 9114, 5.2); those are counted as renewed.
func (l *load) ask(ctx context.Context, i int) {
	kind, url, client, fresh := l.client(i)
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		began, text := time.Now(), fmt.Sprintf("request %d of %d", n, i)
		body := io.MultiReader(strings.NewReader(text))
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
		if err == nil {
			if strings.HasPrefix(kind, "http/3") {
				r.GetBody = func() (io.ReadCloser, error) {
					l.tally.renewed(kind)
					return io.NopCloser(strings.NewReader(text)), nil
				}
			}
			err = post(client, r, text)
		}
		if ctx.Err() != nil {
			return
		}
		l.tally.note(kind, began, err)
		fresh()
	}
}

func post(c *http.Client, r *http.Request, text string) error {
	res, err := c.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || string(got) != text) {
		err = fmt.Errorf("%s: %.80q", res.Status, got)
	}
	return err
}

// errGoingAway says that the server has ended a conversation properly.
var errGoingAway = errors.New("the server goes away")

// converse holds conversations of which each has an answer every half second, and begins another one when the server
// has ended one.
func (l *load) converse(ctx context.Context, kind string, i int, begin func(context.Context, int) (send func(string) error, end func(), err error)) {
	for n := 0; ctx.Err() == nil; n++ {
		began := time.Now()
		send, end, err := begin(ctx, i)
		for err == nil {
			began = time.Now()
			if err = send(fmt.Sprintf("word %d of %d", n, i)); err == nil {
				l.tally.note(kind, began, nil)
			}
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(500 * time.Millisecond):
			}
		}
		if end != nil {
			end()
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errGoingAway):
			l.tally.renewed(kind)
		default:
			l.tally.note(kind, began, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (l *load) websocket(ctx context.Context, i int) (func(string) error, func(), error) {
	d := websocket.Dialer{TLSClientConfig: l.tls(), HandshakeTimeout: 20 * time.Second, NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, l.address(i, "443"))
	}}
	conn, res, err := d.DialContext(ctx, "wss://"+l.host+echoPath, nil)
	if err != nil {
		if res != nil {
			err = fmt.Errorf("%s: %w", res.Status, err)
		}
		return nil, nil, err
	}
	return func(text string) error {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		err := conn.WriteMessage(websocket.TextMessage, []byte(text))
		var got []byte
		if err == nil || errors.Is(err, websocket.ErrCloseSent) {
			_, got, err = conn.ReadMessage()
		}
		switch {
		case websocket.IsCloseError(err, websocket.CloseGoingAway):
			return errGoingAway
		case err == nil && string(got) != text:
			return fmt.Errorf("the echo is %q", got)
		}
		return err
	}, func() { _ = conn.Close() }, nil
}

func (l *load) stream(ctx context.Context, i int) (func(string) error, func(), error) {
	conn, err := grpc.NewClient("passthrough:///"+l.address(i, "443"), grpc.WithTransportCredentials(credentials.NewTLS(l.tls())), grpc.WithAuthority(l.host))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	end := func() {
		cancel()
		_ = conn.Close()
	}
	s, err := grpc_testing.NewTestServiceClient(conn).FullDuplexCall(ctx)
	if err != nil {
		end()
		return nil, nil, err
	}
	return func(text string) error {
		err := s.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte(text)}})
		if err != nil && !errors.Is(err, io.EOF) { // of which Recv has the reason
			return err
		}
		r, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errGoingAway
		case err == nil && string(r.GetPayload().GetBody()) != text:
			return fmt.Errorf("the echo is %q", r.GetPayload().GetBody())
		}
		return err
	}, end, nil
}
