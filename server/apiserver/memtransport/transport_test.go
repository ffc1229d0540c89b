// SPDX-License-Identifier: Apache-2.0

package memtransport_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const patience = 2 * time.Minute

// serve returns a client of a handler. At the end of the test every handler must have returned.
func serve(t *testing.T, h http.HandlerFunc) (*http.Client, *memtransport.Transport) {
	t.Helper()
	tr := memtransport.New(memtransport.Options{Logger: slog.New(slog.DiscardHandler)})
	tr.SetHandler(h)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		testenv.Check(t, tr.Close(ctx))
		testenv.NoGoroutineLeft(t)
	})
	return &http.Client{Transport: tr}, tr
}

func request(t *testing.T, ctx context.Context, method, path string, body io.Reader) *http.Request {
	t.Helper()
	return testenv.Must(http.NewRequestWithContext(ctx, method, "https://memory"+path, body))(t)
}

func do(t *testing.T, c *http.Client, r *http.Request) *http.Response {
	t.Helper()
	resp := testenv.Must(c.Do(r))(t)
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing happened", what)
	}
}

func TestRequestAsAServerSeesIt(t *testing.T) {
	type key struct{}
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s host=%s q=%s remote=%s len=%d body=%s %v auth=%s abs=%v tls=%v value=%v",
			r.Method, r.URL.Path, r.RequestURI, r.Host, r.URL.RawQuery, r.RemoteAddr, r.ContentLength, body, err,
			r.Header.Get("Authorization"), r.URL.IsAbs(), r.TLS != nil, r.Context().Value(key{}))
	})
	r := request(t, context.WithValue(t.Context(), key{}, "secret of the caller"), http.MethodPut, "/a/b?c=d", strings.NewReader("xyz"))
	r.Header.Set("Authorization", "Bearer t")
	resp := do(t, c, r)
	got, err := io.ReadAll(resp.Body)
	want := "PUT /a/b /a/b?c=d host=memory q=c=d remote=127.0.0.1:0 len=3 body=xyz <nil> auth=Bearer t abs=false tls=false value=<nil>"
	testenv.False(t, err != nil || string(got) != want, "got  %s, %v\nwant %s", got, err, want)
	if resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || resp.StatusCode != http.StatusOK || resp.Status != "200 OK" {
		t.Errorf("%s, %v", resp.Status, resp.Header)
	}
	testenv.Equal(t, r.URL.Host, "memory", "the caller's request was changed:")
}

func TestFlushedLineArrivesAtOnce(t *testing.T) {
	next := make(chan struct{})
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		for i := range 3 {
			<-next
			fmt.Fprintf(w, "line %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	resp := do(t, c, request(t, t.Context(), http.MethodGet, "/", nil))
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		next <- struct{}{}
		line, err := lines.ReadString('\n')
		testenv.Require(t, err == nil && line == fmt.Sprintf("line %d\n", i), "%q, %v", line, err)
	}
	if _, err := lines.ReadByte(); err != io.EOF {
		t.Errorf("after the handler's end: %v", err)
	}
}

func TestLargeBodiesPassWhole(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB, many times the buffer
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		testenv.Check(t, testenv.Err(io.Copy(w, r.Body)))
	})
	resp := do(t, c, request(t, t.Context(), http.MethodPost, "/", bytes.NewReader(data)))
	got, err := io.ReadAll(resp.Body)
	testenv.False(t, err != nil || !bytes.Equal(got, data), "%d bytes of %d, %v", len(got), len(data), err)
}

