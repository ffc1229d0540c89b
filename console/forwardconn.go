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
	// maxForwardError bounds what a node says about a connection that failed, in bytes.
	maxForwardError = 4 << 10
	// forwardDial bounds how long a connection to a pod may take to open.
	forwardDial = 30 * time.Second
)

// dial connects to the pod, by WebSocket, or by SPDY where an older API has only that. Each connection of a browser has
// one of its own to the API: one that is blocked or fails is nothing to the others.
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

// await runs f, which takes no context and may be slow. It waits for f no longer than ctx; late then gets what f
// returns.
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

// refusedUpgrade is what an API that understands WebSockets answered instead of opening one: the user has not the
// right, or the pod is gone.
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

// serve connects a browser with the pod, until one of them ends. An error is one of the pod's side.
func (f *forward) serve(ctx context.Context, local net.Conn) error {
	defer func() { _ = local.Close() }() // the browser may have closed it
	remote, err := f.dial(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the pod: %w", err)
	}
	defer func() { _ = remote.Close() }() // both sides have ended
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close() // ends the copying
		_ = remote.Close()
	})
	defer stop()
	failures, err := f.newStream(ctx, remote, corev1.StreamTypeError)
	if err != nil {
		return fmt.Errorf("connecting to the pod: %w", err)
	}
	_ = failures.Close() // says that we write nothing to it
	data, err := f.newStream(ctx, remote, corev1.StreamTypeData)
	if err != nil {
		return fmt.Errorf("connecting to the pod: %w", err)
	}
	go func() {
		_, _ = io.Copy(data, local) // what the browser does not send any more ends the connection below
		_ = data.Close()            // says that nothing more comes
	}()
	_, err = io.Copy(struct{ io.Writer }{local}, data)
	_ = local.Close() // ends the copying in the other direction
	if network, ok := errors.AsType[*net.OpError](err); ok && network.Op == "write" {
		return nil // the browser does not read any more
	}
	_ = data.Reset() // what is not sent yet would hold up the node's error
	said, _ := io.ReadAll(io.LimitReader(failures, maxForwardError))
	if text := strings.TrimSpace(string(said)); text != "" {
		return errors.New(text)
	}
	if err != nil {
		return fmt.Errorf("the connection to the pod: %w", err)
	}
	return nil
}

// newStream opens one of the two streams that a connection to a port has.
func (f *forward) newStream(ctx context.Context, remote httpstream.Connection, kind string) (httpstream.Stream, error) {
	header := http.Header{}
	header.Set(corev1.StreamType, kind)
	header.Set(corev1.PortHeader, strconv.Itoa(f.state.Port)) // which does not change
	header.Set(corev1.PortForwardRequestIDHeader, "0")
	// It waits for the node for half a minute, even when the connection has ended.
	return await(ctx, func() (httpstream.Stream, error) { return remote.CreateStream(header) }, func(late httpstream.Stream) {
		_ = late.Reset() // else the connection would wait for it
	})
}
