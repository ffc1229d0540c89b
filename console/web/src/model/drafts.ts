// SPDX-License-Identifier: Apache-2.0

// Text that a user has written and not applied yet. It outlives the view and a login that has ended, in this tab. Only
// its own user finds it again: others may log in, in the same tab.

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

window.addEventListener("beforeunload", (e) => {
  for (const d of drafts.values()) if (d.size > 0) return e.preventDefault();
});
