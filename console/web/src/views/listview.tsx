// SPDX-License-Identifier: Apache-2.0

// The list of a kind's objects.

import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { eventObject, mergeEvents } from "../model/events";
import { ACTIONS, perform } from "../actions/actions";
import { Toolbar } from "../actions/toolbar";
import { chooseNamespace } from "../actions/namespaces";
import { tableColumns } from "../model/columns";
import { type CellsOf, cellsOf, missing, parseFilter } from "../model/filter";
import type { Row } from "../api/connection";
import { FilterBar, focusFilter } from "../widgets/filterbar";
import { useKeys } from "../base/keys";
import { isKind, type Kind, kindById, kinds, label, listPath } from "../api/kinds";
import { arrange, Listing, now } from "../model/listing";
import { listState } from "../model/liststate";
import { sortFrom, sortText, toggled } from "../model/order";
import { hasMap } from "../model/mapped";
import { back, follow, go, hrefOf, namespace, route, setParams } from "../api/route";
import { S } from "../base/strings";
import { Empty, moveActive, rowHeight, Table } from "../widgets/table";
import { visible } from "../base/text";
import { selectedRows } from "../model/selection";
import type { Target } from "../model/target";
import { usageQuery, useUsage } from "../model/useusage";
import { stateOfRow } from "../model/toolbar";
import { copy } from "../base/clipboard";

export function ListView() {
  const k = kindById(route.value.kind);
  if (!k) return kinds.value.length ? <h1 class="empty">{S.list.noKind(visible(route.value.kind))}</h1> : <p class="empty">{S.loading}</p>;
  const ns = k.namespaced ? namespace.value : "";
  return <KindList key={k.id + " " + ns} kind={k} ns={ns} />;
}

