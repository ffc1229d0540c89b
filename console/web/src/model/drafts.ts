// SPDX-License-Identifier: Apache-2.0

// Text that a user has written and not applied yet. It outlives the view, a login that has ended and a reload, in this
// tab. Only its own user finds it again: others may log in, in the same tab. The values of Secrets are never stored: the
// browser asks before they are lost by a reload.

import { session } from "../api/session";

export interface Draft {
  /** base is the YAML from which the text was made. */
  base: string;
  text: string;
  /** before is what the user had written when the object was changed by someone else, the newest first. */
  before?: string[];
}

/** drafts are by user, and by what they are of. */
const drafts = new Map<string, Map<string, Draft>>();

/** ours are the drafts of the user who is logged in; null when it is not known who that is. */
function ours(): Map<string, Draft> | null {
  const s = session.peek();
  if (!s?.user) return null;
  const user = JSON.stringify([s.server, s.context, s.user]);
  let found = drafts.get(user);
  if (!found) drafts.set(user, (found = new Map()));
  return found;
}

export function draft(key: string): Draft | undefined {
  return ours()?.get(key);
}

export function keepDraft(key: string, d: Draft): void {
  if (d.text === d.base && !d.before?.length) ours()?.delete(key);
  else ours()?.set(key, d);
}

export function dropDraft(key: string): void {
  ours()?.delete(key);
}

/** dropAllDrafts is for a user who logs out. */
export function dropAllDrafts(): void {
  drafts.clear();
}

/** STORE is where drafts are in the tab's storage, from the end of one page to the beginning of the next. */
const STORE = "coracle-drafts";
/** MOST limits what is stored, in characters. */
const MOST = 1_000_000;

/** isSecret is true for what may have the values of Secrets. */
function isSecret(key: string, d: Draft): boolean {
  return key.includes("/secrets/") || /\bSecret(List)?\b/.test(d.text);
}

/** store keeps the drafts for the page that comes after this one. It returns false when some cannot be kept. */
function store(): boolean {
  let whole = true;
  const kept: [string, [string, Draft][]][] = [];
  for (const [user, own] of drafts) {
    const list = [...own].filter(([key, d]) => !isSecret(key, d));
    whole &&= list.length === own.size;
    if (list.length) kept.push([user, list]);
  }
  const text = JSON.stringify(kept);
  try {
    if (text.length > MOST) throw new Error();
    if (kept.length) sessionStorage.setItem(STORE, text);
    else sessionStorage.removeItem(STORE);
    return whole;
  } catch {
    sessionStorage.removeItem(STORE);
    return false;
  }
}

function restore(): void {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "[]") as [string, [string, Draft][]][];
    for (const [user, list] of kept) drafts.set(user, new Map(list));
  } catch {
    // What is there is not of this program.
  }
  sessionStorage.removeItem(STORE);
}

restore();
window.addEventListener("pagehide", store);
window.addEventListener("beforeunload", (e) => {
  if (!store()) e.preventDefault();
});
