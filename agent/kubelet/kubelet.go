// SPDX-License-Identifier: Apache-2.0

// Package kubelet runs upstream's kubelet in this process, unchanged, through its option structs.
//
// It owns the kubelet's configuration. The operator's configuration files override our defaults, and the operator's
// flags override both. It never talks to the API server itself. It never restarts the kubelet: upstream leaves
// goroutines, metrics and flags behind, so one process runs one kubelet. Pods outlive it.
//
// Its goroutines: upstream's, which end with the process; reports of the node, which Run waits for at most for
// reportTimeout; CSINode's writer, until it is registered.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/cadvisor/lib/manager"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	upstream "k8s.io/kubernetes/pkg/kubelet"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// Options describe the node. All are required except those for which the comment says otherwise.
type Options struct {
	// RootDir has the kubelet's state: pods' volumes, plugins, checkpoints. Storage drivers expect /var/lib/kubelet.
	RootDir string
	// PodLogsDir holds the containers' logs; empty means upstream's /var/log/pods.
	PodLogsDir string
	// StaticPodDir holds manifests of pods to run without an API server; empty for none.
	StaticPodDir string
	// RuntimeSocket is containerd's socket.
	RuntimeSocket string

	// Lists serves in this process the calls that the kubelet would repeat all the time over RuntimeSocket. nil means
	// that it uses the socket.
	Lists Lists

	// PullAuth returns the credentials for an image of a pod that brings none, and nil where containerd has them or
	// there are none. nil means that there are none.
	PullAuth func(image string) *runtimeapi.AuthConfig

	// Kubeconfig is the file with the node's client credentials (system:node:NAME). The files that it names are read
	// again when they change.
	Kubeconfig string
	// ServingCertFile and ServingKeyFile are for the kubelet's own port. They are read again when they change. One file
	// may be both.
	ServingCertFile, ServingKeyFile string
	// ClientCAFile verifies the clients of that port.
	ClientCAFile string

	NodeName string
	// NodeIPs are one address or two of different families, none of them loopback.
	NodeIPs []netip.Addr
	// Kubelet is the operator's settings.
	config.Kubelet

	// Logger receives this package's messages about files that were lost or replaced. klog's, which upstream writes to,
	// is not shown while a start goes well.
	Logger klog.Logger

	// StateCopies is a folder with copies of the kubelet's state, made when this version of coracle ran last, before
	// another one did. It need not exist. Run removes it.
	StateCopies string

	// Returns means that the node was in the cluster before. It is ready before its CSINode object is written again.
	Returns bool

	// OwnAddresses leaves the Node's addresses to another writer after the registration has written NodeIPs.
	OwnAddresses bool

	ClusterDNS    []netip.Addr
	ClusterDomain string

	// Report, when set, makes the kubelet report the node's status at once instead of within ten seconds, for each
	// value that is received while it runs.
	Report <-chan struct{}

	// Imported reports whether the operator imported an image to this node, which every pod may use then. imageRef is
	// the digest of the image's configuration. nil means that there are no such images.
	Imported func(ctx context.Context, imageRef string) bool

	// FetchImage, when set, is called for an image that a pod wants and the node does not have. It fetches the image if
	// a server has imported it, and reports whether the node has it now.
	FetchImage func(ctx context.Context, image string) bool

	// LostRecords, when set, is called with the names of all images that are complete and need their registry once,
	// since a power cut has emptied the record of their pull. It is called again when that changes.
	LostRecords func(images []string)
	// Starts, when set, is the gate through which the kubelet starts sandboxes and containers.
	Starts *Starts
	// Mounts, when set, is the gate through which it changes mounts.
	Mounts *Starts
	// Made, when set, receives a function that returns the pods that the kubelet knows, also when it has ended.
	Made func(pods func() []*corev1.Pod)
}

// reportTimeout bounds the wait for a report that is under way when the kubelet ends. Upstream's kubelet registers
// its node for ever, also with a context that is done, and holds the lock that a report needs meanwhile.
const reportTimeout = 2 * time.Second

