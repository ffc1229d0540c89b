// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import type { Row } from "../src/api/connection";
import type { Finding } from "../src/api/health";
import { type CardKind, cardsOf, type Problem, sentenceOf, warningsAbout, workloadOf } from "../src/model/cards";
import { Rounds } from "../src/model/rounds";
import { best, cannotMake, clean, mergeWarnings, podSentence, probeReason, type Warning } from "../src/model/sentences";

const KINDS: CardKind[] = [
  ["pods", "Pod", ""],
  ["nodes", "Node", ""],
  ["services", "Service", ""],
  ["persistentvolumeclaims", "PersistentVolumeClaim", ""],
  ["deployments", "Deployment", "apps"],
  ["daemonsets", "DaemonSet", "apps"],
  ["replicasets", "ReplicaSet", "apps"],
  ["cronjobs", "CronJob", "batch"],
  ["jobs", "Job", "batch"],
].map(([resource, kind, group]) => ({ id: resource + "." + group, resource, kind, group }));
const byWord = (w: string) => KINDS.find((k) => k.resource === w || k.kind === w);
const byPath = (path: string) => byWord(path.split("/").pop()!);
const cards = (problems: Problem[], findings: Finding[] = []) => cardsOf(problems, findings, byWord, byPath);

function pod(
  name: string,
  owner?: Row["owner"],
  labels: Record<string, string> = {},
  reason = "CrashLoopBackOff",
  passing = false,
): Problem {
  const row = { uid: name, ns: "shop", name, created: "2026-11-29T11:54:53Z", cells: [], owner, labels } as Row;
  return { id: name, word: "pods", row, reason, passing };
}

const web = (i: number, reason?: string, passing?: boolean) =>
  pod(
    "web-7d9c8b5f4-x" + i,
    { kind: "ReplicaSet", name: "web-7d9c8b5f4" },
    { app: "web", "pod-template-hash": "7d9c8b5f4" },
    reason,
    passing,
  );

const finding = (kind: string, name: string, what: string, more: Partial<Finding> = {}): Finding => ({
  path: "/api/" + kind,
  ns: "shop",
  name,
  uid: kind + name,
  what,
  ...more,
});

function warning(object: string, reason: string, message: string, at: number, part = ""): Warning {
  return { ns: "shop", object, reason, message, at, count: 1, part };
}

test("pods of one workload are one card, with what the workload and its Service say", () => {
  const list = cards(
    [web(1, "NotReady 0/1", true), web(2), pod("alone")],
    [
      finding("deployments", "web", "unavailable", { have: 0, want: 2 }),
      finding("services", "web", "endpoints", { want: 2, passing: true, selector: { app: "web" } }),
      finding("services", "other", "endpoints", { passing: true, selector: { app: "other" } }),
    ],
  );
  assert.deepEqual(
    list.map((c) => [c.kind.kind, c.name, c.pods.length, c.findings.length, c.passing]),
    [
      ["Deployment", "web", 2, 2, false],
      ["Pod", "alone", 1, 0, false],
      ["Service", "other", 0, 1, true],
    ],
  );
  assert.equal(list[0].pods[0].row.name, "web-7d9c8b5f4-x2", "the pod that is worst speaks for them");
});

test("nodes come before what may follow from them, and what passes comes last", () => {
  const node = { ...pod("node-1"), word: "nodes", reason: "NotReady" };
  node.row.ns = "";
  const list = cards([web(1), node], [finding("jobs", "once", "jobIdle"), finding("daemonsets", "d", "unavailable", { passing: true })]);
  assert.deepEqual(
    list.map((c) => c.name),
    ["node-1", "web", "once", "d"],
  );
});

test("the workload of a pod", () => {
  assert.deepEqual(workloadOf(web(1).row), { kind: "Deployment", name: "web" });
  assert.deepEqual(workloadOf(pod("a", { kind: "ReplicaSet", name: "plain" }).row), { kind: "ReplicaSet", name: "plain" });
  assert.deepEqual(workloadOf(pod("a", { kind: "Job", name: "nightly-29940120" }).row), { kind: "CronJob", name: "nightly" });
  assert.deepEqual(workloadOf(pod("a", { kind: "Job", name: "once-2" }).row), { kind: "Job", name: "once-2" });
  assert.equal(workloadOf(pod("etcd-node-1", { kind: "Node", name: "node-1" }).row), null);
});

