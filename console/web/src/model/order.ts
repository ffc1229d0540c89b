// SPDX-License-Identifier: Apache-2.0

// The order of rows.

import type { Column, Row } from "../api/connection";
import { seconds } from "../base/text";

export interface Sort {
  column: string;
  descending: boolean;
}

/** Keys gives the numbers of columns that are not the server's. */
export interface Keys {
  key(column: string): ((row: Row) => number | undefined) | undefined;
}

/** sortFrom reads a sort from an address: the column, with "-" before it when it is descending. */
export function sortFrom(text: string): Sort {
  return text.startsWith("-") ? { column: text.slice(1), descending: true } : { column: text, descending: false };
}

export function sortText(s: Sort): string {
  return (s.descending ? "-" : "") + s.column;
}

/** toggled sorts by a column, or the other way round when that is so already. */
export function toggled(s: Sort, column: string): Sort {
  return { column, descending: s.column === column && !s.descending };
}

function byName(a: Row, b: Row): number {
  if (a.ns !== b.ns) return a.ns < b.ns ? -1 : 1;
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}

/**
 * sorted sorts rows by a column, in place; equal ones by namespace and name. Numbers come before text. number gives the
 * values of a column that is not the server's: a row without one is last, in both directions.
 */
export function sorted(rows: Row[], columns: Column[], sort: Sort, number?: (row: Row) => number | undefined): Row[] {
  if (number) return byNumber(rows, number, sort.descending ? -1 : 1);
  const at = columns.findIndex((c) => c.name === sort.column);
  const named = sort.column === "Name";
  if (at < 0 || named) {
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
  if (sort.descending && (at >= 0 || named)) rows.reverse();
  return rows;
}

function byNumber(rows: Row[], number: (row: Row) => number | undefined, direction: number): Row[] {
  const keys = new Map(rows.map((r) => [r, number(r)]));
  return rows.sort((a, b) => {
    const x = keys.get(a);
    const y = keys.get(b);
    if (x === y) return byName(a, b);
    if (x === undefined || y === undefined) return x === undefined ? 1 : -1;
    return (x - y) * direction;
  });
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
