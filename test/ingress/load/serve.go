// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
)

// serve answers until it is asked to end. Then it ends websockets with "going away" and streams with success, so that
// clients know that nothing was lost.
func serve(args []string) error {
	port := "8080"
	if len(args) > 0 {
		port = args[0]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	streams := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(streams, &echoes{ctx: ctx})
	var open sync.WaitGroup // websockets, of which http.Server knows nothing
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			streams.ServeHTTP(w, r)
		case r.URL.Path == echoPath && r.Header.Get("Upgrade") != "":
			open.Add(1)
			defer open.Done()
			echo(ctx, w, r)
		case r.URL.Path == echoPath:
			_, _ = io.Copy(w, r.Body)
		default:
			fmt.Fprintln(w, r.Proto, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"))
		}
	})
	s := &http.Server{Addr: ":" + port, Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan error, 1) // one send
	go func() { ended <- s.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := s.Shutdown(limited)
	open.Wait()
	return err
}

// echo sends back what comes on a websocket.
func echo(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() {
		_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Now().Add(5*time.Second))
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second)) // for a client that does not answer
	})()
	for {
		kind, text, err := conn.ReadMessage()
		if err != nil {
			return // the client's close, or its answer to ours
		}
		if err := conn.WriteMessage(kind, text); err != nil {
			return
		}
	}
}

type echoes struct {
	grpc_testing.UnimplementedTestServiceServer
	ctx context.Context // of the server
}

// UnaryCall implements the service of gRPC's own tests.
func (e *echoes) UnaryCall(_ context.Context, r *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Payload: r.GetPayload()}, nil
}

// FullDuplexCall sends back what comes.
func (e *echoes) FullDuplexCall(s grpc_testing.TestService_FullDuplexCallServer) error {
	requests := make(chan *grpc_testing.StreamingOutputCallRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		select {
		case <-e.ctx.Done():
			return nil
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if err := s.Send(&grpc_testing.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
				return errors.Join(err, s.Context().Err())
			}
		}
	}
}
