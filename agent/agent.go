// SPDX-License-Identifier: Apache-2.0

// Package agent runs one node: containerd, the kubelet, the images that need no registry, the pod network, the Service
// proxy and the cluster DNS, all in this process.
//
// It owns DataDir/agent, RunDir and, at the default data directory, /var/lib/kubelet. It decides in which order the
// parts start and stop, and reports their state. It stops pods only when the machine goes down (Shutdown): containers
// belong to their shims, and the next run finds them. It knows the cluster through the API alone and never imports the
// server.
//
// Its goroutines: one for each part of the node, under supervise; what follows the settings stream (virtual address,
// network back end), asleep; the own Node and the reports after Ready=Unknown, asleep once the node is ready; announced
// addresses, once a minute; with --network-iface, its addresses, every ten seconds; with --node-external-ip, the node's
// addresses, every five minutes; the node's key and back end, every five minutes and on a change; at a shutdown, one
// for each step that runs beside another, and a mount that does not end is left behind.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/go-logr/logr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/agent/images"
	"github.com/coracle-k8s/coracle/agent/kubelet"
	"github.com/coracle-k8s/coracle/agent/registries"
	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/agent/tunnels"
	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
)

// partVolumes is the name of the status line of the node's folders for volumes.
const partVolumes = "local volumes"

// Run runs the node until ctx is done or a part fails that cannot be started again (containerd, the kubelet). Pods keep
// running either way. A process can run one node once: containerd and the kubelet cannot be started a second time.
func Run(ctx context.Context, o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	defer close(o.Shutdown.nodeEnded)
	if err := errors.Join(closedFolder(o.paths().AgentDir), os.MkdirAll(o.RunDir, 0o755)); err != nil {
		return fmt.Errorf("agent: make its folder: %w", err)
	}
	hosts, relay, err := configureRegistries(o)
	if err != nil {
		return err
	}
	if o.runtimes, err = findRuntimes(ctx, o, runtimes.Dirs(os.Getenv("PATH"))); err != nil {
		return err
	}
	o.pullAuth = pullAuth(hosts)
	runtime, err := startRuntime(ctx, o, hosts.Auths())
	if err != nil {
		return err
	}
	defer runtime.Stop() // last: the kubelet and the network have ended by then
	if o.Content != nil {
		runtime.SetPeers(o.Content)
		o.Content.SetSource(runtime.Blobs())
		defer o.Content.SetSource(nil)
	}
	o.Shutdown.attach(o, runtime)

	folder, err := prepareImages(ctx, o, runtime)
	if err != nil {
		return err
	}
	if o.Content != nil {
		defer o.shareImported(ctx, folder, runtime)()
	}
	if o.kubeletPorts, err = kubelet.Ports(o.kubelet(runtime, nil)); err != nil {
		return err
	}
	if err := cni.ProtectOwnConnections(ctx, o.reservedHostPorts()); err != nil {
		o.Logger.Warn("agent: host ports of running pods may receive what this node sends to its own ports, until the pod network starts", "error",
			err)
	}
	return runParts(ctx, o, parts{runtime, relay, folder})
}

// closedFolder makes a folder that only root may read. It closes one that an earlier version has made.
func closedFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// configureRegistries writes containerd's configuration of the operator's registries. The relay is nil where none is
// needed.
func configureRegistries(o Options) (*registries.Config, *registries.Relay, error) {
	config, err := registries.Load(o.RegistriesFile)
	if err != nil {
		return nil, nil, err
	}
	config.DisableDefaultEndpoint = o.DisableDefaultEndpoint
	relay, err := registries.NewRelay(config)
	if err != nil {
		return nil, nil, err
	}
	return config, relay, config.Write(o.paths().registries, relay)
}

// pullAuth returns the credentials of a pull that containerd's configuration cannot have.
func pullAuth(hosts *registries.Config) func(image string) *runtimeapi.AuthConfig {
	return func(image string) *runtimeapi.AuthConfig {
		host, a := hosts.AuthOfImage(image)
		if a == nil {
			return nil
		}
		return &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken,
			ServerAddress: "https://" + host}
	}
}

func startRuntime(ctx context.Context, o Options, auths map[string]registries.Auth) (*containerd.Server, error) {
	part := o.statusPart("containerd")
	server, err := containerd.Start(ctx, o.containerd(auths))
	if err != nil {
		part.Set(status.Failed, err.Error())
		return nil, err
	}
	part.Set(status.Running, "")
	if failed := server.FailedShims(); failed > 0 && o.FailedShims != nil {
		o.FailedShims(failed)
	}
	return server, nil
}

