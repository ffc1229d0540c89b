// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/server/flagz"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// component is upstream's name for the program that this package assembles.
const component = "kube-apiserver"

// ownFlags are kube-apiserver flags that this server sets itself, with a hint for the user.
var ownFlags = map[string]string{
	"advertise-address":    "use --advertise-address or --node-ip",
	"bind-address":         "use --bind-address",
	"secure-port":          "use --https-listen-port",
	"cert-dir":             "the server's certificates are made and renewed for you",
	"tls-cert-file":        "the server's certificates are made and renewed for you; add names with --tls-san",
	"tls-private-key-file": "the server's certificates are made and renewed for you; add names with --tls-san",
	"etcd-servers":         "the store is part of the server",
	"etcd-cafile":          "the store is part of the server",
	"etcd-certfile":        "the store is part of the server",
	"etcd-keyfile":         "the store is part of the server",
	"etcd-prefix":          "the store is part of the server",
	"storage-backend":      "the store is part of the server",

	"etcd-servers-overrides":          "the store is part of the server",
	"endpoint-reconciler-type":        "the kubernetes Service's endpoints follow the servers by themselves",
	"apiserver-count":                 "the kubernetes Service's endpoints follow the servers by themselves",
	"show-hidden-metrics-for-version": "metrics are registered once for all parts of the process",
}

