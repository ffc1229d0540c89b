//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// initContainers: they run in order before the pod's own containers, and a sidecar stays.
func initContainers(k *harness.Kube) {
	k.Apply(pod("ordered", `[sh, -c, "cat /shared/order; testbox hold"]`, "volumeMounts: [{name: shared, mountPath: /shared}]", `
volumes: [{name: shared, emptyDir: {}}]
initContainers:
- {name: first, image: "`+harness.BoxImage+`", imagePullPolicy: Never, command: [sh, -c, "echo first >> /shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
- {name: side, image: "`+harness.BoxImage+`", imagePullPolicy: Never, restartPolicy: Always, command: [testbox, serve], volumeMounts: [{name: shared, mountPath: /shared}]}
- {name: second, image: "`+harness.BoxImage+`", imagePullPolicy: Never, command: [sh, -c, "testbox get http://127.0.0.1:8080/ 120 && echo second >> /shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}`))
	k.Kubectl("wait", "--for=condition=Ready", "pod/ordered", "--timeout=180s")
	harness.Eventually(k.T, soon, "init containers left their names in order", func() error { // the pod is ready before it has written anything
		return harness.Exactly("first\nsecond")(k.Try("logs", "ordered", "-c", "box"))
	})
	k.Await(soon, "pod/ordered", "{.status.initContainerStatuses[1].state.running.startedAt}{.status.initContainerStatuses[1].started}",
		k.Kubectl("get", "pod", "ordered", "-o", "jsonpath={.status.initContainerStatuses[1].state.running.startedAt}")+"true")
}

// probes: readiness takes a pod out of its Service, liveness restarts it, a start-up probe holds both back. All have
// time enough for a busy machine: a probe without an answer within its time has failed.
func probes(k *harness.Kube) {
	k.Apply(pod("http", "[testbox, serve]", `
readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60}
`, "") + "---" + pod("tcp", "[testbox, tcp, '9000']", "livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 180, timeoutSeconds: 60}\nreadinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, timeoutSeconds: 60}", "") + "---" +
		pod("exec", `[sh, -c, "touch /tmp/well; testbox hold"]`, `
startupProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 180, timeoutSeconds: 60}
livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60}
`, "") + "---" +
		pod("slow", `[sh, -c, "sleep 4; touch /tmp/up; testbox hold"]`, `
startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 180, timeoutSeconds: 60}
livenessProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60}
`, "") + `---
{apiVersion: v1, kind: Service, metadata: {name: http}, spec: {selector: {app: http}, ports: [{port: 80, targetPort: 8080}]}}`)
	k.Kubectl("wait", "--for=condition=Ready", "pod/http", "pod/tcp", "pod/exec", "pod/slow", "--timeout=180s")
	// Not through the Service: once the request has had its effect, no other one gets there, and its answer may
	// come too late.
	k.Kubectl("exec", "http", "--", "testbox", "get", "http://127.0.0.1:8080/fail", "120")
	k.Kubectl("wait", "--for=condition=Ready=false", "pod/http", "--timeout=180s")
	k.Becomes(soon, "false", "get", "endpointslices", "-l", "kubernetes.io/service-name=http", "-o",
		"jsonpath={.items[*].endpoints[*].conditions.ready}")
	k.Kubectl("exec", "exec", "--", "rm", "/tmp/well")
	k.Await(soon, "pod/exec", "{.status.containerStatuses[0].restartCount}", "1")
	k.Prints([]string{"Unhealthy", "Killing"}, "get", "events", "--field-selector", "involvedObject.name=exec") // they are written after the deed
	for _, name := range []string{"tcp", "slow"} {
		k.Await(soon, "pod/"+name, "{.status.containerStatuses[0].restartCount}", "0")
	}
}

