// SPDX-License-Identifier: Apache-2.0

// The columns of a list: the server's own printer columns, with the namespace before them where it is not the same
// for all rows.

import type { Column, Row } from "../api/connection";
import { now, receivedAt } from "./listing";
import { age, duration, moment, seconds } from "../base/text";
import { toneOfCell } from "../base/tones";

export interface TableColumn {
  name: string;
  description?: string;
  /** text is the cell as it is shown now. */
  text(row: Row): string;
  /** tone is a class by which the cell is coloured. */
  tone?(row: Row): string;
  numeric?: boolean;
  /** title is what the cell says when it is pointed at; its text, when that is long, if not given. */
  title?(row: Row): string;
  /** moving cells change with the time, though the row stays. */
  moving?: boolean;
}

/** DURATIONS are columns of durations before the row was sent, that go on. */
const DURATIONS = new Set(["Last Seen", "First Seen", "Last Schedule"]);

/**
 * tableColumns leaves out those that kubectl shows with -o wide only, unless wide is set or they are among also. The
 * columns of usage come before the age.
 */
export function tableColumns(
  columns: Column[],
  namespaced: boolean,
  wide: boolean,
  also: string[] = [],
  usage: TableColumn[] = [],
): TableColumn[] {
  const out: TableColumn[] = [];
  if (namespaced) out.push({ name: "Namespace", text: (r) => r.ns });
  columns.forEach((c, i) => {
    if (c.priority > 0 && !wide && !also.includes(c.name)) return;
    out.push({
      name: c.name,
      description: c.description,
      text: textOf(c, i),
      tone: (r) => (c.name === "Ready" && r.cells.includes("Completed") ? "" : toneOfCell(c.name, String(r.cells[i] ?? ""))),
      title: c.name === "Age" ? (r) => moment(r.created, now.peek()) : undefined,
      moving: c.name === "Age" || DURATIONS.has(c.name),
      numeric: c.type === "integer" || c.type === "number",
    });
  });
  const age = out.findIndex((c) => c.name === "Age");
  out.splice(age < 0 ? out.length : age, 0, ...usage);
  return out;
}

function textOf(c: Column, i: number): (row: Row) => string {
  if (c.name === "Age") return (r) => (r.created ? age(r.created, now.peek()) : String(r.cells[i] ?? ""));
  if (DURATIONS.has(c.name)) {
    return (r) => {
      const s = seconds(String(r.cells[i] ?? ""));
      if (Number.isNaN(s)) return String(r.cells[i] ?? "");
      return duration(s + Math.max(0, Math.floor((now.peek() - receivedAt(r)) / 1000)));
    };
  }
  return (r) => {
    const v = r.cells[i];
    return v === null || v === undefined ? "" : typeof v === "object" ? JSON.stringify(v) : String(v);
  };
}
