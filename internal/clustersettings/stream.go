// SPDX-License-Identifier: Apache-2.0

package clustersettings

import (
	"context"
	"io"
	"log/slog"
	"slices"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/nodestream"
)

// Path is the path at which an API server serves the stream. A request names each ConfigMap in a query parameter called
// Parameter. The stream begins with an Event for each of them, and has another one for each change. A server leaves out
// names that it does not know, and replies 404 if it knows none. An identity that may not watch all of the ConfigMaps
// gets 403.
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
	stream nodestream.Client[Event]
}

// NewStreamClient makes a client that follows nothing until Run is called.
func NewStreamClient(o Options) *StreamClient {
	return newStreamClient(o.Names, o.Logger, func(ctx context.Context) (io.ReadCloser, error) {
		r := o.Client.CoreV1().RESTClient().Get().AbsPath(Path)
		for _, name := range o.Names {
			r = r.Param(Parameter, name)
		}
		return r.Stream(ctx)
	})
}

func newStreamClient(names []string, log *slog.Logger, open func(context.Context) (io.ReadCloser, error)) *StreamClient {
	c := NewCache()
	return &StreamClient{c, nodestream.Client[Event]{
		Open: open, Logger: log,
		Failure: "the settings of kube-system cannot be followed; those that are known stay in force, and the stream is requested again",
		Receiver: func() func(Event) bool {
			return func(e Event) bool {
				if !slices.Contains(names, e.Name) {
					return false
				}
				c.Set(e.Name, e.Data)
				return true
			}
		},
	}}
}

// Run follows the ConfigMaps until ctx is done. It runs in the caller's goroutine.
func (c *StreamClient) Run(ctx context.Context) { c.stream.Run(ctx) }
