// SPDX-License-Identifier: Apache-2.0

// Package containerd runs containerd v2 inside this process. It serves CRI to the kubelet on a unix socket, which ctr
// and crictl may use too, and has an in-memory client for the agent's own image work.
//
// It owns containerd's configuration (there is no config file), its root and state directories and its socket. It never
// stops a container: containers belong to the shims, which outlive this process and which the next one finds again.
//
// containerd keeps its plugins, metrics and logger in process-wide variables, so a process starts it at most once.
//
// Its goroutines: containerd's own; the wait for its readiness; the collector of content, until containerd stops, which
// cannot be waited for.
package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/sirupsen/logrus"

	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/agent/registries"
	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/internal/config"
)

// Namespace is the containerd namespace of Kubernetes' containers and images.
const Namespace = "k8s.io"

// startTimeout limits waiting for the CRI service. Recovery asks every shim for its state, ten seconds at most for
// each, many concurrently: a node with hundreds of pods and a slow disk stays well below.
const startTimeout = 2 * time.Minute

// Options are containerd's directories and settings.
type Options struct {
	// Root holds what must survive a reboot: images, snapshots, metadata.
	Root string
	// State holds what must not survive a reboot: sockets, bundles, FIFOs. It should be on a tmpfs.
	State string
	// BinDir holds runc and containerd-shim-runc-v2. It should be a stable path, since each container's record contains
	// it.
	BinDir string
	// CNIBinDir and CNIConfDir are where the CRI service finds the network plugin and its configuration. The service
	// watches CNIConfDir, so the configuration may appear later; until then the node reports that its network is not
	// ready.
	CNIBinDir, CNIConfDir string
	// RegistryDir holds one folder with a hosts.toml for each registry (containerd's config_path); empty for none.
	RegistryDir string
	// Runtime is the operator's settings. PauseImage is required. It must be imported: without a registry pulling it
	// always fails.
	config.Runtime
	// PauseTar is the archive with PauseImage; empty for none. What is unpacked is compared with it before each start.
	PauseTar string
	// RegistryAuths are credentials by the registry host that requires them.
	RegistryAuths map[string]registries.Auth
	// Runtimes are installed runtimes beside the embedded runc.
	Runtimes []runtimes.Runtime
	// Records are checked before the start, and set aside if they are damaged. nil means that they are not checked.
	Records *records.Records
	// Logger receives this package's messages. containerd itself logs through logrus' standard logger.
	Logger *slog.Logger
}

// Address returns the path of the gRPC socket, which CRI clients, ctr and crictl use.
func (o Options) Address() string { return filepath.Join(o.State, "containerd.sock") }

// Server is the containerd that runs in this process.
type Server struct {
	opts             Options
	snapshotter      string
	server           *server.Server
	client           *client.Client
	notifyImageAdded func(ctx context.Context, name string) error
	calls            *Calls
	fatal            *fatalTrap
	failedShims      failedShims
	stopOnce         sync.Once
	peers            atomic.Pointer[Peers]
}

// started makes sure that a process starts containerd once, as the package comment says.
var started atomic.Bool

// Start starts containerd. It returns when the CRI service has recovered the containers of an earlier run and serves
// requests.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	if !started.CompareAndSwap(false, true) {
		return nil, errors.New("containerd: already started in this process, and its plugins cannot be set up twice")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	version.Version = releaseOf(version.Version)
	s := &Server{opts: o, fatal: setTrap()}
	logrus.StandardLogger().AddHook(&s.failedShims)
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if o.Records != nil {
		if err := s.checkRecords(ctx); err != nil {
			return nil, err
		}
		defer func() { o.Records.Ended(err) }()
	}
	config := serverConfig(o, s.snapshotter, detectHost())
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return nil, fmt.Errorf("containerd: make its directories %s and %s: %w", o.Root, o.State, err)
	}
	if err := prepareTempMounts(o.Root); err != nil {
		o.Logger.Warn("containerd: could not clean up temporary mounts of an earlier run", "error", err)
	}
	registerContent(&s.peers)
	registerClientPlugin(s)
	registerCRIPlugin(s)
	registerGCScheduler()
	registerSyncedDiffer()

	// The server keeps this context for its background work. Cancelling it half-way would leave plugins running without
	// their services, so it is never cancelled, and Stop closes the plugins in order.
	srv, err := server.New(context.WithoutCancel(ctx), config)
	if err != nil {
		return nil, fmt.Errorf("containerd: set up: %w", s.fatal.joinFailure(err))
	}
	s.server = srv
	if err := srv.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("containerd: listen on %s: %w", o.Address(), err)
	}
	if err := s.waitReady(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// releaseOf returns a version without "+unknown", which containerd appends where the linker was given no version. Our
// build uses that release's sources. Nodes show the version in their status.
func releaseOf(v string) string { return strings.TrimSuffix(v, "+unknown") }

// prepare makes what containerd requires: directories, its programs on PATH, a snapshotter that works.
func (s *Server) prepare() error {
	for _, name := range []string{"runc", shimName} {
		if _, err := os.Stat(filepath.Join(s.opts.BinDir, name)); err != nil {
			return fmt.Errorf("containerd: the embedded program %s is missing from %s: %w", name, s.opts.BinDir, err)
		}
	}
	// A shim whose container record has no path is looked up by name, on this process's PATH. Upstream has no other
	// setting for it.
	if err := prependPath(s.opts.BinDir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.opts.CNIConfDir, 0o755); err != nil {
		return fmt.Errorf("containerd: make the network configuration folder: %w", err)
	}
	name, err := chooseSnapshotter(s.opts.Snapshotter, s.opts.Root, s.opts.Logger)
	if err != nil {
		return err
	}
	s.snapshotter = name
	return nil
}

// checkRecords makes sure that containerd gets records that it can use, if only empty ones.
func (s *Server) checkRecords(ctx context.Context) (err error) {
	pause, err := pauseLayer(s.opts.PauseTar)
	if err != nil { // that says nothing about the records
		return fmt.Errorf("containerd: %w", err)
	}
	unpacked := func() error { return checkUnpacked(s.opts.Root, s.snapshotter, pause) }
	if err := s.opts.Records.Prepare(ctx, unpacked); err != nil {
		return err
	}
	s.snapshotter, err = chooseSnapshotter(s.opts.Snapshotter, s.opts.Root, s.opts.Logger) // the choice was set aside too
	return err
}

// waitReady waits until the CRI service has recovered, has failed, or exceeds startTimeout.
func (s *Server) waitReady(ctx context.Context) error {
	ready := make(chan struct{})
	go func() { // ends with readiness; without that the process is about to end anyway
		s.server.Wait()
		close(ready)
	}()
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-ready:
		if s.client == nil || s.calls == nil {
			return errors.New("containerd: its services were not set up in memory")
		}
		return nil
	case err := <-s.fatal.failure:
		return fmt.Errorf("containerd: the CRI service did not start: %w", err)
	case <-timer.C:
		return fmt.Errorf("containerd: the CRI service was not ready within %s; containers keep running, see its log lines above: %w",
			startTimeout, context.DeadlineExceeded)
	case <-ctx.Done():
		return fmt.Errorf("containerd: stopped while starting: %w", context.Cause(ctx))
	}
}

