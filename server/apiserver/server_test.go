// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAPIServerServes starts one server and looks at it from several sides.
func TestAPIServerServes(t *testing.T) {
	r := newFixture(t)
	s := r.start(t, r.options(t))
	for _, part := range []struct {
		name string
		test func(*testing.T, *running)
	}{
		{"Discovery", testDiscovery},
		{"CreateWatchDelete", testCreateWatchDelete},
		{"LoopbackWatch", testLoopbackWatch},
		{"Anonymous", testAnonymous},
		{"TLSVersions", testTLSVersions},
		{"ServiceAccountTokens", testServiceAccountTokens},
		{"NodeAuthorizer", testNodeAuthorizer},
		{"PoliciesSeeAllOfTheirParameters", testPoliciesSeeAllOfTheirParameters},
		{"CustomResources", testCustomResources},
		{"OpenAPI", testOpenAPI},
		{"NativeHistograms", testNativeHistograms},
		{"Series", testSeries},
		{"WatchesRestAboveTheFilters", testWatchesRestAboveTheFilters},
		{"Settings", testSettings},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, s) })
	}
}

func client(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	return testenv.Must(kubernetes.NewForConfig(config))(t)
}

func namespace(t *testing.T, c kubernetes.Interface) string {
	t.Helper()
	ns := testenv.Must(c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{}))(t)
	return ns.Name
}

// testDiscovery wants every group at the versions that upstream enables by default, and no APIService that is not
// available.
func testDiscovery(t *testing.T, s *running) {
	c := client(t, s.admin())
	groups := testenv.Must(c.Discovery().ServerGroups())(t)
	served := map[string]string{} // group → preferred version
	order := []string{}
	for _, g := range groups.Groups {
		served[g.Name] = g.PreferredVersion.Version
		order = append(order, g.Name)
	}
	for group, version := range map[string]string{
		"": "v1", "admissionregistration.k8s.io": "v1", "apiextensions.k8s.io": "v1", "apiregistration.k8s.io": "v1", "apps": "v1",
		"authentication.k8s.io": "v1", "authorization.k8s.io": "v1", "autoscaling": "v2", "batch": "v1", "certificates.k8s.io": "v1",
		"coordination.k8s.io": "v1", "discovery.k8s.io": "v1", "events.k8s.io": "v1", "flowcontrol.apiserver.k8s.io": "v1",
		"networking.k8s.io": "v1", "node.k8s.io": "v1", "policy": "v1", "rbac.authorization.k8s.io": "v1", "resource.k8s.io": "v1",
		"scheduling.k8s.io": "v1", "storage.k8s.io": "v1", "storagemigration.k8s.io": "v1",
	} {
		testenv.Equal(t, served[group], version, "group %q: preferred version", group)
	}
	if got := strings.Index(strings.Join(order, " ")+" ", "apps "); got < 0 || got > strings.Index(strings.Join(order, " ")+" ", "batch ") {
		t.Errorf("apps does not come before batch: %v", order)
	}
	if _, lists, err := c.Discovery().ServerGroupsAndResources(); err != nil || len(lists) < 20 {
		t.Errorf("aggregated discovery: %d lists, %v", len(lists), err)
	}
	eventually(t, "APIServices", func() error {
		var list struct {
			Items []struct {
				Metadata metav1.ObjectMeta
				Status   struct{ Conditions []metav1.Condition }
			}
		}
		data, err := c.Discovery().RESTClient().Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices").SetHeader("Accept", "application/json").DoRaw(t.Context())
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		for _, api := range list.Items {
			for _, cond := range api.Status.Conditions {
				if cond.Type == "Available" && cond.Status != metav1.ConditionTrue {
					return fmt.Errorf("%s: %s", api.Metadata.Name, cond.Message)
				}
			}
		}
		if len(list.Items) < 22 {
			return fmt.Errorf("only %d", len(list.Items))
		}
		return nil
	})
}

func testCreateWatchDelete(t *testing.T, s *running) {
	createWatchDelete(t, client(t, s.admin()))
}

// testWatchesRestAboveTheFilters looks at the stacks of all watches that are open, of which the server's own informers
// have many: a filter's there would be kept for as long as its watch.
func testWatchesRestAboveTheFilters(t *testing.T, _ *running) {
	watches := 0
	for stack, n := range goroutines() {
		if !strings.Contains(stack, "(*WatchServer).HandleHTTP") {
			continue
		}
		watches += n
		testenv.False(t, strings.Contains(stack, "withAuthorization"), "%d watches keep the stacks of the filters that they came through:\n%s", n, stack)
	}
	testenv.True(t, watches != 0, "there are no watches")
}

// testLoopbackWatch is the same through memory.
func testLoopbackWatch(t *testing.T, s *running) {
	c := client(t, s.LoopbackConfig())
	createWatchDelete(t, c)

	review := testenv.Must(
		c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}))(t)
	if groups := strings.Join(review.Status.UserInfo.Groups, " "); !strings.Contains(groups, "system:masters") {
		t.Errorf("the loopback client is %s in %s", review.Status.UserInfo.Username, groups)
	}
}

