// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// recorder is a back end that writes down what the front asks of it.
type recorder struct {
	backend // the events that no test sends
	mu      sync.Mutex
	calls   []string
	at      []time.Time
	err     error
	gone    bool // the kernel state was removed by another program
	takes   time.Duration
}

func (r *recorder) note(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls, r.at = append(r.calls, call), append(r.at, time.Now())
}

// take returns what was called since the last time.
func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return strings.Join(calls, ", ")
}

func (r *recorder) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *recorder) name() string                         { return "recorder" }
func (r *recorder) prepare() error                       { return nil }
func (r *recorder) OnServiceUpdate(_, _ *corev1.Service) { r.note("service") }
func (r *recorder) OnTopologyChange(l map[string]string) {
	r.note("zone " + l[corev1.LabelTopologyZone])
}
func (r *recorder) OnServiceCIDRsChanged(cidrs []string) { r.note("cidrs " + strings.Join(cidrs, " ")) }
func (r *recorder) OnEndpointSliceUpdate(old, _ *discoveryv1.EndpointSlice) {
	if old != nil {
		r.note("slice")
	}
}

func (r *recorder) sync(full bool) error {
	r.note(map[bool]string{false: "sync", true: "full sync"}[full])
	r.mu.Lock()
	takes, err := r.takes, r.err
	r.mu.Unlock()
	time.Sleep(takes) // of a synctest bubble
	return err
}

func (r *recorder) intact() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gone := r.gone
	r.gone = false
	return !gone, nil
}

// front runs a Proxy on a recorder in a synctest bubble; events are called by the test.
func front(t *testing.T, f func(*Proxy, events, *recorder), change ...func(*Options)) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		informers := testenv.Must(
			netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n1", Services: true, AllNodes: true}))(t)
		p := &Proxy{
			o: Options{Informers: informers}, log: ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true))),
			backend: r, reachable: newReachabilityFilter(r), guard: guardPeriod, wake: make(chan struct{}, 1),
		}
		for _, f := range change {
			f(&p.o)
		}
		p.o.externals = newExternals(p.o, p.log)
		p.o.externals.readHost = func() (hostNetwork, error) { return hostNetwork{}, nil }
		stop := testenv.Run(t, p.Run)
		f(p, events{p}, r)
		stop()
	})
}

// synced says that all Services and EndpointSlices were received. The loop rests in between: it may otherwise wake for
// the first event, see both, and write once more for the second.
func synced(e events) {
	e.OnServiceSynced()
	synctest.Wait()
	e.OnEndpointSlicesSynced()
}

func want(t *testing.T, r *recorder, what, calls string) {
	t.Helper()
	testenv.Equal(t, r.take(), calls, "%s: the back end was asked for", what)
}

func TestHalfAViewIsNotWritten(t *testing.T) {
	front(t, func(_ *Proxy, e events, r *recorder) {
		e.OnServiceAdd(&corev1.Service{})
		e.OnServiceSynced()
		time.Sleep(2 * fullSyncPeriod)
		want(t, r, "without EndpointSlices", "service")
		e.OnEndpointSlicesSynced()
		time.Sleep(time.Second)
		want(t, r, "with both", "sync")
	})
}

