// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { command, environment, mounts, podSpecOf, probes, tolerations, volumes } from "../src/model/podspec";

test("the environment says where values come from", () => {
  const c = {
    envFrom: [{ prefix: "DB_", secretRef: { name: "db", optional: true } }, { configMapRef: { name: "all" } }],
    env: [
      { name: "A", value: "b" },
      { name: "EMPTY" },
      { name: "URL", valueFrom: { configMapKeyRef: { name: "web", key: "url" } } },
      { name: "PASSWORD", valueFrom: { secretKeyRef: { name: "db", key: "password" } } },
      { name: "NODE", valueFrom: { fieldRef: { fieldPath: "spec.nodeName" } } },
      { name: "CPUS", valueFrom: { resourceFieldRef: { resource: "limits.cpu", containerName: "main" } } },
    ],
  };
  assert.deepEqual(
    environment(c).map((d) => [d.name, d.value, d.ref?.resource ?? ""]),
    [
      ["DB_*", "all of Secret db, if it is there", "secrets"],
      ["*", "all of ConfigMap all", "configmaps"],
      ["A", "b", ""],
      ["EMPTY", "", ""],
      ["URL", "url of ConfigMap web", "configmaps"],
      ["PASSWORD", "password of Secret db", "secrets"],
      ["NODE", "field spec.nodeName", ""],
      ["CPUS", "limits.cpu of main", ""],
    ],
  );
});

const spec = {
  volumes: [
    { name: "data", persistentVolumeClaim: { claimName: "data-0" } },
    { name: "tmp", emptyDir: { medium: "Memory", sizeLimit: "64Mi" } },
    { name: "logs", hostPath: { path: "/var/log", type: "Directory" } },
    {
      name: "token",
      projected: { sources: [{ serviceAccountToken: {} }, { configMap: { name: "kube-root-ca.crt" } }, { downwardAPI: {} }] },
    },
    { name: "other", flexVolume: {} },
  ],
};

test("volumes and mounts", () => {
  assert.deepEqual(
    volumes(spec).map((v) => v.value),
    [
      "claim data-0",
      "empty, in memory, at most 64Mi",
      "the node's /var/log (Directory)",
      "token of the service account, ConfigMap kube-root-ca.crt, fields of the pod",
      "flexVolume",
    ],
  );
  const c = {
    volumeMounts: [
      { name: "data", mountPath: "/data", subPath: "a", readOnly: true },
      { name: "gone", mountPath: "/gone" },
    ],
    volumeDevices: [{ name: "data", devicePath: "/dev/x" }],
  };
  assert.deepEqual(
    mounts(c, spec).map((m) => `${m.name} ${m.value} ${m.ref?.name ?? ""}`),
    ["/data data: claim data-0, only a, read only data-0", "/gone gone:  ", "/dev/x data, as a device data-0"],
  );
});

test("probes, with the defaults that are not written", () => {
  assert.deepEqual(
    probes({
      livenessProbe: { httpGet: { port: 8080, path: "/healthz", scheme: "HTTPS" }, failureThreshold: 1 },
      readinessProbe: { exec: { command: ["sh", "-c", "test -f /ready"] }, initialDelaySeconds: 5, periodSeconds: 3 },
      startupProbe: { tcpSocket: { port: "http" } },
    }).map((p) => `${p.name}: ${p.value}`),
    [
      "Startup: connects to :http, each 10 s, within 1 s, bad after 3 failures",
      "Liveness: GET https://:8080/healthz, each 10 s, within 1 s, bad after 1 failure",
      'Readiness: runs sh -c "test -f /ready", after 5 s, each 3 s, within 1 s, bad after 3 failures',
    ],
  );
});

test("tolerations and commands", () => {
  assert.deepEqual(
    tolerations({
      tolerations: [
        { key: "node.kubernetes.io/not-ready", operator: "Exists", effect: "NoExecute", tolerationSeconds: 300 },
        { key: "gpu", value: "a", effect: "NoSchedule" },
        { operator: "Exists" },
      ],
    }),
    ["node.kubernetes.io/not-ready:NoExecute for 300 s", "gpu=a:NoSchedule", "every taint"],
  );
  assert.equal(command(["/bin/run", "--name=a b", ""]), '/bin/run "--name=a b" ""');
});

test("templates of workloads and of CronJobs, and nothing else, have the specification of a pod", () => {
  const pod = { containers: [] };
  assert.equal(podSpecOf({ kind: "Deployment", spec: { template: { spec: pod } } }), pod);
  assert.equal(podSpecOf({ kind: "CronJob", spec: { jobTemplate: { spec: { template: { spec: pod } } } } }), pod);
  assert.equal(podSpecOf({ kind: "Certificate", spec: { template: { spec: {} } } }), undefined);
  assert.equal(podSpecOf({ kind: "ConfigMap" }), undefined);
});
