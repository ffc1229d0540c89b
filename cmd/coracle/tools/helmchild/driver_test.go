// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/release/common"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestReleaseIsStoredInConfigMaps: the life of a release that is kept in ConfigMaps, from the installation to the
// removal, with a child that was killed in between.
func TestReleaseIsStoredInConfigMaps(t *testing.T) {
	tt := newTester(t)
	tt.driver = "configmap"
	tt.do(tt.request(web("1.0.0")), helmjob.Installed, "")
	tt.do(tt.request(web("1.0.0")), helmjob.Unchanged, "")
	tt.do(tt.request(web("1.1.0")), helmjob.Upgraded, "")
	tt.wantGreeting("web", "hello")
	testenv.Equal(t, tt.records(), "sh.helm.release.v1.web.v1 sh.helm.release.v1.web.v2", "the records are")
	tt.leave(common.StatusPendingUpgrade)
	tt.do(tt.request(web("1.1.0")), helmjob.Recovered, "")
	tt.do(tt.request(web("1.1.0")), helmjob.Unchanged, "")
	secrets, err := shared.client.CoreV1().Secrets(tt.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm"})
	testenv.False(t, err != nil || len(secrets.Items) != 0, "%d records are Secrets, %v", len(secrets.Items), err)
	tt.do(tt.removal(), helmjob.Uninstalled, "")
	tt.wantGreeting("web", "")
	if got := tt.records(); got != "" {
		t.Errorf("the records %q are left", got)
	}
}

// records are the names of the ConfigMaps in which Helm keeps the release. Each has to be sealed.
func (t *tester) records() string {
	t.Helper()
	list, err := shared.client.CoreV1().ConfigMaps(t.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm,name=web"})
	testenv.NoError(t, err)
	var names []string
	for _, m := range list.Items {
		names = append(names, m.Name)
		testenv.False(t, len(m.Labels[sealLabel]) != 60, "the record %s has the seal %q", m.Name, m.Labels[sealLabel])
	}
	return strings.Join(names, " ")
}
