// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"reflect"
	"testing"
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	upstreamstats "k8s.io/kubernetes/pkg/kubelet/stats"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// askedCAdvisor notes how old the figures may be that it was asked for last.
type askedCAdvisor struct {
	cadvisor.Interface
	maxAge *time.Duration
}

func (c *askedCAdvisor) ContainerInfoV2(_ string, o cadvisorapi.RequestOptions) (map[string]cadvisorapi.ContainerInfo, error) {
	c.maxAge = o.MaxAge
	return nil, nil
}

func (c *askedCAdvisor) GetRequestedContainersInfo(_ string, o cadvisorapi.RequestOptions) (map[string]*cadvisorapi.ContainerInfo, error) {
	c.maxAge = o.MaxAge
	return nil, nil
}

// A client that asks a kubelet for figures gets new ones, in all places where it keeps cAdvisor.
func TestContainersAreMeasuredWhenAsked(t *testing.T) {
	asked := &askedCAdvisor{}
	provider := upstreamstats.NewCRIStatsProvider(asked, nil, nil, nil, nil, nil, false, false, nil)
	k := &struct {
		cadvisor      cadvisor.Interface
		StatsProvider *upstreamstats.Provider
	}{asked, provider}
	testenv.NoError(t, measureWhenAsked(k))
	_, _ = provider.GetCgroupCPUAndMemoryStats("/", false) // there are no figures
	testenv.False(t, asked.maxAge == nil || *asked.maxAge != oldestStats, "a cgroup's figures may be %v old", asked.maxAge)
	_, _ = provider.GetCgroupCPUAndMemoryStats("/", true) // there are no figures
	testenv.False(t, asked.maxAge == nil || *asked.maxAge != 0, "new figures of a cgroup may be %v old", asked.maxAge)
	for _, way := range statsFieldPaths {
		at := testenv.Must(kubecompat.Field[cadvisor.Interface](k, way))(t)
		for _, o := range []cadvisorapi.RequestOptions{{}, {MaxAge: ptr.To(time.Minute)}} {
			want := oldestStats
			if o.MaxAge != nil {
				want = *o.MaxAge
			}
			asked.maxAge = nil
			if _, err := (*at).ContainerInfoV2("/", o); err != nil || asked.maxAge == nil || *asked.maxAge != want {
				t.Errorf("%v: figures may be %v old, not %s; %v", way, asked.maxAge, want, err)
			}
			asked.maxAge = nil
			if _, err := (*at).GetRequestedContainersInfo("/", o); err != nil || asked.maxAge == nil || *asked.maxAge != want {
				t.Errorf("%v: figures may be %v old, not %s; %v", way, asked.maxAge, want, err)
			}
		}
	}
}

// Upstream's kubelet still begins the ways to cAdvisor as measureWhenAsked does; the rest of them is in
// TestContainersAreMeasuredWhenAsked.
func TestWaysToCAdvisor(t *testing.T) {
	for name, want := range map[string]reflect.Type{
		"cadvisor": reflect.TypeFor[cadvisor.Interface](), "StatsProvider": reflect.TypeFor[*upstreamstats.Provider](),
	} {
		if f, ok := reflect.TypeFor[upstream.Kubelet]().FieldByName(name); !ok || f.Type != want {
			t.Errorf("a kubelet's %s: %v", name, f.Type)
		}
	}
	asked := &askedCAdvisor{}
	k := &struct {
		cadvisor      cadvisor.Interface
		StatsProvider int
	}{cadvisor: asked}
	if err := measureWhenAsked(k); err == nil || k.cadvisor != asked {
		t.Errorf("after a failure (%v) the kubelet is not what it was", err)
	}
}
