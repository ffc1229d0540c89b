// SPDX-License-Identifier: Apache-2.0

// Package settings serves the settings stream: the data of the ConfigMaps of kube-system that all nodes follow
// (clustersettings.Names), in one stream for each node (docs/adr/0072). Every server serves the nodes that are
// connected to it, and its own process, from what it reads in the store, without another copy to maintain. It writes
// nothing.
//
// Its goroutines: one watch of each ConfigMap once a node asks for it, and one for each stream.
package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/routine"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// leastStream is the shortest duration of a stream. The longest is twice that, as with client-go's watches. After
	// that nodes spread over servers again, and their rights are checked again.
	leastStream = 5 * time.Minute
	// beginWithin limits the time until a stream's first events.
	beginWithin = 10 * time.Second
	// readWithin limits one read of the store. readRetry is the pause after a failed one.
	readWithin, readRetry = 5 * time.Second, 200 * time.Millisecond
)

// Settings are the settings of a cluster, and the handler of their stream.
type Settings struct {
	client kubernetes.Interface
	may    authorizer.Authorizer
	log    *slog.Logger
	lasts  func() time.Duration
	asked  timers.Signal // sent when the store has to be read

	mu          sync.Mutex
	now         map[string]*line
	begun, done uint64        // numbers of the last reads of the store that have begun and ended
	finished    chan struct{} // closed when done increases
	changed     chan struct{} // closed when now changes
}

// line is the content of a ConfigMap, as the stream sends it.
type line struct {
	data clustersettings.Data
	text []byte
}

// New returns a handler that reads with client, whose reads must be linearizable. may decides which client may receive
// which ConfigMap.
func New(client kubernetes.Interface, may authorizer.Authorizer, log *slog.Logger) *Settings {
	return &Settings{
		client: client, may: may, log: log, lasts: func() time.Duration { return leastStream + rand.N(leastStream) },
		asked: timers.NewSignal(),
		now:   map[string]*line{}, finished: make(chan struct{}), changed: make(chan struct{}),
	}
}

// Run reads the store when the first client follows the settings, and then whenever a setting changes, until ctx is
// done. Without clients it does nothing.
func (s *Settings) Run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	for follow := true; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.asked:
		}
		if follow {
			follow = false
			for _, name := range clustersettings.Names() {
				following.Go(func() { s.watch(ctx, name) })
			}
		}
		for err := s.poll(ctx); err != nil && ctx.Err() == nil; err = s.poll(ctx) {
			s.log.Debug("the settings that nodes follow cannot be read; retrying", "error", err)
			timers.Sleep(ctx, readRetry)
		}
	}
}

// watch requests a read of the store whenever the ConfigMap of that name changes, until ctx is done. It uses the
// watch's events only as a signal, since a watch of a server without a majority may begin with an old state.
func (s *Settings) watch(ctx context.Context, name string) {
	maps := s.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				return maps.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return maps.Watch(ctx, o)
			},
		}, s.client),
		ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { s.asked.Send() }, UpdateFunc: func(any, any) { s.asked.Send() }, DeleteFunc: func(any) { s.asked.Send() },
		},
	})
	var syncing sync.WaitGroup
	defer syncing.Wait()
	syncing.Go(func() { // a ConfigMap of the first read may have been deleted before its watch began
		select {
		case <-ctx.Done():
		case <-informer.HasSyncedChecker().Done():
			s.asked.Send()
		}
	})
	informer.RunWithContext(ctx)
}

// poll reads all settings. Reads are sequential, and each is linearizable. So the streams never go back to an earlier
// state, not even for a client that comes from another server.
func (s *Settings) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	s.mu.Lock()
	s.begun++
	number := s.begun
	s.mu.Unlock()
	names := clustersettings.Names()
	data, errs := make([]clustersettings.Data, len(names)), make([]error, len(names))
	var reading sync.WaitGroup
	for i, name := range names {
		reading.Go(func() { data[i], errs[i] = s.read(ctx, name) })
	}
	reading.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := maps.Clone(s.now)
	for i, name := range names {
		if errs[i] != nil { // e.g. its encryption key is lost; clients still get the others
			continue
		}
		if have := now[name]; have != nil && (have.data == nil) == (data[i] == nil) && maps.Equal(have.data, data[i]) {
			continue
		}
		text, err := json.Marshal(clustersettings.Event{Name: name, Data: data[i]})
		if err != nil {
			errs[i] = fmt.Errorf("writing the ConfigMap %s for nodes: %w", name, err)
			continue
		}
		now[name] = &line{data[i], append(text, '\n')}
	}
	if !maps.Equal(now, s.now) {
		s.now = now
		close(s.changed)
		s.changed = make(chan struct{})
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.done = number
	close(s.finished)
	s.finished = make(chan struct{})
	return nil
}

