// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import type { Row } from "../src/api/connection";
import { selectedRows } from "../src/model/selection";

const rows = ["a", "b", "c"].map((uid) => ({ uid })) as Row[];

function selected(shown: Row[], marks: string[], active: string): string {
  return selectedRows(shown, new Set(marks), active)
    .map((r) => r.uid)
    .join("");
}

test("the row at the cursor, or the marked ones", () => {
  assert.equal(selected(rows, [], "b"), "b");
  assert.equal(selected(rows, ["c", "a"], "b"), "ac");
});

test("a row that is not shown is not selected", () => {
  assert.equal(selected([], [], "b"), "");
  assert.equal(selected(rows.slice(1), [], "a"), "");
  assert.equal(selected(rows.slice(1), ["a", "c"], "b"), "c");
});

test("with all marks hidden the row at the cursor is not taken for them", () => {
  assert.equal(selected(rows.slice(1), ["a"], "b"), "");
});
