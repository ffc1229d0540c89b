// SPDX-License-Identifier: Apache-2.0

// Text that a user has written and not applied yet. It outlives the view and a login that has ended, in this tab.

export interface Draft {
  /** base is the YAML from which the text was made. */
  base: string;
  text: string;
}

const drafts = new Map<string, Draft>();

export function draft(key: string): Draft | undefined {
  return drafts.get(key);
}

export function keepDraft(key: string, d: Draft): void {
  if (d.text === d.base) drafts.delete(key);
  else drafts.set(key, d);
}

export function dropDraft(key: string): void {
  drafts.delete(key);
}

window.addEventListener("beforeunload", (e) => {
  if (drafts.size > 0) e.preventDefault();
});
