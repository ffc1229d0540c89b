//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// moreObjects are looked at by TestMoreViews: a Service with pods behind it, what leads to it, and rights.
const moreObjects = `
apiVersion: v1
kind: Service
metadata: {name: talker, namespace: default, labels: {team: blue}}
spec: {selector: {app: talker}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front, namespace: default}
spec: {rules: [{host: talker.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: talker, port: {number: 80}}}}]}}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: limits, namespace: default}
spec: {hard: {pods: "5"}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: default}
spec: {schedule: "30 4 * * *", timeZone: Asia/Tokyo, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: none}]}}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: inside, namespace: default}
spec: {podSelector: {matchLabels: {app: other}}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 80}]}]}
`

// open opens a view by its address.
func (p *page) open(view string) {
	p.T.Helper()
	p.do("opening "+view, chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.hash = "#/`+view+`"`))
		return err
	}))
}

// newTenant makes a namespace, and returns a user who may view that one.
func newTenant(k *harness.Kube, namespace string) *harness.Kube {
	k.T.Helper()
	k.Kubectl("create", "namespace", namespace)
	token := testenv.Must(harness.Output(k.Machine.Command(k.T.Context(), k.Machine.Coracle(), "console", "token", "--kubeconfig", k.Kubeconfig, "--namespace", namespace)))(k.T)
	config := testenv.Must(os.ReadFile(k.Kubeconfig))(k.T)
	server, own := *k.Server, *k
	own.Server = &server
	own.Kubeconfig = filepath.Join(k.T.TempDir(), "kubeconfig")
	testenv.NoError(k.T, os.WriteFile(own.Kubeconfig, config, 0o600))
	own.Kubectl("config", "set-credentials", "tenant", "--token", strings.TrimSpace(token))
	own.Kubectl("config", "set-context", "--current", "--user", "tenant")
	return &own
}

// TestMoreViews goes through maps, releases, the search and the pages of kinds that are seldom looked at, by keys.
func TestMoreViews(t *testing.T) {
	k := newServer(t)
	addWorkload(k)
	k.Apply(moreObjects)
	chart := charts.New("hello", "1.2.3", "").With("values.yaml", "word: none\n").
		With("templates/config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {word: {{ .Values.word }}}\n")
	k.Apply("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: hello, namespace: default}\nspec: {chartContent: " +
		base64.StdEncoding.EncodeToString(chart.Archive()) + ", valuesContent: 'word: swordfish'}\n")
	k.Apply("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: missing, namespace: default}\nspec: {chart: none.tgz}\n")
	k.Await(harness.Soon, "helmchart/hello", `{.status.conditions[?(@.type=="Ready")].status}`, "True")

	b := newBrowser(t, k.Machine.Site)
	p := b.admin(k)
	p.shows("Overview", "ChartNotFound")
	p.shows("Store", "Snapshots", "Network back end")
	p.shot("more-overview")

	p.list("svc default")
	p.shows("talker")
	p.only("talker")
	p.details()
	p.shows("Endpoint slices")
	p.keys("m")
	p.shows("What the map shows", "2 endpoints are ready", "front", "2 of 2 ready")
	p.keys("j", kb.ArrowRight, kb.ArrowRight)
	p.shot("map-service")
	k.Kubectl("scale", "deployment/talker", "--replicas=3")
	p.shows("3 endpoints are ready")
	p.keys(kb.Escape, kb.Escape)

	p.list("deploy default")
	p.shows("3/3")
	p.keys("g", "d")
	p.shows("Conditions")
	p.keys("m")
	p.shows("3 of 3 ready", "ReplicaSet", "front")
	p.shot("map-deployment")

	p.keys(":", "helm", kb.Enter)
	p.shows("hello", "deployed", "1.2.3")
	p.shot("helm")
	p.keys("j", kb.Enter)
	p.shows("helm uninstall hello", "History")
	p.without("swordfish")
	p.shows("Deployed") // the table above the button is there: nothing moves it any more
	p.do("asking for the values", chromedp.Click(`.release .related:last-child button`))
	p.shows("word: swordfish", "Manifest")
	p.shot("release")

	p.keys("Q")
	p.focused(".bar input")
	p.shows("Two letters or more")
	p.keys("team=bl")
	p.shows("services", "talker", "team=blue", "3 objects")
	p.keys(kb.Escape, ":", "find nightl", kb.Enter)
	p.shows("cronjobs", "nightly")
	p.shot("search")

	for _, c := range []struct {
		at    string
		shows []string
	}{
		{"rolebindings.v1.rbac.authorization.k8s.io/default/readers", []string{"ClusterRole view", "default/default", "get, list, watch"}},
		{"serviceaccounts.v1/default/default", []string{"readers", "Cluster role bindings"}},
		{"resourcequotas.v1/default/limits", []string{"pods", "80 %"}},
		{"cronjobs.v1.batch/default/nightly", []string{"Next run", ":30:00 (in "}},
		{"networkpolicies.v1.networking.k8s.io/default/inside", []string{"from all pods of all namespaces, to TCP 80", "pods with app=other"}},
		{"helmcharts.v1.helm.cattle.io/default/hello", []string{"in the object itself", "word: swordfish", "Revision"}},
		{"storageclasses.v1.storage.k8s.io/-/local-path", []string{"Provisioner", "Volume claims of this class"}},
		{"configmaps.v1/default/words", []string{"What uses it", "greeting"}},
	} {
		p.open("object/" + c.at)
		p.shows(c.shows...)
		kind, _, _ := strings.Cut(c.at, ".")
		p.shot("page-" + kind)
	}
	p.do("finding what uses it", chromedp.Click(`.related button`))
	p.shows("None.")

	p.open("events")
	p.shows("Last Seen", "Count", "Scheduled")
	p.shot("events")

	// On a telephone the list stands for the map.
	p.do("making the window narrow", chromedp.EmulateViewport(360, 740))
	p.open("map/services.v1/default/talker")
	p.shows("What the map shows", "3 endpoints are ready")
	p.shot("map-phone")
	p.open("helm/releases/default/hello")
	p.shows("helm uninstall hello")
	p.shot("release-phone")
	p.open("search?text=nightl")
	p.shows("nightly")
	p.shot("search-phone")

	// A tenant begins where they have rights, and is offered that.
	p.saysNothing()
	p = b.open(openConsole(b.machine, newTenant(k, "team-a")))
	p.shows("in namespace team-a", "Nothing is wrong in what you may see.")
	p.keys("n")
	p.shows("These are those in which you have rights.")
	p.shot("namespaces-of-a-tenant")

	p.saysNothing("403") // what the tenant may not see
}
