// SPDX-License-Identifier: Apache-2.0

// What an action of a list is for: nothing that is not shown.

import type { Row } from "../api/connection";

/**
 * selectedRows gives the marked rows among those shown. When no row is marked, it is the one at the cursor. With marks
 * that are all hidden nothing is selected: the row at the cursor was not meant.
 */
export function selectedRows(shown: Row[], marks: ReadonlySet<string>, active: string): Row[] {
  if (marks.size) return shown.filter((r) => marks.has(r.uid));
  const at = shown.find((r) => r.uid === active);
  return at ? [at] : [];
}
