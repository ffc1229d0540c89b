// SPDX-License-Identifier: Apache-2.0

// A table of any length: only the rows in sight are in the page. It is a grid for screen readers, which hear of the
// rows that are not in the page by aria-rowcount and aria-rowindex.

import { type ReadonlySignal, type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { memo } from "../base/memo";
import { useLayoutEffect, useRef } from "preact/hooks";
import type { Row } from "../api/connection";
import type { Place } from "../model/liststate";
import { type Sort, toggled } from "../model/order";
import { S } from "../base/strings";
import { visible } from "../base/text";
import type { TableColumn } from "../model/columns";
import { LONGEST, tracksOf } from "../model/widths";

export interface TableProps {
  label: string;
  columns: ReadonlySignal<TableColumn[]>;
  rows: ReadonlySignal<Row[]>;
  active: Signal<string>;
  marks: Signal<ReadonlySet<string>>;
  sort?: ReadonlySignal<Sort>;
  setSort?(sort: Sort): void;
  /** place is where the table stood when it was left, and is kept up to date. */
  place?: Place;
  /** whole is false as long as rows are missing; the cursor waits for its own. */
  whole?: ReadonlySignal<boolean>;
  /** tick changes when cells that depend on the time are old. */
  tick: ReadonlySignal<number>;
  href(row: Row): string;
  open(row: Row): void;
  rowClass?(row: Row): string;
  /** linked is the column whose cells are links; "Name" if not given. */
  linked?: string;
  /** short tables are as high as their rows, up to a limit. */
  short?: boolean;
}

const OVERSCAN = 6;
const narrow = window.matchMedia("(max-width: 640px)");

/** rowHeight is how high a row is, in pixels. On a phone it has a name and labelled cells under it, or an event's message. */
export function rowHeight(columns: TableColumn[] = []): number {
  if (!narrow.matches) return 28;
  return columns.some((c) => c.name === "Message") ? 96 : columns.length > 4 ? 72 : 52;
}

/** moveActive moves the cursor by some rows, or to an end with ±Infinity. */
export function moveActive(p: Pick<TableProps, "rows" | "active">, by: number): void {
  const rows = p.rows.value;
  if (rows.length === 0) return;
  const at = rows.findIndex((r) => r.uid === p.active.value);
  const next = at < 0 ? (by < 0 ? rows.length - 1 : 0) : Math.min(rows.length - 1, Math.max(0, at + by));
  p.active.value = rows[next].uid;
}

export function Table(p: TableProps) {
  const box = useRef<HTMLDivElement>(null);
  const top = useSignal(0);
  const height = useSignal(600);
  const isNarrow = useSignal(narrow.matches);
  const lineHeight = useComputed(() => (isNarrow.value ? rowHeight(p.columns.value) : 28));

  useLayoutEffect(() => {
    const el = box.current!;
    const resized = new ResizeObserver(() => {
      height.value = el.clientHeight;
      isNarrow.value = narrow.matches;
    });
    resized.observe(el);
    return () => resized.disconnect();
  }, []);

  // The row that had the cursor may be gone: the one in its place gets it.
  const place = useRef<Place>(p.place ?? { index: 0, top: 0 }).current;
  useSignalEffect(() => {
    const rows = p.rows.value;
    const whole = p.whole?.value ?? true;
    const at = rows.findIndex((r) => r.uid === p.active.value);
    if (at >= 0) place.index = at;
    else if (!p.active.value && !p.short) p.active.value = rows[0]?.uid ?? "";
    else if (whole && rows.length > 0 && p.active.value) p.active.value = rows[Math.min(place.index, rows.length - 1)].uid;
  });

  // Moving the cursor scrolls it into sight; scrolling does not move the cursor.
  const reveal = () => {
    const at = p.rows.peek().findIndex((r) => r.uid === p.active.peek());
    const el = box.current;
    if (at < 0 || !el) return;
    const h = lineHeight.peek();
    const y = at * h;
    if (y < el.scrollTop) el.scrollTop = y;
    else if (y + h > el.scrollTop + el.clientHeight - h) el.scrollTop = y + 2 * h - el.clientHeight;
  };
  const lastActive = useRef("");
  useSignalEffect(() => {
    const uid = p.active.value;
    if (uid === lastActive.current) return;
    lastActive.current = uid;
    reveal();
  });

  const rows = p.rows.value;
  // A table that was left is scrolled as it was, once it has its row again.
  const left = useRef<number | null>(place.top);
  useLayoutEffect(() => {
    const el = box.current!;
    if (left.current === null || !(p.whole?.value || rows.some((r) => r.uid === p.active.peek()))) return;
    if (left.current) top.value = el.scrollTop = left.current;
    left.current = null;
    reveal();
  });
  const h = lineHeight.value;
  const first = Math.max(0, Math.floor(top.value / h) - OVERSCAN);
  const last = Math.min(rows.length, first + Math.ceil(height.value / h) + 2 * OVERSCAN);
  const columns = p.columns.value;
  const template = useTemplate(p);
  const activeAt = p.active.value;
  const tick = p.tick.value;
  const inSight = rows.slice(first, last);

  return (
    <div
      ref={box}
      class={"table" + (p.short ? " short" : "")}
      role="grid"
      tabIndex={0}
      aria-label={p.label}
      aria-rowcount={rows.length + 1}
      aria-colcount={columns.length}
      aria-multiselectable="true"
      aria-activedescendant={inSight.some((r) => r.uid === activeAt) ? "row-" + activeAt : undefined}
      style={{ "--columns": template.value.columns, "--width": template.value.width, "--line": h + "px" }}
      onScroll={(e) => {
        const y = e.currentTarget.scrollTop;
        if (left.current === null) place.top = y;
        // Rows are drawn anew only when others come into sight.
        if (Math.abs(y - top.peek()) >= (h * OVERSCAN) / 2 || y === 0) top.value = y;
      }}
      onFocus={(e) => {
        if (e.target === box.current && !p.active.value && rows[0]) p.active.value = rows[0].uid;
      }}
    >
      <div class="head" role={columns.length ? "row" : undefined} aria-rowindex={columns.length ? 1 : undefined}>
        {columns.map((c, i) => (
          <div
            key={i + c.name}
            class={c.numeric ? "cell numeric" : "cell"}
            role="columnheader"
            aria-colindex={i + 1}
            aria-sort={ariaSort(p.sort, c.name)}
            title={visible(c.description)}
          >
            {p.sort ? (
              <button type="button" tabIndex={isNarrow.value ? 0 : -1} onClick={() => p.setSort?.(toggled(p.sort!.value, c.name))}>
                {visible(c.name)}
                {p.sort.value.column === c.name && <span aria-hidden="true">{p.sort.value.descending ? " ▾" : " ▴"}</span>}
              </button>
            ) : (
              visible(c.name)
            )}
          </div>
        ))}
      </div>
      <div class="body" role="rowgroup" style={{ height: rows.length * h + "px" }}>
        <div role="presentation" style={{ transform: `translateY(${first * h}px)` }}>
          {inSight.map((row, i) => (
            <Line
              key={row.uid}
              row={row}
              columns={columns}
              index={first + i + 2}
              active={row.uid === activeAt}
              marked={p.marks.value.has(row.uid)}
              kind={p.rowClass?.(row) ?? ""}
              tick={tick}
              table={p}
            />
          ))}
        </div>
      </div>
    </div>
  );
}

interface LineProps {
  row: Row;
  columns: TableColumn[];
  index: number;
  active: boolean;
  marked: boolean;
  kind: string;
  tick: number;
  table: TableProps;
}

const Line = memo(
  function Line({ row, columns, index, active, marked, kind, table }: LineProps) {
    return (
      <div
        id={"row-" + row.uid}
        class={"line " + kind + (active ? " active" : "") + (marked ? " marked" : "")}
        role="row"
        aria-rowindex={index}
        aria-selected={marked}
        onClick={(e) => {
          table.active.value = row.uid;
          if (e.detail === 2) table.open(row);
        }}
      >
        {columns.map((c, i) => {
          const text = visible(c.text(row));
          return (
            <div
              key={i + c.name}
              class={"cell" + (c.numeric ? " numeric" : "") + (c.tone ? " " + c.tone(row) : "")}
              role="gridcell"
              aria-colindex={i + 1}
              data-label={visible(c.name)}
              title={c.title?.(row) || (text.length > 24 ? text : undefined)}
            >
              {c.name === (table.linked ?? "Name") ? (
                <a href={table.href(row)} tabIndex={-1}>
                  {text}
                </a>
              ) : (
                text
              )}
            </div>
          );
        })}
      </div>
    );
  },
  ["table"],
);

function ariaSort(sort: ReadonlySignal<Sort> | undefined, name: string): "ascending" | "descending" | undefined {
  if (!sort || sort.value.column !== name) return undefined;
  return sort.value.descending ? "descending" : "ascending";
}

/** useTemplate gives each column a width by its text. Widths only grow, so that a change does not move the columns. */
function useTemplate(p: TableProps): ReadonlySignal<{ columns: string; width: string }> {
  const widths = useRef(new Map<string, number>());
  return useComputed(() => {
    const rows = p.rows.value;
    const step = Math.max(1, Math.floor(rows.length / 120));
    const columns = p.columns.value.map((c) => {
      let text = Math.max(widths.current.get(c.name) ?? 0, c.name.length + 2);
      for (let i = 0; i < rows.length; i += step) text = Math.max(text, Math.min(LONGEST, c.text(rows[i]).length + 1));
      widths.current.set(c.name, text);
      return { name: c.name, text };
    });
    const { tracks, least } = tracksOf(columns, p.linked ?? "Name");
    // The head and each row are grids of their own: a width that does not depend on their text keeps them in line.
    return { columns: tracks, width: `calc(${least}ch + ${columns.length * 12 + 12}px)` };
  });
}

/** Empty is what a table without rows says. */
export function Empty({ text }: { text?: string }) {
  return <p class="empty">{text ?? S.list.empty}</p>;
}
