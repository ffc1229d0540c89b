// SPDX-License-Identifier: Apache-2.0

// The order of rows.

import type { Column, Row } from "../api/connection";
import { seconds } from "../base/text";

export interface Sort {
  column: string;
  descending: boolean;
}

function byName(a: Row, b: Row): number {
  if (a.ns !== b.ns) return a.ns < b.ns ? -1 : 1;
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}

/** sorted sorts rows by a column, in place; equal ones by namespace and name. Numbers come before text. */
export function sorted(rows: Row[], columns: Column[], sort: Sort): Row[] {
  const at = columns.findIndex((c) => c.name === sort.column);
  if (at < 0 || sort.column === "Name") {
    rows.sort(byName);
  } else {
    const age = sort.column === "Age";
    const keys = new Map<Row, number | string>(rows.map((r) => [r, age ? -Date.parse(r.created) : sortKey(r.cells[at])]));
    rows.sort((a, b) => {
      const x = keys.get(a)!;
      const y = keys.get(b)!;
      if (x === y) return byName(a, b);
      if (typeof x === typeof y) return x < y ? -1 : 1;
      return typeof x === "number" ? -1 : 1;
    });
  }
  if (sort.descending) rows.reverse();
  return rows;
}

/** sortKey makes numbers, durations and quantities of text that looks like them. */
function sortKey(cell: unknown): number | string {
  if (typeof cell === "number") return cell;
  const text = String(cell ?? "");
  const s = seconds(text);
  if (!Number.isNaN(s)) return s;
  const n = /^-?\d+(\.\d+)?/.exec(text);
  return n ? Number(n[0]) : text.toLowerCase();
}
