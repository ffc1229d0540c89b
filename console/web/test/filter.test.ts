// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import type { Row } from "../src/api/connection";
import { isPlainOnly, parseFilter } from "../src/model/filter";

const rows = [
  { ns: "shop", name: "web-1", cells: ["web-1", "1/1", "Running"], labels: { app: "web", tier: "front" } },
  { ns: "shop", name: "web-2", cells: ["web-2", "0/1", "CrashLoopBackOff"], labels: { app: "web" } },
  { ns: "team", name: "db-0", cells: ["db-0", "1/1", "Running"], labels: { app: "db", tier: "back" } },
] as unknown as Row[];

function found(filter: string): string[] {
  return rows.filter(parseFilter(filter).match).map((r) => r.name);
}

test("a word, an expression and their inverse", () => {
  assert.deepEqual(found("running"), ["web-1", "db-0"]);
  assert.deepEqual(found("!running"), ["web-2"]);
  assert.deepEqual(found("web-\\d.*crash"), ["web-2"]);
  assert.deepEqual(found("!web|db"), []);
});

test("nothing, and the sign of an inverse alone, show all", () => {
  for (const text of ["", "  ", "!"]) assert.deepEqual(found(text), ["web-1", "web-2", "db-0"]);
});

test("label selectors", () => {
  assert.deepEqual(found("-l app=web"), ["web-1", "web-2"]);
  assert.deepEqual(found("-l app=web,tier"), ["web-1"]);
  assert.deepEqual(found("-l tier in (back, front)"), ["web-1", "db-0"]);
  assert.deepEqual(found("-l tier notin (front)"), ["web-2", "db-0"]);
  assert.deepEqual(found("-l !tier"), ["web-2"]);
  assert.deepEqual(found("-l app!=web"), ["db-0"]);
});

test("an expression that would take too long is a plain word, and says so", () => {
  assert.equal(isPlainOnly("(a+)+(b+)+(c+)+$"), isPlainOnly("!(a+)+(b+)+(c+)+$"));
  assert.equal(isPlainOnly("-l (a"), false);
});
