// SPDX-License-Identifier: Apache-2.0

// How each list was left: kept for the tab, so that one who comes back finds the row again.

import { type Signal, signal } from "@preact/signals";

/** Place is where a table stands. */
export interface Place {
  /** index is of the row at the cursor: another row gets the cursor there when it is gone. */
  index: number;
  /** top is how far the table is scrolled, in pixels. */
  top: number;
}

export interface ListState extends Place {
  /** active is the uid of the row at the cursor. */
  active: Signal<string>;
  marks: Signal<ReadonlySet<string>>;
  /** sort and wide are as the address has them; empty for the usual. */
  sort: string;
  wide: string;
}

/** MOST is how many lists are kept; the one that was opened longest ago goes first. */
const MOST = 50;

const states = new Map<string, ListState>();

/** listState is how a list was left. */
export function listState(id: string): ListState {
  const s = states.get(id) ?? { index: 0, top: 0, active: signal(""), marks: signal(new Set<string>()), sort: "", wide: "" };
  states.delete(id);
  states.set(id, s);
  if (states.size > MOST) states.delete(states.keys().next().value!);
  return s;
}

/** forgetLists is for the end of a session. */
export function forgetLists(): void {
  states.clear();
}
