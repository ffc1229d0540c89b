// SPDX-License-Identifier: Apache-2.0

// Package netbackend keeps what a server knows of the cluster's network back end, which may change while the cluster
// runs (docs/adr/0073). The ConfigMap clusterconfig.BackendConfigMap says it; a file in the server's folder has a copy,
// so that the server knows it when it starts, with or without a node beside it. It never writes the ConfigMap.
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

// part is the line on the board that says of a flag which is not the cluster's. There is none before there is something
// to say.
const part = "network back end"

// Options are what a Setting needs.
type Options struct {
	// Dir is the server's folder.
	Dir string
	// Own is what the server starts with, one of clusterconfig.NetworkBackends.
	Own string
	// Flag is what the server was given as --network-backend; empty where it was given nothing.
	Flag string
	// Board, when set, says that Flag is not the cluster's any more.
	Board  *status.Board
	Logger *slog.Logger
}

// Setting is the cluster's back end, as this server knows it. A nil one knows nothing.
type Setting struct {
	o       Options
	mu      sync.Mutex
	present string // what the cluster said last; empty before it has
	trouble string
}

// New makes one that knows nothing yet. Where the pod network is another plugin's it forgets what an earlier run kept.
func New(o Options) (*Setting, error) {
	if o.Own == clusterconfig.NetworkNone {
		if err := clusterconfig.WriteBackend(o.Dir, o.Own); err != nil {
			return nil, err
		}
	}
	return &Setting{o: o}, nil
}

// Run follows the cluster until ctx is done, in the settings stream of the API server that config leads to. It has
// one goroutine beside its caller's.
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

// apply takes over what the cluster says. What no running node changes to, and the end of what it said, change nothing
// here, as they do on nodes.
func (s *Setting) apply(setting string) {
	if s.o.Own == clusterconfig.NetworkNone || !slices.Contains(clusterconfig.RunningBackends(), setting) {
		return
	}
	s.mu.Lock()
	s.present = setting
	s.mu.Unlock()
	if err := clusterconfig.WriteBackend(s.o.Dir, setting); err != nil {
		s.o.Logger.Warn("this server may start with the network back end of before; the cluster's is written down at the next change, or "+
			"at the next start", "error", err)
	}
	trouble := ""
	if s.o.Flag != "" && s.o.Flag != setting {
		trouble = fmt.Sprintf("--network-backend: this server was given %q, and the cluster has %q now, which counts. Take it out of "+
			"this server's configuration: it does not start with it any more", s.o.Flag, setting)
	}
	s.report(trouble)
}

// report shows and logs what is wrong with the flag, when that is news.
func (s *Setting) report(trouble string) {
	if trouble == s.trouble {
		return
	}
	s.trouble = trouble
	state := status.Running
	if trouble != "" {
		state = status.Degraded
		s.o.Logger.Warn(trouble)
	}
	s.o.Board.Part(part).Set(state, trouble)
}

// Last is what the cluster said last, in this run or an earlier one; empty where this server heard nothing, or the pod
// network is another plugin's.
func (s *Setting) Last() string {
	if s == nil || s.o.Own == clusterconfig.NetworkNone {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.present, clusterconfig.ReadBackend(s.o.Dir))
}

// ForJoining returns the back end that a joining machine is sent, where the ConfigMap says said now (empty for nothing)
// and the server was started with own. What makes no sense is sent to no machine: the cluster's nodes stay with what it
// said before.
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