// hooks: postStart runs, preStop runs before SIGTERM, and a graceful deletion lets the process finish.
func hooks(k *harness.Kube) {
	dir := hostDir(k)
	k.Apply(pod("hooked", `[sh, -c, "trap 'echo term >> /host/log; sleep 1; echo done >> /host/log; exit 0' TERM; while :; do sleep 0.1; done"]`, `
volumeMounts: [{name: host, mountPath: /host}]
lifecycle:
  postStart: {exec: {command: [sh, -c, "echo started >> /host/log"]}}
  preStop: {exec: {command: [sh, -c, "echo stopping >> /host/log; sleep 1"]}}
`, "terminationGracePeriodSeconds: 120\nvolumes: [{name: host, hostPath: {path: "+dir+"}}]"))
	k.Kubectl("wait", "--for=condition=Ready", "pod/hooked", "--timeout=180s")
	k.Kubectl("delete", "pod", "hooked", "--timeout=180s")
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if want := "started\nstopping\nterm\ndone\n"; err != nil || string(b) != want {
		k.T.Errorf("the container's life was %q, want %q, %v", b, want, err)
	}
	k.Apply(pod("stubborn", `[sh, -c, "trap '' TERM; while :; do sleep 1; done"]`, "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/stubborn", "--timeout=180s")
	k.Kubectl("delete", "pod", "stubborn", "--timeout=180s") // after its three seconds it is killed
}

// hostDir makes a directory on the machine for hostPath volumes.
func hostDir(k *harness.Kube) string {
	k.T.Helper()
	dir := filepath.Join(k.Dir, "host-"+k.NS)
	testenv.NoError(k.T, os.MkdirAll(dir, 0o777))
	return dir
}

// restartPolicies: Always, OnFailure and Never do what they say.
func restartPolicies(k *harness.Kube) {
	k.Apply(pod("always", "['true']", "", "restartPolicy: Always") + "---" + pod("onfailure", `[sh, -c, "exit 3"]`, "", "restartPolicy: OnFailure") + "---" +
		pod("never", `[sh, -c, "exit 3"]`, "", "restartPolicy: Never") + "---" + pod("fine", "['true']", "", "restartPolicy: OnFailure"))
	k.Await(soon, "pod/never", "{.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].restartCount}", "Failed 3 0")
	k.Await(soon, "pod/fine", "{.status.phase} {.status.containerStatuses[0].restartCount}", "Succeeded 0")
	for _, name := range []string{"always", "onfailure"} {
		harness.Eventually(k.T, soon, name+" restarts", func() error {
			got, err := k.Try("get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
			if err == nil && (got == "" || got == "0") {
				err = fmt.Errorf("restarted %q times", got)
			}
			return err
		})
	}
}

// resources: limits limit, classes of service are distinguished.
func resources(k *harness.Kube) {
	k.Apply(pod("hungry", "[testbox, eat, '200']", "resources: {limits: {memory: 64Mi}}", "restartPolicy: Never") + "---" +
		pod("guaranteed", "[testbox, hold]", "resources: {limits: {memory: 32Mi, cpu: 100m}}", "") + "---" +
		pod("burstable", "[testbox, hold]", "resources: {requests: {memory: 16Mi}}", "") + "---" +
		pod("besteffort", "[testbox, hold]", "", ""))
	k.Await(soon, "pod/hungry", "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}", "OOMKilled 137")
	for name, class := range map[string]string{"guaranteed": "Guaranteed", "burstable": "Burstable", "besteffort": "BestEffort"} {
		k.Await(soon, "pod/"+name, "{.status.qosClass} {.status.phase}", class+" Running")
	}
	limit := k.Kubectl("exec", "guaranteed", "--", "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
	testenv.False(k.T, limit != fmt.Sprint(32<<20), "the container's memory limit is %s", limit)
	quota := k.Kubectl("exec", "guaranteed", "--", "sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max")
	testenv.True(k.T, quota == "10000", "the container's CPU quota is %s µs per 100 ms", quota)
}

// configuration: ConfigMap and Secret as environment and as files that follow changes, and the downward API.
func configuration(k *harness.Kube) {
	k.Kubectl("create", "configmap", "plain", "--from-literal=colour=red")
	k.Kubectl("create", "secret", "generic", "hidden", "--from-literal=word=sesame")
	k.Apply(pod("reader", "[testbox, serve]", `
env:
- {name: COLOUR, valueFrom: {configMapKeyRef: {name: plain, key: colour}}}
- {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
- {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
envFrom: [{prefix: ALL_, configMapRef: {name: plain}}]
resources: {limits: {memory: 64Mi}}
volumeMounts:
- {name: plain, mountPath: /plain}
- {name: hidden, mountPath: /hidden}
- {name: about, mountPath: /about}
`, `
volumes:
- {name: plain, configMap: {name: plain}}
- {name: hidden, secret: {secretName: hidden, defaultMode: 0400}}
- {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
`))
	k.Kubectl("wait", "--for=condition=Ready", "pod/reader", "--timeout=180s")
	ip := k.Kubectl("get", "pod", "reader", "-o", "jsonpath={.status.podIP}")
	got := k.Kubectl("exec", "reader", "--", "sh", "-c", `echo "$COLOUR $WORD $POD $ADDRESS $LIMIT $ALL_colour $(cat /plain/colour) $(cat /hidden/word) $(cat /about/labels) $(stat -Lc %a /hidden/word)"`)
	if want := fmt.Sprintf(`red sesame reader %s 67108864 red red sesame app="reader" 400`, ip); got != want {
		k.T.Errorf("the pod sees\n%s, want\n%s", got, want)
	}
	k.Kubectl("patch", "configmap", "plain", "-p", `{"data":{"colour":"blue"}}`)
	k.Kubectl("patch", "secret", "hidden", "-p", `{"stringData":{"word":"abracadabra"}}`)
	k.Kubectl("label", "pod", "reader", "tier=back")
	// The kubelet writes volumes again once a minute and a bit.
	harness.Eventually(k.T, 5*time.Minute, "live update", func() error {
		got, err := k.Try("exec", "reader", "--", "sh", "-c", `echo "$(cat /plain/colour) $(cat /hidden/word) $(cat /about/labels | tr '\n' ' ')"`)
		if want := `blue abracadabra app="reader" tier="back" `; err == nil && strings.TrimRight(got, " ") != strings.TrimRight(want, " ") {
			err = fmt.Errorf("files say %q", got)
		}
		return err
	})
}

// volumes: emptyDir (disk and memory), hostPath, and a projected token that the API server accepts.
func volumes(k *harness.Kube) {
	dir := hostDir(k)
	k.Apply(pod("volumes", `[sh, -c, "echo from pod > /host/note; testbox hold"]`, `
volumeMounts:
- {name: disk, mountPath: /disk}
- {name: memory, mountPath: /memory}
- {name: host, mountPath: /host}
- {name: token, mountPath: /token}
`, `
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
- {name: host, hostPath: {path: "`+dir+`", type: Directory}}
- {name: token, projected: {sources: [{serviceAccountToken: {path: token, audience: elsewhere, expirationSeconds: 600}}]}}
`))
	k.Kubectl("wait", "--for=condition=Ready", "pod/volumes", "--timeout=180s")
	contains(k, k.Kubectl("exec", "volumes", "--", "sh", "-c", "echo kept > /disk/f; cat /disk/f; mount | grep ' /memory '"), "kept", "tmpfs")
	harness.Eventually(k.T, soon, "what the pod wrote is on the host", func() error { // it is ready before it has written anything
		b, err := os.ReadFile(filepath.Join(dir, "note"))
		if err == nil && string(b) != "from pod\n" {
			err = fmt.Errorf("there is %q", b)
		}
		return err
	})
	contains(k, k.Kubectl("exec", "volumes", "--", "sh", "-c", "cut -d. -f2 /token/token | tr -d '\\n' | sed 's/$/==/' | base64 -d 2>/dev/null"), `"elsewhere"`, "system:serviceaccount:"+k.NS+":default")
	k.Prints([]string{"200", "+coracle"}, "exec", "volumes", "--", "testbox", "api", "/version") // the pod's first use of DNS and of a Service
	k.Prints([]string{"403", "system:serviceaccount:" + k.NS + ":default"}, "exec", "volumes", "--", "testbox", "api", "/api/v1/secrets")
	contains(k, k.Kubectl("exec", "volumes", "--", "ls", "/var/run/secrets/kubernetes.io/serviceaccount"), "ca.crt", "namespace", "token")
}
