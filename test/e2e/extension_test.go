//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// extensionYAML is upstream's sample API server as adapters for custom metrics are installed: it asks coracle who a
// user is and what he may, and has coracle's store for its own objects. %[1]s is the namespace, %[2]s and %[3]s are its
// certificate and key, %[4]s is where the store's socket is.
const extensionYAML = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: wardle}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %[1]s-wardle}
rules:
- {apiGroups: [""], resources: [namespaces], verbs: [get, list, watch]}
- {apiGroups: [admissionregistration.k8s.io], resources: ["*"], verbs: [get, list, watch]}
- {apiGroups: [flowcontrol.apiserver.k8s.io], resources: ["*"], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s-wardle}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s-wardle}
subjects: [{kind: ServiceAccount, name: wardle, namespace: %[1]s}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s-wardle-delegates}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
subjects: [{kind: ServiceAccount, name: wardle, namespace: %[1]s}]
---
apiVersion: v1
kind: Secret
metadata: {name: wardle}
type: kubernetes.io/tls
data: {tls.crt: %[2]s, tls.key: %[3]s}
---
apiVersion: v1
kind: Service
metadata: {name: wardle}
spec: {selector: {app: wardle}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: wardle}
spec:
  selector: {matchLabels: {app: wardle}}
  template:
    metadata: {labels: {app: wardle}}
    spec:
      serviceAccountName: wardle
      terminationGracePeriodSeconds: 1
      containers:
      - name: wardle
        image: ` + harness.ExtensionImage + `
        imagePullPolicy: Never
        args: [--secure-port=8443, "--etcd-servers=unix:///store/store.sock", --tls-cert-file=/tls/tls.crt, --tls-private-key-file=/tls/tls.key]
        readinessProbe: {httpGet: {scheme: HTTPS, port: 8443, path: /readyz}, periodSeconds: 1, timeoutSeconds: 5}
        volumeMounts: [{name: tls, mountPath: /tls}, {name: store, mountPath: /store}]
      volumes:
      - {name: tls, secret: {secretName: wardle}}
      - {name: store, hostPath: {path: %[4]s, type: Directory}}
`

// readsAuthentication lets it read by which certificate it knows coracle.
const readsAuthentication = `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %[1]s-wardle, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: wardle, namespace: %[1]s}]
`

const extensionService = `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1alpha1.wardle.example.com}
spec:
  group: wardle.example.com
  version: v1alpha1
  groupPriorityMinimum: 1000
  versionPriority: 15
  caBundle: %[2]s
  service: {namespace: %[1]s, name: wardle}
`

// extension: upstream's sample API server behind an APIService serves its objects as if they were the cluster's own, to
// those whom the cluster lets, and a namespace that is deleted takes them with it.
func extension(k *harness.Kube) {
	harness.WriteExtensionImage(k.T, filepath.Join(k.DataDir, "images", "extension.tar"))
	chain, key, err := cert.GenerateSelfSignedCertKey("wardle."+k.NS+".svc", nil, nil)
	testenv.NoError(k.T, err)
	bundle := base64.StdEncoding.EncodeToString(chain)
	cluster := *k
	cluster.NS = ""
	k.T.Cleanup(func() {
		_ = harness.Reaching(func() error { // before its Service goes: else no namespace could be deleted
			return testenv.Err(k.TryKubectl("delete", "apiservice/v1alpha1.wardle.example.com"))
		})
		_, _ = k.TryKubectl("delete", "clusterrole/"+k.NS+"-wardle", "clusterrolebinding/"+k.NS+"-wardle", "clusterrolebinding/"+k.NS+"-wardle-delegates", "--wait=false")
		_, _ = k.TryKubectl("delete", "rolebinding", k.NS+"-wardle", "-n", "kube-system", "--wait=false")
	})
	cluster.Apply(fmt.Sprintf(readsAuthentication, k.NS))
	k.Apply(fmt.Sprintf(extensionYAML, k.NS, bundle, base64.StdEncoding.EncodeToString(key), filepath.Join(k.DataDir, "run")))
	k.Await(longer, "deployment/wardle", "{.status.availableReplicas}", "1")
	cluster.Apply(fmt.Sprintf(extensionService, k.NS, bundle))
	k.Await(longer, "apiservice/v1alpha1.wardle.example.com", `{.status.conditions[?(@.type=="Available")].status}`, "True")

	flunder := `{apiVersion: wardle.example.com/v1alpha1, kind: Flunder, metadata: {name: %s}, spec: {reference: "a-%[1]s"}}`
	harness.Eventually(k.T, soon, "a flunder", func() error { _, err := k.TryApply(fmt.Sprintf(flunder, "first")); return err })
	k.Await(soon, "flunder/first", "{.spec.reference}", "a-first")
	k.Prints([]string{"reference"}, "explain", "flunder.spec", "--api-version=wardle.example.com/v1alpha1")
	k.Refused("orbidden", "get", "flunders", "--as=system:serviceaccount:"+k.NS+":default") // an account without rights
	other := *k
	other.NS = k.NS + "-other"
	k.Kubectl("create", "namespace", other.NS)
	harness.Eventually(k.T, soon, "a flunder elsewhere", func() error { _, err := other.TryApply(fmt.Sprintf(flunder, "second")); return err })
	flunders := func(want string) func() error {
		return func() error {
			out, err := k.Try("get", "flunders", "-A", "-o", "jsonpath={.items[*].metadata.name}")
			if got := strings.Join(slices.Sorted(strings.FieldsSeq(out)), " "); err == nil && got != want {
				err = fmt.Errorf("there are %q, want %q", got, want)
			}
			return err
		}
	}
	harness.Eventually(k.T, soon, "both flunders", flunders("first second"))
	k.Kubectl("delete", "namespace", other.NS, "--wait=false")
	k.Becomes(longer, "", "get", "namespace", other.NS, "--ignore-not-found", "-o", "jsonpath={.status}")
	harness.Eventually(k.T, soon, "its flunder is gone with it", flunders("first"))
}
