// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import type { Row } from "../src/api/connection";
import { sorted } from "../src/model/order";
import {
  allocated,
  amount,
  containerUses,
  type Figures,
  nodeUse,
  pairOf,
  percent,
  podUse,
  toneOfLimit,
  toneOfRequest,
  usageFor,
  workloadOf,
  workloadUse,
} from "../src/model/usage";
import { useCards } from "../src/model/usecards";

const MI = 2 ** 20;

function pod(name: string, use?: number[], more: Partial<Row> = {}): Row {
  return { uid: name, ns: "a", name, created: "", cells: [name], use, ...more };
}

const figures: Figures = {
  use: { "a/one": [150, 90 * MI], "a/two": [10.4, 30 * MI], "a/both": [100, 100 * MI], "a/free": [7, 5 * MI] },
  each: { "a/both": { web: [90, 95 * MI], side: [10, 5 * MI] } },
};

test("shares of requests and limits", () => {
  const u = podUse(pod("one", [100, 100 * MI, 0, 100 * MI]), figures)!;
  assert.deepEqual(u, { used: [150, 90 * MI], ofRequest: [1.5, 0.9], ofLimit: [undefined, 0.9] });
  assert.equal(toneOfRequest(u.ofRequest[0]), "passing");
  assert.equal(toneOfLimit(u.ofLimit[1]), "bad");
  assert.equal(podUse(pod("unmeasured", [1, 1, 1, 1]), figures), undefined);
  assert.equal(podUse(pod("one"), figures), undefined, "a pod that has ended reserves nothing");
  assert.deepEqual(podUse(pod("free", [0, 0, 0, 0]), figures)!.ofRequest, [undefined, undefined]);
});

test("the limit is that of the container that is nearest to it", () => {
  const limits: Row["limits"] = { web: [0, 100 * MI], side: [100, 0] };
  assert.deepEqual(podUse(pod("both", [0, 0, 100, 100 * MI], { limits }), figures)!.ofLimit, [0.1, 0.95]);
  // The pod's own limit holds for all of them together.
  assert.deepEqual(podUse(pod("both", [0, 0, 0, 0], { limits: { ...limits, "": [50, 0] } }), figures)!.ofLimit, [2, 0.95]);
  // One of two containers is measured: it is not known which.
  assert.deepEqual(podUse(pod("one", [0, 0, 0, 0], { limits }), figures)!.ofLimit, [undefined, undefined]);
  // An init container has made the sum larger than the limit of the one that runs.
  assert.deepEqual(podUse(pod("one", [0, 0, 0, 2 ** 30], { limits: { web: [0, 90 * MI] } }), figures)!.ofLimit, [undefined, 1]);
});

test("a workload has the sum of its pods, and the nearest limit", () => {
  const owner = { kind: "ReplicaSet", name: "web-abc" };
  const of = { owner, labels: { "pod-template-hash": "abc" } };
  const pods = [
    pod("one", [100, 100 * MI, 0, 100 * MI], of),
    pod("two", [100, 100 * MI, 0, 100 * MI], of),
    pod("new", [100, 100 * MI, 0, 100 * MI], of),
    pod("free", [0, 0, 0, 0]),
  ];
  const uses = workloadUse(pods, figures, "Deployment");
  assert.deepEqual([...uses.keys()], ["a/web"]);
  const u = uses.get("a/web")!;
  assert.deepEqual(u.used, [160.4, 120 * MI]);
  assert.deepEqual(u.ofRequest, [0.802, 0.6], "of those that are measured");
  assert.deepEqual(u.ofLimit, [undefined, 0.9]);
  assert.deepEqual([...workloadUse(pods, figures, "ReplicaSet").keys()], ["a/web-abc"]);
  assert.equal(workloadOf(pod("x", [], { owner: { kind: "ReplicaSet", name: "alone" } }), "Deployment"), undefined);
});

test("a node's use is of what it has for pods", () => {
  const f: Figures = { use: { n: [1000, 512 * MI] } };
  assert.deepEqual(nodeUse(pod("n", [2000, 1024 * MI, 110]), f)!.ofRequest, [0.5, 0.5]);
});

test("amounts and percents are as kubectl's", () => {
  assert.deepEqual([amount([10.4, 90.9 * MI], 0), amount([10.4, 90.9 * MI], 1), amount([0, 0], 0)], ["11m", "90Mi", "0m"]);
  assert.deepEqual([percent(0.599), percent(1.5), percent(0.29), percent(undefined)], ["59%", "150%", "29%", ""]);
});