// runOptions fills upstream's options struct from o, then from APIServerArgs. It returns the struct completed and
// validated.
func runOptions(ctx context.Context, o Options) (kubeoptions.CompletedOptions, error) {
	s := kubeoptions.NewServerRunOptions()
	addNodeClaims(s, o.Admission)
	addServiceExternalIPs(s, o.Admission)
	if err := setOptions(s, o); err != nil {
		return kubeoptions.CompletedOptions{}, err
	}
	args, err := profileArgs(o)
	if err != nil {
		return kubeoptions.CompletedOptions{}, err
	}
	if err := applyExtraArgs(s, slices.Concat(tolerationArgs(o.Cluster), args, o.APIServerArgs)); err != nil {
		return kubeoptions.CompletedOptions{}, err
	}
	ensureNodeRestriction(s)
	if err := restrictAnonymous(s, o); err != nil {
		return kubeoptions.CompletedOptions{}, err
	}
	if err := applyGates(s.GenericServerRunOptions.ComponentGlobalsRegistry); err != nil {
		return kubeoptions.CompletedOptions{}, err
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return kubeoptions.CompletedOptions{}, fmt.Errorf("completing API server options: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return kubeoptions.CompletedOptions{}, fmt.Errorf("API server options: %w", errors.Join(errs...))
	}
	return completed, nil
}

// applyGates applies the flags for feature gates and the emulated version. It refuses a newer version than the process
// is: what that stores, the version of coracle before could not read (docs/adr/0181-levels.md).
func applyGates(registry basecompatibility.ComponentGlobalsRegistry) error {
	effective := registry.EffectiveVersionFor(basecompatibility.DefaultKubeComponent)
	before := effective.EmulationVersion()
	if err := registry.Set(); err != nil {
		return fmt.Errorf("applying feature gates: %w", err)
	}
	if wanted := effective.EmulationVersion(); wanted.GreaterThan(before) {
		return fmt.Errorf("%s flag emulated-version: the cluster's level is that of Kubernetes %s, and %s is newer; leave the flag out, and "+
			"raise the level: coracle upgrade raise", component, before, wanted)
	}
	return nil
}

// tolerationArgs returns the kube-apiserver flags for how long pods stay on a lost node.
func tolerationArgs(s clusterconfig.Settings) []string {
	wait := strconv.Itoa(s.Toleration())
	return []string{"default-not-ready-toleration-seconds=" + wait, "default-unreachable-toleration-seconds=" + wait}
}

func setOptions(s *kubeoptions.ServerRunOptions, o Options) error {
	s.GenericServerRunOptions.AdvertiseAddress = o.AdvertiseAddress

	s.SecureServing.BindAddress, s.SecureServing.BindPort, s.SecureServing.Listener = o.BindAddress, o.Port, o.Listener
	if o.Listener != nil {
		if a, ok := o.Listener.Addr().(*net.TCPAddr); ok {
			s.SecureServing.BindAddress, s.SecureServing.BindPort = a.IP, a.Port
		}
	}
	s.SecureServing.ServerCert.CertKey.CertFile = o.TLSCertFile
	s.SecureServing.ServerCert.CertKey.KeyFile = o.TLSKeyFile
	s.SecureServing.MinTLSVersion, s.SecureServing.CipherSuites = "VersionTLS12", clusterconfig.CipherSuiteNames()

	authn := s.Authentication
	authn.ClientCert.ClientCA = o.ClientCAFile
	authn.BootstrapToken.Enable = true
	authn.ServiceAccounts.KeyFiles = o.ServiceAccountKeyFiles
	authn.ServiceAccounts.Issuers = []string{o.ServiceAccountIssuer}
	s.ServiceAccountSigningKeyFile = o.ServiceAccountSigningKeyFile
	// A pod's token of an hour expires after an hour. Upstream extends it to a year, for clients of 2020 that read it
	// only once.
	authn.ServiceAccounts.ExtendExpiration = false
	if o.RequestHeaderCAFile != "" {
		authn.RequestHeader.ClientCAFile = o.RequestHeaderCAFile
		authn.RequestHeader.AllowedNames = o.RequestHeaderAllowedNames
		authn.RequestHeader.UsernameHeaders = []string{"X-Remote-User"}
		authn.RequestHeader.UIDHeaders = []string{"X-Remote-Uid"}
		authn.RequestHeader.GroupHeaders = []string{"X-Remote-Group"}
		authn.RequestHeader.ExtraHeaderPrefixes = []string{"X-Remote-Extra-"}
	}
	s.ProxyClientCertFile, s.ProxyClientKeyFile = o.ProxyClientCertFile, o.ProxyClientKeyFile
	s.EnableAggregatorRouting = true

	s.Authorization.Modes = []string{"Node", "RBAC"}

	s.AllowPrivileged = true
	s.KubeletConfig.TLSClientConfig.CertFile = o.KubeletClientCertFile
	s.KubeletConfig.TLSClientConfig.KeyFile = o.KubeletClientKeyFile
	s.KubeletConfig.TLSClientConfig.CAFile = o.KubeletCAFile
	s.KubeletConfig.PreferredAddressTypes = []string{"InternalIP", "ExternalIP", "Hostname"}
	s.ServiceClusterIPRanges = clusterconfig.FlagValue(o.Cluster.ServiceCIDRs)
	ports, err := utilnet.ParsePortRange(o.NodePortRange)
	if err != nil {
		return fmt.Errorf("node port range %q: %w", o.NodePortRange, err)
	}
	s.ServiceNodePortRange = *ports
	s.EndpointReconcilerType = string(reconcilers.NoneEndpointReconcilerType)

	s.Etcd.StorageConfig.Transport.ServerList = []string{storeServer}
	s.Etcd.EnableWatchCache = o.WatchCache
	s.Etcd.StorageConfig.CountMetricPollPeriod = 0
	s.Etcd.StorageConfig.CompactionInterval = 0 // the store compacts by itself, and not while it is idle
	s.Etcd.EncryptionProviderConfigFilepath = o.EncryptionConfigFile
	s.Etcd.EncryptionProviderConfigAutomaticReload = o.EncryptionConfigFile != ""

	s.Features.EnableProfiling = false
	return nil
}

// ensureNodeRestriction enables the admission plugin NodeRestriction, which limits a node's credentials to its own
// node. It stays enabled when APIServerArgs enable other plugins. Only APIServerArgs that disable it by name turn it
// off.
func ensureNodeRestriction(s *kubeoptions.ServerRunOptions) {
	const plugin = "NodeRestriction"
	admission := s.Admission.GenericAdmission
	if !slices.Contains(admission.EnablePlugins, plugin) && !slices.Contains(admission.DisablePlugins, plugin) {
		admission.EnablePlugins = append(admission.EnablePlugins, plugin)
	}
}

// CheckArgs finds mistakes in kube-apiserver flags, each NAME=VALUE, without starting anything. Mistakes are unknown
// names, unreadable values, unknown feature gates, and flags that this server sets itself.
func CheckArgs(args []string) error {
	if len(args) == 0 {
		return nil // making upstream's options is slow
	}
	s := kubeoptions.NewServerRunOptions()
	addNodeClaims(s, &AdmissionOptions{}) // so that its name may be given
	addServiceExternalIPs(s, nil)
	// A registry of its own, since the process-wide one applies to the whole process.
	s.GenericServerRunOptions.ComponentGlobalsRegistry = basecompatibility.NewComponentGlobalsRegistry()
	if err := applyExtraArgs(s, args); err != nil {
		return err
	}
	return checkGates(args)
}

// checkGates checks the feature gates in args as upstream does when it sets them. It also refuses peerProxy, which
// breaks the fence between terms of leadership. A gate may have the prefix "kube:". Gates of other components are left
// to upstream.
func checkGates(args []string) error {
	gates := utilfeature.DefaultMutableFeatureGate.DeepCopy()
	if err := gates.Set(string(peerProxy) + "=false"); err != nil {
		return err
	}
	for _, arg := range args {
		name, value := cutArg(arg)
		if name != "feature-gates" {
			continue
		}
		for gate := range strings.SplitSeq(value, ",") {
			owner, rest, named := strings.Cut(gate, ":")
			if !named {
				rest = gate
			} else if owner != basecompatibility.DefaultKubeComponent {
				continue
			}
			if err := gates.Set(rest); err != nil {
				return fmt.Errorf("%s flag %q: %w", component, name, err)
			}
		}
	}
	if gates.Enabled(peerProxy) {
		return fmt.Errorf("%s feature gate %s: a request that one API server passes on to another one loses the leader's term, by which the "+
			"store refuses what a leader writes that has been replaced; leave it off", component, peerProxy)
	}
	return nil
}

// peerProxy is the feature gate of the proxy between API servers of different versions.
const peerProxy = features.UnknownVersionInteroperabilityProxy

// applyExtraArgs sets NAME=VALUE arguments through upstream's own flags.
func applyExtraArgs(s *kubeoptions.ServerRunOptions, args []string) error {
	sets := s.Flags()
	s.Flagz = flagz.NamedFlagSetsReader{FlagSets: sets} // /flagz shows them, as upstream's server does
	refused := map[string]kubecompat.Refusal{}
	for name, reason := range ownFlags {
		refused[name] = kubecompat.Refusal{Reason: reason}
	}
	sets.FlagSet("logs").VisitAll(func(f *pflag.Flag) {
		refused[f.Name] = kubecompat.Refusal{Reason: "the process has one log; set it with coracle's own flags"}
	})
	return kubecompat.Component{Name: component, Sets: sets, Refused: refused}.Parse(append([]string{defaultFeatureGates(args)}, args...))
}

// cutArg splits an argument into its name and its value. The name is normalized as upstream's flags are: "_" becomes
// "-".
func cutArg(arg string) (name, value string) {
	name, value, _ = strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return strings.ReplaceAll(name, "_", "-"), value
}

// needsWatchesEnd says whether an argument enables something that happens at the end of a watch: its line in the audit
// log, its trace, or the staggered end of watches when a server stops.
func needsWatchesEnd(name, value string) bool {
	return value != "" && (strings.HasPrefix(name, "audit-") || name == "tracing-config-file" ||
		name == "shutdown-watch-termination-grace-period")
}

// defaultFeatureGates turns off gates that cost something and have no use here:
//
//   - The proxy between API servers of different versions needs a CA that is not given, and writes a lease every ten
//     seconds all the same. CheckArgs refuses it.
//   - Native histograms, a second form for Prometheus, take as much memory as all other metrics.
//   - A second goroutine decodes for each watch of the store.
//   - The watch cache's snapshots serve lists at an old revision, which the store can answer. Only they need the
//     comparison of cache and store every five minutes (ADR 0072).
//
// It turns on APIServingWithRoutine, which frees the stack of a watch's filters, five times what serving needs. To the
// filters, a watch then seems to end when it begins. So the gate is off if a filter has to act at the end (ADR 0072).
// Gates may be named with or without a component, but upstream wants the same form for all.
func defaultFeatureGates(args []string) string {
	prefix, above := "", true
	for _, arg := range args {
		name, value := cutArg(arg)
		if name == "feature-gates" && strings.Contains(value, "kube:") {
			prefix = "kube:"
		}
		above = above && !needsWatchesEnd(name, value)
	}
	gates := []string{
		string(peerProxy) + "=false", "NativeHistograms=false", string(features.ConcurrentWatchObjectDecode) + "=false",
		string(features.ListFromCacheSnapshot) + "=false", string(features.DetectCacheInconsistency) + "=false",
		string(features.APIServingWithRoutine) + "=" + strconv.FormatBool(above), // set even when off: AllAlpha=true would turn it on
	}
	for i := range gates {
		gates[i] = prefix + gates[i]
	}
	return "feature-gates=" + strings.Join(gates, ",")
}