func TestManyEventsAreOneSync(t *testing.T) {
	front(t, func(_ *Proxy, e events, r *recorder) {
		synced(e)
		time.Sleep(time.Second)
		r.take()
		r.set(func() { r.takes = 20 * time.Millisecond })
		e.OnServiceAdd(&corev1.Service{})
		time.Sleep(time.Millisecond)
		for range 100 {
			e.OnServiceAdd(&corev1.Service{})
		}
		time.Sleep(time.Minute)
		if got := strings.Count(r.take(), "sync"); got != 2 {
			t.Errorf("%d syncs, want one at once and one for what came during it", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if rest := r.at[len(r.at)-1].Sub(r.at[len(r.at)-102]); rest < 200*time.Millisecond {
			t.Errorf("the second sync came %v after the first: it took 20ms, and nine times that is the rest", rest)
		}
	})
}

func TestFailedSyncIsTriedAgain(t *testing.T) {
	front(t, func(p *Proxy, e events, r *recorder) {
		r.set(func() { r.err = errors.New("no") })
		synced(e)
		time.Sleep(retryPause + time.Second)
		want(t, r, "a sync that fails", "sync, sync")
		if h := p.Health(); h.Err == nil || h.Synced {
			t.Errorf("health %+v", h)
		}
		r.set(func() { r.err = nil })
		time.Sleep(retryPause)
		want(t, r, "cured", "sync")
		if h := p.Health(); h.Err != nil || !h.Synced {
			t.Errorf("health %+v", h)
		}
		time.Sleep(fullSyncPeriod / 2)
		want(t, r, "at rest", "")
		time.Sleep(fullSyncPeriod)
		want(t, r, "after an hour", "full sync")
	})
}

func TestGuardAsksForAFullSync(t *testing.T) {
	front(t, func(_ *Proxy, e events, r *recorder) {
		synced(e)
		time.Sleep(2*guardPeriod + time.Second) // from here on between two looks
		want(t, r, "the rules were not touched", "sync")
		r.set(func() { r.gone = true })
		time.Sleep(guardPeriod)
		want(t, r, "another program removed them", "full sync")
		r.set(func() { r.gone, r.err = true, errors.New("no") })
		time.Sleep(guardPeriod + retryPause/2)
		want(t, r, "and they cannot be written", "full sync")
		time.Sleep(retryPause)
		want(t, r, "tried again", "full sync")
	})
}

// TestAFullSyncComesEveryHour, however often something changes, and whatever the back end is: what is put right only
// then is not put off for ever.
func TestAFullSyncComesEveryHour(t *testing.T) {
	for _, every := range []time.Duration{0, time.Minute, fullSyncPeriod - time.Minute} { // 0: nothing changes
		front(t, func(_ *Proxy, e events, r *recorder) {
			synced(e)
			time.Sleep(time.Second)
			want(t, r, "at the start", "sync")
			for range 3 {
				for left := fullSyncPeriod; left > 0; {
					pause := left
					if every > 0 {
						pause = min(every, left)
					}
					time.Sleep(pause)
					if left -= pause; every > 0 {
						e.OnServiceAdd(&corev1.Service{})
						synctest.Wait()
					}
				}
				time.Sleep(maxPause)
				if got := strings.Count(r.take(), "full sync"); got != 1 {
					t.Errorf("a change every %v: %d full syncs in an hour, want one", every, got)
				}
			}
		})
	}
}

func TestZoneAndServiceCIDRsNeedAFullSync(t *testing.T) {
	front(t, func(_ *Proxy, e events, r *recorder) {
		synced(e)
		time.Sleep(time.Second)
		r.take()
		node := func(name, zone string) *corev1.Node {
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
		}
		e.onNode(node("n1", "a"))
		time.Sleep(time.Second)
		want(t, r, "this node's zone", "zone a, full sync")
		e.onNode(node("n2", "b"))
		e.onNode(node("n1", "a"))
		time.Sleep(time.Second)
		want(t, r, "another node's zone, and nothing new of this one", "")
		e.OnServiceCIDRsChanged([]string{"10.43.0.0/16", "10.99.0.0/16"})
		time.Sleep(time.Second)
		want(t, r, "a ServiceCIDR", "cidrs 10.43.0.0/16 10.99.0.0/16, full sync")
		e.OnServiceCIDRsChanged([]string{"10.99.0.0/16", "10.43.0.0/16"})
		e.OnServiceCIDRsChanged(nil)
		time.Sleep(time.Second)
		want(t, r, "the same ones, and none", "")
	})
}

// TestAutoPrefersIPVS: auto prefers IPVS, and who asks for a back end gets that one or none.
func TestAutoPrefersIPVS(t *testing.T) {
	for mode, want := range map[string]string{"": "ipvs nftables", ModeAuto: "ipvs nftables", ModeIPVS: ModeIPVS, ModeNFTables: ModeNFTables} {
		from, err := candidatesOf(mode)
		var names []string
		for _, c := range from {
			names = append(names, c.name)
		}
		testenv.True(t, err == nil && strings.Join(names, " ") == want, "%q: %q, %v; want %q", mode, strings.Join(names, " "), err, want)
	}
	testenv.Fails(t, testenv.Err(candidatesOf("iptables")), "there is a mode iptables")
}

// TestStatusFollowsFailedSyncs: what status says changes with the first attempt, the first one that fails, and the
// first one that does not.
func TestStatusFollowsFailedSyncs(t *testing.T) {
	var reports []string
	front(t, func(_ *Proxy, e events, r *recorder) {
		synced(e)
		time.Sleep(time.Second)
		r.set(func() { r.gone, r.err = true, errors.New("lost") })
		time.Sleep(guardPeriod + 3*retryPause) // fake time
		r.set(func() { r.err = nil })
		time.Sleep(2 * retryPause) // fake time
	}, func(o *Options) { o.Report = func(err error) { reports = append(reports, fmt.Sprint(err)) } })
	testenv.Equal(t, strings.Join(reports, ", "), "<nil>, lost, <nil>", "reported:")
}

func TestFirstUsableBackendIsChosen(t *testing.T) {
	works := func(context.Context, Options) (backend, error) { return &recorder{}, nil }
	fails := func(context.Context, Options) (backend, error) { return nil, errors.New("the kernel lacks it") }
	for _, c := range []struct {
		name      string
		from      []candidate
		why, fail string
	}{
		{"one", []candidate{{name: "a", open: works}}, "--proxy-mode=a asks for it", ""},
		{"the first works", []candidate{{name: "a", open: works}, {name: "b", open: fails}}, "auto takes it where the kernel has what it needs", ""},
		{"the first will not do", []candidate{{name: "a", open: fails}, {name: "b", open: works}}, "a will not do here: the kernel lacks it", ""},
		{"none will do", []candidate{{name: "a", open: fails}, {name: "b", open: fails}}, "", "b: the kernel lacks it"},
	} {
		b, why, err := choose(t.Context(), Options{}, c.from)
		if !strings.Contains(why, c.why) || (b == nil) != (c.fail != "") || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%s: got %v because %q, %v", c.name, b, why, err)
		}
	}
}

// TestChangeOfModeSaysWhichConnectionsEnd: the log says what becomes of the connections that began with the mode that
// was removed.
func TestChangeOfModeSaysWhichConnectionsEnd(t *testing.T) {
	netns.RequireNFT(t)
	for removed, want := range map[string]string{
		ModeIPVS:     "most of those that began with it end",
		ModeNFTables: "those that began with it go on",
	} {
		var log strings.Builder
		p := frontOf(t, &recorder{})
		p.o.RecordFile, p.log = filepath.Join(t.TempDir(), "service-proxy"), logr.FromSlogHandler(slog.NewTextHandler(&log, nil))
		testenv.NoError(t, nft.RecordServiceRules(p.o.RecordFile, removed))
		for range 2 { // the second time nothing of another mode is left
			p.removeOthers()
		}
		testenv.Contains(t, log.String(), " backend="+removed+` connections="`+want, "the log says")
		testenv.Equal(t, strings.Count(log.String(), "\n"), 1, "lines in the log:\n%s\nnumber", log.String())
	}
}
