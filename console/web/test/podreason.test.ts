// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { needsEvent, podReason } from "../src/model/podreason";

const spec = { nodeName: "n", containers: [{ name: "web" }] };

function waiting(reason: string, message = ""): Record<string, any> {
  return { spec, status: { phase: "Pending", containerStatuses: [{ name: "web", state: { waiting: { reason, message } } }] } };
}

test("a pod without a node", () => {
  const message =
    "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.";
  const pod = { spec: {}, status: { phase: "Pending", conditions: [{ type: "PodScheduled", status: "False", message }] } };
  assert.equal(podReason(pod, "web"), "not scheduled: 2 Insufficient memory");
  assert.equal(needsEvent(pod, "web"), false);
  assert.equal(podReason({ spec: {}, status: { phase: "Pending" } }, "web"), "not scheduled yet");
});

test("a container that waits", () => {
  assert.equal(
    podReason(waiting("ImagePullBackOff", 'Back-off pulling image "x:1": ErrImagePull: not found'), "web"),
    'waiting: ImagePullBackOff: Back-off pulling image "x:1": ErrImagePull: not found',
  );
  assert.equal(
    podReason(waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container=web pod=web-1_shop(50cb)"), "web"),
    "waiting: CrashLoopBackOff: back-off 5m0s restarting failed",
  );
  assert.equal(
    podReason(waiting("CreateContainerConfigError", 'configmap "x" not found'), "web"),
    'waiting: CreateContainerConfigError: configmap "x" not found',
  );
});

test("the last event says why a container is not created", () => {
  const pod = waiting("ContainerCreating");
  assert(needsEvent(pod, "web"));
  assert.equal(podReason(pod, "web"), "container creating");
  assert.equal(
    podReason(pod, "web", 'MountVolume.SetUp failed for volume "config" : configmap "x" not found'),
    'container creating: configmap "x" not found',
  );
  assert.equal(
    podReason(pod, "web", "Failed to create pod sandbox: rpc error: code = Unknown desc = no room"),
    "container creating: Failed to create pod sandbox: no room",
  );
  assert.equal(podReason({ spec, status: { phase: "Pending" } }, "web"), "container creating");
});

test("a container waits for an init container", () => {
  const pod = waiting("PodInitializing");
  pod.spec = { ...spec, initContainers: [{ name: "proxy", restartPolicy: "Always" }, { name: "wait" }] };
  const proxy = { name: "proxy", started: true, state: { running: {} } };
  pod.status.initContainerStatuses = [proxy, { name: "wait", state: { running: {} } }];
  assert.equal(podReason(pod, "web"), "waits for init container wait: running");
  assert.equal(podReason(pod, "wait"), "");
  pod.status.initContainerStatuses = [proxy, { name: "wait", state: { terminated: { reason: "Error", exitCode: 2 } } }];
  assert.equal(podReason(pod, "web"), "waits for init container wait: ended: Error, exit code 2");
});

test("a pod that has ended, and one that runs", () => {
  assert.equal(
    podReason({ spec, status: { phase: "Failed", reason: "Evicted", message: "The node was low on memory." } }, "web"),
    "ended: Failed: Evicted: The node was low on memory.",
  );
  const pod = { spec, status: { phase: "Running", containerStatuses: [{ name: "web", state: { running: {} } }] } };
  assert.equal(podReason(pod, "web"), "");
  assert.equal(needsEvent(pod, "web"), false);
});