// started is true once a kubelet was started in this process: upstream's kubelet cannot be started twice in one
// process.
var started atomic.Bool

// Run runs the kubelet until ctx is done. It returns an error for mistakes in the options and usual obstacles on the
// host. Some later failures end the process, see docs/architecture.md.
func Run(ctx context.Context, o Options) error {
	*manager.HousekeepingInterval = measureEvery // unless the operator's flags set another interval
	server, err := newServer(o)
	if err != nil {
		return err
	}
	if err := putBack(o.Logger, server.RootDirectory, o.StateCopies, &server.KubeletConfiguration); err != nil {
		o.Logger.Error(err, "Files that another version of coracle has written may keep the kubelet from starting")
	}
	if err := errors.Join(preflight(server), setAsideCheckpoints(o.Logger, server.RootDirectory)); err != nil {
		return err
	}
	if server.OOMScoreAdj, err = permittedOOMScore(oomScoreFile, server.OOMScoreAdj); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	if !started.CompareAndSwap(false, true) {
		return errors.New("kubelet: already started in this process, and upstream's cannot be started twice")
	}
	ctx = klog.NewContext(ctx, klog.LoggerWithName(klog.FromContext(ctx), "kubelet"))
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("kubelet: set up: %w", err)
	}
	if err := replaceCSIPlugin(deps.VolumePlugins, o.Returns); err != nil {
		return fmt.Errorf("kubelet: set up: %w", err)
	}
	made := make(chan *upstream.Kubelet, 1) // one: there is one kubelet
	ctx, cancel := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	defer waitAtMost(&reporting, reportTimeout)
	defer cancel()
	reporting.Go(func() { report(ctx, made, o.Report) })
	bound, err := connlimit.ByMemory()
	if err != nil {
		klog.FromContext(ctx).Error(err, "The available memory is unknown; the limit on unauthenticated connections is low")
	}
	deps.Options = append(deps.Options, func(k *upstream.Kubelet) {
		made <- k
		if o.Made != nil {
			o.Made(k.GetPods)
		}
		for _, a := range []struct {
			err    error
			effect string
		}{
			{flushPulls(k, server.RootDirectory, o.LostRecords), "After a power cut, an image that was just pulled needs its registry once more"},
			{gateStarts(k, o.Starts), "Pods may still be started while the node's pods are being stopped"},
			{gateMounts(k, o.Mounts), "Volumes may still be mounted while the node's pods are being stopped"},
			{trustImported(k, server.ImagePullCredentialsVerificationPolicy, o.Imported),
				"While one pod fails to pull an imported image, other pods cannot use it"},
			{fetchRemoteImages(k, o.FetchImage), "Images that only a server has imported are not found on this node"},
			{restVolumes(k), "The volume manager keeps polling; an idle node uses slightly more CPU"},
			{useInProcessClient(k, o.lists(server)), "The kubelet asks containerd over its socket; an idle node uses slightly more CPU"},
			{useRegistryAuth(k, o.PullAuth), "Registries get no credentials from the entry * of registries.yaml"},
			{serveBounded(k, server, deps, bound), "The kubelet's port is served without a limit on unauthenticated connections"},
			{errors.Join(measureWhenAsked(k), evictByNode(ctx, k, k), sweepRarely(k)),
				"The kubelet takes measurements as often as upstream's; an idle node uses slightly more CPU"},
		} {
			if a.err != nil {
				klog.FromContext(ctx).Error(a.err, a.effect)
			}
		}
	})
	if err := app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate); err != nil && ctx.Err() == nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	return nil
}

// waitAtMost waits for goroutines, at most for some time.
func waitAtMost(goroutines *sync.WaitGroup, atMost time.Duration) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		goroutines.Wait()
	}()
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}

// Ports returns the TCP ports on which a kubelet with these options listens.
func Ports(o Options) ([]uint16, error) {
	server, err := newServer(o)
	if err != nil {
		return nil, err
	}
	var ports []uint16
	for _, p := range []int32{server.Port, server.ReadOnlyPort, server.HealthzPort} {
		if p != 0 {
			ports = append(ports, uint16(p))
		}
	}
	return ports, nil
}