// TestHandlerBlocksWhileClientDoesNotRead wants a handler to stand still while the client does not read.
func TestHandlerBlocksWhileClientDoesNotRead(t *testing.T) {
	var written atomic.Int64
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		chunk := make([]byte, 8<<10)
		for {
			n, err := w.Write(chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	resp := do(t, c, request(t, t.Context(), http.MethodGet, "/", nil))
	testenv.Must(io.ReadFull(resp.Body, make([]byte, 1<<20)))(t)
	resp.Body.Close()
	if n := written.Load(); n > 1<<20+memtransport.PipeBuffer+16<<10 {
		t.Errorf("%d bytes were written for one MiB that was read", n)
	}
}

// TestHandlersContextEndsWithClients wants the handler's context to end when the client's does, or when it closes the
// body.
func TestHandlersContextEndsWithClients(t *testing.T) {
	for _, test := range []struct {
		name   string
		leave  func(cancel context.CancelFunc, resp *http.Response)
		reader error
	}{
		{"cancel", func(cancel context.CancelFunc, _ *http.Response) { cancel() }, context.Canceled},
		{"close", func(_ context.CancelFunc, resp *http.Response) { resp.Body.Close() }, http.ErrBodyReadAfterClose},
	} {
		t.Run(test.name, func(t *testing.T) {
			gone := make(chan struct{})
			c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				defer close(gone)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				<-w.(http.CloseNotifier).CloseNotify() //nolint:staticcheck // upstream still uses it
				testenv.Fails(t, testenv.Err(w.Write([]byte("x"))), "a write without a reader succeeds")
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp := do(t, c, request(t, ctx, http.MethodGet, "/", nil))
			test.leave(cancel, resp)
			within(t, "the handler's end", gone)
			if _, err := resp.Body.Read(make([]byte, 1)); !errors.Is(err, test.reader) {
				t.Errorf("Read: %v, want %v", err, test.reader)
			}
		})
	}
}

func TestCancelBeforeTheHeader(t *testing.T) {
	entered, gone := make(chan struct{}), make(chan struct{})
	c, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		defer close(gone)
		close(entered)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	testenv.ErrorIs(t, testenv.Err(c.Do(request(t, ctx, http.MethodGet, "/", nil))), context.Canceled)
	within(t, "the handler's end", gone)
}

// lateContext is a client that looks whether it was cancelled only when the handler has ended.
type lateContext struct {
	context.Context
	check func()
}

func (c *lateContext) Done() <-chan struct{} {
	if c.check != nil {
		c.check()
	}
	return c.Context.Done()
}

// What a handler leaves behind because its client has gone is no answer: without a header that would be "200 OK".
func TestNoAnswerAfterCancel(t *testing.T) {
	for range 50 { // which of two things that are ready is taken is left to chance
		inner, cancel := context.WithCancel(t.Context())
		client := &lateContext{Context: inner}
		var tr *memtransport.Transport
		tr = memtransport.New(memtransport.Options{Context: func(ctx context.Context) context.Context {
			client.check = tr.WaitInFlight // from here on RoundTrip only waits for the answer
			cancel()
			return ctx
		}})
		tr.SetHandler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		if resp, err := tr.RoundTrip(request(t, client, http.MethodGet, "/", nil)); !errors.Is(err, context.Canceled) {
			t.Fatalf("%v, %v, want cancelled", resp, err)
		}
		testenv.Check(t, tr.Close(t.Context()))
	}
}

func TestClientTimeoutEndsRequest(t *testing.T) {
	c, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	c.Timeout = 10 * time.Millisecond
	_, err := c.Do(request(t, t.Context(), http.MethodGet, "/", nil))
	var timeout interface{ Timeout() bool }
	testenv.False(t, !errors.As(err, &timeout) || !timeout.Timeout(), "%v, want a timeout", err)
}

func TestPanicOfHandlerIsTheClientsError(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(http.ResponseWriter)
		value  any
	}{
		{"before the header", func(http.ResponseWriter) {}, "boom"},
		{"abort before the header", func(http.ResponseWriter) {}, http.ErrAbortHandler},
		{"in the body", func(w http.ResponseWriter) { fmt.Fprint(w, "half") }, "boom"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				test.before(w)
				panic(test.value)
			})
			resp, err := c.Do(request(t, t.Context(), http.MethodGet, "/", nil))
			if err != nil {
				return // refused as a whole: as good as a broken connection
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			testenv.False(t, !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "half", "%q, %v", got, err)
		})
	}
}

func TestStatusesWithoutABody(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/silent":
		case "/none":
			w.WriteHeader(http.StatusNoContent)
			testenv.ErrorIs(t, testenv.Err(w.Write([]byte("x"))), http.ErrBodyNotAllowed, "Write after 204")
		default:
			w.Header().Set("Content-Length", "5")
			fmt.Fprint(w, "hello")
		}
	})
	for _, test := range []struct {
		method, path string
		status       int
		length       int64
		body         string
	}{
		{"GET", "/silent", 200, 0, ""}, {"GET", "/none", 204, 0, ""}, {"GET", "/hello", 200, 5, "hello"}, {"HEAD", "/hello", 200, 5, ""},
	} {
		resp := do(t, c, request(t, t.Context(), test.method, test.path, nil))
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != test.status || resp.ContentLength != test.length || string(body) != test.body {
			t.Errorf("%s %s: %d, length %d, %q, %v", test.method, test.path, resp.StatusCode, resp.ContentLength, body, err)
		}
	}
}

