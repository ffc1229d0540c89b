// SPDX-License-Identifier: Apache-2.0

// A list of objects that stays true: the rows of a kind as the server prints them, and their changes.

import { batch, computed, signal, type ReadonlySignal } from "@preact/signals";
import { type Client, type Column, type Message, type Request, type Row, Stream, troubleOf } from "../api/connection";
import { type CellsOf, parseFilter } from "./filter";
import { columnsOf, rowsOf } from "./rows";
import { S } from "../base/strings";
import { type Keys, type Sort, sorted } from "./order";

/** now moves on every few seconds; ages are counted by it. */
export const now = signal(Date.now());
setInterval(() => {
  if (!document.hidden) now.value = Date.now();
}, 5_000);

const received = new WeakMap<Row, number>();

/** receivedAt is when the row was sent, for cells that are durations before then. */
export function receivedAt(row: Row): number {
  return received.get(row) ?? Date.now();
}

export class Listing implements Client {
  readonly watch = true;
  readonly rows = new Map<string, Row>();
  /** members counts additions and removals of rows: while it is the same, so is their order by name or age. */
  members = 0;
  readonly columns = signal<Column[]>([]);
  /** version counts changes of the rows, at most one each frame. */
  readonly version = signal(0);
  readonly synced = signal(false);
  readonly remaining = signal(0);
  /** trouble is a passing problem: the rows may be old. */
  readonly trouble = signal("");
  readonly error = signal<{ code: number; reason: string; message: string } | null>(null);
  /** over is true when no more changes come. */
  readonly over = signal(false);
  private rv = "";
  private stream: Stream;
  private pending = false;
  /** whole is true when all rows have come; synced follows it when they are counted in version. */
  private whole = false;
  private stale: Set<string> | null = null;

  constructor(
    readonly path: string,
    readonly query: Record<string, string> = {},
  ) {
    this.stream = new Stream(this.request(), this);
  }

  private request(): Request {
    return { op: "list", path: this.path, query: this.query };
  }

  resume(): Request {
    if (this.rv && this.whole) return { ...this.request(), rv: this.rv };
    // The list was not whole: it is read again, and what it does not have any more is removed at its end.
    this.readAgain();
    return this.request();
  }

  /** readAgain keeps the rows in sight until all have come: what has not come until then is gone. */
  private readAgain(): void {
    this.rv = "";
    this.whole = false;
    this.stale = new Set(this.rows.keys());
  }

  close(): void {
    this.stream.close();
  }

  retry(): void {
    this.error.value = null;
    this.over.value = false;
    this.trouble.value = "";
    this.rv = "";
    this.stream.start();
  }

  message(m: Message): void {
    switch (m.type) {
      case "columns":
        this.columns.value = columnsOf(m.columns);
        return;
      case "rows":
        for (const row of rowsOf(m.rows)) this.put(row);
        if (m.rv) this.rv = m.rv;
        this.remaining.value = m.remaining ?? 0;
        return this.bump();
      case "synced":
        if (m.rv) this.rv = m.rv;
        if (this.stale) for (const uid of this.stale) this.rows.delete(uid);
        this.members++;
        this.stale = null;
        this.remaining.value = 0;
        this.trouble.value = "";
        this.whole = true;
        return this.bump();
      case "changes":
        // An object may be named in both, when it was out of the selection for a moment: then it is there.
        for (const uid of m.del ?? []) if (this.rows.delete(uid)) this.members++;
        for (const row of rowsOf(m.set)) this.put(row);
        if (m.rv) this.rv = m.rv;
        return this.bump();
      case "reset":
        this.readAgain();
        this.synced.value = false;
        return;
      case "state":
        this.trouble.value = troubleOf(m);
        return;
      case "end":
        if (this.whole && m.code !== 403) {
          // Kinds that cannot be watched are lists of one moment.
          this.trouble.value = m.code === 405 ? S.list.unwatched : m.message || S.list.ended;
          this.over.value = true;
          return;
        }
        this.error.value = { code: m.code, reason: m.reason ?? "", message: m.message ?? "" };
        return this.bump();
    }
  }

  protected put(row: Row): void {
    received.set(row, Date.now());
    if (!this.rows.has(row.uid)) this.members++;
    this.rows.set(row.uid, row);
    this.stale?.delete(row.uid);
  }

  private bump(): void {
    if (this.pending) return;
    this.pending = true;
    const next = () => {
      this.pending = false;
      batch(() => {
        this.version.value++;
        this.synced.value = this.whole;
      });
    };
    if (document.hidden) setTimeout(next, 200);
    else requestAnimationFrame(next);
  }
}

/** STABLE are columns that never change in an object's life. */
const STABLE = new Set(["Name", "Age", "Namespace"]);

/** arrange gives a listing's rows that match a filter, sorted. The filter looks at some cells, or at all. */
export function arrange(
  listing: ReadonlySignal<Listing | null>,
  filter: ReadonlySignal<string>,
  sort: ReadonlySignal<Sort>,
  also?: (row: Row) => boolean,
  usage?: ReadonlySignal<Keys | null>,
  cells?: ReadonlySignal<CellsOf>,
): ReadonlySignal<Row[]> {
  const parsed = computed(() => parseFilter(filter.value, cells?.value));
  // Sorting is apart from filtering, so that typing a filter does not sort again.
  let order: { key: string; from: Listing; members: number; uids: string[] } | null = null;
  const all = computed(() => {
    const from = listing.value;
    if (!from) return [];
    from.version.value;
    const columns = from.columns.value;
    const by = sort.value;
    const named = (by.descending ? "-" : "") + by.column;
    // A change of a row does not move it in an order by name or age, so most changes need no sorting.
    if (order?.from === from && order.members === from.members && order.key === named) return order.uids.map((uid) => from.rows.get(uid)!);
    // Only an order by usage changes with each measurement.
    const key = columns.some((c) => c.name === by.column) ? undefined : usage?.value?.key(by.column);
    const rows = sorted(also ? [...from.rows.values()].filter(also) : [...from.rows.values()], columns, by, key);
    order = STABLE.has(by.column) && !also ? { key: named, from, members: from.members, uids: rows.map((r) => r.uid) } : null;
    return rows;
  });
  return computed(() => all.value.filter(parsed.value.match));
}
