// SPDX-License-Identifier: Apache-2.0

// What stands between a name and its pods, as a graph in columns: Ingresses and routes, Services, endpoint slices or
// the sets of a workload, pods, nodes. It is made of what the lists say, and draws nothing.

import type { Row } from "../api/connection";
import { type Kind, kindByWord } from "../api/kinds";
import type { Listing } from "./listing";
import { columnOf } from "./problems";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { type Tone, toneOfStatus } from "../base/tones";

type Obj = Record<string, any>;

export interface Spot {
  id: string;
  kind: Kind | undefined;
  /** word says what it is, when the cluster has no kind for it. */
  word: string;
  ns: string;
  name: string;
  state: string;
  tone: Tone;
  column: number;
}

export interface Edge {
  from: string;
  to: string;
  tone: Tone;
}

export interface Graph {
  spots: Spot[];
  edges: Edge[];
  /** hidden counts the pods that are not drawn. */
  hidden: number;
}

/** PODS is how many pods are drawn. */
const PODS = 100;

export interface Sources {
  pods: Listing;
  nodes: Listing | null;
  slices: Obj[];
  services: Listing | null;
  sets: Listing | null;
  ingresses: Obj[];
  routes: Obj[];
}

class Builder {
  readonly spots = new Map<string, Spot>();
  readonly edges = new Map<string, Edge>();
  hidden = 0;

  add(column: number, word: string, ns: string, name: string, state: string, tone: Tone): string {
    const kind = kindByWord(word);
    const id = word + "/" + name;
    this.spots.set(id, { id, kind, word: kind?.kind ?? word, ns: kind && !kind.namespaced ? "" : ns, name, state, tone, column });
    return id;
  }

  join(from: string, to: string, tone: Tone = ""): void {
    this.edges.set(from + " " + to, { from, to, tone });
  }

  graph(): Graph {
    // Columns without anything are left out.
    const used = [...new Set([...this.spots.values()].map((s) => s.column))].sort((a, b) => a - b);
    for (const s of this.spots.values()) s.column = used.indexOf(s.column);
    const edges = [...this.edges.values()].filter((e) => this.spots.has(e.from) && this.spots.has(e.to));
    return { spots: arranged([...this.spots.values()], edges), edges, hidden: this.hidden };
  }
}

/** arranged orders each column by where what leads to it stands, so that few lines cross. */
function arranged(spots: Spot[], edges: Edge[]): Spot[] {
  const sources = new Map<string, string[]>();
  for (const e of edges) sources.set(e.to, [...(sources.get(e.to) ?? []), e.from]);
  const at = new Map<string, number>();
  const out: Spot[] = [];
  for (let column = 0; out.length < spots.length; column++) {
    const mean = (s: Spot): number => {
      const from = (sources.get(s.id) ?? []).map((id) => at.get(id) ?? 0);
      return from.length ? from.reduce((a, b) => a + b, 0) / from.length : Infinity;
    };
    const here = spots
      .filter((s) => s.column === column)
      .map((s) => [mean(s), s] as const)
      .sort((a, b) => (a[0] === b[0] ? (a[1].id < b[1].id ? -1 : 1) : a[0] - b[0]));
    here.forEach(([, s], i) => at.set(s.id, (i + 0.5) / here.length));
    out.push(...here.map(([, s]) => s));
  }
  return out;
}

function cellOf(l: Listing, row: Row, column: string): string {
  const at = columnOf(l, column);
  return at < 0 ? "" : String(row.cells[at] ?? "");
}

/** podsOf adds the pods of a listing and their nodes, from a column on, and says which are drawn. */
function podsOf(b: Builder, s: Sources, ns: string, column: number, match: (r: Row) => boolean): Row[] {
  const all = [...s.pods.rows.values()].filter(match).sort((x, y) => (x.name < y.name ? -1 : 1));
  b.hidden = Math.max(0, all.length - PODS);
  const nodes = new Map(s.nodes ? [...s.nodes.rows.values()].map((r) => [r.name, r]) : []);
  for (const row of all.slice(0, PODS)) {
    const status = cellOf(s.pods, row, "Status");
    const ready = cellOf(s.pods, row, "Ready");
    const [have, want] = ready.split("/");
    const tone = status === "Running" && have !== want ? "passing" : toneOfStatus(status);
    const pod = b.add(
      column,
      "pods",
      ns,
      row.name,
      M.map.pod(row.deleting ? "Terminating" : status, ready),
      row.deleting ? "passing" : tone,
    );
    const name = cellOf(s.pods, row, "Node");
    if (!name || name === "<none>") continue;
    const node = nodes.get(name);
    const text = node && s.nodes ? cellOf(s.nodes, node, "Status") : "";
    b.join(
      pod,
      b.add(column + 1, "nodes", "", name, text, !text ? "" : /^Ready$/.test(text) ? "good" : text.startsWith("Ready") ? "passing" : "bad"),
    );
  }
  return all.slice(0, PODS);
}

