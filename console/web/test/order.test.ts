// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import type { Column, Row } from "../src/api/connection";
import { sorted } from "../src/model/order";

const columns = ["Name", "Restarts", "Age"].map((name) => ({ name })) as Column[];

function row(ns: string, name: string, restarts: unknown, created = "2026-01-01T00:00:00Z"): Row {
  return { uid: ns + name, ns, name, created, cells: [name, restarts, ""] } as unknown as Row;
}

const names = (rows: Row[]) => rows.map((r) => r.ns + "/" + r.name);

test("by name, within namespaces", () => {
  const rows = [row("b", "a", 0), row("a", "z", 0), row("a", "b", 0)];
  assert.deepEqual(names(sorted(rows, columns, { column: "Name", descending: false })), ["a/b", "a/z", "b/a"]);
  assert.deepEqual(names(sorted(rows, columns, { column: "Name", descending: true })), ["b/a", "a/z", "a/b"]);
});

test("numbers are not sorted as text, and come before it", () => {
  const rows = [row("a", "x", "10 (3m ago)"), row("a", "y", 9), row("a", "z", "<none>"), row("a", "w", "100")];
  assert.deepEqual(names(sorted(rows, columns, { column: "Restarts", descending: false })), ["a/y", "a/x", "a/w", "a/z"]);
});

test("the youngest is first by age", () => {
  const rows = [row("a", "old", 0, "2020-01-01T00:00:00Z"), row("a", "young", 0, "2026-01-01T00:00:00Z")];
  assert.deepEqual(names(sorted(rows, columns, { column: "Age", descending: false })), ["a/young", "a/old"]);
});

test("an unknown column sorts by name", () => {
  assert.deepEqual(names(sorted([row("a", "b", 1), row("a", "a", 2)], columns, { column: "None", descending: false })), ["a/a", "a/b"]);
  assert.deepEqual(names(sorted([row("a", "b", 1), row("a", "a", 2)], columns, { column: "None", descending: true })), ["a/a", "a/b"]);
});
