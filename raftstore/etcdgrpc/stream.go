// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"errors"
	"io"

	"google.golang.org/grpc"
)

// receive returns a channel of a stream's requests, so that its handler can also wait for other events. Its goroutine
// ends with the stream, which ends when the handler returns.
func receive[Q, A any](stream grpc.BidiStreamingServer[Q, A]) (requests <-chan *Q, failed <-chan error) {
	out, failure := make(chan *Q), make(chan error, 1) // capacity 1: the only failure may not be received
	ctx := stream.Context()
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failure <- err
				return
			}
			select {
			case out <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, failure
}

// endOfStream returns the error for a handler whose client has ended the stream or is gone.
func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