/** frontsOf adds the Ingresses and routes that lead to one of some Services. */
function frontsOf(b: Builder, s: Sources, ns: string, column: number, services: Set<string>): void {
  const lead = (from: string, name: unknown) => typeof name === "string" && services.has(name) && b.join(from, "services/" + name);
  for (const o of s.ingresses) {
    const backends = [
      o.spec?.defaultBackend,
      ...(o.spec?.rules ?? []).flatMap((r: Obj) => (r.http?.paths ?? []).map((p: Obj) => p.backend)),
    ];
    const names: string[] = backends
      .map((x: Obj | undefined) => x?.service?.name)
      .filter((n: unknown) => typeof n === "string" && services.has(n));
    if (!names.length) continue;
    const hosts = (o.spec?.rules ?? []).map((r: Obj) => r.host ?? "*").join(", ");
    const id = b.add(column, "ingresses", ns, o.metadata.name, hosts, "");
    names.forEach((n) => lead(id, n));
  }
  for (const o of s.routes) {
    const refs: Obj[] = (o.spec?.rules ?? []).flatMap((r: Obj) => r.backendRefs ?? []);
    const names = refs
      .filter((r) => (r.kind ?? "Service") === "Service" && (r.namespace ?? ns) === ns && services.has(r.name))
      .map((r) => r.name);
    if (!names.length) continue;
    const id = b.add(column, "httproutes", ns, o.metadata.name, (o.spec?.hostnames ?? []).join(", "), "");
    names.forEach((n) => lead(id, n));
  }
}

/** ofService is the map of one Service. */
export function ofService(o: Obj, s: Sources): Graph {
  const b = new Builder();
  const ns: string = o.metadata.namespace;
  const name: string = o.metadata.name;
  let ready = 0;
  const service = b.add(1, "services", ns, name, "", "");
  frontsOf(b, s, ns, 0, new Set([name]));
  const drawn = new Set(podsOf(b, s, ns, 3, () => true).map((r) => r.name));
  for (const slice of s.slices) {
    const endpoints: Obj[] = slice.endpoints ?? [];
    const good = endpoints.filter((e) => e.conditions?.ready !== false);
    ready += good.length;
    const id = b.add(
      2,
      "endpointslices",
      ns,
      slice.metadata.name,
      M.map.ready(good.length, endpoints.length),
      good.length === endpoints.length ? "good" : "passing",
    );
    b.join(service, id, good.length ? "good" : "bad");
    for (const e of endpoints) {
      const tone: Tone = e.conditions?.ready === false ? "passing" : "good";
      if (e.targetRef?.kind === "Pod") {
        if (drawn.has(e.targetRef.name)) b.join(id, "pods/" + e.targetRef.name, tone);
      } else {
        for (const address of e.addresses ?? [])
          b.join(id, b.add(3, M.map.address, ns, address, tone === "good" ? "" : S.fact.notReady, tone), tone);
      }
    }
  }
  const at = b.spots.get(service)!;
  if (o.spec?.type === "ExternalName") at.state = M.map.leads(o.spec.externalName);
  else [at.state, at.tone] = ready ? [M.map.endpoints(ready), "good"] : [M.map.noEndpoints, "bad"];
  return b.graph();
}

/** ofWorkload is the map of a workload: its sets, pods and nodes, and what leads to its pods. */
export function ofWorkload(k: Kind, o: Obj, s: Sources): Graph {
  const b = new Builder();
  const ns: string = o.metadata.namespace;
  const name: string = o.metadata.name;
  const want = o.spec?.replicas ?? o.status?.desiredNumberScheduled ?? 0;
  const have = o.status?.readyReplicas ?? o.status?.numberReady ?? 0;
  const workload = b.add(0, k.resource, ns, name, M.map.ready(have, want), have >= want ? "good" : "bad");
  const sets = new Set<string>();
  for (const row of s.sets?.rows.values() ?? []) {
    const wanted = Number(cellOf(s.sets!, row, "Desired"));
    if (row.owner?.name !== name || row.owner.kind !== k.kind || !(wanted > 0 || Number(cellOf(s.sets!, row, "Current")) > 0)) continue;
    const good = Number(cellOf(s.sets!, row, "Ready"));
    sets.add(row.name);
    b.join(workload, b.add(1, "replicasets", ns, row.name, M.map.ready(good, wanted), good >= wanted ? "good" : "passing"));
  }
  const owned = (r: Row) =>
    s.sets ? r.owner?.kind === "ReplicaSet" && sets.has(r.owner.name) : r.owner?.kind === k.kind && r.owner.name === name;
  const pods = podsOf(b, s, ns, 2, owned);
  for (const r of pods) b.join(s.sets ? "replicasets/" + r.owner!.name : workload, "pods/" + r.name);
  const services = new Set<string>();
  for (const row of s.services?.rows.values() ?? []) {
    const selector = pairsOf(cellOf(s.services!, row, "Selector"));
    const selected = selector.length ? pods.filter((r) => selector.every(([key, value]) => r.labels?.[key] === value)) : [];
    if (!selected.length) continue;
    services.add(row.name);
    const id = b.add(1, "services", ns, row.name, cellOf(s.services!, row, "Type"), "");
    for (const r of selected) b.join(id, "pods/" + r.name);
  }
  frontsOf(b, s, ns, 0, services);
  return b.graph();
}

/** pairsOf reads a selector as the server prints it. */
function pairsOf(text: string): [string, string][] {
  if (!text || text === "<none>") return [];
  return text
    .split(",")
    .map((p) => p.split("=", 2) as [string, string])
    .filter((p) => p.length === 2);
}
