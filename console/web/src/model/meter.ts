// SPDX-License-Identifier: Apache-2.0

// Measurements for a list that is shown, every 15 s while the tab is in sight.

import type { Signal } from "@preact/signals";
import { send } from "../api/client";
import { type Row, WITH_USE } from "../api/connection";
import { isKind, type Kind, kindByWord, listPath } from "../api/kinds";
import { Listing } from "./listing";
import { type Figures, nodeUse, podUse, type Usage, usageFor, workloadUse } from "./usage";

/** PERIOD is the time between two measurements, in milliseconds. Figures older than four of them are not shown. */
const PERIOD = 15_000;
const OLD = 4;

/** measure gives each measurement of pods or nodes to take, until its result is called. It ends for users who may not. */
export function measure(
  resource: "pods" | "nodes",
  namespace: string,
  take: (f: Figures) => void,
  more: Record<string, string> = {},
): () => void {
  const path = "/usage?" + new URLSearchParams({ resource, namespace, ...more });
  let timer: ReturnType<typeof setTimeout> | undefined;
  let [asked, answered] = [0, 0];
  let asking = false;
  let closed = false;
  const next = () => {
    clearTimeout(timer);
    if (!closed && !asking && !document.hidden) timer = setTimeout(ask, Math.max(0, asked + PERIOD - Date.now()));
  };
  const ask = async () => {
    asking = true;
    asked = Date.now();
    try {
      const answer = await send<Figures & { failed?: number }>("GET", path);
      if (answer.failed === 403) close();
      if (!answer.failed) answered = Date.now();
      if (!answer.failed && !closed) take(answer);
    } catch {
      // The console does not answer, which its lists say.
    }
    if (!closed && answered && Date.now() - answered > OLD * PERIOD) take({ use: {} });
    asking = false;
    next();
  };
  const close = () => {
    closed = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", next);
  };
  document.addEventListener("visibilitychange", next);
  next();
  return close;
}

/** PodUses are pods of which only what they reserve is kept. */
export class PodUses extends Listing {
  constructor(path: string, query: Record<string, string> = {}) {
    super(path, { ...query, ...WITH_USE });
  }

  protected override put(row: Row): void {
    const hash = row.labels?.["pod-template-hash"];
    super.put({ ...row, cells: [], labels: hash ? { "pod-template-hash": hash } : undefined });
  }
}

/** follow measures what a list shows. The pods of a list of pods have what they reserve by WITH_USE. */
export function follow(kind: Kind, ns: string, usage: Signal<Usage | null>): () => void {
  if (isKind(kind, "", "nodes")) return measure("nodes", "", (f) => (usage.value = usageFor((row) => nodeUse(row, f), true)));
  if (isKind(kind, "", "pods")) return measure("pods", ns, (f) => (usage.value = usageFor((row) => podUse(row, f), false)));
  const pods = new PodUses(listPath(kindByWord("pods")!, ns));
  let figures: Figures | undefined;
  const draw = () => {
    if (!figures || !pods.synced.peek()) return;
    const uses = workloadUse(pods.rows.values(), figures, kind.kind);
    usage.value = usageFor((row) => uses.get(row.ns + "/" + row.name), false);
  };
  const end = pods.synced.subscribe(draw);
  const close = measure("pods", ns, (f) => {
    figures = f;
    draw();
  });
  return () => {
    close();
    end();
    pods.close();
  };
}