// prepareImages imports the pause image, without which no pod starts. It returns the folder from which the operator's
// archives are imported.
func prepareImages(ctx context.Context, o Options, runtime *containerd.Server) (*images.Folder, error) {
	store := imageStore(o, runtime)
	if err := store.Clean(ctx); err != nil {
		o.Logger.Warn("agent: could not remove the remains of an interrupted import", "error", err)
	}
	if err := store.DropLost(ctx); err != nil {
		o.Logger.Warn("agent: images whose files are lost may not be imported or pulled again", "error", err)
	}
	if o.PauseTar != "" {
		if err := images.ImportOnce(ctx, store, o.PauseTar, o.PauseImage, o.paths().pauseRecord); err != nil {
			err = fmt.Errorf("agent: the embedded pause image: %w", err)
			o.statusPart("images").Set(status.Failed, err.Error())
			return nil, err
		}
	}
	return &images.Folder{Dir: o.paths().ImagesDir, IndexFile: o.paths().imageRecord, Store: store, Logger: o.Logger, Board: o.Board}, nil
}

// shareImported makes the node fetch images that servers have imported, and a server answer for its own. It returns a
// function that ends the answers.
func (o *Options) shareImported(ctx context.Context, folder *images.Folder, runtime *containerd.Server) (end func()) {
	store := imageStore(*o, runtime)
	folder.Remote = images.NewRemote(store, o.Content, o.Logger)
	o.fetchImage = func(pod context.Context, image string) bool { // upstream's context does not end with the node
		pod, cancel := context.WithCancel(pod)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return folder.Remote.Fetch(pod, image)
	}
	if !o.Content.IsServer() {
		return func() {}
	}
	o.Content.SetNames(store.ServeNames)
	o.ImageNotes(func(ctx context.Context) []string {
		notes, err := folder.Remote.Differences(ctx, o.Name)
		if err != nil {
			o.Logger.Warn("agent: the imported images of the servers could not be compared", "error", err)
		}
		return notes
	})
	return func() {
		o.ImageNotes(nil)
		o.Content.SetNames(nil)
	}
}

// imageStore returns the store into which images are imported.
func imageStore(o Options, runtime *containerd.Server) images.Containerd {
	return images.Containerd{
		Client: runtime.Client(), Namespace: containerd.Namespace, Snapshotter: runtime.Snapshotter(),
		NotifyImageAdded: runtime.NotifyImageAdded,
		Logger:           o.Logger,
	}
}

// parts are those that run as long as the node.
type parts struct {
	runtime *containerd.Server
	relay   *registries.Relay // may be nil
	images  *images.Folder
}

// runParts runs the parts and starts each as soon as it can do something: images and the preparation of the network
// need no API server. A failed part is started again, except containerd and the kubelet: when one of these fails, all
// parts stop.
func runParts(ctx context.Context, o Options, p parts) error {
	g := supervise.NewGroup(ctx, o.Board, o.Logger)
	imported := make(chan struct{})
	tried := sync.OnceFunc(func() { close(imported) })
	g.Run("images", func(ctx context.Context) error {
		err := p.images.ImportAll(ctx)
		tried() // a folder that cannot be read does not delay the network
		if err != nil {
			return err
		}
		return p.images.Run(ctx)
	})
	if p.relay != nil {
		g.Quiet("registries", p.relay.Run)
	}
	var podCIDRs atomic.Pointer[func() []netip.Prefix]
	// report is unbuffered: a report is requested only when the previous request was taken
	own, report, ready := newReadyUnknown(), make(chan struct{}), make(chan struct{})
	g.Quiet("network", func(context.Context) error { // its parts report themselves
		return startNetwork(g, o, imported, ready, &podCIDRs, own)
	})
	g.Essential(nil, startAfter(o.kubeletWaits(ready), func() {
		g.Essential(o.statusPart("kubelet"), func(ctx context.Context) error {
			ctx, cancel := o.Shutdown.untilStop(ctx)
			defer cancel()
			if err := o.removeStopMark(ctx); err != nil || ctx.Err() != nil {
				return err
			}
			return kubelet.Run(ctx, o.kubelet(p.runtime, report))
		})
	}))
	g.Essential(nil, startAfter(o.WaitAPI, func() {
		close(ready)
		runWithAPI(g, o, &podCIDRs, own, report)
	}))
	g.Essential(nil, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-p.runtime.Failed():
			o.statusPart("containerd").Set(status.Failed, err.Error())
			return fmt.Errorf("agent: containerd failed: %w; pods keep running, and a restart of coracle finds them", err)
		}
	})
	return g.Wait()
}

// startAfter waits until wait returns and then calls start, which starts parts. It calls start at once if wait is nil.
func startAfter(wait func(context.Context) error, start func()) func(context.Context) error {
	return func(ctx context.Context) error {
		if wait != nil {
			if err := wait(ctx); err != nil {
				return err
			}
		}
		start()
		return nil
	}
}

