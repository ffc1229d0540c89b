// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/supervise"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPartStartsWhenItsWaitEnds: what waits starts when it may. A wait that fails is the node's end, and one that the
// end finds waiting is no failure.
func TestPartStartsWhenItsWaitEnds(t *testing.T) {
	g := supervise.NewGroup(t.Context(), nil, slog.New(slog.DiscardHandler))
	event, cause := make(chan struct{}), errors.New("no credentials")
	g.Essential(nil, startAfter(nil, func() { close(event) }))
	g.Essential(nil, startAfter(func(context.Context) error { <-event; return nil }, func() {
		g.Essential(nil, startAfter(func(context.Context) error { return cause }, func() { t.Error("it began after its wait had failed") }))
	}))
	if err := g.Wait(); !errors.Is(err, cause) {
		t.Errorf("got %v, want the wait's error", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	g = supervise.NewGroup(ctx, nil, slog.New(slog.DiscardHandler))
	g.Essential(nil, startAfter(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, func() { t.Error("it began at the end") }))
	cancel()
	testenv.Check(t, g.Wait(), "stopped while it waits")
}

// TestKubeletWaitsForAPIServer: without a wait of its own the kubelet waits for the one WaitAPI, which is not called a
// second time.
func TestKubeletWaitsForAPIServer(t *testing.T) {
	o := Options{DataDir: t.TempDir(), WaitAPI: func(context.Context) error { return errors.New("called again") }}
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.kubeletWaits(ready)(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v before the API server is ready", err)
	}
	close(ready)
	if err := o.kubeletWaits(ready)(t.Context()); err != nil {
		t.Errorf("got %v when the API server is ready", err)
	}
	serving := errors.New("serving")
	o.WaitServing = func(context.Context) error { return serving }
	if err := o.kubeletWaits(nil)(t.Context()); !errors.Is(err, serving) {
		t.Errorf("got %v, want the kubelet's own wait", err)
	}
	other := o
	other.Cluster.NetworkBackend = clusterconfig.NetworkNone
	if err := other.kubeletWaits(ready)(t.Context()); err != nil {
		t.Errorf("got %v; where another plugin makes the network it is unknown whether the node is new", err)
	}
	conf := filepath.Join(o.paths().cniConf, "10-coracle.conflist")
	testenv.NoError(t, errors.Join(os.MkdirAll(filepath.Dir(conf), 0o700), os.WriteFile(conf, nil, 0o600)))
	if err := o.kubeletWaits(ready)(t.Context()); err != nil {
		t.Errorf("got %v; a node that had a network waits until the API server is ready", err)
	}
}

// TestNodesFolderIsClosed: other users of the machine read nothing in a node's folder, also where an earlier version
// has made it open.
func TestNodesFolderIsClosed(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	testenv.NoError(t, os.Mkdir(open, 0o755))
	for _, dir := range []string{open, filepath.Join(t.TempDir(), "data", "agent")} {
		testenv.NoError(t, closedFolder(dir))
		testenv.Equal(t, testenv.Must(os.Stat(dir))(t).Mode().Perm(), 0o700, "%s:", dir)
	}
}