function KindList({ kind, ns }: { kind: Kind; ns: string }) {
  const listing = useMemo(() => new Listing(listPath(kind, ns), usageQuery(kind)), []);
  useEffect(() => () => listing.close(), []);
  const source = useSignal(listing);
  const isEvents = isKind(kind, "", "events");
  const state = useMemo(() => listState(kind.id + " " + ns), []);
  const { active, marks } = state;
  // The parameters of this list, also in the moment in which another view's address is there already.
  const own = useRef(route.peek().params);
  const params = useComputed(() => {
    const r = route.value;
    if (r.view === "list" && r.kind === kind.id && (!kind.namespaced || namespace.value === ns)) own.current = r.params;
    return own.current;
  });
  const filter = useComputed(() => params.value.filter ?? "");
  const sorting = useComputed(() => params.value.sort || state.sort || (isEvents ? "Last Seen" : "Name"));
  const sort = useComputed(() => sortFrom(sorting.value));
  const wide = useComputed(() => (params.value.wide ?? state.wide) === "1");
  // What an address does not say is as it was left, and the address says it from then on.
  useSignalEffect(() => {
    const { sort: s = "", wide: w = "" } = params.value;
    if (s) state.sort = s;
    if (w) state.wide = w;
    if (state.sort !== s || (state.wide && !w)) setParams({ sort: state.sort, wide: state.wide });
  });
  const setSort = (text: string) => setParams({ sort: (state.sort = text) });
  const setWide = (on: boolean) => setParams({ wide: (state.wide = on ? "1" : "") });
  const usage = useUsage(kind, ns);
  const columns = useComputed(() =>
    tableColumns(listing.columns.value, kind.namespaced && !ns, wide.value, isEvents ? ["Count"] : [], usage.value?.columns(wide.value)),
  );
  const cells = useComputed(() => cellsOf(columns.value));
  const rows = useMemo(() => {
    const all = arrange(source, filter, sort, undefined, usage, cells);
    return isEvents ? mergeEvents(listing, all) : all;
  }, []);

  // A mark goes with its row: the object that has the name later is another.
  useSignalEffect(() => {
    listing.version.value;
    if (!listing.synced.value) return;
    const gone = [...marks.peek()].filter((uid) => !listing.rows.has(uid));
    if (gone.length) marks.value = new Set([...marks.peek()].filter((uid) => !gone.includes(uid)));
  });

  // Both are of the rows that are shown: no key and no button acts on another.
  const current = (): Row | undefined => rows.value.find((r) => r.uid === active.value);
  // What has no uid in the API has its name for one in the list.
  const target = (r: Row): Target => ({ kind, ns: r.ns, name: r.name, uid: r.uid.includes("/") ? undefined : r.uid });
  const targets = (): Target[] => selectedRows(rows.value, marks.value, active.value).map(target);
  const href = (r: Row): string => (isEvents && eventObject(listing, r)) || hrefOf(kind, r);
  const open = (r: Row, tab = "") => {
    follow(hrefOf(kind, r, tab));
  };
  const openCurrent = (tab = "") => {
    const r = current();
    if (r) open(r, tab);
  };
  const openMap = () => {
    const r = current();
    if (r) go({ view: "map", kind: kind.id, ns: r.ns, name: r.name });
  };
  const move = (by: number) => moveActive({ rows, active }, by);
  const page = () => Math.max(1, Math.floor((window.innerHeight - 160) / rowHeight(columns.value)));
  const actions = ACTIONS.filter((a) => a.applies(kind));
  const more = [
    ...(isEvents ? [] : [{ id: "events", key: "v", label: S.keys.events, run: () => openCurrent("events") }]),
    ...(hasMap(kind) ? [{ id: "map", key: "m", label: S.views.map, run: () => openMap() }] : []),
  ];

  useKeys([
    { key: "j ArrowDown", label: S.keys.down, run: () => move(1) },
    { key: "k ArrowUp", label: S.keys.up, run: () => move(-1) },
    { key: "PageDown", label: S.keys.pageDown, run: () => move(page()) },
    { key: "PageUp", label: S.keys.pageUp, run: () => move(-page()) },
    { key: "g Home", label: S.keys.first, run: () => move(-Infinity) },
    { key: "G End", label: S.keys.last, run: () => move(Infinity) },
    { key: "Enter", label: S.keys.open, run: () => current() && follow(href(current()!)), hint: true },
    { key: "d", label: S.keys.details, run: () => openCurrent(), hint: true },
    { key: "y", label: S.keys.yaml, run: () => openCurrent("yaml"), hint: true },
    ...more.map((m) => ({ ...m, hint: true })),
    ...actions.map((a) => ({ key: a.key, label: a.label, hint: true, run: () => perform(a, targets()) })),
    { key: "Space", label: S.keys.mark, run: () => mark(), hint: true },
    { key: "a", label: S.keys.create, run: () => go({ view: "create", params: { ns } }) },
    { key: "/", label: S.keys.filter, run: focusFilter, hint: true },
    { key: "n", label: S.keys.namespace, run: chooseNamespace, hint: kind.namespaced },
    { key: "c", label: S.keys.copyName, run: () => void copyNames() },
    { key: "w", label: S.keys.wide, run: () => setWide(!wide.value) },
    { key: "o", label: S.keys.sort, run: () => nextSort() },
    { key: "O", label: S.keys.reverse, run: () => setSort(sortText(toggled(sort.value, sort.value.column))) },
    { key: "Escape", label: S.keys.back, run: () => leave() },
  ]);

  async function copyNames(): Promise<void> {
    const names = targets().map((t) => t.name);
    if (names.length) await copy(names.join("\n"));
    else announce(S.nothingSelected);
  }
  function mark(): void {
    const r = current();
    if (!r) return;
    const next = new Set(marks.value);
    if (!next.delete(r.uid)) next.add(r.uid);
    marks.value = next;
    move(1);
  }
  function nextSort(): void {
    const names = columns.value.map((c) => c.name);
    setSort(names[(names.indexOf(sort.value.column) + 1) % names.length]);
  }
  function leave(): void {
    if (marks.value.size) marks.value = new Set();
    else if (filter.value) setParams({ filter: "" });
    else back();
  }

  // The keyboard's focus is in the table from the start.
  useEffect(() => {
    if (document.activeElement === document.body) document.querySelector<HTMLElement>(".table")?.focus({ preventScroll: true });
  }, []);

  const error = listing.error.value;
  const n = rows.value.length;
  const selected = targets();
  const selectedRow = selectedRows(rows.value, marks.value, active.value)[0];
  const hidden = marks.value.size && marks.value.size - selected.length;
  const all = useComputed(() => (listing.version.value, listing.rows.size));
  return (
    <section class="view" aria-label={label(kind)}>
      <div class="bar">
        <h1>
          {label(kind)}
          <span class="count" role="status">
            {listing.synced.value ? S.list.count(n, all.value) : S.list.loading(all.value, listing.remaining.value)}
          </span>
        </h1>
        <FilterBar />
        <Toolbar
          kind={kind}
          actions={actions}
          targets={selected}
          state={selectedRow ? stateOfRow((column) => cellOf(listing, selectedRow, column)) : null}
          more={more}
        />
      </div>
      {marks.value.size > 0 && <p class="note">{S.list.marked(marks.value.size, hidden)}</p>}
      {listing.trouble.value && (
        <p class="note passing">
          {visible(listing.trouble.value)}{" "}
          {listing.over.value && (
            <button type="button" onClick={() => listing.retry()}>
              {S.list.again}
            </button>
          )}
        </p>
      )}
      {error ? (
        <div class="problem" role="alert">
          <p>
            {error.code === 403
              ? S.list.forbidden(label(kind), !kind.namespaced ? "" : ns ? S.list.inside(ns) : S.list.everywhere)
              : S.list.failed}
          </p>
          <p class="faint">{visible(error.message)}</p>
          <div class="buttons start">
            <button type="button" onClick={() => listing.retry()}>
              {S.retry}
            </button>
            {(kind.namespaced || isKind(kind, "", "namespaces")) && (
              <button type="button" onClick={chooseNamespace}>
                {S.list.otherNamespace}
              </button>
            )}
          </div>
        </div>
      ) : listing.synced.value && n === 0 ? (
        <Empty text={filter.value ? noMatch(filter.value, listing, cells.value) : S.list.none(label(kind), ns)} />
      ) : (
        <Table
          label={label(kind)}
          columns={columns}
          rows={rows}
          active={active}
          marks={marks}
          sort={sort}
          setSort={(s) => setSort(sortText(s))}
          place={state}
          whole={listing.synced}
          tick={now}
          linked={isEvents ? "Object" : undefined}
          href={href}
          open={(r) => follow(href(r))}
          rowClass={(r) => (r.deleting ? "deleting" : "")}
        />
      )}
    </section>
  );
}

/** noMatch says which part of a filter no row meets. */
function noMatch(text: string, listing: Listing, cells: CellsOf): string {
  const parts = missing(parseFilter(text, cells), [...listing.rows.values()], parseFilter(text));
  return S.list.noMatch(text, parts);
}

function cellOf(listing: Listing, row: Row, column: string): string {
  return String(row.cells[listing.columns.value.findIndex((c) => c.name === column)] ?? "");
}