// runWithAPI starts the parts that need an API server that is ready.
func runWithAPI(g *supervise.Group, o Options, podCIDRs *atomic.Pointer[func() []netip.Prefix], own *readyUnknown, report chan<- struct{}) {
	if o.Servers != nil {
		g.Go(func(ctx context.Context) { tunnels.Run(ctx, o.tunnels(podCIDRs)) })
	}
	if o.FallbackConfigs != nil {
		g.Quiet("kubelet's way to the API", func(ctx context.Context) error {
			k, err := o.kubeletAPI(own)
			if err == nil {
				k.run(ctx)
			}
			return err
		})
	}
	if o.Volumes != nil {
		g.Run(partVolumes, func(ctx context.Context) error {
			o.Volumes.Run(ctx, o.statusPart(partVolumes))
			return nil
		})
	}
	g.Go(func(ctx context.Context) {
		watchNode(ctx, o)
		own.requestReports(ctx, report) // not before the kubelet has found out the node's conditions
	})
	g.Quiet("addresses of the node", func(ctx context.Context) error { return syncAddresses(ctx, o) })
	g.Quiet("underlay", func(ctx context.Context) error { return syncUnderlay(ctx, o) })
	g.Quiet("networks of the machine", func(ctx context.Context) error { return syncNetworks(ctx, o) })
}

// startNetwork prepares the network. It starts the network once the API server is ready and the images are imported. A
// new node is not ready for pods without its network, so no pod starts before its image is imported: it would fail to
// pull it and retry only after a while. A node that had a network before is ready at once, and has its images.
func startNetwork(g *supervise.Group, o Options, imported, ready <-chan struct{},
	podCIDRs *atomic.Pointer[func() []netip.Prefix], own *readyUnknown) (err error) {
	ctx, cancel := context.WithCancel(g.Context())
	defer func() {
		if err != nil {
			cancel() // the goroutines started so far end: the next attempt starts all of them again
		}
	}()
	n, err := newNetwork(ctx, o)
	if err != nil && o.awaitNFTables(g.Context(), preflight.LocalHost().Probe.NAT) {
		n, err = newNetwork(ctx, o)
	}
	if err != nil {
		return err
	}
	if err = own.follow(n.informers.Nodes(), o.Name, o.nodeIsThere()); err != nil {
		return err
	}
	networks := n.podCIDRs
	podCIDRs.Store(&networks)
	n.startIngress(g)
	for _, event := range []<-chan struct{}{ready, imported} {
		select {
		case <-event:
		case <-g.Context().Done():
			for _, name := range []string{partPodNetwork, partPolicies, partSpeaker} {
				o.statusPart(name).Set(status.Stopped, "") // a server goes on without its node
			}
			return nil
		}
	}
	n.start(g)
	return nil
}

// tunnels returns the options of the node's tunnels. They get the networks of the node's pods once these are known.
func (o Options) tunnels(podCIDRs *atomic.Pointer[func() []netip.Prefix]) tunnels.Options {
	t := tunnels.Options{
		Answered: o.ServerAnswered, Ended: o.ServerEnded, Readiness: o.ServerReadiness, NodePair: o.NodePair, ServerCAFile: o.ServerCAFile,
		NodeIPs: o.IPs, Logger: o.Logger,
		Servers: func() []string {
			if o.refused.Load() { // servers that receive messages of the node would take it for ready
				return nil
			}
			return o.Servers()
		},
		PodCIDRs: func() []netip.Prefix {
			if f := podCIDRs.Load(); f != nil {
				return (*f)()
			}
			return nil
		},
	}
	if o.Volumes != nil {
		t.Volumes = o.Volumes.Serve
	}
	return t
}

func (o Options) kubelet(runtime *containerd.Server, report <-chan struct{}) kubelet.Options {
	p := o.paths()
	return kubelet.Options{
		RootDir: p.KubeletRoot, PodLogsDir: p.PodLogs, StaticPodDir: p.staticPods, RuntimeSocket: runtime.Address(),
		Kubeconfig: o.KubeletKubeconfig, ServingCertFile: o.KubeletServingCert, ServingKeyFile: o.KubeletServingKey,
		ClientCAFile: o.ClientCAFile, NodeName: o.Name, NodeIPs: o.IPs, Kubelet: o.Kubelet,
		ClusterDNS: o.clusterDNS(), ClusterDomain: o.Cluster.Domain,
		OwnAddresses: len(o.ExternalIPs) > 0, Imported: imageStore(o, runtime).Imported,
		LostRecords: o.reportLostRecords, FetchImage: o.fetchImage,
		Lists: runtime.Calls(), PullAuth: o.pullAuth, Report: report, Returns: !o.isNew(), StateCopies: o.KubeletCopies,
		Logger: logr.FromSlogHandler(o.Logger.Handler()).WithName("kubelet"),
		Starts: &o.Shutdown.starts, Mounts: &o.Shutdown.mounts, Made: o.Shutdown.setPods,
	}
}
