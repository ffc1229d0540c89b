// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { autoscalersOf, holdersOf, isJump } from "../src/model/scaling";

test("a jump is more than three times the present number", () => {
  const jumps = (now: number) => [0, 1, 2, 3, 4, 6, 7, 13, 40].filter((n) => isJump(now, n));
  assert.deepEqual(jumps(0), [4, 6, 7, 13, 40]);
  assert.deepEqual(jumps(1), [4, 6, 7, 13, 40]);
  assert.deepEqual(jumps(2), [7, 13, 40]);
  assert.deepEqual(jumps(13), [40]);
  assert.equal(isJump(1, NaN), false);
});

const hpa = (name: string, ref: object, min?: number) => ({
  metadata: { name },
  spec: { scaleTargetRef: ref, minReplicas: min, maxReplicas: 5 },
});

test("the autoscaler of an object is the one that names it, with its group", () => {
  const k = { kind: "Deployment", group: "apps" };
  const all = [
    hpa("web", { apiVersion: "apps/v1", kind: "Deployment", name: "web" }, 2),
    hpa("other", { apiVersion: "apps/v1", kind: "Deployment", name: "other" }),
    hpa("set", { apiVersion: "apps/v1", kind: "StatefulSet", name: "web" }),
    hpa("custom", { apiVersion: "example.com/v1", kind: "Deployment", name: "web" }),
    { metadata: { name: "empty" } },
  ];
  assert.deepEqual(autoscalersOf(k, "web", all), [{ by: "hpa", name: "web", min: 2, max: 5 }]);
  assert.deepEqual(autoscalersOf(k, "other", all), [{ by: "hpa", name: "other", min: 1, max: 5 }]);
});

test("those who keep an object as they want it", () => {
  assert.deepEqual(holdersOf({}), []);
  assert.deepEqual(holdersOf({ metadata: { labels: { app: "web" }, managedFields: [{ manager: "kubectl" }] } }), []);
  assert.deepEqual(
    holdersOf({
      metadata: {
        ownerReferences: [
          { kind: "Note", name: "n" },
          { kind: "Deployment", name: "web", controller: true },
        ],
      },
    }),
    [{ by: "controller", kind: "Deployment", name: "web" }],
  );
  const helm = { labels: { "app.kubernetes.io/managed-by": "Helm" }, annotations: { "meta.helm.sh/release-name": "shop" } };
  assert.deepEqual(holdersOf({ metadata: helm }), [{ by: "helm", name: "shop" }]);
  assert.deepEqual(holdersOf({ metadata: { annotations: { "argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/web" } } }), [
    { by: "argo", name: "shop" },
  ]);
  assert.deepEqual(holdersOf({ metadata: { managedFields: [{ manager: "argocd-controller" }] } }), [{ by: "argo", name: "" }]);
  assert.deepEqual(
    holdersOf({
      metadata: { labels: { "kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system" } },
    }),
    [{ by: "flux", name: "flux-system/apps" }],
  );
  // A release of Flux's is Flux's.
  assert.deepEqual(
    holdersOf({
      metadata: { ...helm, labels: { ...helm.labels, "helm.toolkit.fluxcd.io/name": "shop", "helm.toolkit.fluxcd.io/namespace": "shop" } },
    }),
    [{ by: "flux", name: "shop/shop" }],
  );
});
