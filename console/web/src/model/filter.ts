// SPDX-License-Identifier: Apache-2.0

// The filter of lists and logs: a regular expression, "!" before it inverts, "-l" is a label selector.

import type { Row } from "../api/connection";
import { Expression, isTooMuch } from "../base/expression";

export interface Filter {
  match(row: Row): boolean;
}

const ALL: Filter = { match: () => true };

const cache = new WeakMap<Row, string>();

/** searchText is what a row is searched by: its names and cells. */
function searchText(row: Row): string {
  let text = cache.get(row);
  if (text === undefined) {
    text = (row.ns + " " + row.cells.join(" ") + " " + row.name).toLowerCase();
    cache.set(row, text);
  }
  return text;
}

export function parseFilter(text: string): Filter {
  text = text.trim();
  if (!text || text === "!") return ALL;
  if (/^-l(\s|$)/.test(text)) {
    const selector = parseSelector(text.slice(2));
    return { match: (row) => selector.every((r) => r(row.labels ?? {})) };
  }
  const invert = text.startsWith("!");
  const plain = (invert ? text.slice(1) : text).toLowerCase();
  // Most filters are a word: a search for it is several times faster than an expression.
  if (!/[.*+?^${}()|[\]\\]/.test(plain)) {
    return { match: (row) => searchText(row).includes(plain) !== invert };
  }
  const re = new Expression(invert ? text.slice(1) : text);
  return { match: (row) => re.test(searchText(row)) !== invert };
}

/** isPlainOnly says whether a filter looks like an expression and is not used as one, for it would take too long. */
export function isPlainOnly(text: string): boolean {
  text = text.trim();
  return !/^-l(\s|$)/.test(text) && isTooMuch(text.replace(/^!/, ""));
}

type Requirement = (labels: Record<string, string>) => boolean;

/** parseSelector reads a label selector: equality, sets and existence, with commas between. */
export function parseSelector(text: string): Requirement[] {
  const parts = text.match(/(?:[^,(]|\([^)]*\)?)+/g) ?? [];
  return parts
    .map((p) => p.trim())
    .filter(Boolean)
    .map(requirement);
}

function requirement(text: string): Requirement {
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
