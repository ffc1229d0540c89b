//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// extenderYAML is a pod on the node %[1]s that is an admission webhook for the namespace default, and an API. %[2]s and
// %[3]s are its certificate and key.
const extenderYAML = `
apiVersion: v1
kind: Secret
metadata: {name: extend}
type: kubernetes.io/tls
data: {tls.crt: %[2]s, tls.key: %[3]s}
---
apiVersion: v1
kind: Service
metadata: {name: extend}
spec: {selector: {app: extend}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: v1
kind: Pod
metadata: {name: extend, labels: {app: extend}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers:
  - name: box
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command: [testbox, extend, /tls/tls.crt, /tls/tls.key]
    readinessProbe: {httpGet: {scheme: HTTPS, port: 8443, path: /healthz}, periodSeconds: 1, timeoutSeconds: 60}
    volumeMounts: [{name: tls, mountPath: /tls}]
  volumes: [{name: tls, secret: {secretName: extend}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: extend}
webhooks:
- name: extend.coracle.test
  clientConfig: {caBundle: %[2]s, service: {namespace: default, name: extend, path: /admit}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.extended.coracle.test}
spec:
  group: extended.coracle.test
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 15
  caBundle: %[2]s
  service: {namespace: default, name: extend}
`

// extendOn starts a pod on a node that extends the API.
func extendOn(t *testing.T, s, node *harness.Server) {
	t.Helper()
	chain, key, err := cert.GenerateSelfSignedCertKey("extend.default.svc", nil, nil)
	testenv.NoError(t, err)
	s.InsistsOn(fmt.Sprintf(extenderYAML, node.NodeName(), base64.StdEncoding.EncodeToString(chain), base64.StdEncoding.EncodeToString(key)))
	s.Insists("wait", "--for=condition=Ready", "pod/extend", "--timeout=180s") // a leader may have to be elected
}

// asksExtensions: an API server asks the pod of extendOn before it makes a ConfigMap, and serves the pod's API as its
// own.
func asksExtensions(t *testing.T, s *harness.Server) {
	t.Helper()
	// Each API server hears of the webhook, of its endpoint and of the API by watches of its own.
	s.In(t).Becomes(soon, "extend", "create", "configmap", "asked", "--from-literal=a=b", "--dry-run=server", "-o",
		"jsonpath={.data.admitted}")
	harness.Eventually(t, soon, s.NodeName()+" is refused by the webhook", func() error { // a busy server may have no answer
		out, err := s.TryKubectl("create", "configmap", "refused", "--from-literal=refuse=it")
		if err == nil {
			t.Fatalf("%s, whose webhook refuses a ConfigMap, says %q", s.NodeName(), out)
		}
		if !strings.Contains(err.Error(), "extend refuses it") {
			return err
		}
		return nil
	})
	s.In(t).Becomes(soon, "hello from extend", "get", "greetings.extended.coracle.test", "hello", "-o",
		"jsonpath={.metadata.name} from {.from}")
}
