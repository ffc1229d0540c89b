// SPDX-License-Identifier: Apache-2.0

package gatewayapi_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// api is an API server that has Gateways and classes alone, of which there is one each.
type api struct {
	mu       sync.Mutex
	requests int
	watches  int
	written  string // the path and the body of the last PUT
	end      chan struct{}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests++
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	base := "/apis/" + gatewayv1.GroupVersion.String()
	switch resource := strings.TrimPrefix(r.URL.Path, base+"/"); {
	case r.Method == http.MethodPut:
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.written = r.URL.Path + " " + string(body)
		a.mu.Unlock()
		_, _ = w.Write(body)
	case r.URL.Path == base:
		_ = json.NewEncoder(w).Encode(metav1.APIResourceList{GroupVersion: gatewayv1.GroupVersion.String(), APIResources: []metav1.APIResource{
			{Name: gatewayapi.Classes, Kind: "GatewayClass"}, {Name: gatewayapi.Gateways, Kind: "Gateway"},
			{Name: gatewayapi.Gateways + "/status", Kind: "Gateway"}, {Name: "tcproutes", Kind: "TCPRoute"},
		}})
	case r.URL.Path == "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gatewayclasses.gateway.networking.k8s.io":
		_, _ = io.WriteString(w, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"x","annotations":{"gateway.networking.k8s.io/bundle-version":"v1.6.3"}}}`)
	case resource != gatewayapi.Classes && resource != gatewayapi.Gateways:
		http.NotFound(w, r)
	case r.URL.Query().Get("watch") != "":
		a.count(1)
		defer a.count(-1)
		if r.URL.Query().Get("sendInitialEvents") != "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-a.end:
		}
	case resource == gatewayapi.Classes:
		_, _ = io.WriteString(w, `{"kind":"GatewayClassList","apiVersion":"gateway.networking.k8s.io/v1","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"coracle"}}]}`)
	default:
		_, _ = io.WriteString(w, `{"kind":"GatewayList","apiVersion":"gateway.networking.k8s.io/v1","metadata":{"resourceVersion":"7"},"items":[
			{"metadata":{"namespace":"shop","name":"web","resourceVersion":"6","managedFields":[{"manager":"x"}],
			"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}","kept":"yes"}},"spec":{"gatewayClassName":"coracle"}}]}`)
	}
}

func (a *api) count(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watches += n
}

func (a *api) now() (requests, watches int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests, a.watches
}

// use is one that a test sets.
type use struct {
	mu      sync.Mutex
	used    bool
	changed chan struct{}
}

func (u *use) Used() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.used
}

func (u *use) Changed() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.changed
}

func (u *use) set(used bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.used = used
	close(u.changed)
	u.changed = make(chan struct{})
}

func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	testenv.Until(t, 2*time.Minute, what, met)
}

func TestObjectsAreFollowedWhileThereAreSome(t *testing.T) {
	a := &api{end: make(chan struct{})}
	s := httptest.NewServer(a)
	defer s.Close()
	defer close(a.end)
	client := testenv.Must(gatewayapi.New(&rest.Config{Host: s.URL}))(t)
	u := &use{changed: make(chan struct{})}
	changed := make(chan struct{}, 1000) // more than there are changes
	o := gatewayapi.NewObjects(client, func() { changed <- struct{}{} }, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { o.Run(ctx, u) })

	if state, complete := o.State(u); !complete || len(state.Gateways) > 0 {
		t.Errorf("without objects there are %v, complete: %v", state.Gateways, complete)
	}
	if requests, _ := a.now(); requests > 0 {
		t.Errorf("%d requests without objects", requests)
	}
	u.set(true)
	eventually(t, "the objects are complete", func() bool { _, complete := o.State(u); return complete })
	<-changed
	state, _ := o.State(u)
	if len(state.Gateways) != 1 || len(state.Classes) != 1 || len(state.HTTPRoutes) != 0 || state.CRDVersion != "v1.6.3" {
		t.Fatalf("there are %v and %v of version %s", state.Gateways, state.Classes, state.CRDVersion)
	}
	g := state.Gateways[0]
	testenv.False(t, g.Name != "web" || len(g.ManagedFields) > 0 || len(g.Annotations) != 1, "the Gateway is %+v", g)
	eventually(t, "both kinds are watched", func() bool { _, watches := a.now(); return watches == 2 })
	testenv.NoError(t, client.UpdateStatus(t.Context(), gatewayapi.Gateways, g))
	a.mu.Lock()
	written := a.written
	a.mu.Unlock()
	if !strings.HasPrefix(written, "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/web/status {") || !strings.Contains(written, `"kind":"Gateway"`) {
		t.Errorf("written is %s", written)
	}

	u.set(false)
	eventually(t, "nothing is watched any more", func() bool { _, watches := a.now(); return watches == 0 })
	eventually(t, "the objects are gone", func() bool { state, complete := o.State(u); return complete && len(state.Gateways) == 0 })
	cancel()
	running.Wait()
}
