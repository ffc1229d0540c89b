// SPDX-License-Identifier: Apache-2.0

// The token in a kubeconfig: that of the user of its current context. Only the layout that tools write is read. Where
// the file leaves a doubt there is no answer, for another user's token is worse than none.

export type Found = { token: string } | { problem: "none" | "unsure" };

const UNSURE: Found = { problem: "unsure" };
const NONE: Found = { problem: "none" };

/** Entry is what one item of a list has, by path: "name", "context.user", "user.token". */
type Entry = Map<string, string>;

interface Config {
  current: string;
  contexts: Entry[];
  users: Entry[];
}

class Doubt extends Error {}

export function tokenOfKubeconfig(text: string): Found {
  try {
    const c = text.trimStart().startsWith("{") ? readJson(text) : readLines(text);
    return tokenOf(c);
  } catch {
    return UNSURE;
  }
}

function tokenOf(c: Config): Found {
  if (c.users.length === 0) return NONE;
  const contexts = c.contexts.filter((x) => x.get("name") === c.current);
  let users = c.users;
  if (c.current && contexts.length === 1) {
    const name = contexts[0].get("context.user");
    users = users.filter((u) => u.get("name") === name);
  }
  if (users.length !== 1) return c.users.some((u) => u.get("user.token")) ? UNSURE : NONE;
  const token = users[0].get("user.token") ?? "";
  if (!token) return NONE;
  return /^[A-Za-z0-9._~+/=:-]+$/.test(token) ? { token } : UNSURE;
}

function readJson(text: string): Config {
  const c = JSON.parse(text) as Record<string, any>;
  const put = (e: Entry, key: string, value: unknown) => {
    if (typeof value === "string") e.set(key, value);
  };
  const entries = (list: any, inner: string, key: string): Entry[] =>
    (Array.isArray(list) ? list : []).map((x: any) => {
      const e: Entry = new Map();
      put(e, "name", x?.name);
      put(e, `${inner}.${key}`, x?.[inner]?.[key]);
      return e;
    });
  return {
    current: typeof c["current-context"] === "string" ? c["current-context"] : "",
    contexts: entries(c.contexts, "context", "user"),
    users: entries(c.users, "user", "token"),
  };
}

/** WANTED are the values that count; a doubt about others does not matter. */
const WANTED = new Set(["name", "context", "context.user", "user", "user.token"]);

function readLines(text: string): Config {
  const c: Config = { current: "", contexts: [], users: [] };
  const seen = new Set<string>();
  let list: Entry[] | null = null;
  let entry: Entry | null = null;
  /** parents are the keys above the line, each with its indentation. */
  let parents: { indent: number; key: string }[] = [];
  /** block is the indentation of a key whose value is text on the lines below; -1 outside of such text. */
  let block = -1;
  let begun = false;
  for (const line of text.split(/\r?\n/)) {
    if (/^\s*(#.*)?$/.test(line) || line.startsWith("%")) continue;
    if (/^(---|\.\.\.)(\s|$)/.test(line)) {
      if (begun || !/^---\s*(#.*)?$/.test(line)) throw new Doubt();
      continue;
    }
    begun = true;
    let indent = /^ */.exec(line)![0].length;
    let rest = line.slice(indent);
    if (rest.startsWith("\t")) throw new Doubt();
    if (block >= 0 && indent > block) continue;
    block = -1;
    const item = /^- +(?=\S)/.exec(rest);
    if (indent === 0 && !item) {
      const top = keyOf(rest);
      if (!top || seen.has(top.key)) throw new Doubt();
      seen.add(top.key);
      entry = null;
      parents = [];
      list = top.key === "contexts" ? c.contexts : top.key === "users" ? c.users : null;
      if (list && top.value !== "" && top.value !== "[]" && top.value !== "null") throw new Doubt();
      if (top.key === "current-context") c.current = scalar(top.value);
      if (/^[|>]/.test(top.value)) block = 0;
      continue;
    }
    if (!list) continue;
    // An item of the list itself begins an entry; items deeper inside are lists of the user's, as of an exec plugin.
    if (item && (!entry || parents.length === 0 || indent < parents[0].indent)) {
      list.push((entry = new Map()));
      parents = [];
      indent += item[0].length;
      rest = rest.slice(item[0].length);
    } else if (/^-(\s|$)/.test(rest)) {
      continue;
    }
    if (!entry) throw new Doubt();
    while (parents.length && indent <= parents[parents.length - 1].indent) parents.pop();
    const found = keyOf(rest);
    if (!found) {
      // Text that goes on from the line above belongs to its key, which may be one that counts.
      if (parents.length === 0 || WANTED.has(parents.map((p) => p.key).join("."))) throw new Doubt();
      continue;
    }
    parents.push({ indent, key: found.key });
    const path = parents.map((p) => p.key).join(".");
    if (/^[|>]/.test(found.value)) block = indent;
    if (!WANTED.has(path)) continue;
    if (entry.has(path)) throw new Doubt();
    entry.set(path, path === "user" || path === "context" ? mapping(found.value) : scalar(found.value));
  }
  return c;
}

function keyOf(text: string): { key: string; value: string } | null {
  const m = /^(?:"([^"\\]*)"|'([^']*)'|([A-Za-z0-9][^\s:#"']*))\s*:(?:\s+(.*))?$/.exec(text);
  return m && { key: m[1] ?? m[2] ?? m[3], value: (m[4] ?? "").trim().replace(/^#.*/, "") };
}

/** mapping is the value of a key whose own keys are on the lines below. */
function mapping(value: string): string {
  if (value !== "" && value !== "{}" && value !== "null") throw new Doubt();
  return "";
}

/** scalar reads a value on one line: plain, or in quotes without escapes. */
function scalar(value: string): string {
  const quoted = /^"([^"\\]*)"\s*(?:#.*)?$/.exec(value) ?? /^'([^']*)'\s*(?:#.*)?$/.exec(value);
  if (quoted) return quoted[1];
  if (/^["'&*!|>[{%@`]/.test(value)) throw new Doubt();
  const plain = value.replace(/\s+#.*$/, "");
  return plain === "null" || plain === "~" ? "" : plain;
}
