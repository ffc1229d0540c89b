// SPDX-License-Identifier: Apache-2.0

package nodestream

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// MessageTimeout is how long a new stream may be without a byte before its first message is complete.
	MessageTimeout = 15 * time.Second
	// minPause is the pause before the next request for a stream. It is doubled each time up to MaxPause. A stream that
	// lasted longer than MaxPause is requested again at once.
	minPause, MaxPause = 200 * time.Millisecond, 5 * time.Second
)

// errTimeout is the cause with which a stream is cancelled.
var errTimeout = fmt.Errorf("the server sent no message for %s", MessageTimeout)

// Client follows a stream of messages of type M in JSON. All fields are required.
type Client[M any] struct {
	// Open requests a stream.
	Open func(context.Context) (io.ReadCloser, error)
	// Receiver returns the function that receives the messages of a new stream. That returns false for a message of a
	// later version, which is no sign of a working stream.
	Receiver func() func(M) (known bool)
	// Failure is logged when a stream fails without a message, until a message is received.
	Failure string
	Logger  *slog.Logger
}

// Run follows the stream until ctx is done. It runs in the caller's goroutine.
func (c Client[M]) Run(ctx context.Context) {
	pause, failing := minPause, false
	for ctx.Err() == nil {
		began := time.Now()
		received, err := c.receive(ctx)
		if received {
			failing = false
			if time.Since(began) > MaxPause {
				pause = minPause
				continue
			}
		}
		if ctx.Err() == nil && !received && !failing { // logged on change
			failing = true
			c.Logger.Info(c.Failure, "error", err)
		}
		timers.Sleep(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, MaxPause)
	}
}

// receive follows one stream until it ends, and reports whether it received a known message.
func (c Client[M]) receive(ctx context.Context) (received bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout := time.AfterFunc(MessageTimeout, func() { cancel(errTimeout) })
	defer timeout.Stop()
	stream, err := c.Open(ctx)
	if err != nil {
		return false, cmp.Or(context.Cause(ctx), err)
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })() // a Read may be blocked
	arriving := reader(func(to []byte) (int, error) {
		n, err := stream.Read(to)
		if !received && n > 0 { // the first message may be large and the network slow
			timeout.Reset(MessageTimeout)
		}
		return n, err
	})
	receive := c.Receiver()
	for messages := json.NewDecoder(arriving); ; {
		var m M
		if err := messages.Decode(&m); err != nil {
			return received, fmt.Errorf("the stream has ended: %w", cmp.Or(context.Cause(ctx), err))
		}
		if receive(m) {
			timeout.Stop()
			received = true
		}
	}
}

// reader makes an io.Reader of a function.
type reader func([]byte) (int, error)

func (r reader) Read(to []byte) (int, error) { return r(to) }
