// SPDX-License-Identifier: Apache-2.0

package clustersettings

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
)

// Path is where a server has the stream. Who asks names the ConfigMaps, each as a parameter Parameter, and hears a Word for each of them at once, and then one for each change. A server that does not
// know one of them answers 404, and all hear 403 who may not watch each of them.
const (
	Path      = "/coracle/settings"
	Parameter = "name"
)

// Word is what stands in a ConfigMap, one line of the stream.
type Word struct {
	Name string `json:"name"`
	// Data are null where there is no such ConfigMap.
	Data Data `json:"data"`
}

const (
	// patience is how long a node does without a stream before it watches each ConfigMap, and for how long a stream that begins may say nothing.
	patience = 15 * time.Second
	// shortestPause, doubled each time up to longestPause, is between two tries of a stream that cannot be had. One that lasted longer than longestPause is asked for again at once.
	shortestPause, longestPause = 200 * time.Millisecond, 5 * time.Second
	// refusedPause is the longest one where a server says that it has no stream for this node. A cluster that has just begun may not know of the right to ask yet; later it is a server of an earlier version.
	refusedPause = 5 * time.Minute
)

// Options are what a Together needs; all are required.
type Options struct {
	Client kubernetes.Interface
	// Names are the ConfigMaps, of Names.
	Names  []string
	Logger *slog.Logger
}

// Together follows several ConfigMaps in one stream, and each by a watch of its own while there is no stream to be had. What it tells never goes back to an earlier state by a change from the one to the other, or
// to another server.
type Together struct {
	names []string
	log   *slog.Logger
	open  func(context.Context) (io.ReadCloser, error)
	apart func(ctx context.Context, name string, tell func(Data)) // of Each with None

	mu      sync.Mutex
	known   map[string]Data
	changed chan struct{} // closed at the next change
}

// NewTogether makes one that follows nothing until Run.
func NewTogether(o Options) *Together {
	return &Together{
		names: o.Names, log: o.Logger, apart: Each{Client: o.Client, None: true}.Follow, known: map[string]Data{}, changed: make(chan struct{}),
		open: func(ctx context.Context) (io.ReadCloser, error) {
			r := o.Client.CoreV1().RESTClient().Get().AbsPath(Path)
			for _, name := range o.Names {
				r = r.Param(Parameter, name)
			}
			return r.Stream(ctx)
		},
	}
}

// Follow implements Follower, for names of Options.Names. Of several changes while tell is busy the last is told.
func (t *Together) Follow(ctx context.Context, name string, tell func(Data)) {
	for told := Data(nil); ; {
		t.mu.Lock()
		now, changed := t.known[name], t.changed
		t.mu.Unlock()
		if !same(now, told) && ctx.Err() == nil {
			tell(now)
			told = now
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func same(a, b Data) bool { return (a == nil) == (b == nil) && maps.Equal(a, b) }

// put notes what stands in some ConfigMaps now.
func (t *Together) put(now map[string]Data) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := false
	for name, data := range now {
		if !same(t.known[name], data) {
			t.known[name], changed = data, true
		}
	}
	if changed {
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

// Run follows until ctx is done.
func (t *Together) Run(ctx context.Context) {
	each := watches{of: t}
	defer each.stop()
	last, pause := time.Now(), shortestPause // last is when there was a stream
	for ctx.Err() == nil {
		began := time.Now()
		heard, err := t.listen(ctx, &each)
		if ctx.Err() != nil || errors.Is(err, errAgain) {
			continue
		}
		now, longest := time.Now(), longestPause
		if heard {
			last = now
		}
		if heard && now.Sub(began) > longestPause {
			pause = shortestPause
			continue
		}
		if refused(err) {
			longest = refusedPause
		}
		if refused(err) || now.Sub(last) >= patience {
			each.start(ctx, err)
		}
		pause = min(pause, longest)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause *= 2
	}
}

// refused says whether a server answers that there is no stream for this node.
func refused(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) || apierrors.IsBadRequest(err)
}

// errAgain ends a stream that is asked for once more at once.
var errAgain = errors.New("what was watched meanwhile may be newer")

// errSilent is why a stream is given up.
var errSilent = fmt.Errorf("the server says nothing for %s", patience)

// listen follows one stream to its end, and says whether it heard what all ConfigMaps say.
func (t *Together) listen(ctx context.Context, each *watches) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer late.Stop()
	stream, err := t.open(ctx)
	if err != nil {
		return false, cmp.Or(context.Cause(ctx), err)
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })() // it may be read just now
	first := map[string]Data{}
	arriving := reader(func(to []byte) (int, error) {
		n, err := stream.Read(to)
		if !heard && n > 0 { // the first words may be large and the network slow
			late.Reset(patience)
		}
		return n, err
	})
	for words := json.NewDecoder(arriving); ; {
		var w Word
		if err := words.Decode(&w); err != nil {
			return heard, fmt.Errorf("the stream of settings has ended: %w", cmp.Or(context.Cause(ctx), err))
		}
		if !slices.Contains(t.names, w.Name) { // a later version's
			continue
		}
		if heard {
			t.put(map[string]Data{w.Name: w.Data})
			continue
		}
		if first[w.Name] = w.Data; len(first) < len(t.names) {
			continue
		}
		if each.stop() {
			return true, errAgain
		}
		late.Stop()
		t.put(first)
		heard = true
	}
}

// reader is an io.Reader.
type reader func([]byte) (int, error)

func (r reader) Read(to []byte) (int, error) { return r(to) }

// watches are one of each ConfigMap, while there is no stream.
type watches struct {
	of      *Together
	cancel  context.CancelFunc // nil while there are none
	running sync.WaitGroup
}

func (w *watches) start(ctx context.Context, why error) {
	if w.cancel != nil {
		return
	}
	w.of.log.Info("the settings of kube-system are watched one by one: the server has no stream of them, or it cannot be had", "error", why)
	ctx, w.cancel = context.WithCancel(ctx)
	for _, name := range w.of.names {
		w.running.Go(func() {
			w.of.apart(ctx, name, func(d Data) { w.of.put(map[string]Data{name: d}) })
		})
	}
}

// stop says whether there were any. They tell nothing any more.
func (w *watches) stop() bool {
	if w.cancel == nil {
		return false
	}
	w.cancel()
	w.running.Wait()
	w.cancel = nil
	return true
}
