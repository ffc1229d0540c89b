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
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nodestream"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// readTimeout limits one read of the store. readRetry is the pause after a failed one.
const readTimeout, readRetry = 5 * time.Second, 200 * time.Millisecond

// Settings are the settings of a cluster, and the handler of their stream. A state's map is never changed.
type Settings struct {
	nodestream.Server[map[string]*settingsLine]
	client        kubernetes.Interface
	authorize     authorizer.Authorizer
	log           *slog.Logger
	readRequested timers.Signal // sent when the store has to be read

	begunRead     atomic.Uint64        // number of the last read of the store that has begun
	completedRead timers.Value[uint64] // number of the last read that was complete
}

// settingsLine is the content of a ConfigMap in the form in which the stream sends it.
type settingsLine struct {
	data clustersettings.Data
	text []byte
}

// New returns a handler that reads with client, whose reads must be linearizable. authorize decides which client may
// receive which ConfigMap.
func New(client kubernetes.Interface, authorize authorizer.Authorizer, log *slog.Logger) *Settings {
	s := &Settings{client: client, authorize: authorize, log: log, readRequested: timers.NewSignal()}
	s.Server = nodestream.Server[map[string]*settingsLine]{Subject: "the settings stream", Refusal: s.refusal, Writer: writer,
		Begin: func(ctx context.Context) (end func(), err error) { return func() {}, s.fresh(ctx) },
	}
	return s
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
		case <-s.readRequested:
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
		Handler:    netinformers.Source{}.Handler(func(any) { s.readRequested.Send() }),
	})
	var syncing sync.WaitGroup
	defer syncing.Wait()
	syncing.Go(func() { // a ConfigMap of the first read may have been deleted before its watch began
		select {
		case <-ctx.Done():
		case <-informer.HasSyncedChecker().Done():
			s.readRequested.Send()
		}
	})
	informer.RunWithContext(ctx)
}

// poll reads all settings. Reads are sequential, and each is linearizable. So the streams never go back to an earlier
// state, not even for a client that comes from another server.
func (s *Settings) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	number := s.begunRead.Add(1)
	names := clustersettings.Names()
	data, errs := make([]clustersettings.Data, len(names)), make([]error, len(names))
	var reading sync.WaitGroup
	for i, name := range names {
		reading.Go(func() { data[i], errs[i] = s.read(ctx, name) })
	}
	reading.Wait()
	before, _ := s.State.Get()
	now := map[string]*settingsLine{}
	maps.Copy(now, before)
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
		now[name] = &settingsLine{data[i], append(text, '\n')}
	}
	if !maps.Equal(now, before) {
		s.State.Set(now)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.completedRead.Set(number)
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
	wanted := s.begunRead.Load() + 1
	s.readRequested.Send()
	for {
		done, changed := s.completedRead.Get()
		if done >= wanted {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// requestedNames returns the ConfigMaps that a request names, without those that only a later version knows.
func requestedNames(r *http.Request) []string {
	names := slices.Compact(slices.Sorted(slices.Values(r.URL.Query()[clustersettings.Parameter])))
	return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(clustersettings.Names(), name) })
}

// refusal implements nodestream.Server. The client must be allowed to watch each of the ConfigMaps, even if it may
// request clustersettings.Path.
func (s *Settings) refusal(client user.Info, r *http.Request) (code int, text string) {
	if !r.URL.Query().Has(clustersettings.Parameter) {
		return http.StatusBadRequest, "the request names no setting"
	}
	names := requestedNames(r)
	if len(names) == 0 {
		return http.StatusNotFound, "this server has no such setting"
	}
	for _, name := range names {
		decision, _, err := s.authorize.Authorize(r.Context(), authorizer.AttributesRecord{
			User: client, Verb: "watch", Namespace: metav1.NamespaceSystem, APIVersion: "v1", Resource: "configmaps", Name: name,
			ResourceRequest: true,
		})
		if err != nil || decision != authorizer.DecisionAllow {
			return http.StatusForbidden, fmt.Sprintf("%s may not watch the ConfigMap %s/%s", client.GetName(), metav1.NamespaceSystem, name)
		}
	}
	return 0, ""
}

// writer implements nodestream.Server.
func writer(r *http.Request) func(io.Writer, map[string]*settingsLine) (bool, error) {
	names, sent := requestedNames(r), map[string]*settingsLine{}
	return func(to io.Writer, now map[string]*settingsLine) (written bool, err error) {
		for _, name := range names {
			l := now[name]
			if l == sent[name] {
				continue
			}
			if _, err := to.Write(l.text); err != nil { // shared by all streams: copies would be held for clients that do not read
				return false, err
			}
			sent[name], written = l, true
		}
		return written, nil
	}
}