func createWatchDelete(t *testing.T, c kubernetes.Interface) {
	t.Helper()
	maps := c.CoreV1().ConfigMaps(namespace(t, c))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w := testenv.Must(maps.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "boat").String()}))(t)
	defer w.Stop()
	big := strings.Repeat("x", 900<<10)
	made := testenv.Must(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "boat"}, Data: map[string]string{"big": big}}, metav1.CreateOptions{}))(t)
	made.Data["small"] = "y"
	testenv.Must(maps.Update(ctx, made, metav1.UpdateOptions{}))(t)
	if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old version: %v, want a conflict", err)
	}
	got, err := maps.Get(ctx, "boat", metav1.GetOptions{})
	testenv.False(t, err != nil || got.Data["big"] != big || got.Data["small"] != "y", "Get: %d bytes, %v", len(got.Data["big"]), err)
	testenv.NoError(t, maps.Delete(ctx, "boat", metav1.DeleteOptions{}))
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted} {
		select {
		case e, open := <-w.ResultChan():
			testenv.Require(t, open && e.Type == want, "watch: %v (open %v), want %v", e.Type, open, want)
			if m := e.Object.(*corev1.ConfigMap); m.Name != "boat" || len(m.Data["big"]) != len(big) {
				t.Errorf("watch: %s with %d bytes", m.Name, len(m.Data["big"]))
			}
		case <-ctx.Done():
			t.Fatalf("no %v event", want)
		}
	}
}

func statusOf(t *testing.T, c *http.Client, url string, header http.Header) int {
	t.Helper()
	req := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))(t)
	req.Header = header
	resp := testenv.Must(c.Do(req))(t)
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func testAnonymous(t *testing.T, s *running) {
	c := s.anonymous(t, nil)
	for path, want := range map[string]int{
		"/livez": 200, "/readyz": 200, "/healthz": 200, "/version": 401, "/api": 401, "/apis": 401, "/openapi/v2": 401, "/openapi/v3": 401,
		"/api/v1/namespaces": 401, "/api/v1/secrets": 401, "/metrics": 401, "/": 401, "/readyz/etcd": 401, "/.well-known/openid-configuration": 401,
	} {
		testenv.Equal(t, statusOf(t, c, s.url+path, nil), want, "anonymous GET %s:", path)
	}
	testenv.Equal(t, statusOf(t, c, s.url+"/api", http.Header{"Authorization": {"Bearer nonsense"}}), 401, "a wrong token:")
	// Without the front proxy's certificate its headers are only headers.
	testenv.Equal(t, statusOf(t, c, s.url+"/api/v1/secrets", http.Header{"X-Remote-User": {"root"}, "X-Remote-Group": {"system:masters"}}), 401, "front proxy headers from anybody:")
}

func testTLSVersions(t *testing.T, s *running) {
	get := func(version uint16) error {
		c := s.anonymous(t, func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version })
		resp, err := c.Get(s.url + "/livez")
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		testenv.Check(t, get(v), "%s", tls.VersionName(v))
	}
	old := s.anonymous(t, func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}
	})
	if resp, err := old.Get(s.url + "/livez"); err == nil {
		resp.Body.Close()
		t.Errorf("%s is accepted", tls.CipherSuiteName(resp.TLS.CipherSuite))
	}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		testenv.Fails(t, get(v), "%s is accepted", tls.VersionName(v))
	}
}

func testServiceAccountTokens(t *testing.T, s *running) {
	c := client(t, s.admin())
	ns := namespace(t, c)
	testenv.NoError(t, testenv.Err(c.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "rower"}}, metav1.CreateOptions{})))
	token := testenv.Must(
		c.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "rower", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))(t)
	config := rest.AnonymousClientConfig(s.admin())
	config.BearerToken = token.Status.Token
	rower := client(t, config)
	review, err := rower.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	testenv.True(t, err == nil && review.Status.UserInfo.Username == "system:serviceaccount:"+ns+":rower",
		"who a token is: %v, %v", review, err)
	if _, err := rower.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Secrets without a role: %v", err)
	}
	testenv.Contains(t, string(testenv.Must(rower.Discovery().RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(t.Context()))(t)), `"issuer":"`+issuer+`"`, "issuer discovery:")
}

// testNodeAuthorizer wants a node's certificate to be good for its own node only.
func testNodeAuthorizer(t *testing.T, s *running) {
	admin, node := client(t, s.admin()), client(t, s.withLeaf(s.f.leaf.node))
	ctx := t.Context()
	testenv.Check(t, testenv.Err(node.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one"}}, metav1.CreateOptions{})), "registering itself")
	if _, err := node.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "two"}}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("registering another: %v", err)
	}
	testenv.Must(admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "two"}}, metav1.CreateOptions{}))(t)
	if _, err := node.CoreV1().Nodes().Patch(ctx, "two", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("changing another node: %v", err)
	}
	if _, err := node.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Secrets: %v", err)
	}
}
