// SPDX-License-Identifier: Apache-2.0

// Rows as they come. The server's tables are made by extensions, too: cells may be missing, or be anything that JSON has.

import type { Column, Row } from "../api/connection";

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function plainCell(value: unknown): unknown {
  return typeof value === "object" && value !== null ? JSON.stringify(value) : value;
}

/** rowsOf gives the rows that can be shown, each with plain cells. */
export function rowsOf(rows: unknown): Row[] {
  if (!Array.isArray(rows)) return [];
  const out: Row[] = [];
  for (const r of rows as (Row | null)[]) {
    if (typeof r !== "object" || r === null || !text(r.uid)) continue;
    r.cells = Array.isArray(r.cells) ? r.cells : [];
    if (r.cells.some((c) => typeof c === "object" && c !== null)) r.cells = r.cells.map(plainCell);
    r.ns = text(r.ns);
    r.name = text(r.name);
    r.created = text(r.created);
    out.push(r);
  }
  return out;
}

/** columnsOf gives the columns that can be shown. */
export function columnsOf(columns: unknown): Column[] {
  if (!Array.isArray(columns)) return [];
  return (columns as (Partial<Column> | null)[]).map((c) => ({
    name: text(c?.name),
    type: text(c?.type),
    priority: Number(c?.priority) || 0,
    description: text(c?.description),
  }));
}
