// SPDX-License-Identifier: Apache-2.0

// The map of a Service or workload: as a graph whose boxes are links, and as a list, which is all that a narrow window
// has. Both follow what changes.

import { useComputed } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { useKeys } from "../base/keys";
import { type Kind, kindById, kindByWord, kinds, label, listPath, objectPath } from "../api/kinds";
import { Listing } from "../model/listing";
import { type Graph, ofService, ofWorkload, type Spot } from "../model/map";
import { hasMap } from "../model/mapped";
import { back, format, hrefOf, route } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { Empty } from "../widgets/table";
import { visible } from "../base/text";
import { useWholeList } from "../model/wholelist";
import { useObject } from "../model/useobject";
import { selectorText } from "../model/selector";

const WIDTH = 186;
const GAP = 36;
const HEIGHT = 52;
const STEP = 64;

export function MapView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k || !hasMap(k)) return kinds.value.length ? <Empty text={M.map.noMap(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return <MapOf key={k.id + r.ns + "/" + r.name} kind={k} ns={r.ns} name={r.name} />;
}

function MapOf({ kind, ns, name }: { kind: Kind; ns: string; name: string }) {
  const state = useObject(objectPath(kind, ns, name));
  const { object, error, deleted, trouble } = state.value;
  useKeys([
    { key: "j ArrowDown", label: S.keys.down, run: () => move(0, 1), hint: true },
    { key: "k ArrowUp", label: S.keys.up, run: () => move(0, -1), hint: true },
    { key: "ArrowRight", label: M.map.right, run: () => move(1, 0) },
    { key: "ArrowLeft", label: M.map.left, run: () => move(-1, 0) },
    { key: "d", label: S.keys.details, run: () => (location.hash = hrefOf(kind, { ns, name })), hint: true },
    { key: "Escape", label: S.keys.back, run: back, hint: true },
  ]);
  return (
    <section class="view" aria-label={M.map.of(name)}>
      <div class="bar">
        <h1>
          {M.map.title}{" "}
          <a href={hrefOf(kind, { ns, name })}>
            {label(kind)} {visible(ns)}/<span class="name">{visible(name)}</span>
          </a>
        </h1>
      </div>
      {deleted && (
        <p class="note passing" role="status">
          {S.object.deleted}
        </p>
      )}
      {trouble && <p class="note passing">{visible(trouble)}</p>}
      {error && (
        <div class="problem" role="alert">
          <p>{visible(error)}</p>
        </div>
      )}
      {!object && !error && <p class="empty">{S.loading}</p>}
      {object && <Drawn key={object.metadata.uid + selectorOf(object)} kind={kind} ns={ns} object={state} />}
    </section>
  );
}

function selectorOf(o: Record<string, any>): string {
  return selectorText(o.spec?.selector ?? undefined);
}

function Drawn({ kind, ns, object }: { kind: Kind; ns: string; object: ReturnType<typeof useObject> }) {
  const service = kind.resource === "services";
  const selector = selectorOf(object.value.object!);
  const lists = useMemo(() => {
    const open = (word: string, at: string, query?: Record<string, string>): Listing | null => {
      const k = kindByWord(word);
      return k ? new Listing(listPath(k, at), query) : null;
    };
    return {
      // Nothing has this label: a Service without a selector has no pods of its own.
      pods: open("pods", ns, { labelSelector: selector || "coracle.dev/none" })!,
      nodes: open("nodes", ""),
      services: service ? null : open("services", ns),
      sets: kind.resource === "deployments" ? open("replicasets", ns, { labelSelector: selector }) : null,
    };
  }, []);
  useEffect(() => () => Object.values(lists).forEach((l) => l?.close()), []);
  const slices = useWholeList(service ? kindByWord("endpointslices") : undefined, ns, {
    labelSelector: "kubernetes.io/service-name=" + object.value.object!.metadata.name,
  });
  const ingresses = useWholeList(kindByWord("ingresses.networking.k8s.io"), ns);
  const routes = useWholeList(kindByWord("httproutes.gateway.networking.k8s.io"), ns);
  const graph = useComputed(() => {
    for (const l of Object.values(lists)) l?.version.value;
    const sources = {
      ...lists,
      slices: slices.value.value ?? [],
      ingresses: ingresses.value.value ?? [],
      routes: routes.value.value ?? [],
    };
    const o = object.value.object!;
    return service ? ofService(o, sources) : ofWorkload(kind, o, sources);
  });
  const g = graph.value;
  const wrong = lists.pods.error.value;
  return (
    <div class="pane scroll">
      {wrong && (
        <p class="bad" role="alert">
          {visible(wrong.message)}
        </p>
      )}
      <Picture graph={g} />
      {g.hidden > 0 && <p class="faint">{M.map.hidden(g.hidden)}</p>}
      <AsList graph={g} />
    </div>
  );
}

function hrefOfSpot(s: Spot): string | undefined {
  return s.kind && format({ view: "object", kind: s.kind.id, ns: s.ns, name: s.name });
}

/** ROOM is how many letters a line of a box has room for. */
const ROOM = 27;

/** cut leaves out the middle of a text that is too long: names of pods differ at their ends. */
function cut(text: string): string {
  const shown = visible(text);
  return shown.length > ROOM ? shown.slice(0, ROOM - 10) + "…" + shown.slice(-9) : shown;
}

function Picture({ graph: g }: { graph: Graph }) {
  const columns: Spot[][] = [];
  for (const s of g.spots) (columns[s.column] ??= []).push(s);
  const rows = Math.max(1, ...columns.map((c) => c.length));
  const height = rows * STEP;
  const at = new Map<string, { x: number; y: number }>();
  columns.forEach((c, x) => c.forEach((s, i) => at.set(s.id, { x: x * (WIDTH + GAP), y: (height / c.length) * (i + 0.5) })));
  const width = columns.length * (WIDTH + GAP) - GAP;
  return (
    <div class="map" tabIndex={-1}>
      <svg width={width} height={height} role="group" aria-label={M.map.title}>
        <g aria-hidden="true">
          {g.edges.map((e) => {
            const a = at.get(e.from)!;
            const b = at.get(e.to)!;
            const x = a.x + WIDTH;
            const middle = (x + b.x) / 2;
            return (
              <path key={e.from + " " + e.to} class={"edge " + e.tone} d={`M${x} ${a.y}C${middle} ${a.y} ${middle} ${b.y} ${b.x} ${b.y}`} />
            );
          })}
        </g>
        {g.spots.map((s) => {
          const p = at.get(s.id)!;
          const href = hrefOfSpot(s);
          const box = (
            <g transform={`translate(${p.x} ${p.y - HEIGHT / 2})`}>
              <rect class={"box " + s.tone} width={WIDTH} height={HEIGHT} rx={5} />
              <text x={9} y={15} class="word">
                {cut(s.word)}
              </text>
              <text x={9} y={30}>
                {cut(s.name)}
              </text>
              <text x={9} y={45} class={"state " + s.tone}>
                {cut(s.state)}
              </text>
              <title>{visible(`${s.word} ${s.name}: ${s.state}`)}</title>
            </g>
          );
          return href ? (
            <a key={s.id} href={href} data-column={s.column}>
              {box}
            </a>
          ) : (
            <g key={s.id}>{box}</g>
          );
        })}
      </svg>
    </div>
  );
}

/** move goes to the next box in a column, or to the nearest one of another column. */
function move(columns: number, rows: number): void {
  const all = [...document.querySelectorAll<SVGAElement>(".map a")];
  const now = document.activeElement as SVGAElement | null;
  const i = now ? all.indexOf(now) : -1;
  if (i < 0) return all[0]?.focus();
  const column = Number(all[i].dataset.column);
  const inside = all.filter((a) => Number(a.dataset.column) === column + columns);
  if (rows) return inside[Math.min(inside.length - 1, Math.max(0, inside.indexOf(all[i]) + rows))]?.focus();
  const y = (a: SVGAElement) => a.getBoundingClientRect().top;
  inside.sort((a, b) => Math.abs(y(a) - y(all[i])) - Math.abs(y(b) - y(all[i])))[0]?.focus();
}

function AsList({ graph: g }: { graph: Graph }) {
  const names = new Map(g.spots.map((s) => [s.id, s]));
  return (
    <section class="related" aria-label={M.map.list}>
      <h2>{M.map.list}</h2>
      <table class="plain stack">
        <thead>
          <tr>
            {M.map.columns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {g.spots.map((s) => {
            const to = g.edges.filter((e) => e.from === s.id).map((e) => names.get(e.to)!);
            const href = hrefOfSpot(s);
            return (
              <tr key={s.id}>
                <td>{visible(s.word)}</td>
                <td>{href ? <a href={href}>{visible(s.name)}</a> : visible(s.name)}</td>
                <td class={s.tone}>{visible(s.state)}</td>
                <td>{to.length > 0 && "→ " + to.map((t) => visible(t.name)).join(", ")}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}
