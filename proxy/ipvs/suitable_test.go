// SPDX-License-Identifier: Apache-2.0

package ipvs_test

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/proxy/ipvs"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestProbeNamesWhatTheKernelLacks(t *testing.T) {
	no := errors.New("no")
	for _, c := range []struct {
		name  string
		probe ipvs.Probe
		want  []string // parts of the error; none: the kernel will do
	}{
		{"everything is there", ipvs.Probe{Release: "6.1.176"}, nil},
		{"an old kernel", ipvs.Probe{Release: "5.4.0", Module: no}, []string{"5.4.0", "before 5.9"}},
		{"a version that is not understood", ipvs.Probe{Release: "x"}, []string{`"x"`}},
		{"no module", ipvs.Probe{Release: "6.1.176", Module: no}, []string{"no IPVS, the module ip_vs (no)"}},
		{"neither module", ipvs.Probe{Release: "6.1.176", Module: no, Device: no},
			[]string{"no IPVS, the module ip_vs (no)", "no dummy devices, the module dummy (no)"}},
		{"no connection tracking", ipvs.Probe{Release: "6.1.176", Tracking: no}, []string{"CONFIG_IP_VS_NFCT"}},
		{"no dummy devices", ipvs.Probe{Release: "6.1.176", Device: no}, []string{"the module dummy"}},
		{"no scheduler", ipvs.Probe{Release: "6.1.176", Lacking: []string{"mh"}}, []string{"the module ip_vs_mh"}},
		{"one family only", ipvs.Probe{Release: "6.1.176", Families: map[corev1.IPFamily]error{corev1.IPv6Protocol: no}},
			[]string{"IPVS for IPv6 (no)"}},
		{"several", ipvs.Probe{Release: "6.1.176", Device: no, Lacking: []string{"rr", "mh"}},
			[]string{"the module dummy (no), the module ip_vs_mh, the module ip_vs_rr"}},
	} {
		err := c.probe.Err()
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, part := range c.want {
			testenv.True(t, strings.Contains(err.Error(), part), "%s: %q does not say %q", c.name, err, part)
		}
	}
}
