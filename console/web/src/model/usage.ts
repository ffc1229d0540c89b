// SPDX-License-Identifier: Apache-2.0

// What pods, workloads and nodes use, beside what they request and may use at most: sums, shares, and the columns of
// lists.

import type { Row } from "../api/connection";
import { quantity } from "../base/quantity";
import { S } from "../base/strings";
import type { Tone } from "../base/tones";
import type { TableColumn } from "./columns";
import type { Keys } from "./order";

/** Pair is CPU in thousandths of a core, and memory in bytes. */
export type Pair = [cpu: number, memory: number];

/** Figures are a measurement, by namespace/name of pods or by names of nodes. */
export interface Figures {
  use: Record<string, Pair>;
  /** each has the containers of pods that have more than one. */
  each?: Record<string, Record<string, Pair>>;
}

/** Share is a part of something, 1 for all of it; undefined where one of both is not known. */
type Share = number | undefined;

/** Use is what something uses, as a share of its request (of a node: of what it has for pods) and of its limit. */
export interface Use {
  used: Pair;
  ofRequest: [cpu: Share, memory: Share];
  /** ofLimit is of the container that is nearest to its limit. */
  ofLimit: [cpu: Share, memory: Share];
}

/** Usage is a measurement for a list. */
export interface Usage extends Keys {
  columns(wide: boolean): TableColumn[];
}

/** NEAR is the share of a limit that is bad news: a container that reaches its memory's limit is killed. */
export const NEAR = 0.9;
/** FULL is the share of a node that is worth a look. */
export const FULL = 0.8;

const share = (part: number, of: number | undefined): Share => (of ? part / of : undefined);

/** podUse is what a pod uses; undefined while it is not measured. */
export function podUse(row: Row, figures: Figures): Use | undefined {
  const key = row.ns + "/" + row.name;
  const used = figures.use[key];
  if (!used || !row.use) return undefined;
  const [cpu, memory] = row.use;
  return {
    used,
    ofRequest: [share(used[0], cpu), share(used[1], memory)],
    ofLimit: [ofLimit(row, used, figures.each?.[key], 0), ofLimit(row, used, figures.each?.[key], 1)],
  };
}

function ofLimit(row: Row, used: Pair, each: Record<string, Pair> | undefined, i: 0 | 1): Share {
  if (!row.limits) return share(used[i], row.use![2 + i]);
  const several = Object.keys(row.limits).filter(Boolean).length > 1;
  let most: Share;
  for (const [name, limit] of Object.entries(row.limits)) {
    // Of several containers of which one is measured it is not known which.
    const part = !name || !several ? used[i] : each?.[name]?.[i];
    const s = part === undefined ? undefined : share(part, limit[i]);
    if (s !== undefined && !(most! >= s)) most = s;
  }
  return most;
}

/** nodeUse is what a node uses, as a share of what it has for pods. */
export function nodeUse(row: Row, figures: Figures): Use | undefined {
  const used = figures.use[row.name];
  if (!used || !row.use) return undefined;
  return { used, ofRequest: [share(used[0], row.use[0]), share(used[1], row.use[1])], ofLimit: [undefined, undefined] };
}

/** workloadOf is the name of the workload of a kind that has a pod. A Deployment has it by a ReplicaSet of its own. */
export function workloadOf(pod: Row, kind: string): string | undefined {
  const o = pod.owner;
  if (o?.kind === kind) return o.name;
  const hash = "-" + pod.labels?.["pod-template-hash"];
  return kind === "Deployment" && o?.kind === "ReplicaSet" && o.name.endsWith(hash) ? o.name.slice(0, -hash.length) : undefined;
}

/** workloadUse sums the pods that are measured, by namespace/name of their workloads. Their limit is the nearest one. */
export function workloadUse(pods: Iterable<Row>, figures: Figures, kind: string): Map<string, Use> {
  const out = new Map<string, Use & { requests: Pair }>();
  for (const pod of pods) {
    const name = workloadOf(pod, kind);
    const use = name && podUse(pod, figures);
    if (!use) continue;
    const key = pod.ns + "/" + name;
    let sum = out.get(key);
    if (!sum) out.set(key, (sum = { used: [0, 0], requests: [0, 0], ofRequest: [undefined, undefined], ofLimit: [undefined, undefined] }));
    for (const i of [0, 1] as const) {
      sum.used[i] += use.used[i];
      sum.requests[i] += pod.use![i];
      sum.ofRequest[i] = share(sum.used[i], sum.requests[i]);
      const s = use.ofLimit[i];
      if (s !== undefined && !(sum.ofLimit[i]! >= s)) sum.ofLimit[i] = s;
    }
  }
  return out;
}

