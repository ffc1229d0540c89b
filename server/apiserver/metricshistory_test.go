// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/resourcemetrics"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMetricsHistoryIsForThoseWhoMayGetMetrics: a tenant who asks for a pod of another namespace, or for a node, gets
// the same refusal whether it exists or not; a server that does not lead asks the one that does, in the user's name.
func TestMetricsHistoryIsForThoseWhoMayGetMetrics(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.Cluster.Disabled = nil
	// The server asks itself: at each request it follows at first, and then leads.
	var leads, forwards atomic.Bool
	leads.Store(true)
	o.MetricsHistory = &MetricsHistory{Server: "one", CAFile: f.pki.CAFile(pki.ServerCA), ServerName: "127.0.0.1", Leader: func() (string, bool) {
		if forwards.Load() {
			leads.Store(!leads.Load())
		}
		return o.Listener.Addr().String(), leads.Load()
	}}
	s := f.start(t, o)
	c := client(t, s.admin())
	rbac := c.RbacV1()
	role := func(name string, rule rbacv1.PolicyRule) {
		testenv.Must(rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: named(name), Rules: []rbacv1.PolicyRule{rule}}, create))(t)
	}
	role("path", rbacv1.PolicyRule{NonResourceURLs: []string{clusterconfig.MetricsHistoryPath}, Verbs: []string{"get"}})
	role("metrics", rbacv1.PolicyRule{APIGroups: []string{"metrics.k8s.io"}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get"}})
	to := func(role string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}
	}
	tenant := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "tenant"}}
	testenv.Must(rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: named("path"), RoleRef: to("path"), Subjects: tenant}, create))(t)
	testenv.Must(rbac.RoleBindings("default").Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: named("metrics"), RoleRef: to("metrics"), Subjects: tenant}, create))(t)

	ask := func(who, query string) (resourcemetrics.History, error) {
		config := s.admin()
		if who != "" {
			config.Impersonate = rest.ImpersonationConfig{UserName: who}
		}
		c := testenv.Must(rest.HTTPClientFor(config))(t)
		defer c.CloseIdleConnections()
		r := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+clusterconfig.MetricsHistoryPath+"?"+query, nil))(t)
		response := testenv.Must(c.Do(r))(t)
		defer response.Body.Close()
		var out resourcemetrics.History
		if response.StatusCode == http.StatusOK {
			return out, json.NewDecoder(response.Body).Decode(&out)
		}
		var status apierrors.StatusError
		testenv.NoError(t, json.NewDecoder(response.Body).Decode(&status.ErrStatus))
		testenv.Equal(t, int(status.ErrStatus.Code), response.StatusCode, "the code in the response")
		return out, &status
	}
	const own, other, node = "namespace=default&pod=web", "namespace=kube-system&pod=web", "node=one"
	check := func(t *testing.T, enabled bool) {
		eventually(t, "the tenant's binding counts", func() error { return testenv.Err(ask("tenant", own)) })
		for _, c := range []struct{ who, query string }{{"", own}, {"", other}, {"", node}, {"tenant", own}} {
			got, err := ask(c.who, c.query)
			if err != nil || got.Enabled != enabled || got.Server != "one" || (got.Since != nil) != enabled || got.Curves == nil {
				t.Errorf("%q asks for %s: %+v, %v", c.who, c.query, got, err)
			}
		}
		for _, query := range []string{other, node, "namespace=none&pod=web", "node=none"} {
			if _, err := ask("tenant", query); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `"tenant" cannot get`) {
				t.Errorf("the tenant asks for %s: %v", query, err)
			}
		}
		for _, query := range []string{"pod=web", "namespace=default", "node=one&namespace=default&pod=web", "x=y", own + "&minutes=0", own + "&minutes=x"} {
			if _, err := ask("", query); !apierrors.IsBadRequest(err) {
				t.Errorf("%s: %v", query, err)
			}
		}
		if _, err := ask("stranger", own); !apierrors.IsForbidden(err) {
			t.Errorf("a user who may not ask at that path: %v", err)
		}
	}
	t.Run("off", func(t *testing.T) { check(t, false) })
	ctx, stop := context.WithCancel(t.Context())
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		s.RecordMetricsHistory(ctx)
	}()
	eventually(t, "the history has begun", func() error {
		if got, err := ask("", node); err != nil || !got.Enabled {
			return fmt.Errorf("%+v, %w", got, err)
		}
		return nil
	})
	t.Run("on", func(t *testing.T) { check(t, true) })
	t.Run("at a server that follows", func(t *testing.T) {
		forwards.Store(true)
		defer forwards.Store(false)
		check(t, true)
	})
	stop()
	<-recorded

	leads.Store(false)
	if _, err := ask("", own); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "no server leads") {
		t.Errorf("each server takes the other for the leader: %v", err)
	}
}
