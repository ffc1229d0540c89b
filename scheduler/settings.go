// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"errors"
	"fmt"
	"time"

	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	upstream "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// component is upstream's name for the program that this package runs.
const component = "kube-scheduler"

// settings are the result of the options, the configuration file and the extra arguments.
type settings struct {
	config           *config.KubeSchedulerConfiguration
	maxUnschedulable time.Duration
	// qps and burst limit requests. By default there is no limit, since the API server's priority and fairness
	// distributes its capacity already.
	qps   float32
	burst int
}

func (o Options) settings() (settings, error) {
	// Not the process-wide registry: adding flags to it closes its feature gates, which belong to the API server.
	u := options.NewOptionsWithComponentGlobalsRegistry(basecompatibility.NewComponentGlobalsRegistry())
	cmd := kubecompat.Component{Name: component, Sets: *u.Flags}
	cmd.Refused = kubecompat.RefusedInProcess(cmd.Sets)
	if err := cmd.Parse(o.ExtraArgs); err != nil {
		return settings{}, err
	}
	s := settings{maxUnschedulable: u.Deprecated.PodMaxInUnschedulablePodsDuration, qps: -1}
	if f := cmd.Sets.FlagSet("deprecated"); f.Changed("kube-api-qps") || f.Changed("kube-api-burst") {
		s.qps, s.burst = u.Deprecated.QPS, int(u.Deprecated.Burst)
	}
	var err error
	if u.ConfigFile == "" {
		s.config, err = latest.Default()
	} else {
		s.config, err = options.LoadConfigFromFile(klog.Background(), u.ConfigFile)
	}
	if err != nil {
		return settings{}, fmt.Errorf("%s: read the configuration %s: %w", component, u.ConfigFile, err)
	}
	s.config.LeaderElection.LeaderElect = false
	if problems := validation.ValidateKubeSchedulerConfiguration(s.config); problems != nil {
		return settings{}, fmt.Errorf("%s: configuration %s: %w", component, u.ConfigFile, errors.Join(problems.Errors()...))
	}
	return s, nil
}

// options returns the settings as options of upstream's constructor.
func (s settings) options() []upstream.Option {
	return []upstream.Option{
		upstream.WithComponentConfigVersion(s.config.TypeMeta.APIVersion),
		upstream.WithProfiles(s.config.Profiles...),
		upstream.WithPercentageOfNodesToScore(s.config.PercentageOfNodesToScore),
		upstream.WithPodMaxBackoffSeconds(s.config.PodMaxBackoffSeconds),
		upstream.WithPodInitialBackoffSeconds(s.config.PodInitialBackoffSeconds),
		upstream.WithPodMaxInUnschedulablePodsDuration(s.maxUnschedulable),
		upstream.WithExtenders(s.config.Extenders...),
		upstream.WithParallelism(s.config.Parallelism),
	}
}