test("a workload that may make no pods names the quota", () => {
  const [c] = cards([], [finding("daemonsets", "agentd", "unavailable", { have: 0, want: 2 })]);
  const said = 'Error creating: pods "agentd-7x2kq" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0';
  const w = [warning("daemonset/agentd", "FailedCreate", said, 1), warning("daemonset/other", "FailedCreate", "no", 2)];
  assert.equal(
    sentenceOf(c, null, warningsAbout(c, w)),
    "No pods can be made: quota none is used up (requested: pods=1, used: pods=0, limited: pods=0)",
  );
  assert.equal(sentenceOf(c, null, []), "0 of 2 pods are ready");
  assert.equal(
    cannotMake("failed quota: mem: must specify limits.memory for: box"),
    "No pods can be made: quota mem: must specify limits.memory for: box",
  );
});

test("warnings about a Deployment are those of its ReplicaSets, too", () => {
  const [c] = cards([web(1)]);
  const all = [
    "replicaset/web-7d9c8b5f4",
    "replicaset/web-front-7d9c8b5f4",
    "deployment/web",
    "pod/web-7d9c8b5f4-x1",
    "pod/web-7d9c8b5f4-x2",
  ];
  assert.deepEqual(
    warningsAbout(
      c,
      all.map((o, i) => warning(o, "R", "", i)),
    ).map((w) => w.object),
    ["replicaset/web-7d9c8b5f4", "deployment/web", "pod/web-7d9c8b5f4-x1"],
  );
});

const crashing = (change: Record<string, any> = {}, spec: Record<string, any> = {}) => ({
  kind: "Pod",
  metadata: { name: "web-7d9c8b5f4-x1", namespace: "shop" },
  spec: { containers: [{ name: "web", image: "registry.example/web:1", ...spec }] },
  status: {
    phase: "Running",
    conditions: [{ type: "Ready", status: "False", reason: "ContainersNotReady", message: "containers with unready status: [web]" }],
    containerStatuses: [
      {
        name: "web",
        image: "registry.example/web:1",
        ready: false,
        restartCount: 17,
        state: {
          waiting: {
            reason: "CrashLoopBackOff",
            message: "back-off 5m0s restarting failed container=web pod=web-7d9c8b5f4-x1_shop(50cb2c1e-7c1b-4bd9-9f0c-6a4f0f6c9b11)",
          },
        },
        lastState: { terminated: { exitCode: 137, reason: "Error", finishedAt: "2026-11-29T12:21:32Z" } },
        ...change,
      },
    ],
  },
});

test("a probe that kills is the cause, whatever BackOff says after it", () => {
  const all = mergeWarnings([
    warning("pod/web-7d9c8b5f4-x1", "Unhealthy", 'Readiness probe failed: Get "http://10.42.0.9:9998/": EOF', 3, "spec.containers{web}"),
    warning(
      "pod/web-7d9c8b5f4-x1",
      "Unhealthy",
      'Liveness probe failed: Get "http://10.42.0.9:9999/": dial tcp 10.42.0.9:9999: connect: connection refused',
      2,
      "spec.containers{web}",
    ),
    warning("pod/web-7d9c8b5f4-x1", "BackOff", "Back-off restarting failed container web", 9),
  ]);
  assert.equal(podSentence(crashing(), all), "Liveness probe fails on web: connection refused at :9999; restarted 17 times");
  assert.equal(best(all)?.reason, "Unhealthy");
  assert.equal(best(all.filter((w) => w.reason === "BackOff"))?.reason, "BackOff");
  assert.equal(podSentence(crashing(), []), "web ends with exit code 137; restarted 17 times");
});

