// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { commandOptions, deleteOptions, finalizersOf, isGrave, leftOf, lossOf, owns, removal, riskOf, sum } from "../src/model/deletion";

const kind = (resource: string, group = "") => ({ resource, group });

test("what is lost, by the kind", () => {
  assert.equal(lossOf(kind("namespaces")), "namespace");
  assert.equal(lossOf(kind("deployments", "apps")), "workload");
  assert.equal(lossOf(kind("deployments", "example.com")), "other");
  assert.equal(lossOf(kind("pods"), { metadata: {} }), "barePod");
  assert.equal(lossOf(kind("pods"), { metadata: { ownerReferences: [{ controller: true }] } }), "controlledPod");
  assert.equal(lossOf(kind("pods"), null), "controlledPod");
  const grave = ["namespaces", "nodes", "persistentvolumes", "pods", "configmaps"].filter((r) => isGrave(kind(r)));
  assert.deepEqual(grave, ["namespaces", "nodes", "persistentvolumes"]);
  assert.equal(isGrave(kind("customresourcedefinitions", "apiextensions.k8s.io")), true);
  assert.equal(isGrave(kind("nodes", "metrics.k8s.io")), false);
  assert.equal(owns(kind("deployments", "apps")), true);
  assert.equal(owns(kind("pods")), false);
});

test("choices, for the API and for kubectl", () => {
  const plain = { grace: "", force: false, cascade: "background" as const };
  assert.deepEqual(deleteOptions(plain, "u1"), {
    apiVersion: "v1",
    kind: "DeleteOptions",
    propagationPolicy: "Background",
    preconditions: { uid: "u1" },
  });
  assert.deepEqual(commandOptions(plain), []);
  const forced = { grace: "30", force: true, cascade: "orphan" as const };
  assert.equal(deleteOptions(forced).gracePeriodSeconds, 0);
  assert.equal(deleteOptions(forced).propagationPolicy, "Orphan");
  assert.equal(deleteOptions(forced).preconditions, undefined);
  assert.deepEqual(commandOptions(forced), ["--grace-period=0", "--force", "--cascade=orphan"]);
  assert.equal(deleteOptions({ ...plain, grace: "0" }).gracePeriodSeconds, 0);
  assert.deepEqual(commandOptions({ ...plain, grace: "5" }), ["--grace-period=5"]);
});

test("how many objects there are, as far as they may be listed", () => {
  const one = { items: [{}], metadata: {} };
  const many = { items: [{}], metadata: { continue: "c", remainingItemCount: 2999 } };
  assert.deepEqual(
    sum([
      { name: "pods", list: one },
      { name: "secrets", list: { items: [] } },
      { name: "configmaps", list: many },
    ]),
    {
      objects: 3001,
      kinds: [
        ["configmaps", 3000],
        ["pods", 1],
      ],
      partial: false,
    },
  );
  assert.equal(sum([{ name: "pods", list: null }]).partial, true);
  // A server that does not say how many there are more.
  assert.deepEqual(sum([{ name: "pods", list: { items: [{}], metadata: { continue: "c" } } }]), {
    objects: 1,
    kinds: [["pods", 1]],
    partial: true,
  });
});

test("what a deletion waits for", () => {
  assert.deepEqual(finalizersOf(null), []);
  assert.deepEqual(finalizersOf({ metadata: { finalizers: ["a"] } }), []);
  assert.deepEqual(finalizersOf({ metadata: { deletionTimestamp: "2026-01-01T00:00:00Z", finalizers: ["a", 3] } }), ["a"]);
  const conditions = [
    { type: "NamespaceDeletionDiscoveryFailure", status: "False", message: "All resources successfully discovered" },
    { type: "NamespaceFinalizersRemaining", status: "True", message: "Some content has finalizers remaining" },
  ];
  const ns = { kind: "Namespace", metadata: { deletionTimestamp: "2026-01-01T00:00:00Z" }, status: { conditions } };
  assert.deepEqual(leftOf(ns), ["Some content has finalizers remaining"]);
  assert.deepEqual(leftOf({ ...ns, metadata: {} }), []);
  assert.deepEqual(leftOf({ ...ns, kind: "Pod" }), []);
});

test("a finalizer is removed from this object, and where it still is", () => {
  const object = { metadata: { uid: "u1", finalizers: ["a", "example.com/never"] } };
  assert.deepEqual(removal(object, "example.com/never"), [
    { op: "test", path: "/metadata/uid", value: "u1" },
    { op: "test", path: "/metadata/finalizers/1", value: "example.com/never" },
    { op: "remove", path: "/metadata/finalizers/1" },
  ]);
  assert.deepEqual(["kubernetes.io/pvc-protection", "kubernetes.io/pv-protection", "foregroundDeletion", "example.com/x"].map(riskOf), [
    "inUse",
    "inUse",
    "dependents",
    "other",
  ]);
  assert.equal(riskOf("service.kubernetes.io/load-balancer-cleanup"), "backend");
  assert.equal(riskOf("external-provisioner.volume.kubernetes.io/finalizer"), "backend");
});