/** pairOf reads amounts of Kubernetes; 0 is none. */
export function pairOf(list: Record<string, string> | undefined): Pair {
  return [Math.ceil((quantity(list?.cpu) || 0) * 1000 - 1e-6) || 0, quantity(list?.memory) || 0];
}

/** ContainerUse is what a container uses in all pods that are measured, and what it may use in one of them. */
export interface ContainerUse {
  name: string;
  requests: Pair;
  limits: Pair;
  use?: Use;
}

/** containerUses are those of the containers that stay: ended init containers use nothing. */
export function containerUses(spec: Record<string, any>, figures: Figures | null): ContainerUse[] {
  const containers: Record<string, any>[] = [
    ...(spec.initContainers ?? []).filter((c: Record<string, any>) => c.restartPolicy === "Always"),
    ...(spec.containers ?? []),
  ];
  return containers.map((c) => {
    const requests = pairOf(c.resources?.requests);
    const limits = pairOf(c.resources?.limits);
    const measured = Object.values(figures?.each ?? {}).flatMap((each) => (each[c.name] ? [each[c.name]] : []));
    const out: ContainerUse = { name: c.name, requests, limits };
    if (measured.length === 0) return out;
    const sum = (i: 0 | 1) => measured.reduce((n, pair) => n + pair[i], 0);
    const most = (i: 0 | 1) => Math.max(...measured.map((pair) => pair[i]));
    out.use = {
      used: [sum(0), sum(1)],
      ofRequest: [share(sum(0), requests[0] * measured.length), share(sum(1), requests[1] * measured.length)],
      ofLimit: [share(most(0), limits[0]), share(most(1), limits[1])],
    };
    return out;
  });
}

/** allocated sums what pods reserve, as kubectl describe node does. */
export function allocated(pods: Iterable<Row>): { pods: number; requests: Pair; limits: Pair } {
  const out = { pods: 0, requests: [0, 0] as Pair, limits: [0, 0] as Pair };
  for (const { use } of pods) {
    if (!use) continue;
    out.pods++;
    for (const i of [0, 1] as const) {
      out.requests[i] += use[i];
      out.limits[i] += use[2 + i];
    }
  }
  return out;
}

/** amount is written as by kubectl top. */
export function amount(pair: Pair, i: 0 | 1): string {
  return i ? Math.floor(pair[1] / 2 ** 20) + "Mi" : Math.ceil(pair[0]) + "m";
}

/** percent is cut off, as kubectl does. */
export function percent(s: Share): string {
  return s === undefined ? "" : Math.floor(s * 100 + 1e-9) + "%";
}

export function toneOfRequest(s: Share): Tone {
  return s !== undefined && s > 1 ? "passing" : "";
}

export function toneOfLimit(s: Share): Tone {
  return s !== undefined && s >= NEAR ? "bad" : "";
}

export function toneOfNode(s: Share): Tone {
  return s === undefined || s < FULL ? "" : s < NEAR ? "passing" : "bad";
}

type Field = "used" | "requests" | "limits" | "node";

/** usageFor makes the columns of a list from what its rows use. */
export function usageFor(use: (row: Row) => Use | undefined, node: boolean): Usage {
  const value = (u: Use, field: Field, i: 0 | 1): Share =>
    field === "used" ? u.used[i] : field === "limits" ? u.ofLimit[i] : u.ofRequest[i];
  const tone = (u: Use, field: Field, i: 0 | 1): Tone => {
    if (node) return toneOfNode(u.ofRequest[i]);
    return (field !== "requests" && toneOfLimit(u.ofLimit[i])) || (field !== "limits" && toneOfRequest(u.ofRequest[i])) || "";
  };
  const fields: Field[] = node ? ["used", "node"] : ["used", "requests", "limits"];
  const all = ([0, 1] as const).flatMap((i) =>
    fields.map((field) => {
      const [name, description] = S.usage.columns[field][i];
      const column: TableColumn = {
        name,
        description,
        numeric: true,
        text: (row) => {
          const u = use(row);
          return !u ? "" : field === "used" ? amount(u.used, i) : percent(value(u, field, i));
        },
        // A phone has no room for shares: the tone of what is used says enough there.
        tone: (row) => {
          const u = use(row);
          return (field === "used" ? "" : "share ") + (u ? tone(u, field, i) : "");
        },
      };
      const key = (row: Row) => {
        const u = use(row);
        return u && value(u, field, i);
      };
      return { field, column, key };
    }),
  );
  return {
    columns: (wide) => all.filter((c) => wide || c.field !== "limits").map((c) => c.column),
    key: (name) => all.find((c) => c.column.name === name)?.key,
  };
}
