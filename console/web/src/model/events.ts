// SPDX-License-Identifier: Apache-2.0

// Events that say the same of one object are one row, with their counts added.

import { computed, type ReadonlySignal } from "@preact/signals";
import type { Row } from "../api/connection";
import type { Listing } from "./listing";
import { kindByWord } from "../api/kinds";
import { format } from "../api/route";
import { seconds } from "../base/text";

/** eventObject is the address of the object that an event is about; empty when its kind is not known. */
export function eventObject(listing: Listing, row: Row): string {
  const at = listing.columns.peek().findIndex((c) => c.name === "Object");
  const [word, name] = String(row.cells[at] ?? "").split("/");
  const k = kindByWord(word);
  return k && name ? format({ view: "object", kind: k.id, ns: k.namespaced ? row.ns : "", name }) : "";
}

/** mergeEvents keeps the newest of equal events; the rows stay in their order. */
export function mergeEvents(listing: Listing, rows: ReadonlySignal<Row[]>): ReadonlySignal<Row[]> {
  return computed(() => {
    const columns = listing.columns.value.map((c) => c.name);
    const [reason, object, message, count, seen] = ["Reason", "Object", "Message", "Count", "Last Seen"].map((n) => columns.indexOf(n));
    if (reason < 0 || object < 0) return rows.value;
    const merged = new Map<string, Row>();
    for (const row of rows.value) {
      const key = [row.ns, row.cells[object], row.cells[reason], row.cells[message]].join("\n");
      const other = merged.get(key);
      if (!other) {
        merged.set(key, row);
        continue;
      }
      const newer = seconds(String(row.cells[seen])) < seconds(String(other.cells[seen])) ? row : other;
      const cells = [...newer.cells];
      if (count >= 0) cells[count] = (Number(row.cells[count]) || 1) + (Number(other.cells[count]) || 1);
      merged.set(key, { ...newer, cells });
    }
    return [...merged.values()];
  });
}
