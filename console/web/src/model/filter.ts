// SPDX-License-Identifier: Apache-2.0

// The filter of lists: a regular expression, "!" before it inverts, "-l" and a label selector before both.

import type { Row } from "../api/connection";
import { Expression, isTooMuch } from "../base/expression";

/** Part is one of the conditions that a filter has; a row has to meet all. */
export interface Part {
  text: string;
  label: boolean;
  match(row: Row): boolean;
}

export interface Filter {
  match(row: Row): boolean;
  parts: Part[];
}

/** CellsOf gives the cells of a row that a text is looked for in, with a line for each. */
export type CellsOf = (row: Row) => string;

/** allCells is for what has no columns to choose from. */
export const allCells: CellsOf = (row) => row.cells.join("\n").toLowerCase();

/** cellsOf gives the text of the cells of columns, to search: a line for each, in small letters. */
export function cellsOf(columns: { text(row: Row): string; moving?: boolean }[]): CellsOf {
  const still = columns.filter((c) => !c.moving);
  const moving = columns.filter((c) => c.moving);
  const texts = new WeakMap<Row, string>();
  return (row) => {
    let text = texts.get(row);
    if (text === undefined)
      texts.set(
        row,
        (text = still
          .map((c) => c.text(row))
          .join("\n")
          .toLowerCase()),
      );
    for (const c of moving) text += "\n" + c.text(row);
    return text;
  };
}

/** One requirement of a selector, and several with commas between. Text after them is no part of the selector. */
const ONE = String.raw`!?[^\s,=!()]+(?:\s+(?:not)?in\s*\([^)]*\)?|\s*(?:==|!=|=)\s*[^\s,]*)?`;
const SELECTOR = new RegExp(String.raw`^-l(?:\s+|$)((?:${ONE})?(?:\s*,\s*(?:${ONE})?)*)(.*)$`, "i");

/**
 * parseFilter reads a filter. Its text is looked for in the cells that are given; "^" and "$" are the ends of one.
 * "-l SELECTOR TEXT" is both.
 */
export function parseFilter(filter: string, cells: CellsOf = allCells): Filter {
  const [, selector = "", text] = SELECTOR.exec(filter.trim()) ?? ["", "", filter];
  const parts = parseSelector(selector).map((r): Part => ({ text: r.text, label: true, match: (row) => r.match(row.labels ?? {}) }));
  const part = textPart(text.trim(), cells);
  if (part) parts.push(part);
  return { match: (row) => parts.every((p) => p.match(row)), parts };
}

function textPart(text: string, cells: CellsOf): Part | null {
  const invert = text.startsWith("!");
  const wanted = invert ? text.slice(1) : text;
  if (!wanted) return null;
  const plain = wanted.toLowerCase();
  // Most filters are a word: a search for it is several times faster than an expression.
  if (!/[.*+?^${}()|[\]\\]/.test(plain)) return { text, label: false, match: (row) => cells(row).includes(plain) !== invert };
  const re = new Expression(wanted, "ms");
  return { text, label: false, match: (row) => re.test(cells(row)) !== invert };
}

/** missing says how many rows meet each part of a filter that no row meets as a whole, and how many do in other columns. */
export function missing(filter: Filter, rows: Row[], whole: Filter): { text: string; label: boolean; rows: number; elsewhere: number }[] {
  const count = (p: Part) => rows.reduce((n, r) => n + Number(p.match(r)), 0);
  return filter.parts.map((p, i) => {
    const found = count(p);
    return { text: p.text, label: p.label, rows: found, elsewhere: found ? 0 : count(whole.parts[i]) };
  });
}

/** isPlainOnly says whether a filter looks like an expression and is not used as one, for it would take too long. */
export function isPlainOnly(text: string): boolean {
  text = text.trim();
  return isTooMuch((SELECTOR.exec(text)?.[2] ?? text).trim().replace(/^!/, ""));
}

interface Requirement {
  text: string;
  match(labels: Record<string, string>): boolean;
}

/** parseSelector reads a label selector: equality, sets and existence, with commas between. */
export function parseSelector(text: string): Requirement[] {
  const parts = text.match(/(?:[^,(]|\([^)]*\)?)+/g) ?? [];
  return parts
    .map((p) => p.trim())
    .filter(Boolean)
    .map((p) => ({ text: p, match: requirement(p) }));
}

function requirement(text: string): Requirement["match"] {
  const set = /^(\S+)\s+(in|notin)\s*\(([^)]*)\)?$/i.exec(text);
  if (set) {
    const values = set[3].split(",").map((v) => v.trim());
    const want = set[2].toLowerCase() === "in";
    return (l) => (set[1] in l ? values.includes(l[set[1]]) === want : !want);
  }
  const equal = /^([^!=\s]+)\s*(==|=|!=)\s*(\S*)$/.exec(text);
  if (equal) return equal[2] === "!=" ? (l) => l[equal[1]] !== equal[3] : (l) => l[equal[1]] === equal[3];
  if (text.startsWith("!")) return (l) => !(text.slice(1) in l);
  return (l) => text in l;
}
