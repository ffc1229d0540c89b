//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const template = `{metadata: {labels: {app: %s}}, spec: {terminationGracePeriodSeconds: 3, containers: [{name: box, image: "` + harness.BoxImage + `", imagePullPolicy: Never, command: %s}]}}`

// daemonSet: one pod on the one node.
func daemonSet(k *harness.Kube) {
	k.Apply(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: each}, spec: {selector: {matchLabels: {app: each}}, template: ` + fmt.Sprintf(template, "each", "[testbox, serve]") + `}}`)
	k.Kubectl("rollout", "status", "daemonset/each", "--timeout=300s")
	testenv.Equal(k.T, k.Kubectl("get", "pods", "-l", "app=each", "-o", "jsonpath={.items[*].spec.nodeName}"), "node-1", "pods of the DaemonSet are on:")
}

// statefulSet: pods come in order, keep their names, and answer to them.
func statefulSet(k *harness.Kube) {
	k.Apply(`{apiVersion: v1, kind: Service, metadata: {name: row}, spec: {clusterIP: None, selector: {app: row}, ports: [{port: 8080}]}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: row}, spec: {serviceName: row, replicas: 3, selector: {matchLabels: {app: row}}, template: ` + fmt.Sprintf(template, "row", "[testbox, serve]") + `}}`)
	k.Kubectl("rollout", "status", "statefulset/row", "--timeout=300s")
	created := strings.Fields(k.Kubectl("get", "pods", "-l", "app=row", "--sort-by=.status.startTime", "-o", "jsonpath={.items[*].metadata.name}"))
	testenv.True(k.T, strings.Join(created, " ") == "row-0 row-1 row-2", "pods started as %v", created)
	uid := k.Kubectl("get", "pod", "row-1", "-o", "jsonpath={.metadata.uid}")
	k.Kubectl("delete", "pod", "row-1")
	harness.Eventually(k.T, soon, "row-1 is back", func() error {
		got, err := k.Try("get", "pod", "row-1", "-o", `jsonpath={.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && (strings.HasPrefix(got, uid) || !strings.HasSuffix(got, " True")) {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
	k.Becomes(soon, "row-1", "exec", "row-0", "--", "testbox", "get", "http://row-1.row:8080/", "1")
}

// jobs: a Job with several completions, one that fails for good, and a CronJob's run.
func jobs(k *harness.Kube) {
	k.Apply(`{apiVersion: batch/v1, kind: CronJob, metadata: {name: often}, spec: {schedule: "* * * * *", jobTemplate: {spec: {template:
  {spec: {restartPolicy: Never, containers: [` + boxYAML + `, command: ['true']}]}}}}}}`)
	job := func(name, spec, command string) string {
		return `{apiVersion: batch/v1, kind: Job, metadata: {name: ` + name + `}, spec: {` + spec + `, template: {spec: {restartPolicy: Never, containers: [{name: box, image: "` + harness.BoxImage + `", imagePullPolicy: Never, command: ` + command + `}]}}}}`
	}
	k.Apply(job("many", "completions: 3, parallelism: 2", "['true']") + "\n---\n" + job("doomed", "backoffLimit: 1", "['false']"))
	k.Kubectl("wait", "--for=condition=Complete", "job/many", "--timeout=180s")
	k.Kubectl("wait", "--for=condition=Failed", "job/doomed", "--timeout=180s")
	k.Await(soon, "job/many", "{.status.succeeded}", "3")
	harness.Eventually(k.T, longer, "the CronJob's Job succeeds", func() error {
		got, err := k.Try("get", "jobs", "-o", `jsonpath={range .items[?(@.metadata.ownerReferences[0].kind=="CronJob")]}{.status.succeeded}{end}`)
		if err == nil && !strings.HasPrefix(got, "1") {
			err = fmt.Errorf("succeeded: %q", got)
		}
		return err
	})
}

// objects: a HorizontalPodAutoscaler is accepted, a PodDisruptionBudget protects.
func objects(k *harness.Kube) {
	k.Apply(fmt.Sprintf(webDeployment, harness.BoxImage, "one"))
	k.Kubectl("autoscale", "deployment/web", "--min=1", "--max=4", "--cpu=80%")
	k.Kubectl("get", "hpa", "web")
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=300s")
	k.Kubectl("create", "pdb", "web", "--selector=app=web", "--min-available=3")
	k.Await(soon, "pdb/web", "{.status.currentHealthy} {.status.disruptionsAllowed}", "3 0")
	pod := strings.Fields(k.Kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"))[0]
	err := harness.Reaching(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		evict := k.KubectlCommand(ctx, "create", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", k.NS, pod), "-f", "-")
		evict.Stdin = strings.NewReader(fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":%q,"namespace":%q}}`, pod, k.NS))
		_, err := harness.Output(evict)
		return err
	})
	testenv.WantError(k.T, err, "disruption budget")
}

// customResource: a definition, an object of it, its validation and its explanation.
func customResource(k *harness.Kube) {
	k.T.Cleanup(func() { _, _ = k.TryKubectl("delete", "crd", "boats.test.coracle.example", "--wait=false") })
	k.Apply(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.test.coracle.example}
spec:
  group: test.coracle.example
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, required: [oars], properties: {oars: {type: integer, minimum: 1, description: How many oars it has}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}`)
	// kubectl wait fails on a definition that has no conditions yet.
	k.Await(soon, "crd/boats.test.coracle.example", `{.status.conditions[?(@.type=="Established")].status}`, "True")
	boat := `{apiVersion: test.coracle.example/v1, kind: Boat, metadata: {name: %s}, spec: {oars: %d}}`
	harness.Eventually(k.T, soon, "a boat", func() error { _, err := k.TryApply(fmt.Sprintf(boat, "first", 1)); return err })
	harness.Eventually(k.T, soon, "a boat without oars is refused", func() error { // a busy server may be too late with an answer
		out, err := k.TryApply(fmt.Sprintf(boat, "second", 0))
		testenv.Require(k.T, err != nil, "a boat without oars: %s", out)
		if !strings.Contains(err.Error(), "oars") {
			return err
		}
		return nil
	})
	k.Await(soon, "boat/first", "{.spec.oars}", "1")
	k.Prints([]string{"How many oars it has"}, "explain", "boat.spec.oars")
	contains(k, k.Kubectl("explain", "deployment.spec.strategy"), "RollingUpdate")
}

// admissionPolicy: a ValidatingAdmissionPolicy refuses what its expression forbids.
func admissionPolicy(k *harness.Kube) {
	k.T.Cleanup(func() {
		_, _ = k.TryKubectl("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", "no-plums", "--ignore-not-found")
	})
	k.Apply(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-plums}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]}
  validations: [{expression: "!has(object.data) || !('plum' in object.data)", message: no plums today}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-plums}
spec: {policyName: no-plums, validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + k.NS + `}}}}`)
	harness.Eventually(k.T, soon, "the policy is in force", func() error {
		_, err := k.Try("create", "configmap", "bad", "--from-literal=plum=1", "--dry-run=server")
		if err == nil || !strings.Contains(err.Error(), "no plums today") {
			return fmt.Errorf("a plum: %v", err)
		}
		return nil
	})
	k.Kubectl("create", "configmap", "good", "--from-literal=pear=1")
}

// rbac: a ServiceAccount may do what its role says and nothing else; the anonymous see only health.
func rbac(k *harness.Kube) {
	k.Kubectl("create", "serviceaccount", "reader")
	k.Kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
	k.Kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+k.NS+":reader")
	as := "--as=system:serviceaccount:" + k.NS + ":reader"
	harness.Eventually(k.T, soon, "the role holds", func() error { _, err := k.Try("get", "configmaps", as); return err })
	for _, denied := range [][]string{{"get", "secrets", as}, {"delete", "configmap", "kube-root-ca.crt", as}, {"get", "configmaps", as, "-n", "kube-system"}, {"get", "nodes", as}} {
		k.Refused("Forbidden", denied...)
	}
	token := k.Kubectl("create", "token", "reader")
	for path, want := range map[string]string{"/readyz": "200", "/livez": "200", "/version": "401", "/api": "401"} {
		harness.Eventually(k.T, soon, "anonymous "+path, func() error { // a busy server is not healthy for a moment
			return harness.Exactly(want)(k.Run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1:6443"+path))
		})
	}
	out, err := k.Run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Authorization: Bearer "+token, "https://127.0.0.1:6443/api/v1/namespaces/"+k.NS+"/configmaps")
	testenv.False(k.T, err != nil || out != "200", "with its token: %s, %v", out, err)
}

// nodePort: a NodePort and a host port answer to the network outside, and a pod's own traffic leaves as the node's.
func nodePort(k *harness.Kube) {
	k.Apply(pod("np", "[testbox, serve]", "ports: [{containerPort: 8080, hostPort: 18080}]", "") + `---
{apiVersion: v1, kind: Service, metadata: {name: np}, spec: {type: NodePort, selector: {app: np}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}}`)
	k.Kubectl("wait", "--for=condition=Ready", "pod/np", "--timeout=180s")
	ctx, cancel := context.WithTimeout(context.Background(), longer)
	defer cancel()
	var warning string
	testenv.Check(k.T, harness.Reaching(func() error {
		out, err := k.KubectlCommand(ctx, "-n", k.NS, "patch", "service", "np", "--dry-run=server", "--type=merge", "-p", `{"spec": {"externalIPs": ["203.0.113.7"]}}`).CombinedOutput()
		if warning = string(out); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}))
	testenv.Contains(k.T, warning, "Warning: spec.externalIPs is deprecated", "external IPs are asked for, and kubectl says")
	for _, port := range []int{30080, 18080} {
		out, err := harness.Output(k.Outside(ctx, harness.Box(k.T), "get", fmt.Sprintf("http://%s:%d/", harness.NodeIP, port), "120"))
		testenv.False(k.T, err != nil || strings.TrimSpace(out) != "np", "port %d from outside: %q, %v", port, out, err)
	}
	outside := k.Outside(ctx, harness.Box(k.T), "serve", "9090")
	testenv.NoError(k.T, outside.Start())
	defer func() { cancel(); _ = outside.Wait() }()
	got := k.Kubectl("exec", "np", "--", "testbox", "get", "http://"+harness.OutsideIP+":9090/peer", "120")
	testenv.True(k.T, strings.HasPrefix(got, harness.NodeIP+":"), "outside sees the pod as %s, want the node's address", got)
}
