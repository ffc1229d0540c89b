// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const metricsNodes = "/apis/metrics.k8s.io/v1beta1/nodes"

// ownMetricsServer is a user's metrics-server, which knows one node, as a Service of the cluster.
func ownMetricsServer(t *testing.T, c kubernetes.Interface) (port string) {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/nodes"):
			fmt.Fprint(w, `{"kind":"NodeMetricsList","apiVersion":"metrics.k8s.io/v1beta1","metadata":{},"items":[{"metadata":{"name":"theirs"},"timestamp":null,"window":"0s","usage":{}}]}`)
		default:
			fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"metrics.k8s.io/v1beta1","resources":[{"name":"nodes","namespaced":false,"kind":"NodeMetrics","verbs":["get","list"]}]}`)
		}
	}))
	t.Cleanup(s.Close)
	at, err := url.Parse(s.URL)
	testenv.NoError(t, err)
	_, err = c.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: named("their-metrics"), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeExternalName, ExternalName: "localhost", Ports: []corev1.ServicePort{{Port: 443}}}}, create)
	testenv.Require(t, err == nil || apierrors.IsAlreadyExists(err), "%v", err)
	return at.Port()
}

func theirMetrics(t *testing.T, port string) *unstructured.Unstructured {
	return object(t, fmt.Sprintf(`
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
  service: {namespace: default, name: their-metrics, port: %s}
`, port))
}

// metricsFrom waits until the answer is want, or an error that says so.
func metricsFrom(t *testing.T, c *kubernetes.Clientset, want string) {
	t.Helper()
	eventually(t, "the metrics API is "+want, func() error {
		data, err := c.Discovery().RESTClient().Get().AbsPath(metricsNodes).SetHeader("Accept", "application/json").DoRaw(t.Context())
		if apierrors.IsNotFound(err) {
			data, err = []byte("nobody's"), nil
		} else if err == nil {
			var list struct {
				Items []struct{ Metadata metav1.ObjectMeta }
			}
			if err = json.Unmarshal(data, &list); err == nil {
				data = []byte("ours")
				if len(list.Items) > 0 {
					data = []byte(list.Items[0].Metadata.Name)
				}
			}
		}
		if err == nil && string(data) != want {
			err = fmt.Errorf("it is %s", data)
		}
		return err
	})
}

// TestUsersAPIServiceReplacesMetricsAPI: the group is there as if it were built in; a user's APIService takes it over,
// with and without ours, and gives it back.
func TestUsersAPIServiceReplacesMetricsAPI(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	board := status.NewBoard(time.Now)
	o.Cluster.Disabled, o.MetricsPart = nil, board.Part("metrics API")
	s := f.start(t, o)
	c, services := client(t, s.admin()), dynamicClient(t, s).Resource(apiServices)
	line := func() string { return string(board.Components()[0].State) + ": " + board.Components()[0].Message }

	metricsFrom(t, c, "ours")
	eventually(t, "the group is in discovery", func() error {
		groups, err := c.Discovery().WithLegacy().ServerGroups()
		if err != nil {
			return err
		}
		for _, g := range groups.Groups {
			if g.Name == "metrics.k8s.io" && g.PreferredVersion.Version == "v1beta1" && len(g.Versions) == 1 {
				return nil
			}
		}
		return fmt.Errorf("among %d groups", len(groups.Groups))
	})
	for _, path := range []string{"/openapi/v3/apis/metrics.k8s.io/v1beta1", "/openapi/v2"} {
		doc, err := c.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(t.Context())
		for _, want := range []string{`"io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics"`, `"/apis/metrics.k8s.io/v1beta1/nodes/{name}"`} {
			testenv.True(t, err == nil && strings.Contains(string(doc), want),
				"what clients go by: no %s in %s: %.200s, %v", want, path, doc, err)
		}
	}
	if _, lists, err := c.Discovery().ServerGroupsAndResources(); err != nil {
		t.Errorf("discovery: %d lists, %v", len(lists), err)
	}
	if _, err := client(t, s.withLeaf(f.leaf.node)).Discovery().RESTClient().Get().AbsPath(metricsNodes).DoRaw(t.Context()); !apierrors.IsForbidden(err) {
		t.Errorf("a node asks for metrics: %v", err)
	}

	port := ownMetricsServer(t, c)
	patch := testenv.Must(json.Marshal(theirMetrics(t, port)))(t)
	testenv.Must(services.Patch(t.Context(), metricsAPIService, types.MergePatchType, patch, metav1.PatchOptions{}))(t)
	metricsFrom(t, c, "theirs")
	eventually(t, "the status says so", func() error {
		if !strings.Contains(line(), "Service default/their-metrics answers") {
			return fmt.Errorf("%q", line())
		}
		return nil
	})
	testenv.NoError(t, services.Delete(t.Context(), metricsAPIService, metav1.DeleteOptions{}))
	metricsFrom(t, c, "ours")
	eventually(t, "the APIService is back", func() error {
		got, err := services.Get(t.Context(), metricsAPIService, metav1.GetOptions{})
		if err == nil && (got.Object["spec"].(map[string]any)["service"] != nil || !strings.Contains(line(), "at rest") && !strings.Contains(line(), "clients ask")) {
			err = fmt.Errorf("%v, %q", got.Object["spec"], line())
		}
		return err
	})
	s.stop()

	o = f.options(t)
	s = f.start(t, o)
	c, services = client(t, s.admin()), dynamicClient(t, s).Resource(apiServices)
	metricsFrom(t, c, "nobody's")
	eventually(t, "our APIService is gone", func() error {
		if got, err := services.Get(t.Context(), metricsAPIService, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%v, %w", got, err)
		}
		return nil
	})
	testenv.Must(services.Create(t.Context(), theirMetrics(t, ownMetricsServer(t, c)), create))(t)
	metricsFrom(t, c, "theirs")
}
