// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// foreign is a webhook and an API server outside of this cluster, whatever is posted to it. While a call is under way
// another server is elected, if that was asked for.
type foreign struct {
	*httptest.Server
	mu    sync.Mutex
	calls []string // what was asked, in order
	elect func() error
}

func newForeign(t *testing.T) *foreign {
	f := &foreign{}
	f.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodGet {
			fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"foreign.example.com/v1",`+
				`"resources":[{"name":"things","namespaced":true,"kind":"Thing","verbs":["create"]}]}`)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.elect != nil {
			testenv.Check(t, f.elect())
			f.elect = nil
		}
		if r.URL.Path != "/webhook" {
			f.calls = append(f.calls, "aggregated")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"kind":"Thing","apiVersion":"foreign.example.com/v1","metadata":{"name":"new"}}`)
			return
		}
		var review admissionv1.AdmissionReview
		testenv.Check(t, json.NewDecoder(r.Body).Decode(&review))
		f.calls = append(f.calls, review.Request.Resource.Resource)
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		_ = json.NewEncoder(w).Encode(&review) // the API server tells what it misses
	}))
	t.Cleanup(f.Close)
	return f
}

// during has another server elected in the next call.
func (f *foreign) during(elect func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.elect = elect
}

// called returns what was asked since it was last called.
func (f *foreign) called() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := strings.Join(f.calls, " ")
	f.calls = nil
	return out
}

// install registers the webhook for a namespace and the foreign API.
func (f *foreign) install(t *testing.T, s *running, ns string) {
	t.Helper()
	ctx, c := t.Context(), client(t, s.admin())
	address, err := url.Parse(f.URL)
	testenv.NoError(t, err)
	port, _ := strconv.Atoi(address.Port())
	hook, fail, none := f.URL+"/webhook", admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNoneOnDryRun
	seconds := int32(30)
	_, err = c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: named("foreign"), Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "foreign.example.com", FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &seconds, AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}},
			ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &hook,
				CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})},
			Rules: []admissionregistrationv1.RuleWithOperations{{Operations: []admissionregistrationv1.OperationType{"CREATE"},
				Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets", "services"}}}},
		}}}, create)
	testenv.NoError(t, err)
	// An ExternalName Service is the one kind whose address needs no network of pods.
	_, err = c.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: named("foreign"), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeExternalName, ExternalName: "localhost", Ports: []corev1.ServicePort{{Port: int32(port)}}}}, create)
	testenv.NoError(t, err)
	_, err = dynamicClient(t, s).Resource(apiServices).Create(ctx, object(t, fmt.Sprintf(`
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.foreign.example.com}
spec:
  group: foreign.example.com
  version: v1
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 1000
  versionPriority: 10
  service: {namespace: default, name: foreign, port: %d}
`, port)), create)
	testenv.NoError(t, err)
}

var (
	apiServices = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
	things      = schema.GroupVersionResource{Group: "foreign.example.com", Version: "v1", Resource: "things"}
)

func thing() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "foreign.example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": "new"}}}
}

