// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kubelet/app/options"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

const component = "kubelet"

// refused are upstream's flags that would separate the kubelet from the rest of this process.
var refused = map[string]kubecompat.Refusal{
	"kubeconfig":                 {Reason: "coracle gives the kubelet its credentials"},
	"bootstrap-kubeconfig":       {Reason: "coracle gives the kubelet its credentials"},
	"hostname-override":          {Reason: "use --node-name"},
	"node-ip":                    {Reason: "use --node-ip"},
	"container-runtime-endpoint": {Reason: "containerd runs in the same process"},
	"image-service-endpoint":     {Reason: "containerd runs in the same process"},
	"exit-on-lock-contention":    {Reason: "it would end the whole process", Harmless: []string{"false"}},
	"lock-file":                  {Reason: "coracle holds a lock of its own"},
	"enable-server":              {Reason: "logs, exec and metrics need the kubelet's server", Harmless: []string{"true"}},
	"runonce":                    {Reason: "the kubelet of a node runs until coracle stops", Harmless: []string{"false"}},
	"v":                          {Reason: "use coracle's --v: all components share one log"},
	"vmodule":                    {Reason: "use coracle's --vmodule: all components share one log"},
	"logging-format":             {Reason: "all components share one log, see coracle's own flags", Harmless: []string{"text"}},
	"log-flush-frequency":        {Reason: "all components share one log, see coracle's own flags"},
}

// CheckArgs finds mistakes in kubelet flags, each NAME=VALUE, and in the configuration files that they name, without
// starting anything. It uses placeholders for all other options.
func CheckArgs(args []string) error {
	if len(args) == 0 {
		return nil
	}
	_, err := newServer(Options{
		RootDir: "/", RuntimeSocket: "/", Kubeconfig: "/", ServingCertFile: "/", ServingKeyFile: "/", ClientCAFile: "/",
		ClusterDomain: "cluster.local", NodeName: "node", NodeIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})},
		Kubelet: config.Kubelet{KubeletArgs: args},
	})
	return err
}

// args are the operator's flags. Those that name configuration files are separate.
type args struct {
	configFile, configDir string
	flags                 []string
}

func splitArgs(list []string) (args, error) {
	var a args
	for _, arg := range list {
		name, value, given := kubecompat.Cut(arg)
		var target *string
		switch name {
		case "config":
			target = &a.configFile
		case "config-dir":
			target = &a.configDir
		default:
			a.flags = append(a.flags, arg)
			continue
		}
		if !given || value == "" {
			return a, fmt.Errorf("flag %q needs a path: write %s=PATH", name, name)
		}
		*target = value
	}
	return a, nil
}

// apply sets the flags. An error names the wrong flag.
func (a args) apply(s *options.KubeletServer) error {
	gates := s.FeatureGates
	s.FeatureGates = map[string]bool{}
	labels, taints := maps.Clone(s.NodeLabels), s.RegisterWithTaints
	s.NodeLabels = map[string]string{}

	sets := cliflag.NamedFlagSets{}
	s.KubeletFlags.AddFlags(sets.FlagSet("kubelet"))
	options.AddKubeletConfigFlags(sets.FlagSet("configuration"), &s.KubeletConfiguration)
	// cAdvisor has its one useful setting in the process-wide flag set, under a name with an underscore.
	if f := flag.CommandLine.Lookup("housekeeping_interval"); f != nil {
		housekeeping := pflag.PFlagFromGoFlag(f)
		housekeeping.Name = "housekeeping-interval"
		sets.FlagSet("cadvisor").AddFlag(housekeeping)
	}
	s.KubeletFlags.SeccompDefault = s.KubeletConfiguration.SeccompDefault
	if err := (kubecompat.Component{Name: component, Sets: sets, Refused: refused}).Parse(a.flags); err != nil {
		return err
	}
	s.KubeletConfiguration.SeccompDefault = s.KubeletFlags.SeccompDefault // upstream takes either: the flag could not turn it off

	// Upstream's map flags replace the earlier values. So the earlier labels and taints are added again, and gates are
	// merged.
	for k, v := range gates {
		if _, set := s.FeatureGates[k]; !set {
			s.FeatureGates[k] = v
		}
	}
	for k, v := range labels {
		if _, set := s.NodeLabels[k]; !set {
			s.NodeLabels[k] = v
		}
	}
	for _, t := range taints {
		if !slices.ContainsFunc(s.RegisterWithTaints, func(have v1.Taint) bool { return have.MatchTaint(&t) }) {
			s.RegisterWithTaints = append(s.RegisterWithTaints, t)
		}
	}
	return nil
}
