// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { fitting, stateOfObject, stateOfRow } from "../src/model/toolbar";

const pods = { group: "", resource: "pods" };
const POD = ["logs", "previous", "shell", "attach", "debug", "forward", "edit", "events", "delete"];

function of(word: string, restarted = false, several = false): string {
  return fitting(pods, { word, restarted }, several, POD).join(" ");
}

test("what fits a pod's state", () => {
  assert.equal(of("Running"), "logs shell forward");
  assert.equal(of("CrashLoopBackOff", true), "previous logs debug");
  assert.equal(of("Error"), "logs events edit");
  for (const word of ["Pending", "ContainerCreating", "ErrImageNeverPull", "ImagePullBackOff", "CreateContainerConfigError"])
    assert.equal(of(word), "events edit", word);
  assert.equal(of("Completed"), "logs events");
  assert.equal(of("Init:CrashLoopBackOff", true), "previous logs debug");
});

test("with several objects those that can be done with all", () => {
  const there = ["logs", "edit", "scale", "restart", "delete"];
  assert.deepEqual(fitting({ group: "apps", resource: "deployments" }, null, true, there), ["restart", "scale", "logs"]);
});

test("a workload that is not ready, another kind, and what is not there", () => {
  const apps = { group: "apps", resource: "deployments" };
  const there = ["logs", "scale", "restart", "undo", "events", "edit"];
  assert.deepEqual(fitting(apps, { word: "0/2", restarted: false }, false, there), ["logs", "events", "undo"]);
  assert.deepEqual(fitting(apps, { word: "2/2", restarted: false }, false, there), ["logs", "scale", "restart"]);
  assert.deepEqual(fitting({ group: "", resource: "configmaps" }, null, false, ["edit", "delete"]), ["edit"]);
});

test("the state of a row and of an object", () => {
  const cells: Record<string, string> = { Status: "CrashLoopBackOff", Ready: "0/1", Restarts: "17 (3m ago)" };
  assert.deepEqual(
    stateOfRow((c) => cells[c] ?? ""),
    { word: "CrashLoopBackOff", restarted: true },
  );
  const pod = {
    status: { phase: "Running", containerStatuses: [{ restartCount: 2, state: { waiting: { reason: "CrashLoopBackOff" } } }] },
  };
  assert.deepEqual(stateOfObject(pod), { word: "CrashLoopBackOff", restarted: true });
  assert.deepEqual(stateOfObject({ spec: { replicas: 2 }, status: {} }), { word: "0/2", restarted: false });
  assert.deepEqual(stateOfObject({}), { word: "", restarted: false });
});