func TestHeaderIsASnapshot(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("A", "1")
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("A", "2")
		w.WriteHeader(http.StatusOK)
	})
	resp := do(t, c, request(t, t.Context(), http.MethodGet, "/", nil))
	testenv.False(t, resp.StatusCode != http.StatusTeapot || resp.Header.Get("A") != "1", "%d, %v", resp.StatusCode, resp.Header)
}

func TestUpgradesAreRefused(t *testing.T) {
	c, _ := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") })
	r := request(t, t.Context(), http.MethodPost, "/exec", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "SPDY/3.1")
	testenv.WantError(t, testenv.Err(c.Do(r)), "SPDY/3.1")
}

// closer tells when a request's body is closed.
type closer struct {
	io.Reader
	closed chan struct{}
}

func (c *closer) Close() error {
	close(c.closed) // panics when closed twice
	return nil
}

func TestRequestBodyIsClosedOnce(t *testing.T) {
	read := make(chan error, 1)
	var kept io.Reader
	c, tr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/close" {
			r.Body.Close()
		}
		kept = r.Body
	})
	for _, path := range []string{"/ignore", "/close"} {
		body := &closer{strings.NewReader("x"), make(chan struct{})}
		do(t, c, request(t, t.Context(), http.MethodPost, path, body))
		within(t, "closing the body", body.closed)
		_, err := kept.Read(make([]byte, 1))
		read <- err
		testenv.ErrorIs(t, <-read, http.ErrBodyReadAfterClose, "%s: reading on", path)
	}
	testenv.NoError(t, tr.Close(t.Context()))
	body := &closer{strings.NewReader("x"), make(chan struct{})}
	testenv.ErrorIs(t, testenv.Err(c.Do(request(t, t.Context(), http.MethodPost, "/", body))), memtransport.ErrNotServing, "after Close")
	within(t, "closing the body of a refused request", body.closed)
}

// TestCloseEndsHandlers wants Close to cancel what is under way and to wait for it.
func TestCloseEndsHandlers(t *testing.T) {
	var ended atomic.Bool
	c, tr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		ended.Store(true)
	})
	resp := do(t, c, request(t, t.Context(), http.MethodGet, "/watch", nil))
	testenv.NoError(t, tr.Close(t.Context()))
	testenv.True(t, ended.Load(), "Close returned before the handler")
	testenv.Check(t, testenv.Err(io.ReadAll(resp.Body)), "a stream that the handler ended")
}

func TestRequestsWaitUntilServing(t *testing.T) {
	tr := memtransport.New(memtransport.Options{})
	c := &http.Client{Transport: tr}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled, served := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.Do(request(t, ctx, http.MethodGet, "/", nil))
		cancelled <- err
	}()
	cancel()
	testenv.ErrorIs(t, <-cancelled, context.Canceled, "a client that does not wait")
	go func() {
		resp, err := c.Do(request(t, t.Context(), http.MethodGet, "/", nil))
		if err == nil {
			resp.Body.Close()
		}
		served <- err
	}()
	tr.SetHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	testenv.Check(t, <-served, "a client that waits")
	testenv.NoError(t, tr.Close(t.Context()))

	never := memtransport.New(memtransport.Options{})
	go func() {
		_, err := (&http.Client{Transport: never}).Do(request(t, context.Background(), http.MethodGet, "/", nil))
		served <- err
	}()
	testenv.NoError(t, never.Close(t.Context()))
	testenv.ErrorIs(t, <-served, memtransport.ErrNotServing, "a server that never came")
}

// A transport's own values reach the handler, and the client's do not.
func TestHandlerGetsOnlyTransportsContextValues(t *testing.T) {
	type key string
	tr := memtransport.New(memtransport.Options{Context: func(ctx context.Context) context.Context { return context.WithValue(ctx, key("term"), 7) }})
	tr.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Context().Value(key("term")), r.Context().Value(key("client")))
		testenv.True(t, r.Context().Err() == nil, "cancelled")
	}))
	ctx := context.WithValue(t.Context(), key("client"), "me")
	marked := tr.Marked(func(ctx context.Context) context.Context { return context.WithValue(ctx, key("term"), 8) })
	for want, transport := range map[string]http.RoundTripper{"7 <nil>": tr, "8 <nil>": marked} {
		resp := do(t, &http.Client{Transport: transport}, request(t, ctx, http.MethodGet, "/", nil))
		testenv.Equal(t, string(testenv.Must(io.ReadAll(resp.Body))(t)), want, "")
	}
	testenv.NoError(t, tr.Close(t.Context()))
}
