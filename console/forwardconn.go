// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	// maxForwardError limits a node's message about a failed connection, in bytes.
	maxForwardError = 4 << 10
	// forwardDial limits the time for opening a connection to a pod.
	forwardDial = 30 * time.Second
)

// dial connects to the pod, by WebSocket, or by SPDY where an older API has only that. Each connection of a browser has
// its own connection to the API, so that one that is blocked or fails does not affect the others.
func (f *forward) dial(ctx context.Context) (httpstream.Connection, error) {
	dialer, err := f.dialer()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, forwardDial)
	defer cancel()
	conn, err := await(ctx, func() (httpstream.Connection, error) {
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		return conn, err //nolint:wrapcheck // below
	}, func(late httpstream.Connection) { _ = late.Close() })
	if refused := refusedUpgrade(err); refused != nil {
		return nil, refused
	}
	return conn, err
}

// await runs f, which takes no context and may be slow. It waits for f no longer than ctx. When f returns later, late
// receives its value.
func await[T any](ctx context.Context, f func() (T, error), late func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				late(r.value)
			}
		}()
		var none T
		return none, fmt.Errorf("waiting for the pod's node: %w", ctx.Err())
	}
}

// refusedUpgrade returns the response of an API that supports WebSockets but did not open one: the user has not the
// permission, or the pod does not exist.
func refusedUpgrade(err error) error {
	var upgrade *httpstream.UpgradeFailureError
	var status *apierrors.StatusError
	if errors.As(err, &upgrade) && errors.As(upgrade.Cause, &status) {
		return status
	}
	return nil
}

func (f *forward) dialer() (httpstream.Dialer, error) {
	base, _, err := rest.DefaultServerUrlFor(f.u.config)
	if err != nil {
		return nil, fmt.Errorf("the address of the API: %w", err)
	}
	target := base.JoinPath(f.path, "portforward")
	ws, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, f.u.config)
	if err != nil {
		return nil, fmt.Errorf("using the credentials: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(f.u.config)
	if err != nil {
		return nil, fmt.Errorf("using the credentials: %w", err)
	}
	older := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	return portforward.NewFallbackDialerForStreaming(ws, older, func(err error) bool {
		return refusedUpgrade(err) == nil && (httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err))
	}), nil
}

// serve connects a browser with the pod, until one of them ends the connection. It returns only errors of the pod's
// connection.
func (f *forward) serve(ctx context.Context, local net.Conn) error {
	defer func() { _ = local.Close() }() // the browser may have closed it
	remote, err := f.dial(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the pod: %w", err)
	}
	defer func() { _ = remote.Close() }() // both ends have ended
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close() // ends the copying
		_ = remote.Close()
	})
	defer stop()
	failures, err := f.newStream(ctx, remote, corev1.StreamTypeError)
	if err != nil {
		return fmt.Errorf("connecting to the pod: %w", err)
	}
	_ = failures.Close() // says that the console writes nothing to it
	data, err := f.newStream(ctx, remote, corev1.StreamTypeData)
	if err != nil {
		return fmt.Errorf("connecting to the pod: %w", err)
	}
	go func() {
		_, _ = io.Copy(data, local) // the end of the browser's data ends the copying below
		_ = data.Close()            // says that no more data follows
	}()
	_, err = io.Copy(struct{ io.Writer }{local}, data)
	_ = local.Close() // ends the copying in the other direction
	if network, ok := errors.AsType[*net.OpError](err); ok && network.Op == "write" {
		return nil // the browser does not read any more
	}
	_ = data.Reset() // data that is not sent yet would delay the node's error
	said, _ := io.ReadAll(io.LimitReader(failures, maxForwardError))
	if text := strings.TrimSpace(string(said)); text != "" {
		return errors.New(text)
	}
	if err != nil {
		return fmt.Errorf("the connection to the pod: %w", err)
	}
	return nil
}

// newStream opens one of the two streams of a connection to a port.
func (f *forward) newStream(ctx context.Context, remote httpstream.Connection, kind string) (httpstream.Stream, error) {
	header := http.Header{}
	header.Set(corev1.StreamType, kind)
	header.Set(corev1.PortHeader, strconv.Itoa(f.state.Port)) // the port does not change
	header.Set(corev1.PortForwardRequestIDHeader, "0")
	// CreateStream waits for the node for half a minute, even when the connection has ended.
	return await(ctx, func() (httpstream.Stream, error) { return remote.CreateStream(header) }, func(late httpstream.Stream) {
		_ = late.Reset() // otherwise the connection would wait for it
	})
}
