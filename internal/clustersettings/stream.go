// SPDX-License-Identifier: Apache-2.0

package clustersettings

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// Path is the path at which an API server serves the stream. A request names each ConfigMap in a query parameter called
// Parameter. The stream begins with an Event for each of them, and has another one for each change. A server that does
// not know one of the names replies 404. An identity that may not watch all of the ConfigMaps gets 403.
const (
	Path      = "/coracle/settings"
	Parameter = "name"
)

// Event is the new data of one ConfigMap. It is one line of the stream.
type Event struct {
	Name string `json:"name"`
	// Data is null where there is no such ConfigMap.
	Data Data `json:"data"`
}

const (
	// eventTimeout is how long a new stream may be without a byte before its first event is complete.
	eventTimeout = 15 * time.Second
	// shortestPause is the pause before the next request for a stream. It is doubled each time up to longestPause. A
	// stream that lasted longer than longestPause is requested again at once.
	shortestPause, longestPause = 200 * time.Millisecond, 5 * time.Second
)

// errTimeout is the cause with which a stream is cancelled.
var errTimeout = fmt.Errorf("the server sent no setting for %s", eventTimeout)

// Options are the options of a StreamClient. All are required.
type Options struct {
	Client kubernetes.Interface
	// Names are the ConfigMaps to follow, some or all of those that the function Names returns.
	Names  []string
	Logger *slog.Logger
}

// StreamClient follows several ConfigMaps in one stream. While it has no stream, it keeps the data of the last one. It
// never returns to an earlier state, whichever servers it uses: each stream begins with linearizable reads.
type StreamClient struct {
	*Cache
	names []string
	log   *slog.Logger
	open  func(context.Context) (io.ReadCloser, error)
}

// NewStreamClient makes a client that follows nothing until Run is called.
func NewStreamClient(o Options) *StreamClient {
	return &StreamClient{
		Cache: NewCache(), names: o.Names, log: o.Logger,
		open: func(ctx context.Context) (io.ReadCloser, error) {
			r := o.Client.CoreV1().RESTClient().Get().AbsPath(Path)
			for _, name := range o.Names {
				r = r.Param(Parameter, name)
			}
			return r.Stream(ctx)
		},
	}
}

// Run follows the ConfigMaps until ctx is done. It runs in the caller's goroutine.
func (c *StreamClient) Run(ctx context.Context) {
	pause, failing := shortestPause, false
	for ctx.Err() == nil {
		began := time.Now()
		received, err := c.receive(ctx)
		if received {
			failing = false
			if time.Since(began) > longestPause {
				pause = shortestPause
				continue
			}
		}
		if ctx.Err() == nil && !received && !failing { // logged on change
			failing = true
			c.log.Info("the settings of kube-system cannot be followed; those that are known stay in force, "+
				"and the stream is requested again", "error", err)
		}
		timers.Sleep(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, longestPause)
	}
}

// receive follows one stream until it ends, and reports whether it received an event for a ConfigMap of c.names.
func (c *StreamClient) receive(ctx context.Context) (received bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(eventTimeout, func() { cancel(errTimeout) })
	defer late.Stop()
	stream, err := c.open(ctx)
	if err != nil {
		return false, cmp.Or(context.Cause(ctx), err)
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })() // a Read may be blocked
	arriving := reader(func(to []byte) (int, error) {
		n, err := stream.Read(to)
		if !received && n > 0 { // the first event may be large and the network slow
			late.Reset(eventTimeout)
		}
		return n, err
	})
	for events := json.NewDecoder(arriving); ; {
		var e Event
		if err := events.Decode(&e); err != nil {
			return received, fmt.Errorf("the settings stream has ended: %w", cmp.Or(context.Cause(ctx), err))
		}
		if !slices.Contains(c.names, e.Name) { // a later version's ConfigMap
			continue
		}
		late.Stop()
		received = true
		c.Set(e.Name, e.Data)
	}
}

// reader makes an io.Reader of a function.
type reader func([]byte) (int, error)

func (r reader) Read(to []byte) (int, error) { return r(to) }