test("columns, and an order by them with the unknown last", () => {
  const usage = usageFor((row) => podUse(row, figures), false);
  assert.deepEqual(
    usage.columns(false).map((c) => c.name),
    ["CPU", "%CPU/R", "Memory", "%MEM/R"],
  );
  assert.deepEqual(
    usage.columns(true).map((c) => c.name),
    ["CPU", "%CPU/R", "%CPU/L", "Memory", "%MEM/R", "%MEM/L"],
  );
  const rows = [pod("none", [1, 1, 1, 1]), pod("two", [100, 0, 0, 0]), pod("one", [100, 0, 0, 0])];
  const names = (descending: boolean) => sorted([...rows], [], { column: "CPU", descending }, usage.key("CPU")).map((r) => r.name);
  assert.deepEqual(names(false), ["two", "one", "none"]);
  assert.deepEqual(names(true), ["one", "two", "none"]);
  const near = pod("one", [100, 100 * MI, 0, 100 * MI]);
  assert.deepEqual(
    usage.columns(true).map((c) => c.tone!(near)),
    ["passing", "share passing", "share ", "bad", "share ", "share bad"],
  );
  assert.equal(usage.key("Restarts"), undefined);
});

test("a workload's containers: sums, and the share of a limit of the pod nearest to it", () => {
  const spec = {
    initContainers: [{ name: "once" }, { name: "side", restartPolicy: "Always" }],
    containers: [{ name: "web", resources: { requests: { cpu: "100m", memory: "100Mi" }, limits: { memory: "200Mi" } } }],
  };
  const f: Figures = {
    use: { "a/x": [0, 0], "a/y": [0, 0] },
    each: { "a/x": { web: [50, 100 * MI] }, "a/y": { web: [350, 50 * MI], gone: [1, 1] } },
  };
  const [side, web] = containerUses(spec, f);
  assert.deepEqual(side, { name: "side", requests: [0, 0], limits: [0, 0] });
  assert.deepEqual(web.requests, [100, 100 * MI]);
  assert.deepEqual(web.use!.used, [400, 150 * MI]);
  assert.deepEqual(web.use!.ofRequest, [2, 0.75]);
  assert.deepEqual(web.use!.ofLimit, [undefined, 0.5]);
});

test("what pods reserve on a node", () => {
  assert.deepEqual(allocated([pod("a", [1, 2, 3, 4]), pod("b", [10, 20, 30, 40]), pod("ended")]), {
    pods: 2,
    requests: [11, 22],
    limits: [33, 44],
  });
  assert.deepEqual(pairOf({ cpu: "1.5", memory: "1Ki" }), [1500, 1024]);
  assert.deepEqual(
    [pairOf(undefined), pairOf({ cpu: "100m", memory: "x" })],
    [
      [0, 0],
      [100, 0],
    ],
  );
});

test("the overview's cards: near a limit first, then clearly above the request, one for a workload", () => {
  const f: Figures = {
    use: { "a/near": [1, 91 * MI], "a/w1": [10, 100 * MI], "a/w2": [10, 100 * MI], "a/busy": [250, 10 * MI], "a/little": [50, 20 * MI] },
  };
  const owned = { owner: { kind: "ReplicaSet", name: "w-abc" }, labels: { "pod-template-hash": "abc" } };
  const cards = useCards(
    [
      pod("little", [10, 10 * MI, 0, 0]), // five times the CPU, but 40m
      pod("busy", [100, 10 * MI, 0, 0]),
      pod("w1", [100, 50 * MI, 0, 0], owned),
      pod("w2", [100, 50 * MI, 0, 0], owned),
      pod("near", [0, 100 * MI, 0, 100 * MI]),
      pod("unmeasured", [1, 1, 1, 1]),
    ],
    f,
  );
  assert.deepEqual(
    cards.map((c) => [c.kind, c.name, c.what, c.near, c.share]),
    [
      ["Pod", "near", 1, true, 0.91],
      ["Pod", "busy", 0, false, 2.5],
      ["Deployment", "w", 1, false, 2],
    ],
  );
  // At the thresholds: 120 % is not above, and what requests nothing is not either.
  const at = (used: number, requests: number) =>
    useCards([pod("x", [0, requests * MI, 0, 0])], { use: { "a/x": [500, used * MI] } }).length;
  assert.deepEqual([at(1200, 1000), at(1201, 1000), at(149, 100), at(150, 100), at(500, 0)], [0, 1, 0, 1, 0]);
});
