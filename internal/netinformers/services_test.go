// SPDX-License-Identifier: Apache-2.0

package netinformers

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy/apis"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func aService(name, clusterIP string, labels map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels}, Spec: corev1.ServiceSpec{ClusterIP: clusterIP}}
}

func aSlice(name string, labels map[string]string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels}}
}

// TestServedIsWhatSelectorsLetThrough: before and after trimming, an object is served just where a watch with the
// selectors would show it.
func TestServedIsWhatSelectorsLetThrough(t *testing.T) {
	withoutOthers, withoutHeadless := labels.Everything(), labels.Everything()
	for at, text := range map[*labels.Selector]string{&withoutOthers: "!" + apis.LabelServiceProxyName, &withoutHeadless: "!" + corev1.IsHeadlessService} {
		var err error
		*at, err = labels.Parse(text)
		testenv.NoError(t, err)
	}
	hasAddress := fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone)
	for _, ip := range []string{"", "None", "10.43.0.9", "fd43::9"} {
		for _, l := range []map[string]string{nil, {apis.LabelServiceProxyName: ""}, {apis.LabelServiceProxyName: "x"}, {"app": "y", corev1.IsHeadlessService: ""}} {
			s := aService("x", ip, l)
			check(t, s, withoutOthers.Matches(labels.Set(l)) && hasAddress.Matches(fields.Set{"spec.clusterIP": ip}))
		}
	}
	for _, l := range []map[string]string{nil, {corev1.IsHeadlessService: ""}, {corev1.IsHeadlessService: "x", "app": "y"}, {apis.LabelServiceProxyName: "x"}} {
		check(t, aSlice("x", l), withoutHeadless.Matches(labels.Set(l)))
	}
}

func check(t *testing.T, o runtime.Object, want bool) {
	t.Helper()
	trimmed := testenv.Must(trim(o))(t)
	for _, as := range []any{o, trimmed, cache.DeletedFinalStateUnknown{Key: "ns/x", Obj: trimmed}} {
		testenv.True(t, isServed(as) == want, "%+v: served is %v, a watch with the selectors says %v", as, !want, want)
	}
}

// TestProxyHearsOfWhatIsServed changes objects so that they begin and end to be served.
func TestProxyHearsOfWhatIsServed(t *testing.T) {
	client := fake.NewClientset(aService("web", "10.43.0.9", nil), aService("db", "None", nil), aSlice("web", nil), aSlice("db", map[string]string{corev1.IsHeadlessService: ""}))
	watched := make(chan string, 10) // more than there are watches
	client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		watched <- a.GetResource().Resource
		return true, w, err
	})
	i := testenv.Must(New(Options{Client: client, NodeName: "n1", Services: true, Names: true}))(t)
	from := testenv.Must(i.Services())(t)
	all := testenv.Must(i.Names())(t)
	h := &heard{}
	add := func(informer cache.SharedIndexInformer, how int) {
		var err error
		switch how {
		case 0:
			_, err = informer.AddEventHandler(h)
		case 1:
			_, err = informer.AddEventHandlerWithResyncPeriod(h, time.Duration(0))
		default:
			_, err = informer.AddEventHandlerWithOptions(h, cache.HandlerOptions{})
		}
		testenv.NoError(t, err)
	}
	add(from.Services.Informer(), 0)
	add(from.EndpointSlices.Informer(), 1)
	wait := run(t, t.Context(), i)
	t.Cleanup(wait)
	h.want(t, "+EndpointSlice web", "+Service web")
	add(from.Services.Informer(), 2)
	h.want(t, "+Service web")

	for <-watched != "services" { // the fake API loses what changes between a list and its watch
	}
	ctx := t.Context()
	update := func(o *corev1.Service) {
		testenv.Must(client.CoreV1().Services("ns").Update(ctx, o, metav1.UpdateOptions{}))(t)
	}
	update(aService("web", "10.43.0.9", map[string]string{apis.LabelServiceProxyName: "x"}))
	h.want(t, "-Service web", "-Service web") // by two handlers
	update(aService("db", "None", map[string]string{"app": "db"}))
	update(aService("web", "10.43.0.9", map[string]string{"app": "web"}))
	h.want(t, "+Service web", "+Service web")
	update(aService("web", "10.43.0.9", nil))
	h.want(t, "=Service web", "=Service web")
	for _, name := range []string{"db", "web"} {
		if _, ok, err := all.Services.Informer().GetStore().GetByKey("ns/" + name); !ok || err != nil {
			t.Errorf("the DNS does not know %s: %v", name, err)
		}
		testenv.NoError(t, client.CoreV1().Services("ns").Delete(ctx, name, metav1.DeleteOptions{}))
	}
	h.want(t, "-Service web", "-Service web")
}

// heard notes events.
type heard struct {
	mu  sync.Mutex
	all []string
}

func (h *heard) note(sign string, o any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch o := o.(type) {
	case *corev1.Service:
		h.all = append(h.all, sign+"Service "+o.Name)
	case *discoveryv1.EndpointSlice:
		h.all = append(h.all, sign+"EndpointSlice "+o.Name)
	default:
		h.all = append(h.all, fmt.Sprintf("%s%T", sign, o))
	}
}

func (h *heard) OnAdd(o any, _ bool) { h.note("+", o) }
func (h *heard) OnUpdate(_, o any)   { h.note("=", o) }
func (h *heard) OnDelete(o any)      { h.note("-", o) }

// want waits for these events since the last time, in any order, and finds fault with any other.
func (h *heard) want(t *testing.T, events ...string) {
	t.Helper()
	slices.Sort(events)
	var got []string
	testenv.Eventually(t, 2*time.Minute, fmt.Sprint(events), func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.all) < len(events) {
			return fmt.Errorf("heard %v", h.all)
		}
		got, h.all = h.all, nil
		return nil
	})
	slices.Sort(got)
	testenv.EqualSlices(t, got, events, "heard")
}
