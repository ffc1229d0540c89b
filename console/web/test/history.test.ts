// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { type History, linesOf, pointsOf, topOf } from "../src/model/history";

const curve = (uid: string, start: string, cpu: (number | null)[]) => ({
  uid,
  start,
  cpu,
  memory: cpu.map((n) => (n === null ? null : 2 ** 20)),
});
const history = (...curves: History["curves"]): History => ({ enabled: true, server: "one", period: 60, curves });

test("points are a minute apart, and gaps stay", () => {
  assert.deepEqual(pointsOf(history(curve("a", "1970-01-01T00:01:00Z", [5, null, 7]))), [
    { at: 60, cpu: 5, memory: 1 },
    { at: 120, cpu: null, memory: null },
    { at: 180, cpu: 7, memory: 1 },
  ]);
});

test("two pods of one name are not joined by a line", () => {
  const points = pointsOf(history(curve("a", "1970-01-01T00:00:00Z", [5]), curve("b", "1970-01-01T00:02:00Z", [7])));
  assert.deepEqual(
    points.map((p) => [p.at, p.cpu]),
    [
      [0, 5],
      [60, null],
      [120, 7],
    ],
  );
});

test("no history has no points", () => assert.deepEqual(pointsOf(history()), []));

const pod = (spec: object) => ({ spec });
const with_ = (requests?: object, limits?: object, more = {}) => ({ resources: { requests, limits }, ...more });

test("a pod asks for what its containers and sidecars ask for", () => {
  const object = pod({
    containers: [with_({ cpu: "100m", memory: "64Mi" }, { memory: "128Mi" }), with_({ cpu: "0.2" }, { memory: "1Gi" })],
    initContainers: [with_({ cpu: "2" }), with_({ cpu: "50m" }, { memory: "16Mi" }, { restartPolicy: "Always" })],
  });
  assert.deepEqual(linesOf(object, "cpu"), [{ what: "request", value: 350 }]);
  assert.deepEqual(linesOf(object, "memory"), [
    { what: "request", value: 64 },
    { what: "limit", value: 1168 },
  ]);
});

test("one container without a limit leaves the pod without one", () => {
  assert.deepEqual(linesOf(pod({ containers: [with_({}, { cpu: "1" }), with_()] }), "cpu"), []);
  assert.deepEqual(linesOf(pod({}), "cpu"), []);
});

test("a node's line is what it can give", () => {
  assert.deepEqual(linesOf({ status: { allocatable: { cpu: "4", memory: "2Gi" } } }, "cpu"), [{ what: "allocatable", value: 4000 }]);
  assert.deepEqual(linesOf({ status: { allocatable: { cpu: "4", memory: "2Gi" } } }, "memory"), [{ what: "allocatable", value: 2048 }]);
});

test("a chart shows the lines that are near", () => {
  const line = (value: number) => ({ what: "limit" as const, value });
  assert.equal(topOf([10, null, 50], []), 60);
  assert.equal(topOf([10, 50], [line(100)]), 105);
  assert.equal(topOf([10, 50], [line(4000)]), 60);
  assert.equal(topOf([], [line(4000)]), 1);
});