// Client returns a client without sockets or serialization for the Kubernetes namespace.
func (s *Server) Client() *client.Client { return s.client }

// NotifyImageAdded notifies the CRI service of an image that the client has added, so that the kubelet sees it at once.
func (s *Server) NotifyImageAdded(ctx context.Context, name string) error {
	return s.notifyImageAdded(ctx, name)
}

// SetPeers makes pulls use other machines of the cluster.
func (s *Server) SetPeers(p Peers) { s.peers.Store(&p) }

// Calls returns the CRI calls that are served in this process and not over the socket.
func (s *Server) Calls() Calls { return *s.calls }

// Snapshotter returns the name of the snapshotter in use.
func (s *Server) Snapshotter() string { return s.snapshotter }

// Address returns the gRPC socket's path.
func (s *Server) Address() string { return s.opts.Address() }

// FailedShims returns how many shims of an earlier run could not be loaded. Their containers were ended.
func (s *Server) FailedShims() int { return int(s.failedShims.count.Load()) }

// Failed delivers the error of a part of containerd that cannot continue (upstream would exit the process). The rest of
// the process should then stop in order and be started again. Containers are not affected.
func (s *Server) Failed() <-chan error { return s.fatal.failure }

// Stop closes the sockets and services. Containers keep running, watched by their shims.
func (s *Server) Stop() {
	s.stopOnce.Do(func() {
		s.fatal.expectEnd()
		s.server.Stop()
	})
}

func prepareTempMounts(root string) error {
	// Temporary mounts are in the root, not in /tmp: a layer being unpacked can be large, and CleanupTempMounts finds
	// an earlier run's leftovers there.
	if err := mount.SetTempMountLocation(filepath.Join(root, "tmpmounts")); err != nil {
		return err
	}
	warnings, err := mount.CleanupTempMounts(0)
	return errors.Join(append(warnings, err)...)
}

// registerClientPlugin adds a plugin of ours that receives containerd's services in memory. It must be called before
// server.New, which builds the plugin graph.
func registerClientPlugin(s *Server) {
	registry.Register(&plugin.Registration{
		Type: plugins.InternalPlugin,
		ID:   "coracle-client",
		Requires: []plugin.Type{
			plugins.EventPlugin, plugins.LeasePlugin, plugins.ServicePlugin, plugins.SandboxStorePlugin,
			plugins.TransferPlugin, plugins.SandboxControllerPlugin, plugins.CRIServicePlugin,
		},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			c, err := client.New("",
				client.WithDefaultNamespace(Namespace),
				client.WithDefaultPlatform(platforms.Default()),
				client.WithInMemoryServices(ic),
			)
			if err != nil {
				return nil, fmt.Errorf("make the in-memory client: %w", err)
			}
			if transfer, err := ic.GetSingle(plugins.TransferPlugin); err != nil {
				return nil, fmt.Errorf("find the transfer service: %w", err)
			} else if err := shareTransfers(transfer, &s.peers); err != nil {
				s.opts.Logger.Warn("containerd: images are pulled without the help of other machines of the cluster", "error", err)
			}
			images, err := ic.GetByID(plugins.CRIServicePlugin, "images")
			if err != nil {
				return nil, fmt.Errorf("find the CRI image service: %w", err)
			}
			updater, ok := images.(interface {
				UpdateImage(ctx context.Context, name string) error
			})
			if !ok {
				return nil, fmt.Errorf("the CRI image service %T takes no images any more", images)
			}
			s.client, s.notifyImageAdded = c, updater.UpdateImage
			return c, nil
		},
	})
}

// prependPath puts dir first on PATH and appends the system's own folders if they are missing: an init system may start
// us without a PATH, and the kubelet needs mount and umount.
func prependPath(dir string) error {
	path := []string{dir}
	seen := map[string]bool{dir: true}
	standard := []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	for _, p := range append(filepath.SplitList(os.Getenv("PATH")), standard...) {
		if p != "" && !seen[p] {
			seen[p] = true
			path = append(path, p)
		}
	}
	if err := os.Setenv("PATH", strings.Join(path, string(os.PathListSeparator))); err != nil {
		return fmt.Errorf("containerd: set PATH: %w", err)
	}
	return nil
}
