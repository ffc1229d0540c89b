// SPDX-License-Identifier: Apache-2.0

// Package netbackend follows the cluster's network back end, which may change while the cluster runs (docs/adr/0073).
// It is recorded in the ConfigMap clusterconfig.BackendConfigMap. A file in the server's folder has a copy, so that the
// server knows the back end when it starts, with or without a node. The package never writes the ConfigMap.
//
// Its goroutines: one that follows the settings stream of its own API server.
package netbackend

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/status"
)

// partName is the status line that shows that a flag differs from the cluster's back end. There is no line before that.
const partName = "network back end"

// Options are the parameters of New.
type Options struct {
	// Dir is the server's folder.
	Dir string
	// Configured is the back end with which the server starts, one of clusterconfig.NetworkBackends.
	Configured string
	// Flag is the server's --network-backend, empty if it was not given.
	Flag string
	// Board, when set, shows that Flag differs from the cluster's back end.
	Board  *status.Board
	Logger *slog.Logger
}

// Setting is the cluster's back end, as this server knows it. A nil Setting knows none.
type Setting struct {
	o       Options
	mu      sync.Mutex
	present string // the cluster's last value; empty before there is one
	problem string
}

// New returns a Setting that knows no value yet. If another plugin has the pod network, it removes the value of an
// earlier run.
func New(o Options) (*Setting, error) {
	if o.Configured == clusterconfig.NetworkNone {
		if err := clusterconfig.WriteBackend(o.Dir, o.Configured); err != nil {
			return nil, err
		}
	}
	return &Setting{o: o}, nil
}

// Run follows the cluster's back end until ctx is done, in the settings stream of the API server that config names. It
// has one goroutine besides its caller's.
func (s *Setting) Run(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "network-backend"))
	if err != nil {
		return fmt.Errorf("making the client for the cluster's network back end: %w", err)
	}
	settings := clustersettings.NewStreamClient(clustersettings.Options{
		Client: client, Names: []string{clusterconfig.BackendConfigMap}, Logger: s.o.Logger,
	})
	var receiving sync.WaitGroup
	defer receiving.Wait()
	receiving.Go(func() { settings.Run(ctx) })
	clustersettings.Key(ctx, settings, clusterconfig.BackendConfigMap, clusterconfig.BackendData, s.apply)
	return nil
}

// apply stores the cluster's new back end. As on nodes, a removed record, or a value to which no running node changes,
// has no effect.
func (s *Setting) apply(setting string) {
	if s.o.Configured == clusterconfig.NetworkNone || !slices.Contains(clusterconfig.RunningBackends(), setting) {
		return
	}
	s.mu.Lock()
	s.present = setting
	s.mu.Unlock()
	if err := clusterconfig.WriteBackend(s.o.Dir, setting); err != nil {
		s.o.Logger.Warn("the cluster's network back end could not be saved: this server may start with the previous one. Retrying at the next change, or "+
			"at the next start", "error", err)
	}
	trouble := ""
	if s.o.Flag != "" && s.o.Flag != setting {
		trouble = fmt.Sprintf("--network-backend: this server was given %q, but the cluster now uses %q. Remove the flag from "+
			"this server's configuration: the server cannot start with it again", s.o.Flag, setting)
	}
	s.report(trouble)
}

// report shows and logs an error of the flag when it changes.
func (s *Setting) report(trouble string) {
	if trouble == s.problem {
		return
	}
	s.problem = trouble
	state := status.Running
	if trouble != "" {
		state = status.Degraded
		s.o.Logger.Warn(trouble)
	}
	s.o.Board.Part(partName).Set(state, trouble)
}

// Last returns the cluster's last back end, from this run or an earlier one. It is empty if this server has received
// none, or another plugin has the pod network.
func (s *Setting) Last() string {
	if s == nil || s.o.Configured == clusterconfig.NetworkNone {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.present, clusterconfig.ReadBackend(s.o.Dir))
}

// ForJoining returns the back end that is sent to a joining machine. setting is the value in the ConfigMap, empty for
// none. own is the back end with which the server was started. An invalid setting is not sent: the cluster's nodes keep
// the value before it.
func (s *Setting) ForJoining(own, setting string) string {
	switch {
	case own == clusterconfig.NetworkNone:
		return own
	case slices.Contains(clusterconfig.RunningBackends(), setting):
		return setting
	case s == nil:
		return own
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.present, own)
}