func (s *Settings) read(ctx context.Context, name string) (clustersettings.Data, error) {
	m, err := s.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading the ConfigMap %s for nodes: %w", name, err)
	case m.Data == nil:
		return clustersettings.Data{}, nil
	}
	return m.Data, nil
}

// fresh waits for a read of the store that begins after this call.
func (s *Settings) fresh(ctx context.Context) error {
	s.mu.Lock()
	want := s.begun + 1
	s.mu.Unlock()
	s.asked.Send()
	for {
		s.mu.Lock()
		done, finished := s.done, s.finished
		s.mu.Unlock()
		if done >= want {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-finished:
		}
	}
}

// current returns the settings of the last read, and a channel that is closed when they change.
func (s *Settings) current() (map[string]*line, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

// ServeHTTP implements http.Handler. Like a watch, a stream is served without the stack of the filters that it passed.
func (s *Settings) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	names := slices.Compact(slices.Sorted(slices.Values(r.URL.Query()[clustersettings.Parameter])))
	if code, why := s.refuses(r, names); code != 0 {
		http.Error(w, why, code)
		return
	}
	info, _ := request.RequestInfoFrom(r.Context())
	serve := func() {
		metrics.RecordLongRunning(r, info, metrics.APIServerComponent, func() { s.stream(w, r, names) })
	}
	if task := routine.TaskFrom(r.Context()); task != nil {
		task.Func = serve
	} else {
		serve()
	}
}

// refuses returns why a client may not receive some ConfigMaps, or code 0. The client must be allowed to watch each of
// them, even if it may request Path.
func (s *Settings) refuses(r *http.Request, names []string) (code int, why string) {
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, "settings are read only"
	}
	if len(names) == 0 {
		return http.StatusBadRequest, "the request names no setting"
	}
	who, ok := request.UserFrom(r.Context())
	if !ok {
		return http.StatusForbidden, "the request has no user"
	}
	for _, name := range names {
		if !slices.Contains(clustersettings.Names(), name) {
			return http.StatusNotFound, "this server has no such setting"
		}
		decision, _, err := s.may.Authorize(r.Context(), authorizer.AttributesRecord{
			User: who, Verb: "watch", Namespace: metav1.NamespaceSystem, APIVersion: "v1", Resource: "configmaps", Name: name,
			ResourceRequest: true,
		})
		if err != nil || decision != authorizer.DecisionAllow {
			return http.StatusForbidden, fmt.Sprintf("%s may not watch the ConfigMap %s/%s", who.GetName(), metav1.NamespaceSystem, name)
		}
	}
	return 0, ""
}

// stream sends the content of ConfigMaps, and then their changes, until the request ends or the stream's time is over.
func (s *Settings) stream(w http.ResponseWriter, r *http.Request, names []string) {
	begin, cancel := context.WithTimeout(r.Context(), beginWithin)
	err := s.fresh(begin)
	cancel()
	if err != nil {
		http.Error(w, "the settings cannot be read from the store now", http.StatusServiceUnavailable)
		return
	}
	flusher, ok := w.(http.Flusher)
	if !ok {
		http.Error(w, "this connection does not support streaming", http.StatusNotImplemented)
		return
	}
	over := time.NewTimer(s.lasts())
	defer over.Stop()
	w.Header().Set("Content-Type", "application/json")
	sent := map[string]*line{}
	for {
		now, changed := s.current()
		news := false
		for _, name := range names {
			l := now[name]
			if l == sent[name] {
				continue
			}
			if _, err := w.Write(l.text); err != nil { // shared by all streams: copies would be held for clients that do not read
				return // the client has ended
			}
			sent[name], news = l, true
		}
		if news {
			flusher.Flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-over.C:
			return
		case <-changed:
		}
	}
}
