// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestOptionsAreMappedToUpstreamsFlags(t *testing.T) {
	u, err := Options{
		ClusterCIDR: "10.42.0.0/16,fd00:42::/56", ServiceCIDR: "10.43.0.0/16,fd00:43::/112",
		Small: true, ExtraArgs: []string{"node-cidr-mask-size-ipv6=72", "concurrent-gc-syncs=9", "kube-api-qps=50", "kube-api-burst=60", "leader-elect=false"},
	}.upstream()
	testenv.NoError(t, err)
	c := u.config
	for _, check := range []struct {
		what      string
		got, want any
	}{
		{"node ranges", c.KubeCloudShared.AllocateNodeCIDRs, true},
		{"cluster CIDR", c.KubeCloudShared.ClusterCIDR, "10.42.0.0/16,fd00:42::/56"},
		{"service CIDR", c.NodeIPAMController.ServiceCIDR, "10.43.0.0/16"},
		{"second service CIDR", c.NodeIPAMController.SecondaryServiceCIDR, "fd00:43::/112"},
		{"IPv6 mask", c.NodeIPAMController.NodeCIDRMaskSizeIPv6, int32(72)},
		{"an argument over the small machine's", c.GarbageCollectorController.ConcurrentGCSyncs, int32(9)},
		{"the small machine's", c.DeploymentController.ConcurrentDeploymentSyncs, int32(2)},
		{"ended pods that are kept", c.PodGCController.TerminatedPodGCThreshold, int32(1000)},
		{"leader election", c.Generic.LeaderElection.LeaderElect, false},
		{"QPS", u.qps, float32(50)},
		{"burst", u.burst, 60},
	} {
		testenv.Equal(t, check.got, check.want, "%s:", check.what)
	}
	if u, err = (Options{}).upstream(); err != nil || u.qps >= 0 {
		t.Errorf("no arguments: QPS %v, error %v", u.qps, err)
	}
}

func TestValidateNamesTheMistake(t *testing.T) {
	for arg, want := range map[string]string{
		"concurrent-gc-sync=9":     `did you mean "concurrent-gc-syncs"?`,
		"leader-elect=true":        `"leader-elect" is refused`,
		"secure-port=10257":        `"secure-port" is refused`,
		"feature-gates=A=true":     `"feature-gates" is refused`,
		"v=4":                      `"v" is refused`,
		"controllers=*,-nonesuch":  `"nonesuch" is not in the list of known controllers`,
		"node-monitor-period=soon": `"node-monitor-period"`,
	} {
		err := Options{ExtraArgs: []string{arg}}.Validate()
		testenv.False(t, err == nil || !strings.Contains(err.Error(), want), "%s: error %v, want %s in it", arg, err, want)
	}
	testenv.WantError(t, (Options{ClusterCIDR: "10.42.0.0"}).Validate(), "10.42.0.0")
}

func TestBootstrapControllersAreOn(t *testing.T) {
	both := []string{names.BootstrapSignerController, names.TokenCleanerController}
	for _, tc := range []struct{ list, want []string }{
		{[]string{"*"}, append([]string{"*"}, both...)},
		{[]string{"*", "-ttl-controller"}, append([]string{"*", "-ttl-controller"}, both...)},
		{[]string{"*", "-tokencleaner"}, []string{"*", "-tokencleaner", names.BootstrapSignerController}},
		{[]string{"job-controller"}, []string{"job-controller"}},
	} {
		testenv.EqualSlices(t, withBootstrap(slices.Clone(tc.list), app.ControllerAliases()), tc.want, "%v: got", tc.list)
	}
}

// TestEndedPodsFitIntoTheStore: a twentieth of a small store's quota is for ended pods.
func TestEndedPodsFitIntoTheStore(t *testing.T) {
	for quota, want := range map[int64]int32{0: 1000, 1 << 10: 1, 16 << 20: 102, 112 << 20: 716, 2 << 30: 1000} {
		u := testenv.Must(Options{StoreQuota: quota}.upstream())(t)
		testenv.Equal(t, u.config.PodGCController.TerminatedPodGCThreshold, want, "quota %d:", quota)
	}
}
