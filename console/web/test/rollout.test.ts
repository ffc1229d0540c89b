// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { rolloutOf } from "../src/model/rollout";

const workload = (kind: string, spec: object, status: object) => ({
  kind,
  metadata: { generation: 2 },
  spec,
  status: { observedGeneration: 2, ...status },
});

test("how far a Deployment's rollout is", () => {
  const at = (status: object) => rolloutOf(workload("Deployment", { replicas: 3 }, status));
  assert.deepEqual(at({ observedGeneration: 1, replicas: 3, updatedReplicas: 3, availableReplicas: 3 }), {
    fresh: 0,
    wanted: 3,
    done: false,
  });
  assert.deepEqual(at({ replicas: 4, updatedReplicas: 1, availableReplicas: 3 }), { fresh: 0, wanted: 3, done: false });
  assert.deepEqual(at({ replicas: 4, updatedReplicas: 2, availableReplicas: 3 }), { fresh: 1, wanted: 3, done: false });
  assert.deepEqual(at({ replicas: 3, updatedReplicas: 3, availableReplicas: 3 }), { fresh: 3, wanted: 3, done: true });
  assert.deepEqual(rolloutOf(workload("Deployment", { replicas: 0 }, {})), { fresh: 0, wanted: 0, done: true });
});

test("of a DaemonSet and a StatefulSet", () => {
  const set = (status: object) => rolloutOf(workload("DaemonSet", {}, { desiredNumberScheduled: 2, ...status }));
  assert.deepEqual(set({ updatedNumberScheduled: 1, numberAvailable: 1 })?.done, false);
  assert.deepEqual(set({ updatedNumberScheduled: 2, numberAvailable: 2 }), { fresh: 2, wanted: 2, done: true });
  assert.equal(rolloutOf(workload("StatefulSet", { replicas: 2 }, { replicas: 2, updatedReplicas: 1, availableReplicas: 2 }))?.done, false);
});

test("what does not go on by itself is not waited for", () => {
  assert.equal(rolloutOf(workload("DaemonSet", { updateStrategy: { type: "OnDelete" } }, {})), null);
  assert.equal(rolloutOf(workload("StatefulSet", { updateStrategy: { rollingUpdate: { partition: 1 } } }, {})), null);
  assert.equal(rolloutOf(workload("Deployment", { paused: true }, {})), null);
});