test("a readiness probe is not said to restart", () => {
  const w = [warning("pod/x", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", 2, "spec.containers{web}")];
  assert.equal(
    podSentence(crashing({ state: { running: {} }, restartCount: 0, lastState: {} }), w),
    "Readiness probe fails on web: HTTP status 503",
  );
});

test("the reasons of probes", () => {
  assert.equal(
    probeReason('Startup probe failed: Get "http://10.0.0.1:80/x": context deadline exceeded'),
    "context deadline exceeded at :80",
  );
  assert.equal(
    probeReason('Liveness probe failed: Get "https://[fd00::1]:8443/": dial tcp [fd00::1]:8443: i/o timeout'),
    "i/o timeout at :8443",
  );
  assert.equal(
    probeReason("Liveness probe failed: cat: can't open '/tmp/healthy': No such file"),
    "cat: can't open '/tmp/healthy': No such file",
  );
});

test("memory, images, configuration, room on the nodes", () => {
  const oom = { lastState: { terminated: { exitCode: 137, reason: "OOMKilled" } } };
  assert.equal(
    podSentence(crashing(oom, { resources: { limits: { memory: "64Mi" } } }), []),
    "web was killed: it used more memory than its limit of 64Mi; restarted 17 times",
  );
  const pull = {
    restartCount: 0,
    lastState: {},
    state: {
      waiting: {
        reason: "ImagePullBackOff",
        message:
          'Back-off pulling image "registry.example/web:1": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image "registry.example/web:1": failed to resolve reference "registry.example/web:1": registry.example/web:1: not found',
      },
    },
  };
  assert.equal(
    podSentence(crashing(pull), []),
    'Image registry.example/web:1 of web cannot be used: failed to resolve reference "registry.example/web:1": registry.example/web:1: not found',
  );
  for (const [message, want] of [
    ['configmap "settings" not found', "ConfigMap settings is missing"],
    ['secret "db" not found', "Secret db is missing"],
    ["couldn't find key user in Secret shop/db", "Key user of Secret db is missing"],
    ["container has runAsNonRoot and image will run as root", "web cannot be made: container has runAsNonRoot and image will run as root"],
  ])
    assert.equal(
      podSentence(crashing({ restartCount: 0, state: { waiting: { reason: "CreateContainerConfigError", message } } }), []),
      want,
    );
  const pending = { metadata: {}, spec: { containers: [{ name: "web" }] }, status: { phase: "Pending", conditions: [] as object[] } };
  pending.status.conditions.push({
    type: "PodScheduled",
    status: "False",
    reason: "Unschedulable",
    message:
      "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
  });
  assert.equal(podSentence(pending, []), "No node can take it: 0/2 nodes are available: 2 Insufficient cpu");
  const creating = crashing({ restartCount: 0, lastState: {}, state: { waiting: { reason: "ContainerCreating" } } });
  const mount = 'MountVolume.SetUp failed for volume "conf" : configmap "settings" not found';
  assert.equal(podSentence(creating, [warning("pod/x", "FailedMount", mount, 1)]), "ConfigMap settings is missing");
});

test("no UIDs", () => {
  assert.equal(
    clean("Back-off restarting failed container=web pod=web-x_shop(50cb2c1e-7c1b-4bd9-9f0c-6a4f0f6c9b11)"),
    "Back-off restarting failed container=web",
  );
  assert.equal(
    clean('volume "pvc-50cb2c1e-7c1b-4bd9-9f0c-6a4f0f6c9b11" is gone'),
    'volume "pvc-50cb2c1e-7c1b-4bd9-9f0c-6a4f0f6c9b11" is gone',
  );
});

test("rounds read the kinds with the condition each time, and all others in turn", () => {
  const paths = Array.from({ length: 120 }, (_, i) => "/k" + String(i).padStart(3, "0"));
  const rounds = new Rounds();
  const seen = new Set<string>();
  for (let i = 0; i < 4; i++) {
    const taken = rounds.plan(paths, i * 60_000 + 1);
    assert.equal(taken.length <= 50, true);
    if (i > 0) assert.equal(taken.includes("/k007"), true, "a kind with the condition was left out");
    taken.forEach((p) => seen.add(p));
    rounds.took(
      taken.map((path) => ({ path, objects: 3, ready: path === "/k007" })),
      i * 60_000 + 1,
    );
    assert.equal(rounds.unread(paths), Math.max(0, 120 - seen.size));
  }
  assert.equal(rounds.unread(paths), 0);
  assert.deepEqual(rounds.plan(paths, 240_001), ["/k007"], "kinds without the condition are read again too soon");
  assert.equal(rounds.plan(paths, 700_000).length, 50);
});

test("kinds with the condition that are too many are named", () => {
  const paths = Array.from({ length: 60 }, (_, i) => "/k" + i);
  const rounds = new Rounds();
  rounds.took(
    paths.map((path) => ({ path, objects: 1, ready: true })),
    1,
  );
  assert.equal(rounds.left(paths, rounds.plan(paths, 2)).length, 10);
});