// StopsPods reports whether the operator's configuration makes the kubelet itself stop pods when the machine goes down.
// Flags are name=value, as Options.Args. It returns false for wrong ones, which Run reports.
func StopsPods(flags []string) bool {
	args, err := splitArgs(flags)
	if err != nil {
		return false
	}
	config, err := configuration(Options{}, args.configFile, args.configDir)
	return err == nil && (config.ShutdownGracePeriod.Duration > 0 || len(config.ShutdownGracePeriodByPodPriority) > 0)
}

// UsesRuntime reports whether a kubelet with these options uses the runtime at Options.RuntimeSocket: the operator's
// flags may name another one.
func UsesRuntime(o Options) (bool, error) {
	server, err := newServer(o)
	if err != nil {
		return false, err
	}
	return o.uses(server), nil
}

// uses reports whether a kubelet's runtime is the one at Options.RuntimeSocket.
func (o Options) uses(server *options.KubeletServer) bool {
	return server.ContainerRuntimeEndpoint == runtimeEndpoint(o.RuntimeSocket)
}

// newServer makes the kubelet's whole configuration.
func newServer(o Options) (*options.KubeletServer, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	args, err := splitArgs(o.KubeletArgs)
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	config, err := configuration(o, args.configFile, args.configDir)
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	flags, err := kubeletFlags(o)
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	server := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}
	if err := args.apply(server); err != nil {
		return nil, err
	}
	if !server.EnableSystemLogHandler { // else upstream refuses a configuration that only disables the handler
		server.EnableSystemLogQuery = false
	}
	if err := options.ValidateKubeletServer(server); err != nil {
		return nil, fmt.Errorf("kubelet: the configuration is not valid: %w", err)
	}
	return server, nil
}

// kubeletFlags returns the settings that upstream does not have in the configuration file.
func kubeletFlags(o Options) (*options.KubeletFlags, error) {
	f := options.NewKubeletFlags()
	f.RootDirectory = o.RootDir
	f.CertDirectory = o.RootDir + "/pki"
	f.KubeConfig = o.Kubeconfig
	f.HostnameOverride = o.NodeName
	f.NodeLabels = map[string]string{}
	maps.Copy(f.NodeLabels, o.Labels)
	if o.OwnAddresses {
		// Upstream has only this flag for it. The flag adds a taint that waits for a cloud provider's controller. The
		// label makes our API server leave out that taint.
		f.CloudProvider = "external"
		f.NodeLabels[clusterconfig.OwnAddressesLabel] = "true"
	}
	for i, ip := range o.NodeIPs {
		if i > 0 {
			f.NodeIP += ","
		}
		f.NodeIP += ip.String()
	}
	return f, nil
}

// check finds mistakes that upstream would report late or not at all.
func (o Options) check() error {
	var errs []error
	for name, value := range map[string]string{
		"RootDir": o.RootDir, "RuntimeSocket": o.RuntimeSocket, "Kubeconfig": o.Kubeconfig, "ServingCertFile": o.ServingCertFile,
		"ServingKeyFile": o.ServingKeyFile, "ClientCAFile": o.ClientCAFile, "ClusterDomain": o.ClusterDomain,
	} {
		if value == "" {
			errs = append(errs, fmt.Errorf("option %s is missing", name))
		}
	}
	if p := validation.IsDNS1123Subdomain(o.NodeName); len(p) > 0 {
		errs = append(errs, fmt.Errorf("node name %q: %s", o.NodeName, p[0]))
	}
	if len(o.NodeIPs) == 0 {
		errs = append(errs, errors.New("the node has no address; give one with --node-ip"))
	}
	for _, ip := range o.NodeIPs {
		if ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
			errs = append(errs, fmt.Errorf("%s cannot be the node's address: the API server and other nodes could not reach it; choose "+
				"another with --node-ip", ip))
		}
	}
	return errors.Join(errs...)
}