// testUnfenced lists what a term that ends while a request is under way still does, as docs/security.md says. In each
// case another server is elected in the middle of the request. Once this server knows that, nothing of it happens.
func testUnfenced(t *testing.T, s *running, fence *lateFence) {
	ctx, admin := t.Context(), client(t, s.admin())
	ns := namespace(t, admin)
	f := newForeign(t)
	f.install(t, s, ns)
	elect := func() error { _, err := s.f.servers.moveLeadership(ctx, 1); return err }
	term := func() *loops {
		t.Helper()
		number := testenv.Must(s.f.servers.moveLeadership(ctx, 0))(t)
		return s.loops(t, number)
	}
	secret := func(l *loops, name string) error {
		return second(l.kube.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: named(name)}, create))
	}
	eventually(t, "the webhook", func() error {
		if err := second(admin.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-"}}, create)); err != nil {
			return err
		}
		if f.called() == "" {
			return fmt.Errorf("it is not called yet")
		}
		return nil
	})
	eventually(t, "the foreign API", func() error {
		err := second(dynamicClient(t, s).Resource(things).Namespace(ns).Create(ctx, thing(), create))
		if service, getErr := dynamicClient(t, s).Resource(apiServices).Get(ctx, "v1.foreign.example.com", metav1.GetOptions{}); err != nil && getErr == nil {
			err = fmt.Errorf("%w; %v", err, service.Object["status"])
		}
		return err
	})
	f.called()

	t.Run("webhook", func(t *testing.T) {
		l := term()
		f.during(elect)
		testenv.Check(t, isFenced(secret(l, "first")))
		testenv.Equal(t, f.called(), "secrets", "called for")
		testenv.Check(t, isFenced(secret(l, "second")))
		if got := f.called(); got != "" {
			t.Errorf("called for %q although the term was known to be over", got)
		}
	})
	t.Run("quota", func(t *testing.T) {
		hard := corev1.ResourceList{"count/secrets": resource.MustParse("1000")}
		quotas := admin.CoreV1().ResourceQuotas(ns)
		q := testenv.Must(
			quotas.Create(ctx, &corev1.ResourceQuota{ObjectMeta: named("quota"), Spec: corev1.ResourceQuotaSpec{Hard: hard}}, create))(t)
		q.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{"count/secrets": resource.MustParse("7")}}
		testenv.Must(quotas.UpdateStatus(ctx, q, update))(t)
		used := func() int64 {
			q := testenv.Must(quotas.Get(ctx, "quota", metav1.GetOptions{}))(t)
			count := q.Status.Used["count/secrets"]
			return count.Value()
		}
		eventually(t, "the quota's use", func() error { // the admission plugin's informer has to see it first
			if err := second(admin.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-"}}, create)); err != nil {
				return err
			}
			if used() == 7 {
				return fmt.Errorf("it counts nothing yet")
			}
			return nil
		})
		l, before := term(), used()
		f.during(elect)
		testenv.Check(t, isFenced(secret(l, "counted")))
		// What the quota controller of the next leader makes right again.
		if after := used(); after != before+1 {
			t.Errorf("used %d after %d", after, before)
		}
	})
	t.Run("allocators", func(t *testing.T) {
		l, before := term(), allocated(t, admin)
		f.during(elect)
		err := second(l.kube.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: named("new"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30123}}}}, create))
		testenv.Check(t, isFenced(err))
		// Address and port were taken, and given back with the refusal.
		if after := allocated(t, admin); after != before {
			t.Errorf("addresses in use: %s, before %s", after, before)
		}
		if err := second(admin.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: named("again"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30123}}}}, create)); err != nil {
			t.Errorf("the port was not given back: %v", err)
		}
		f.called()
	})
	t.Run("aggregated API", func(t *testing.T) {
		l := term()
		in := l.dynamic.Resource(things).Namespace(ns)
		f.during(elect)
		testenv.Check(t, second(in.Create(ctx, thing(), create)), "the other API server knows no terms")
		testenv.Equal(t, f.called(), "aggregated", "called")
		fence.unaware.Store(true) // a majority is asked
		defer fence.unaware.Store(false)
		// The others may know of the election before this server does.
		if err := second(in.Create(ctx, thing(), create)); err == nil || !strings.Contains(err.Error(), "this server does not lead") {
			testenv.Check(t, isFenced(err))
		}
		if got := f.called(); got != "" {
			t.Errorf("called %q although the term was known to be over", got)
		}
	})
}

func allocated(t *testing.T, c kubernetes.Interface) string {
	t.Helper()
	list := testenv.Must(c.NetworkingV1().IPAddresses().List(t.Context(), metav1.ListOptions{}))(t)
	var names []string
	for _, a := range list.Items {
		names = append(names, a.Name)
	}
	return strings.Join(names, " ")
}
