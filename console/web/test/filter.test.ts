// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import type { Row } from "../src/api/connection";
import { cellsOf, isPlainOnly, missing, parseFilter } from "../src/model/filter";

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

test("the ends of a text are those of a cell", () => {
  assert.deepEqual(found("^web"), ["web-1", "web-2"]);
  assert.deepEqual(found("^running$"), ["web-1", "db-0"]);
  assert.deepEqual(found("^eb"), []);
  assert.deepEqual(found("!^web"), ["db-0"]);
  assert.deepEqual(found("web-1.*running"), ["web-1"]);
});

test("labels and a text together", () => {
  assert.deepEqual(found("-l app=web crash"), ["web-2"]);
  assert.deepEqual(found("-l app=web, tier in (front, back) ^web"), ["web-1"]);
  assert.deepEqual(found("-l app=web !crash"), ["web-1"]);
  assert.deepEqual(found("-l !tier web"), ["web-2"]);
});

test("cells that are not shown are not searched", () => {
  const columns = [
    { name: "Name", text: (r: Row) => String(r.cells[0]) },
    { name: "Age", text: () => "5m", moving: true },
  ];
  const shown = (filter: string) => rows.filter(parseFilter(filter, cellsOf(columns)).match).map((r) => r.name);
  assert.deepEqual(shown("running"), []);
  assert.deepEqual(shown("shop"), []);
  assert.deepEqual(shown("^WEB-1$"), ["web-1"]);
  assert.deepEqual(shown("^5m"), ["web-1", "web-2", "db-0"]);
});

test("what no row meets is named, part by part", () => {
  const why = (filter: string) => {
    const whole = parseFilter(filter);
    const first = parseFilter(filter, (r) => String(r.cells[0]));
    return missing(first, rows, whole).map((p) => `${p.text} ${p.rows} ${p.elsewhere}`);
  };
  assert.deepEqual(why("-l app=web,tier=back crash"), ["app=web 2 0", "tier=back 1 0", "crash 0 1"]);
  assert.deepEqual(why("-l app=none ^web"), ["app=none 0 0", "^web 2 0"]);
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
