// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { drainedPods } from "../src/model/draining";

const pod = (name: string, owner?: string, more: object = {}, status: object = { phase: "Running" }) => ({
  metadata: {
    name,
    namespace: "shop",
    ownerReferences: owner ? [{ apiVersion: "apps/v1", kind: owner, name: owner.toLowerCase(), controller: true }] : undefined,
    ...("annotations" in more ? more : {}),
  },
  spec: "annotations" in more ? {} : more,
  status,
});

const data = {
  volumes: [
    { name: "a", configMap: {} },
    { name: "b", emptyDir: {} },
  ],
};

test("what each pod of a node needs before it is evicted", () => {
  const found = drainedPods([
    pod("plain", "ReplicaSet"),
    pod("agent", "DaemonSet", data),
    pod("bare", undefined, data),
    pod("data", "StatefulSet", data),
    pod("done", undefined, data, { phase: "Succeeded" }),
    pod("own", undefined, { annotations: { "kubernetes.io/config.mirror": "x" } }),
  ]);
  assert.deepEqual(
    found.map((p) => [p.name, p.controller, p.consent.join()]),
    [
      ["shop/bare", "", "emptyDir,force"],
      ["shop/agent", "DaemonSet daemonset", "daemonSets"],
      ["shop/data", "StatefulSet statefulset", "emptyDir"],
      ["shop/done", "", ""],
      ["shop/plain", "ReplicaSet replicaset", ""],
    ],
  );
});
